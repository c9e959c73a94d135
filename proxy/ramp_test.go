package proxy_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/proxy"
)

// TestWaitedForSessionsGoFirst: of many sessions that need a new connection, the one whose client
// waits for an answer is not behind all those that nobody waits for.
func TestWaitedForSessionsGoFirst(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.RestoreConcurrency = 1 })
	var idle []*pgconn.PgConn
	for range 30 {
		c := r.connect("")
		exec(t, c, "SET work_mem = '5MB'")
		idle = append(idle, c)
	}
	w := hijack(t, r.connect(""))
	r.topo.Set(nil)
	r.proxy.Cut(r.epoch)
	w.send(q("SELECT 1").send)
	r.eventually(func() bool { _, held := r.proxy.Stats(); return held == 1 }, "it is held")
	r.lead(1<<40, 1<<40)
	if got := w.until(1, 20*time.Second); got == "" {
		t.Fatal("no answer")
	}
	n := r.count("sessions_restored_total", "")
	if t.Logf("%v sessions went before it", n); n > 8 {
		t.Errorf("%v sessions went before it", n)
	}
	for _, c := range idle {
		if v := exec(t, c, "SHOW work_mem"); v != "5MB" {
			t.Errorf("work_mem %s", v)
		}
	}
}
