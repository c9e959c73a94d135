package proxy_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// What a driver takes for its own pid is what SQL and notifications say; after a change of primary
// its own notifications still have the pid that it knows, and nobody else's have.
func TestOwnNotificationsAfterAChange(t *testing.T) {
	r := newRig(t, nil)
	var heard []uint32
	cfg, err := pgconn.ParseConfig(r.dsn(""))
	if err != nil {
		t.Fatal(err)
	}
	cfg.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) {
		heard = append(heard, n.PID)
	}
	conn, err := pgconn.ConnectConfig(context.Background(), cfg)
	defer closeConn(conn)
	if err != nil {
		t.Fatal(err)
	}
	other := r.connect("")
	own := conn.PID()
	pid := func() string { return exec(t, conn, "SELECT pg_backend_pid()") }
	if pid() != fmt.Sprint(own) {
		t.Errorf("the client was given pid %d, its backend has %s", own, pid())
	}
	exec(t, conn, "LISTEN news")
	for _, changed := range []bool{false, true} {
		if changed {
			r.change()
			if pid() == fmt.Sprint(own) {
				t.Fatal("the backend is the old one")
			}
		}
		heard = nil
		exec(t, conn, "NOTIFY news, 'own'")
		exec(t, other, "NOTIFY news, 'of another'")
		for deadline := time.Now().Add(10 * time.Second); len(heard) < 2; {
			if exec(t, conn, "SELECT 1"); time.Now().After(deadline) {
				t.Fatalf("heard only %v", heard)
			}
		}
		if heard[0] != own || heard[1] == own {
			t.Errorf("after a change: %v; heard %v, own is %d", changed, heard, own)
		}
	}
}

// Guesses of cancel keys are bounded by address: then the right one is ignored too, or the bound
// would tell which one that is.
func TestGuessesOfCancelKeys(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.AuthFailuresMax = 3 })
	_, info, conn := login32(t, r, pgwire.Protocol3)
	w := &raw{t, conn, conn, pgwire.NewReader(conn, 1<<16)}
	ask := func(key []byte) {
		t.Helper()
		err := pgwire.SendCancel(context.Background(), r.proxy.Addrs()[0].String(), info.PID, key,
			(&net.Dialer{}).DialContext)
		if err != nil {
			t.Fatal(err)
		}
	}
	runs := func(sql string) {
		t.Helper()
		w.send(pgwire.AppendQuery(nil, sql))
		r.eventually(func() bool {
			return r.server.Exec("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' " +
				"AND query LIKE '" + sql + "%'")[0][0] == "1"
		}, "it runs")
	}
	ends := func(want bool) {
		t.Helper()
		if got := w.until(1, 15*time.Second); strings.Contains(got, "57014") != want {
			t.Errorf("canceled: %s, want %v", got, want)
		}
	}
	runs("SELECT pg_sleep(20)")
	ask(info.Key)
	ends(true)
	wrong := append([]byte(nil), info.Key...)
	wrong[3]++
	for range 3 {
		ask(wrong)
	}
	r.eventually(func() bool { return r.count("cancels_total", "unknown") == 3 }, "three looked up")
	runs("SELECT pg_sleep(3)")
	ask(info.Key)
	r.eventually(func() bool { return r.count("cancels_total", "dropped") == 1 }, "it is dropped")
	ends(false)
}
