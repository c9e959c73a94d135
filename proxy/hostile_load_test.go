package proxy_test

import (
	"context"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// Clients over the limit are told so, and a place that is left is taken by the next.
func TestConnectionFlood(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.SessionsMax = 3 })
	conns := []*pgconn.PgConn{r.connect(""), r.connect(""), r.connect("")}
	for range 20 {
		if _, err := dial(context.Background(), r.dsn("")); code(err) != "53300" {
			t.Fatalf("got %v", err)
		}
	}
	for _, c := range conns {
		if v := exec(t, c, "SELECT 1"); v != "1" {
			t.Error(v)
		}
	}
	_ = conns[0].Close(context.Background())
	r.eventually(func() bool {
		c, err := dial(context.Background(), r.dsn(""))
		if err == nil {
			_ = c.Close(context.Background())
		}
		return err == nil
	}, "a place is left")
}

// A client that vanishes in the middle of rows takes its server process with it.
func TestClientsThatVanish(t *testing.T) {
	r := newRig(t, nil)
	other := r.connect("")
	for _, hard := range []bool{false, true} {
		w := hijack(t, r.connect(""))
		w.send(pgwire.AppendQuery(nil, "SELECT repeat('x', 1000) FROM generate_series(1, 10000000)"))
		for range 100 {
			if _, _, err := w.r.ReadMessage(); err != nil {
				t.Fatal(err)
			}
		}
		if hard {
			_ = w.c.(*net.TCPConn).SetLinger(0)
		}
		_ = w.c.Close()
		r.eventually(func() bool {
			return r.server.Exec("SELECT count(*) FROM pg_stat_activity WHERE query LIKE " +
				"'SELECT repeat%'")[0][0] == "0"
		}, "the query ends")
		r.well(t, other)
	}
	r.eventually(func() bool { n, _ := r.proxy.Stats(); return n <= 2 }, "the sessions end")
}

// Journals of open transactions fill up to their limit in all; what does not fit is told once it
// is lost, transactions go on meanwhile, and the room comes back.
func TestJournalsFillUp(t *testing.T) {
	const limit = 1 << 20
	r := newRig(t, func(c *proxy.Config) { c.JournalTotalBytesMax = limit })
	small := r.connect("")
	exec(t, small, "CREATE TABLE t (a int, b text)")
	var conns []*pgconn.PgConn
	large := "INSERT INTO t VALUES (1, '" + strings.Repeat("x", 60000) + "')"
	for range 8 {
		c := r.connect("")
		exec(t, c, "BEGIN")
		for range 5 { // 300 KB each, 2.4 MB in all
			exec(t, c, large)
		}
		conns = append(conns, c)
	}
	if n := r.gauge("journal_bytes"); n > limit {
		t.Errorf("journals take %v bytes", n)
	}
	if r.count("journal_overflows_total", "") < 1 {
		t.Error("nothing was over the limit: the test shows nothing")
	}
	exec(t, small, "BEGIN")
	exec(t, small, "INSERT INTO t VALUES (2, 's')")
	r.change()
	if v := exec(t, small, "SELECT count(*) FROM t"); v != "1" {
		t.Errorf("a small transaction was not run again: %s", v)
	}
	exec(t, small, "COMMIT")
	again, told := 0, 0
	for _, c := range conns {
		switch _, err := tryExec(c, "COMMIT"); code(err) {
		case "<nil>":
			again++
		case "40001":
			told++
		default:
			t.Errorf("got %v", err)
		}
	}
	t.Logf("%d were run again, %d told", again, told)
	if told == 0 || again+told != len(conns) {
		t.Errorf("%d were run again, %d told", again, told)
	}
	if v := exec(t, small, "SELECT count(*) FROM t WHERE a = 1"); v != strconv.Itoa(5*again) {
		t.Errorf("%s rows of %d transactions", v, again)
	}
	r.eventually(func() bool { return r.gauge("journal_bytes") == 0 }, "the room comes back")
}

// A transaction that never ends costs the journal of a session, and no more.
func TestTransactionWithoutAnEnd(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.JournalBytesMax = 64 << 10 })
	r.bare()
	c := r.connect("")
	exec(t, c, "BEGIN")
	before := heap()
	for range 3000 {
		exec(t, c, "SELECT 1 -- "+strings.Repeat("x", 200))
	}
	if grown := int64(heap()) - int64(before); grown > 2<<20 {
		t.Errorf("memory grew by %d KB", grown>>10)
	}
	if n := r.gauge("journal_bytes"); n != 0 {
		t.Errorf("%v bytes of a journal that is of no use", n)
	}
	exec(t, c, "COMMIT")
}

// A batch of more messages than may be outstanding goes through, whatever the server keeps back.
func TestLongBatchesGoThrough(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.OutstandingMax = 2048 }) // the least that it may be
	w := hijack(t, r.connect(""))
	var out []byte
	const n = 50000
	for range n {
		out = pgwire.AppendParse(out, "", "", nil)
	}
	w.send(pgwire.AppendSync(out))
	if got := strings.Count(w.until(1, 20*time.Second), "1"); got != n {
		t.Errorf("%d answers", got)
	}
}
