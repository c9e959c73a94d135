package proxy_test

import (
	"context"
	"testing"
	"time"

	"holdfast/proxy"
)

// statement_timeout is the server's: the time for which a statement is held does not count, and one
// that was lost and is run again has all of it once more (docs/operations.md).
func TestStatementTimeoutIsNotOfTheHold(t *testing.T) {
	const timeout = "SET statement_timeout = '1s'"
	r := newRig(t, func(c *proxy.Config) {
		c.HoldTimeout, c.HoldNoticeAfter = time.Hour, 1500*time.Millisecond
	})
	c, notices := r.connectNoticed("")
	working, others := r.connectNoticed("")
	slow, late := r.connectNoticed("")
	for _, s := range []string{timeout, "SHOW statement_timeout"} {
		exec(t, c, s)
		exec(t, working, s)
		exec(t, slow, s)
	}
	inFlight := start(working, "SELECT 'again' FROM pg_sleep(0.3)")
	r.eventually(func() bool { return r.sleepers() == "1" }, "the server works on it")
	r.unavailable()
	done := held(t, c, notices, "SELECT 1") // the NOTICE comes after statement_timeout
	tooSlow := held(t, slow, late, "SELECT pg_sleep(20)")
	select {
	case <-others:
	case err := <-inFlight:
		t.Fatalf("what was in flight was not held: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("what was in flight is not told that it waits")
	}
	for _, d := range []<-chan error{done, tooSlow, inFlight} {
		select {
		case err := <-d:
			t.Fatalf("not held on: %v", err)
		default:
		}
	}
	r.lead(1<<40, 1<<40)
	if err := <-done; err != nil {
		t.Errorf("held longer than statement_timeout: %v", err)
	}
	if err := <-inFlight; err != nil {
		t.Errorf("run again behind a hold longer than statement_timeout: %v", err)
	}
	if err := <-tooSlow; code(err) != "57014" {
		t.Errorf("what runs for longer on the server: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := c.ExecParams(ctx, "SELECT pg_sleep(20)", nil, nil, nil, nil).Read().Err
	if code(err) != "57014" {
		t.Errorf("extended, at the new primary: %v", err)
	}
	r.evictions(0, 0, 0)
}
