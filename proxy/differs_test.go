package proxy_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// What comes out differently when it is run again is never committed, and is told once: 40001 in a
// failed block, and the session goes on (DESIGN.md I17).
func TestReplayThatDiffersIsTold(t *testing.T) {
	for name, tc := range map[string]struct {
		setup []string
		block []string
		// meanwhile is done by somebody else while there is no primary.
		meanwhile string
		want      string
	}{
		"a clock":         {nil, []string{"SELECT clock_timestamp()"}, "", "40001"},
		"a random number": {nil, []string{"SELECT random()"}, "", "40001"},
		"a process":       {nil, []string{"SELECT pg_backend_pid()"}, "", "40001"},
		"the transaction's time": {
			nil, []string{"INSERT INTO t VALUES (1)", "SELECT now()"}, "", "40001",
		},
		"a sequence's value": {
			[]string{"CREATE TABLE s (id serial, a int)", "INSERT INTO s (a) VALUES (0)"},
			[]string{"INSERT INTO s (a) VALUES (1) RETURNING id"}, "", "40001",
		},
		"a sequence's value that nobody saw": {
			[]string{"CREATE TABLE s (id serial, a int)", "INSERT INTO s (a) VALUES (0)"},
			[]string{"INSERT INTO s (a) VALUES (1)"}, "", "<nil>",
		},
		"what others have changed": {
			nil, []string{"SELECT count(*) FROM t"}, "INSERT INTO t VALUES (7)", "40001",
		},
		"what others have changed, unseen": {
			nil, []string{"UPDATE t SET a = a + 1"}, "INSERT INTO t VALUES (7)", "40001",
		},
		"an error that does not come again": {
			[]string{"CREATE UNIQUE INDEX ON t (a)", "INSERT INTO t VALUES (7)"},
			[]string{"SAVEPOINT s", "INSERT INTO t VALUES (7)", "ROLLBACK TO s"},
			"DELETE FROM t", "40001",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			c := r.connect("")
			exec(t, c, "CREATE TABLE t (a int)")
			for _, sql := range tc.setup {
				exec(t, c, sql)
			}
			exec(t, c, "BEGIN")
			for _, sql := range tc.block {
				_, _ = tryExec(c, sql)
			}
			r.proxy.Cut(r.epoch)
			r.server.Kill()
			r.server.Start()
			if tc.meanwhile != "" {
				exec(t, r.direct(), tc.meanwhile)
			}
			next := r.server.NextXID()
			r.lead(next, next)
			_, err := tryExec(c, "SELECT 1")
			if code(err) != tc.want || c.IsClosed() {
				t.Fatalf("got %v, closed %v, want %s", err, c.IsClosed(), tc.want)
			}
			if tc.want == "<nil>" {
				exec(t, c, "COMMIT")
				return
			}
			if c.TxStatus() != 'E' {
				t.Errorf("status %c", c.TxStatus())
			}
			exec(t, c, "ROLLBACK")
			exec(t, c, "SELECT 1")
			if n := r.count("replays_total", "different"); n != 1 {
				t.Errorf("counted %v", n)
			}
		})
	}
}

// A prepared statement outlives the transaction that it was made in, also one that was lost: no
// rollback undoes it.
func TestStatementsOfALostTransactionStay(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "PREPARE gone AS SELECT 3")
	exec(t, c, "BEGIN")
	ctx := context.Background()
	if _, err := c.Prepare(ctx, "inside", "SELECT $1::int * 2", nil); err != nil {
		t.Fatal(err)
	}
	exec(t, c, "DEALLOCATE gone")
	exec(t, c, "SELECT clock_timestamp()")
	r.change()
	wantCode(t, c, "SELECT 1", "40001")
	exec(t, c, "ROLLBACK")
	res := c.ExecPrepared(ctx, "inside", [][]byte{[]byte("21")}, nil, nil).Read()
	if res.Err != nil || string(res.Rows[0][0]) != "42" {
		t.Errorf("the statement: %v", res.Err)
	}
	if _, err := tryExec(c, "EXECUTE gone"); code(err) != "26000" {
		t.Errorf("one that was deallocated: %v", err)
	}
}

// A transaction that is larger than its journal ends in 40001, and what all journals take is
// bounded.
func TestJournalsAreBounded(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.JournalBytesMax, c.JournalTotalBytesMax = 20000, 40000
	})
	var all []*pgconn.PgConn
	for range 8 {
		c := r.connect("")
		exec(t, c, "BEGIN")
		exec(t, c, "SELECT 1 /* "+strings.Repeat("x", 12000)+" */")
		all = append(all, c)
	}
	if n := r.count("journal_overflows_total", ""); n < 4 {
		t.Errorf("%v journals were given up", n)
	}
	r.change()
	kept := 0
	for _, c := range all {
		_, err := tryExec(c, "SELECT 1")
		switch code(err) {
		case "<nil>":
			kept++
		case "40001":
		default:
			t.Errorf("got %v", err)
		}
	}
	if kept == 0 || kept > 3 {
		t.Errorf("%d of 8 were run again", kept)
	}
}

// A transaction whose COMMIT was lost, and that differs when it is run again, is not committed:
// also if it only comes to less than before.
func TestReplayThatDiffersDoesNotCommit(t *testing.T) {
	for name, block := range map[string]string{
		"another value": "SELECT clock_timestamp()", "fewer rows": "SELECT a FROM others",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			c := r.connect("")
			exec(t, c, "CREATE TABLE t (a int)")
			exec(t, c, "CREATE TABLE others AS SELECT generate_series(1, 50) AS a")
			for _, sql := range []string{"BEGIN", "INSERT INTO t VALUES (1)", block} {
				exec(t, c, sql)
			}
			cut := make(chan struct{})
			first := true
			r.line.Watch(func(typ byte, body []byte) bool {
				if first && typ == 'Q' && strings.HasPrefix(string(body), "COMMIT") {
					first = false
					r.topo.Set(nil)
					close(cut)
					return false
				}
				return true
			}, nil)
			done := start(c, "COMMIT")
			<-cut
			r.proxy.Cut(r.epoch)
			exec(t, r.direct(), "DELETE FROM others")
			r.lead(1<<40, 1<<40)
			if got := code(<-done); got != "40001" {
				t.Errorf("COMMIT: %s", got)
			}
			if n := exec(t, c, "SELECT count(*) FROM t"); n != "0" {
				t.Errorf("%s rows", n)
			}
		})
	}
}

// A guarded Query that fails at its commit is answered as PostgreSQL answers a Query: with the
// error, and no CommandComplete before it.
func TestGuardedQueryThatFailsAtItsCommit(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE TABLE d (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
	exec(t, c, "INSERT INTO d VALUES (1)")
	w := hijack(t, c)
	w.send(pgwire.AppendQuery(nil, "INSERT INTO d VALUES (1)"))
	if got := w.until(1, 8*time.Second); !strings.HasPrefix(got, "E(23505") {
		t.Errorf("got %s", got)
	}
	w.send(pgwire.AppendQuery(nil, "INSERT INTO d VALUES (2) RETURNING a"))
	if got := w.until(1, 8*time.Second); got != "T D C(INSERT 0 1) ZI " {
		t.Errorf("got %s", got)
	}
}
