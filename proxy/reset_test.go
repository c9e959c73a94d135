package proxy_test

import (
	"strings"
	"testing"
)

// TestKnownSettersInFlight cuts the connection at every message of a client that sets by set_config
// what others set by SET, as row policies and PostgREST want it, or runs EXECUTE: it sees no error,
// not even at the COMMIT of a transaction that has only read, nor where the server could not be
// asked what was set (DESIGN.md I16, I20).
func TestKnownSettersInFlight(t *testing.T) {
	sc := &script{name: "set_config", steps: []scriptStep{
		q("SELECT set_config('app.me', 'one', false)"), q("SHOW app.me"),
		x("SELECT set_config('app.me', 'two', false)"), x("SHOW app.me"),
		q("BEGIN"), q("SELECT set_config('app.me', 'three', true)"), q("SELECT count(*) FROM t"),
		q("SHOW app.me"), q("COMMIT"), q("SHOW app.me"),
		x("BEGIN"), x("SELECT set_config('app.me', 'four', false)"), x("SELECT count(*) FROM t"),
		x("COMMIT"), x("SHOW app.me"),
		q("PREPARE ins(int) AS INSERT INTO t VALUES ($1, 'p')"), q("EXECUTE ins(1)"),
		q("BEGIN"), q("EXECUTE ins(2)"), q("COMMIT"), x("EXECUTE ins(3)"),
	}}
	cutAtEach(t, sc)
}

// TestPoolResetInFlight does the same with what pools send between two users: asyncpg a string of
// statements, others RESET ALL or DISCARD ALL.
func TestPoolResetInFlight(t *testing.T) {
	// A custom setting that was reset is empty in its backend, and not there in another one.
	const me = "SELECT coalesce(current_setting('app.me', true), '')"
	const asyncpg = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;"
	cutAtEach(t, &script{name: "pool resets", steps: []scriptStep{
		q("SET app.me = 'one'"), q("LISTEN a"), q("SELECT pg_advisory_lock(7)"), q(asyncpg),
		q(me), q("SELECT pg_advisory_unlock(7)"),
		q("SELECT count(*) FROM pg_listening_channels()"),
		q("SET app.me = 'two'"), q("LISTEN a"), q("DISCARD ALL"),
		q(me), q("SET app.me = 'three'"), q("RESET ALL"),
		q(me),
	}})
}

// cutAtEach has the conversation with a cut at each of its messages, in both directions.
func cutAtEach(t *testing.T, sc *script) {
	t.Helper()
	s := newStage(t, nil)
	hits := 0
	for _, toward := range []bool{true, false} {
		want := s.run(sc, faultCut, -1, toward)
		if strings.Contains(strings.Join(want.seen, " "), "gone") {
			t.Fatalf("%s", want.seen)
		}
		for at := range want.sent {
			if testing.Short() && at%5 != 0 {
				continue
			}
			got := s.run(sc, faultCut, at, toward)
			if got.hit {
				hits++
			}
			if diff := sc.judge(want, got); diff != "" {
				t.Errorf("cut at %d of %d, to the server %v: %s", at, want.sent, toward, diff)
			}
		}
	}
	if hits == 0 {
		t.Error("nothing was cut")
	}
}
