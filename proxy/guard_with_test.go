package proxy_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/pgwire"
)

// withWrites are statements that write behind, or in, a WITH; each leaves one row in t.
var withWrites = map[string]string{
	"main":       "WITH x AS (SELECT 1 AS a) INSERT INTO t SELECT a FROM x",
	"in a list":  "WITH x AS (INSERT INTO t VALUES (1) RETURNING a) SELECT a + 1 FROM x",
	"two levels": "WITH x AS (WITH y AS (SELECT 1) INSERT INTO t TABLE y RETURNING a) TABLE x",
}

// TestWithThatWritesIsLookedUp: a WITH that writes is a write as any other one: lost with its
// answer outside of a block, its outcome is found, and its client has the answer.
func TestWithThatWritesIsLookedUp(t *testing.T) {
	r := newRig(t, nil)
	exec(t, r.connect(""), "CREATE TABLE t (a int)")
	for name, sql := range withWrites {
		for _, send := range [][]byte{pgwire.AppendQuery(nil, sql), extended(sql)} {
			for _, executed := range []bool{true, false} {
				exec(t, r.connect(""), "TRUNCATE t")
				w := hijack(t, r.connect(""))
				commits := r.count("outcomes_total", "committed")
				got := r.lostAtSync(w, send, executed)
				last := got[max(0, len(got)-3):]
				if n := r.rows(); n != "1" || last != "ZI " {
					t.Errorf("%s, %c, executed %v: told %s, %s rows", name, send[0], executed, got, n)
				}
				if n := r.count("outcomes_total", "committed") - commits; (n == 1) != executed {
					t.Errorf("%s, %c, executed %v: %v looked up", name, send[0], executed, n)
				}
			}
		}
	}
}

// TestWithAsDirectly: guarded, a WITH that writes looks as it does on the server, to the byte, and
// its errors too.
func TestWithAsDirectly(t *testing.T) {
	r := newRig(t, nil)
	exec(t, r.connect(""), "CREATE TABLE t (a int PRIMARY KEY, b text DEFAULT 'x')")
	queries := []string{
		"WITH x AS (INSERT INTO t VALUES (1), (2) RETURNING a, b) SELECT a, b, a * 2 AS twice FROM x",
		"WITH x AS (INSERT INTO t VALUES (1) RETURNING a) SELECT a FROM x", // a duplicate
		"WITH x AS (INSERT INTO t VALUES (3) RETURNING a) SELECT 1 / (a - a) FROM x",
		"WITH x AS (UPDATE t SET b = 'y' WHERE a > 9 RETURNING a) SELECT * FROM x",
		"WITH x AS (UPDATE t SET b = 'z' RETURNING a) SELECT FROM x WHERE false",
		"WITH x AS (SELECT 4 AS a) INSERT INTO t SELECT a FROM x RETURNING *",
		"WITH x AS (DELETE FROM t WHERE a = 4 RETURNING a) DELETE FROM t USING x WHERE t.a = x.a - 2",
		"WITH x AS (SELECT 1) INSERT INTO nowhere SELECT 1",
		"WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x WHERE a = $1",
		"WITH x AS (SELECT a FROM (WITH y AS (DELETE FROM t RETURNING a) TABLE y) z) TABLE x",
		"WITH x AS (DELETE FROM t RETURNING a, b) SELECT a, b INTO u FROM x", "SELECT a + 0 FROM u",
		"WITH x AS (INSERT INTO t VALUES (5) RETURNING a) SELECT a FROM x; SELECT count(*) FROM t",
		"WITH x AS (SELECT 1) MERGE INTO t USING (VALUES (5)) v(i) ON a = i WHEN MATCHED THEN DELETE",
		"SELECT * FROM t ORDER BY a",
	}
	var seen [2][]string
	for i, port := range []string{fmt.Sprintf(" port=%d", r.server.Port), ""} {
		exec(t, r.connect(""), "TRUNCATE t; DROP TABLE IF EXISTS u")
		c, err := dial(t.Context(), r.dsn(port))
		if err != nil {
			t.Fatal(err)
		}
		w := hijack(t, c)
		for _, sql := range queries {
			seen[i] = append(seen[i], sql)
			seen[i] = append(seen[i], w.playAll(q(sql))...)
		}
		w.send(x("SELECT 1").send)
		w.until(1, 20*time.Second)
	}
	if !slices.Equal(seen[0], seen[1]) {
		t.Errorf("the server says\n%q, the proxy\n%q", seen[0], seen[1])
	}
}

// TestExecuteIsLookedUp: EXECUTE of a prepared INSERT is a write as any other one, whichever
// protocol has prepared it. One of a query is run again if it was lost before its end was sent.
func TestExecuteIsLookedUp(t *testing.T) {
	r := newRig(t, nil)
	exec(t, r.connect(""), "CREATE TABLE t (a int)")
	const insert = "INSERT INTO t VALUES (1)"
	prepare := map[string][]byte{
		"SQL":      pgwire.AppendQuery(nil, "PREPARE p AS "+insert),
		"protocol": pgwire.AppendSync(pgwire.AppendParse(nil, "p", insert, nil)),
	}
	for name, made := range prepare {
		for _, send := range [][]byte{q("EXECUTE p").send, extended("EXECUTE p")} {
			for _, executed := range []bool{true, false} {
				exec(t, r.connect(""), "TRUNCATE t")
				w := hijack(t, r.connect(""))
				w.send(made)
				w.until(1, 20*time.Second)
				commits := r.count("outcomes_total", "committed")
				got := r.lostAtSync(w, send, executed)
				if n := r.count("outcomes_total", "committed") - commits; (n == 1) != executed {
					t.Errorf("%s, %c, executed %v: %v looked up", name, send[0], executed, n)
				}
				if n := r.rows(); n != "1" || got[max(0, len(got)-3):] != "ZI " {
					t.Errorf("%s, %c, executed %v: told %s, %s rows", name, send[0], executed, got, n)
				}
			}
		}
	}
	w := hijack(t, r.connect(""))
	w.send(q("PREPARE p AS SELECT count(*) FROM t").send)
	w.until(1, 20*time.Second)
	begun := r.count("replays_total", "begun")
	var isCut atomic.Bool
	r.line.Watch(func(typ byte, _ []byte) bool {
		return typ != 'H' || isCut.Swap(true) // behind our question
	}, nil)
	w.send(q("EXECUTE p").send)
	got := w.until(1, 20*time.Second)
	if n := r.count("replays_total", "begun") - begun; got != "T D C(SELECT 1) ZI " || n != 1 {
		t.Errorf("of a query: told %s, run again %v times", got, n)
	}
}
