package proxy_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
)

const twoWrites = "INSERT INTO t VALUES (1); UPDATE t SET a = a"

// TestStringsByGuard: strings that write are sent in a block of the proxy's with commit_guard all,
// and as they are otherwise.
func TestStringsByGuard(t *testing.T) {
	for guard, want := range map[string]string{
		proxy.GuardAll:      "P B E C C INSERT F COMMIT",
		proxy.GuardExplicit: "INSERT",
		proxy.GuardOff:      "INSERT",
	} {
		t.Run(guard, func(t *testing.T) {
			r := newRig(t, func(c *proxy.Config) { c.CommitGuard, c.Reuse = guard, false })
			exec(t, r.connect(""), "CREATE TABLE t (a int)")
			r.until(func() bool { return proxy.KnowsSetters(r.proxy, "app") }) // else any may set
			w := hijack(t, r.connect(""))
			if got := r.sentBy(w, q(twoWrites)); got != want {
				t.Errorf("sent %s, want %s", got, want)
			}
			if got := r.sentBy(w, q("SELECT 1; SELECT 2")); got != "SELECT" {
				t.Errorf("sent %s of what only reads", got)
			}
			if got := r.sentBy(w, q("BEGIN"), q(twoWrites), q("ROLLBACK")); got[0] == 'P' {
				t.Errorf("sent %s in a block", got)
			}
		})
	}
}

// TestStringWithoutItsBlock: where BEGIN of ours fails, nothing of the string is executed; it would
// commit by itself.
func TestStringWithoutItsBlock(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	exec(t, c, "PREPARE _holdfast AS SELECT 1") // a name of ours
	wantCode(t, c, twoWrites, "42P05")
	if n := r.rows(); n != "0" {
		t.Errorf("%s rows of a string that failed", n)
	}
	exec(t, c, twoWrites)
	if n := r.rows(); n != "1" {
		t.Errorf("%s rows", n)
	}
}

// TestStringIsLookedUp: the outcome of a string that was lost with its COMMIT is found on the next
// primary, whichever it is, and the client has the answer.
func TestStringIsLookedUp(t *testing.T) {
	for name, tc := range map[string]struct {
		at   func(byte, []byte) bool
		want string
	}{
		"executed":     {committed, "committed"},
		"not executed": {answer('V'), ""}, // the answer to the question
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			exec(t, r.connect(""), "CREATE TABLE t (a int)")
			w := hijack(t, r.connect(""))
			got := executedThenLost(t, r, w, pgwire.AppendQuery(nil, twoWrites), tc.at)
			if got != "C(INSERT 0 1) C(UPDATE 1) ZI " {
				t.Errorf("the client has %s", got)
			}
			if n := r.rows(); n != "1" {
				t.Errorf("%s rows", n)
			}
			if tc.want != "" && r.count("outcomes_total", tc.want) != 1 {
				t.Error("nothing was looked up")
			}
		})
	}
}

// TestStringIdlesForUs: the session of a string that waits for its COMMIT is idle in a transaction
// that its client has not begun. A server that ends it for that is one that was lost.
func TestStringIdlesForUs(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	exec(t, c, "SET idle_in_transaction_session_timeout = '100ms'")
	lives := fmt.Sprintf("SELECT count(*) FROM pg_stat_activity WHERE pid = %d", c.PID())
	w, admin := hijack(t, c), r.superuser()
	var slow atomic.Bool
	r.line.Watch(nil, func(typ byte, _ []byte) bool {
		if typ == 'V' && slow.CompareAndSwap(false, true) {
			// The answer comes later than the server waits.
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
				if n, err := tryExec(admin, lives); n != "1" || err != nil {
					break
				}
				time.Sleep(5 * time.Millisecond) // until it has ended
			}
		}
		return true
	})
	w.send(pgwire.AppendQuery(nil, twoWrites))
	if got := w.until(1, 20*time.Second); got != "C(INSERT 0 1) C(UPDATE 1) ZI " {
		t.Errorf("the client has %s", got)
	}
	r.line.Watch(nil, nil)
	if n := r.rows(); n != "1" {
		t.Errorf("%s rows", n)
	}
	// The timeout holds for the next server process too, which a slow machine keeps waiting.
	if n := r.count("replays_total", "begun"); n < 1 {
		t.Error("not run again")
	}
}

// TestStringIsCanceled: a cancel request ends the string, and its client is in no block.
func TestStringIsCanceled(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	pid, key := c.PID(), c.SecretKey()
	w := hijack(t, c)
	w.send(pgwire.AppendQuery(nil, "INSERT INTO t VALUES (1); SELECT pg_sleep(20)"))
	for deadline := time.Now().Add(10 * time.Second); r.sleepers() != "1"; {
		if time.Now().After(deadline) {
			t.Fatal("nobody sleeps")
		}
		time.Sleep(5 * time.Millisecond) // the question itself takes the server some time
	}
	err := pgwire.SendCancel(context.Background(), r.proxy.Addrs()[0].String(), pid, key,
		new(net.Dialer).DialContext)
	if err != nil {
		t.Fatal(err)
	}
	got := w.until(1, 10*time.Second)
	if !strings.HasPrefix(got, "C(INSERT 0 1) ") || !strings.Contains(got, "E(57014") ||
		!strings.HasSuffix(got, "ZI ") {
		t.Errorf("the client has %s", got)
	}
	w.send(pgwire.AppendQuery(nil, "SELECT count(*) FROM t"))
	if got := w.until(1, 10*time.Second); got != "T D C(SELECT 1) ZI " {
		t.Errorf("afterwards: %s", got)
	}
	if n := r.rows(); n != "0" {
		t.Errorf("%s rows", n)
	}
}
