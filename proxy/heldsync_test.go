package proxy_test

import (
	"strings"
	"testing"
	"time"

	"holdfast/proxy"
)

// TestHeldSyncIsBounded (DESIGN 10.17): while the Sync that commits is held back, the server keeps
// the transaction and its locks. If the lease does not come back this ends within hold_timeout: the
// client is told that nothing was executed, and the server has let go.
func TestHeldSyncIsBounded(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.HoldTimeout, c.HoldNoticeAfter = 500*time.Millisecond, 0
	})
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	w := hijack(t, c)
	asked := func(_ byte, body []byte) bool {
		if strings.Contains(string(body), "pg_current_xact_id_if_assigned") {
			r.lease.Set(-time.Second, -time.Second)
		}
		return true
	}
	r.line.Watch(asked, nil)
	w.send(q("INSERT INTO t VALUES (1)").send)
	locks := func() string {
		return r.server.ExecIn("app", "SELECT count(*) FROM pg_locks "+
			"WHERE relation = 't'::regclass")[0][0]
	}
	r.eventually(func() bool { return locks() == "1" }, "the server has the transaction open")
	r.eventually(func() bool { return locks() == "0" }, "the server lets go")
	if got := w.until(1, 20*time.Second); !strings.Contains(got, "40001") {
		t.Errorf("told %s", got)
	}
	r.line.Watch(nil, nil)
	r.lease.Set(time.Hour, time.Hour)
	w.send(q("SELECT 1").send)
	if got := w.until(1, 20*time.Second); !strings.Contains(got, "C(SELECT 1)") {
		t.Errorf("the session goes on with %s", got)
	}
	if v := exec(t, r.connect(""), "SELECT count(*) FROM t"); v != "0" {
		t.Errorf("%s rows", v)
	}
}
