package proxy_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// How long a session waits for a primary is what the first line for its role and database says, for
// statements and logins; the session stays in any case (DESIGN.md I45).
func TestHoldTimesByRoleAndDatabase(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.HoldTimeout, c.HoldNoticeAfter = time.Hour, time.Millisecond
		c.SessionLimits = []string{
			"limited app hold_timeout=0s hold_notice_after=0s",
			"all batch hold_timeout=2h",
			"app app hold_timeout=1s",
		}
	})
	r.server.Exec("CREATE ROLE batch LOGIN PASSWORD '" + proxytest.Password + "'")
	r.server.Exec("CREATE DATABASE limited")
	atOnce, silent := r.connectNoticed("dbname=limited")
	short, notices := r.connectNoticed("")
	long, others := r.connectNoticed("user=batch")
	general, rest := r.connectNoticed("dbname=postgres")
	for _, c := range []string{"dbname=limited", "user=batch dbname=limited"} {
		r.connect(c) // their secrets are known from here on
	}
	exec(t, atOnce, "SET work_mem = '5MB'")
	exec(t, short, "SET work_mem = '6MB'")
	if _, err := tryExec(atOnce, "SELECT 1"); err != nil {
		t.Fatalf("with a primary: %v", err)
	}
	r.unavailable()
	held1 := held(t, long, others, "SELECT 1")
	held2 := held(t, general, rest, "SELECT 1")
	wantCode(t, atOnce, "SELECT 1", "40001")
	r.holdsOver("1", 1)
	done := held(t, short, notices, "SELECT 1")
	if got := code(<-done); got != "40001" {
		t.Errorf("after its second: %s", got)
	}
	r.holdsOver("3", 1)
	r.evictions(0, 2, 0)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := dial(ctx, r.dsn("dbname=limited")); code(err) != "57P03" {
		t.Errorf("a login that does not wait: %v", err)
	}
	r.holdsOver("1", 2)
	r.evictions(0, 2, 0)
	for _, d := range []<-chan error{held1, held2} {
		select {
		case err := <-d:
			t.Fatalf("not held on: %v", err)
		default:
		}
	}
	select {
	case n := <-silent:
		t.Errorf("told %q", n)
	default:
	}
	for _, i := range r.proxy.Sessions() {
		want := map[string]string{"limited app": "0s", "app app": "1s", "app batch": "2h0m0s",
			"postgres app": "1h0m0s", "limited batch": "2h0m0s"}[i.Database+" "+i.User]
		if i.Hold != want || (i.Limits == "") != (i.Database == "postgres") {
			t.Errorf("%s in %s: hold %s, limits %q", i.User, i.Database, i.Hold, i.Limits)
		}
	}
	r.lead(1<<40, 1<<40)
	for _, d := range []<-chan error{held1, held2} {
		if err := <-d; err != nil {
			t.Error(err)
		}
	}
	if v := exec(t, atOnce, "SHOW work_mem") + exec(t, short, "SHOW work_mem"); v != "5MB6MB" {
		t.Errorf("the sessions go on with %s", v)
	}
	r.holdsOver("2", 0)
}

// A COMMIT in flight is looked up for a moment also where a line says not to wait: what can be
// known is not told as unknown.
func TestCommitInFlightIsLookedUpWithoutAHold(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.SessionLimits = []string{"all all hold_timeout=0s"}
	})
	c, done := r.commitInFlightAfter(r.unavailable)
	time.Sleep(300 * time.Millisecond) // a primary comes, but not at once
	next := r.server.NextXID()
	r.lead(next, next)
	if err := <-done; err != nil {
		t.Errorf("COMMIT: %v", err)
	}
	if n := exec(t, c, "SELECT count(*) FROM t"); n != "1" {
		t.Errorf("rows: %s", n)
	}
}

// holdsOver checks how often the time of a line of session_limits was over.
func (r *rig) holdsOver(line string, want float64) {
	r.t.Helper()
	if n := r.count("hold_rule_timeouts_total", line); n != want {
		r.t.Errorf("the time of line %s was over %v times, want %v", line, n, want)
	}
}

// A transaction is as large to be run again as the line for its session allows.
func TestJournalBytesByRole(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.SessionLimits = []string{"app app journal_bytes_max=2000"}
	})
	text := "SELECT '" + strings.Repeat("x", 3000) + "'"
	for database, want := range map[string]string{"app": "40001", "postgres": "<nil>"} {
		c := r.connect("dbname=" + database)
		exec(t, c, "BEGIN")
		exec(t, c, text)
		r.change()
		if _, err := tryExec(c, "SELECT 1"); code(err) != want {
			t.Errorf("in %s: %v, want %s", database, err, want)
		}
	}
}
