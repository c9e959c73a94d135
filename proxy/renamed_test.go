package proxy_test

import (
	"strings"
	"testing"

	"holdfast/pgwire"
)

// TestNameThatIsGivenAnew: what a unit of work has run is judged by the texts that its names had
// then, not by those that they have at its end.
func TestNameThatIsGivenAnew(t *testing.T) {
	anew := pgwire.AppendParse(pgwire.AppendClose(nil, 'S', "s"), "s", "SELECT 1", nil)
	run := noSync(bindRun("s"))
	for _, tc := range []struct {
		name, sql string
		open      []scriptStep
		msg       []byte
		at        func(byte, []byte) bool
	}{
		{"outside a block", "SELECT f()", nil, pgwire.AppendSync(join(run, anew)), answer('Z')},
		{"in a block", "SELECT pg_notify('news', '')", []scriptStep{q("BEGIN"),
			{send: pgwire.AppendSync(run), ends: 1}, {send: pgwire.AppendSync(anew), ends: 1}},
			pgwire.AppendQuery(nil, "COMMIT"), committed},
		{"closed and not used again", "SELECT pg_notify('news', '')", []scriptStep{q("BEGIN"),
			{send: pgwire.AppendSync(run), ends: 1},
			{send: pgwire.AppendSync(pgwire.AppendClose(nil, 'S', "s")), ends: 1},
			q("PREPARE s AS SELECT 1")}, pgwire.AppendQuery(nil, "COMMIT"), committed},
		{"a new one that was skipped", "SELECT pg_notify('news', '')", []scriptStep{
			{send: pgwire.AppendSync(pgwire.AppendParse(nil, "fails", "SELECT 1/0", nil)), ends: 1},
			{send: pgwire.AppendSync(pgwire.AppendParse(nil, "", "SELECT pg_notify('news', '')",
				nil)), ends: 1},
			{send: pgwire.AppendSync(pgwire.AppendParse(nil, "begin", "BEGIN", nil)), ends: 1},
			{send: pgwire.AppendSync(pgwire.AppendParse(nil, "sp", "SAVEPOINT s", nil)), ends: 1},
			{send: pgwire.AppendSync(pgwire.AppendParse(nil, "back", "ROLLBACK TO s", nil)), ends: 1},
			{send: bindRun("begin"), ends: 1}, {send: bindRun("sp"), ends: 1},
			{send: join(noSync(bindRun("fails")), pgwire.AppendSync(pgwire.AppendParse(nil, "",
				"SELECT 1", nil))), ends: 1},
			{send: bindRun("back"), ends: 1}, {send: bindRun(""), ends: 1},
		}, pgwire.AppendQuery(nil, "COMMIT"), committed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, nil)
			exec(t, r.connect(""), `CREATE TABLE t (a int);
				CREATE FUNCTION f() RETURNS void LANGUAGE sql AS 'INSERT INTO t VALUES (1)'`)
			w := hijack(t, r.connect(""))
			w.play(append([]scriptStep{{send: pgwire.AppendSync(
				pgwire.AppendParse(nil, "s", tc.sql, nil)), ends: 1}}, tc.open...))
			if got := executedThenLost(t, r, w, tc.msg, tc.at); !strings.Contains(got, "08007") {
				t.Errorf("told %s", got)
			}
			if n := r.count("replays_total", "begun"); n != 0 {
				t.Errorf("run again %v times", n)
			}
			if n := r.rows(); n > "1" {
				t.Errorf("f was run %s times", n)
			}
		})
	}
}
