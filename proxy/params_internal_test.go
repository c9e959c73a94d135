package proxy

import (
	"testing"
	"time"

	"holdfast/pgwire"
)

func TestParamsAreSharedAndTheOwnersOwn(t *testing.T) {
	var lists paramLists
	make := func(app string) *paramSet {
		s := &paramSet{}
		s.set("server_version", "15")
		s.set("application_name", app)
		lists.share(s)
		return s
	}
	a, b, other := make("app"), make("app"), make("other")
	if &a.list[0] != &b.list[0] {
		t.Error("two sessions that were told the same have a list each")
	}
	if &a.list[0] == &other.list[0] {
		t.Error("sessions that were told otherwise share a list")
	}
	a.set("application_name", "renamed")
	a.set("TimeZone", "UTC")
	if v := a.value("application_name"); v != "renamed" {
		t.Errorf("set: %q", v)
	}
	if v := b.value("application_name"); v != "app" || len(b.list) != 2 {
		t.Errorf("another session has %q after that", v)
	}
	for i := range 3 * sharedParamsMax {
		make(time.Duration(i).String())
	}
	if len(lists.lists) != sharedParamsMax {
		t.Errorf("%d lists are kept", len(lists.lists))
	}
	if _, ok := (&paramSet{list: []pgwire.Param{}}).get("none"); ok {
		t.Error("a parameter that was never reported is there")
	}
}

func TestMemoryIsGivenBackOncePerWave(t *testing.T) {
	p := &Proxy{}
	now := time.Now()
	look := func(want uint64, what string) {
		t.Helper()
		if p.trim(now); p.trimmed != want {
			t.Errorf("%s: trimmed after %d logins, not %d", what, p.trimmed, want)
		}
		now = now.Add(trimQuiet)
	}
	p.logins.Store(trimAfter)
	look(0, "the wave may go on")
	now = now.Add(-time.Second)
	look(0, "it has not been quiet for long")
	look(trimAfter, "the wave is over")
	p.logins.Add(trimAfter - 1)
	look(trimAfter, "a smaller one")
	look(trimAfter, "a smaller one is not worth it")
}
