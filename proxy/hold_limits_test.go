package proxy_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/proxy"
)

// connectNoticed is a client that passes on what it is told by a NOTICE.
func (r *rig) connectNoticed(options string) (*pgconn.PgConn, <-chan string) {
	r.t.Helper()
	cfg, err := pgconn.ParseConfig(r.dsn(options))
	if err != nil {
		r.t.Fatal(err)
	}
	notices := make(chan string, 100)
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notices <- n.Message }
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := dialConfig(ctx, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { closeConn(c) })
	return c, notices
}

// held is a statement that waits for a primary: it has been told so.
func held(t *testing.T, c *pgconn.PgConn, notices <-chan string, sql string) <-chan error {
	t.Helper()
	done := start(c, sql)
	select {
	case n := <-notices:
		if n != "waiting for a primary" {
			t.Fatalf("%s: told %q", sql, n)
		}
	case err := <-done:
		t.Fatalf("%s: answered although it had to wait: %v", sql, err)
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: not told that it waits", sql)
	}
	return done
}

// unavailable leaves the proxy without a primary.
func (r *rig) unavailable() {
	r.topo.Set(nil)
	r.proxy.Cut(r.epoch)
}

// evictions checks how many holds ended with an error, by reason.
func (r *rig) evictions(sessions, timeout, canceled float64) {
	r.t.Helper()
	for reason, want := range map[string]float64{
		"sessions": sessions, "timeout": timeout, "canceled": canceled,
	} {
		if n := r.count("hold_evictions_total", reason); n != want {
			r.t.Errorf("%v holds ended by %s, want %v", n, reason, want)
		}
	}
}

// One session more than hold_sessions_max is told at once and stays: the one that was first is held
// on, and its place is free once it is served.
func TestHeldSessionsAreBounded(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.HoldSessionsMax, c.HoldTimeout, c.HoldNoticeAfter = 1, time.Hour, time.Millisecond
	})
	first, notices := r.connectNoticed("")
	second, others := r.connectNoticed("")
	exec(t, second, "SET work_mem = '5MB'")
	r.unavailable()
	done := held(t, first, notices, "SELECT 1")
	_, err := tryExec(second, "SELECT 2")
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || pe.Code != "40001" || pe.Severity != "ERROR" ||
		!strings.HasPrefix(pe.Message, "too many sessions are waiting") || second.TxStatus() != 'I' {
		t.Errorf("the second one: %v, status %c", err, second.TxStatus())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if got := code(second.ExecParams(ctx, "SELECT 3", nil, nil, nil, nil).Read().Err); got != "40001" {
		t.Errorf("the second one, extended: %s", got)
	}
	select {
	case err := <-done:
		t.Fatalf("the first one was not held on: %v", err)
	default:
	}
	r.evictions(2, 0, 0)
	r.lead(1<<40, 1<<40)
	if err := <-done; err != nil {
		t.Errorf("the first one: %v", err)
	}
	if v := exec(t, second, "SHOW work_mem"); v != "5MB" {
		t.Errorf("the second one goes on with work_mem = %s", v)
	}
	// The other way round.
	r.unavailable()
	done = held(t, second, others, "SELECT 4")
	wantCode(t, first, "SELECT 5", "40001")
	r.evictions(3, 0, 0)
	r.lead(1<<40, 1<<40)
	if err := <-done; err != nil {
		t.Errorf("the second one, held: %v", err)
	}
	exec(t, first, "SELECT 6")
	r.evictions(3, 0, 0)
}

// What has waited too long, and what is canceled while it waits, counts too, gives its place back,
// and leaves the session.
func TestHoldsThatEndAreCounted(t *testing.T) {
	for reason, tc := range map[string]struct {
		timeout time.Duration
		cancel  bool
		code    string
		counted [3]float64
	}{
		"timeout":  {2 * time.Second, false, "40001", [3]float64{0, 2, 0}},
		"canceled": {time.Hour, true, "57014", [3]float64{0, 0, 2}},
	} {
		t.Run(reason, func(t *testing.T) {
			r := newRig(t, func(c *proxy.Config) {
				c.HoldSessionsMax, c.HoldTimeout = 1, tc.timeout
				c.HoldNoticeAfter = time.Millisecond
			})
			for _, sql := range []string{"SELECT 1", "SELECT 2"} {
				c, notices := r.connectNoticed("")
				exec(t, c, "SET work_mem = '5MB'")
				r.unavailable()
				done := held(t, c, notices, sql)
				if tc.cancel {
					if err := c.CancelRequest(context.Background()); err != nil {
						t.Fatal(err)
					}
				}
				if err := <-done; code(err) != tc.code || c.IsClosed() || c.TxStatus() != 'I' {
					t.Errorf("%s: %v, closed %v, status %c", sql, err, c.IsClosed(), c.TxStatus())
				}
				r.lead(1<<40, 1<<40)
				if v := exec(t, c, "SHOW work_mem"); v != "5MB" {
					t.Errorf("%s: the session goes on with work_mem = %s", sql, v)
				}
			}
			r.evictions(tc.counted[0], tc.counted[1], tc.counted[2])
		})
	}
}

// What a server was working on when it was lost is told as unknown by the bounds of a hold too,
// and what was surely not executed as that.
func TestHoldLimitsGuessNothing(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.HoldSessionsMax, c.HoldTimeout, c.HoldNoticeAfter = 1, time.Hour, time.Millisecond
		c.CommitGuard = proxy.GuardExplicit
	})
	first, notices := r.connectNoticed("")
	writer, block := r.connect(""), r.connect("")
	exec(t, writer, "CREATE TABLE t (a int)")
	exec(t, block, "BEGIN")
	exec(t, block, "SELECT 1")
	done, end := r.heldInsert(writer)
	r.topo.Set(nil)
	r.line.Watch(func(_ byte, body []byte) bool { // the others keep their backends for now
		return !strings.HasPrefix(string(body), "SELECT 'first'")
	}, nil)
	waits := held(t, first, notices, "SELECT 'first'")
	r.line.Watch(nil, nil)
	r.proxy.Cut(r.epoch)
	end()
	if got := code(<-done); got != "08007" {
		t.Errorf("the INSERT in flight: %s", got)
	}
	if n := r.count("outcomes_total", "unknown"); n != 1 {
		t.Errorf("%v outcomes are counted as unknown", n)
	}
	wantCode(t, block, "SELECT 2", "40001")
	if s := block.TxStatus(); s != 'E' {
		t.Errorf("the open block has status %c behind it", s)
	}
	r.lead(1<<40, 1<<40)
	if err := <-waits; err != nil {
		t.Error(err)
	}
	exec(t, block, "ROLLBACK")
	exec(t, block, "SELECT 3")
	exec(t, writer, "SELECT 4")
	r.evictions(2, 0, 0)
}
