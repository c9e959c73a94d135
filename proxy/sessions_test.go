package proxy_test

import (
	"strings"
	"testing"

	"holdfast/proxy"
)

// What is told of a session is what a change of primary does to it.
func TestSessionsTellWhatSurvives(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.JournalBytesMax = 4096 })
	plain, temp, large := r.connect("application_name=plain"), r.connect("application_name=temp"),
		r.connect("application_name=large")
	exec(t, plain, "SET work_mem = '5MB'")
	exec(t, temp, "CREATE TEMP TABLE mine (a int)")
	exec(t, large, "BEGIN")
	exec(t, large, "SELECT 1 /* "+strings.Repeat("x", 8000)+" */")
	of := map[string]proxy.SessionInfo{}
	for _, s := range r.proxy.Sessions() {
		of[s.Application] = s
	}
	if s := of["plain"]; !s.Survives || s.State != "idle" || s.User != "app" || s.PID == 0 {
		t.Errorf("%+v", s)
	}
	if s := of["temp"]; s.Survives || !s.Planned ||
		!strings.HasPrefix(s.Why, "temporary tables, 0 kB when") ||
		s.Statement != "CREATE TEMP TABLE mine (a int)" {
		t.Errorf("%+v", s)
	}
	if s := of["large"]; s.Survives || s.State != "idle in transaction" ||
		!strings.Contains(s.Why, "journal_bytes_max") {
		t.Errorf("%+v", s)
	}
	exec(t, temp, "CREATE TEMP VIEW seen AS SELECT 1 AS a")
	if s := r.sessionOf("temp"); s.Survives || s.Planned || s.Why != "temporary table (view seen)" {
		t.Errorf("%+v", s)
	}
	exec(t, temp, "DROP VIEW seen")
	exec(t, temp, "INSERT INTO mine SELECT generate_series(1, 1000)")
	exec(t, temp, "ALTER TABLE mine ADD b int")
	if s := r.sessionOf("temp"); !s.Planned ||
		!strings.HasPrefix(s.Why, "temporary tables, 64 kB when") {
		t.Errorf("%+v", s)
	}
	exec(t, plain, "CREATE TEMP TABLE gone (a int)")
	exec(t, plain, "DROP TABLE gone")
	if s := r.sessionOf("plain"); !s.Survives {
		t.Errorf("%+v", s)
	}
	r.change()
	if got := exec(t, plain, "SHOW work_mem"); got != "5MB" {
		t.Errorf("the one that survives has %s", got)
	}
	if _, err := tryExec(temp, "SELECT 1"); code(err) != "57P01" {
		t.Errorf("the one with a temporary table: %v", err)
	}
	if _, err := tryExec(large, "SELECT 1"); code(err) != "40001" {
		t.Errorf("the one with a large transaction: %v", err)
	}
}

// sessionOf is what is told of the session of that application.
func (r *rig) sessionOf(application string) proxy.SessionInfo {
	r.t.Helper()
	for _, s := range r.proxy.Sessions() {
		if s.Application == application {
			return s
		}
	}
	r.t.Fatalf("no session of %s", application)
	return proxy.SessionInfo{}
}
