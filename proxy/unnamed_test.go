package proxy_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
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

// TestUnnamedStatementThatWasRefused (DESIGN.md I32): what makes it has waited for too long and was
// refused. As with an error of the server the one before is gone: what comes behind must not run
// that one.
func TestUnnamedStatementThatWasRefused(t *testing.T) {
	parse := func(name, sql string) []byte {
		return pgwire.AppendSync(pgwire.AppendParse(nil, name, sql, nil))
	}
	run := pgwire.AppendSync(pgwire.AppendExecute(pgwire.AppendBind(nil, "", "", "21"), "", 0))
	for name, tc := range map[string]struct {
		refused []byte
		want    string // part of what the Bind behind it leads to
	}{
		"a parse":       {parse("", "SELECT $1::int * 3"), "26000"},
		"a query":       {pgwire.AppendQuery(nil, "SELECT 1"), "26000"},
		"another parse": {parse("p", "SELECT $1::int * 3"), "42"},
		"only a sync":   {pgwire.AppendSync(nil), "42"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *proxy.Config) {
				c.HoldTimeout, c.HoldNoticeAfter = 300*time.Millisecond, 0
			})
			w := hijack(t, r.connect(""))
			w.play([]scriptStep{{send: parse("", "SELECT $1::int * 2"), ends: 1}})
			r.topo.Set(nil)
			r.proxy.Cut(r.epoch)
			if got := w.play([]scriptStep{{send: tc.refused, ends: 1}}); len(got) > 1 !=
				(name != "only a sync") {
				t.Fatalf("while held: %q", got)
			}
			r.lead(1<<40, 1<<40)
			got := w.play([]scriptStep{{send: run, ends: 1}})
			if !strings.Contains(strings.Join(got, "\n"), tc.want) {
				t.Fatalf("behind it: %q, want %s", got, tc.want)
			}
		})
	}
}

// TestUnnamedStatementRefusedBehindALostBlock: what tells a client that its block is lost may stand
// for a Parse, or a Query. The unnamed statement of before is gone then, for good.
func TestUnnamedStatementRefusedBehindALostBlock(t *testing.T) {
	named := func(name, sql string) []byte { return pgwire.AppendParse(nil, name, sql, nil) }
	run := pgwire.AppendSync(pgwire.AppendExecute(pgwire.AppendBind(nil, "", "", "21"), "", 0))
	for name, tc := range map[string]struct {
		refused []byte
		want    string
	}{
		"a parse": {pgwire.AppendSync(named("", "SELECT $1::int * 3")), "26000"},
		"a query": {pgwire.AppendQuery(nil, "SELECT 1"), "26000"},
		"another": {pgwire.AppendSync(named("p", "SELECT 1")), "42"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, noReplay)
			w := hijack(t, r.connect(""))
			w.play([]scriptStep{
				{send: pgwire.AppendSync(join(named("b", "BEGIN"), named("r", "ROLLBACK"))), ends: 1},
				{send: pgwire.AppendSync(named("", "SELECT $1::int * 2")), ends: 1},
				{send: bindRun("b"), ends: 1}})
			r.line.Cut()
			got := w.play([]scriptStep{{send: tc.refused, ends: 1}})
			if got[0] != "E 40001" {
				t.Fatalf("behind the loss: %q", got)
			}
			w.play([]scriptStep{{send: bindRun("r"), ends: 1}})
			r.change()
			got = w.play([]scriptStep{{send: run, ends: 1}})
			if !strings.Contains(strings.Join(got, "\n"), tc.want) {
				t.Fatalf("behind it: %q, want %s", got, tc.want)
			}
		})
	}
}
