package config_test

import (
	"reflect"
	"testing"
	"time"

	"holdfast/config"
)

func TestDiffTellsWhatCanBeReloaded(t *testing.T) {
	before, after := config.Default(), config.Default()
	if d := config.Diff(before, after); len(d) != 0 {
		t.Errorf("equal trees differ: %v", d)
	}
	after.Log.Level = "debug"
	after.Proxy.HoldTimeout = time.Second
	after.Proxy.Listen = []string{"127.0.0.1:1"}
	after.Postgres.Settings = []string{"a.password = 'hunter2'"}
	want := []config.Change{
		{Key: "postgres.settings", Old: "[]", New: "[a.password = ***]"},
		{Key: "proxy.listen", Old: "[127.0.0.1:6432]", New: "[127.0.0.1:1]"},
		{Key: "proxy.hold_timeout", Old: "1m0s", New: "1s", Reloadable: true},
		{Key: "log.level", Old: "info", New: "debug", Reloadable: true},
	}
	if got := config.Diff(before, after); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestReloadTakesOnlyWhatItMay(t *testing.T) {
	before, after := config.Default(), config.Default()
	after.Log.Level = "debug"
	after.Proxy.HoldSessionsMax = 7
	after.DataDir = "/elsewhere"
	got := config.Reload(before, after)
	if got.Log.Level != "debug" || got.Proxy.HoldSessionsMax != 7 {
		t.Errorf("reloadable values were not taken: %+v", got)
	}
	if got.DataDir != before.DataDir {
		t.Errorf("data_dir became %s while running", got.DataDir)
	}
	for _, c := range config.Diff(got, after) {
		if c.Reloadable {
			t.Errorf("%s was left behind", c.Key)
		}
	}
}
