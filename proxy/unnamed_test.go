package proxy_test

import (
	"context"
	"strings"
	"testing"

	"holdfast/pgwire"
)

// TestUnnamedStatementOutlivesOurQueries: an acknowledged commit is asked for, and locks are taken
// again, with a Query, which destroys the unnamed statement; it is there again all the same.
func TestUnnamedStatementOutlivesOurQueries(t *testing.T) {
	for name, before := range map[string]string{
		"nothing": "SELECT 1", "a commit": "INSERT INTO t VALUES (1)",
		"a lock":           "SELECT pg_advisory_lock(7)",
		"a lock, a commit": "BEGIN; SELECT pg_advisory_lock(7); INSERT INTO t VALUES (1); COMMIT",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			c := r.connect("")
			exec(t, c, "CREATE TABLE t (a int)")
			exec(t, c, before)
			ctx := context.Background()
			if _, err := c.Prepare(ctx, "", "SELECT $1::int * 2", nil); err != nil {
				t.Fatal(err)
			}
			r.change()
			res := c.ExecPrepared(ctx, "", [][]byte{[]byte("21")}, nil, nil).Read()
			if res.Err != nil || string(res.Rows[0][0]) != "42" {
				t.Fatalf("the unnamed statement after the change: %v", res.Err)
			}
		})
	}
}

// TestUnnamedStatementBehindAPipelineOutlivesAChange: where the unit of work that made it began in
// the middle of a pipeline, the unnamed statement is there on the next primary all the same.
func TestUnnamedStatementBehindAPipelineOutlivesAChange(t *testing.T) {
	parse := pgwire.AppendSync(pgwire.AppendParse(nil, "", "SELECT $1::int * 2", nil))
	for name, before := range map[string][]byte{
		"a query":   pgwire.AppendQuery(nil, "SELECT 1"),
		"a close":   pgwire.AppendSync(pgwire.AppendClose(nil, 'S', "")),
		"a failure": pgwire.AppendSync(pgwire.AppendParse(nil, "", "SELECT nothing()", nil)),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			w := hijack(t, r.connect(""))
			w.play([]scriptStep{{send: append(before, parse...), ends: 2}})
			r.change()
			run := pgwire.AppendSync(pgwire.AppendExecute(
				pgwire.AppendBind(nil, "", "", "21"), "", 0))
			got := w.play([]scriptStep{{send: run, ends: 1}})
			if len(got) != 4 || !strings.Contains(got[1], "42") {
				t.Fatalf("the unnamed statement after the change: %q", got)
			}
		})
	}
}
