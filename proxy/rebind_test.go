package proxy_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
)

// What the batches of TestUnnamedStatementInAPipeline are made of: A and B take the same parameter.
const (
	rebindA = "INSERT INTO a VALUES ($1)"
	rebindB = "INSERT INTO b VALUES ($1)"
)

// made parses the unnamed statement and runs it, in a batch of its own.
func made(sql, arg string) []byte {
	return append(pgwire.AppendParse(nil, "", sql, nil), bindRun("", arg)...)
}

// join is messages one behind the other.
func join(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// cutAt sends messages and cuts the line at the n-th message of a type in one direction, after the
// proxy, and the server, had the time to go on. It returns what the client saw, up to that many
// ReadyForQuery.
func (r *rig) cutAt(w *raw, msgs []byte, toServer bool, typ byte, n int32, ends int) string {
	r.t.Helper()
	var seen atomic.Int32
	look := func(got byte, _ []byte) bool {
		if got != typ || seen.Add(1) != n {
			return true
		}
		time.Sleep(300 * time.Millisecond)
		return false
	}
	if toServer {
		r.line.Watch(look, nil)
	} else {
		r.line.Watch(nil, look)
	}
	w.send(msgs)
	got := w.until(ends, 20*time.Second)
	r.line.Watch(nil, nil)
	if seen.Load() < n {
		r.t.Fatalf("never cut: %s", got)
	}
	return got
}

// TestUnnamedStatementInAPipeline: a unit that is run again begins in the middle of a pipeline, and
// uses the unnamed statement that there was at that point, neither the one of the last safe point
// nor the one that was sent last.
func TestUnnamedStatementInAPipeline(t *testing.T) {
	parse := func(name, sql string) []byte {
		return pgwire.AppendSync(pgwire.AppendParse(nil, name, sql, nil))
	}
	for _, tc := range []struct {
		name     string
		before   []byte // one batch
		msgs     []byte
		toServer bool
		typ      byte
		at       int32
		ends     int
		want     string // of the tables
		told     string // the only SQLSTATEs that the client may see
	}{
		{name: "answered before", msgs: join(made(rebindA, "1"), bindRun("", "2"), made(rebindB, "3")),
			toServer: true, typ: 'S', at: 2, ends: 3, want: "a 1,a 2,b 3"},
		{name: "a safe point before", before: parse("", "INSERT INTO z VALUES ($1)"),
			msgs:     join(bindRun("", "0"), made(rebindA, "1"), bindRun("", "2")),
			toServer: true, typ: 'S', at: 3, ends: 3, want: "a 1,a 2,z 0"},
		{name: "looked up before",
			msgs: join(made(rebindA, "1"), bindRun("begin"), bindRun("", "2"), made(rebindB, "3"),
				bindRun("commit")),
			typ: 'Z', at: 1, ends: 5, want: "a 1,a 2,b 3"},
		{name: "closed before", msgs: join(made(rebindA, "1"),
			pgwire.AppendClose(nil, 'S', ""), bindRun("", "2"), made(rebindB, "3")),
			toServer: true, typ: 'S', at: 3, ends: 3, want: "a 1,b 3", told: "26000"},
		{name: "unknown before",
			msgs: join(made("SELECT f($1)", "1"), bindRun("begin"), bindRun("", "2"),
				made(rebindB, "3"), bindRun("commit")),
			typ: '1', at: 1, ends: 5, want: "a 1", told: "08007 40001 25P02"},
		{name: "skipped", before: parse("", "INSERT INTO z VALUES ($1)"),
			msgs: join(noSync(bindRun("fails")), made(rebindB, "3"), bindRun("", "0"),
				bindRun("", "1")),
			toServer: true, typ: 'S', at: 3, ends: 3, want: "z 0", told: "22012 08007"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, nil)
			admin := r.connect("")
			exec(t, admin, `CREATE TABLE a (i int); CREATE TABLE b (i int); CREATE TABLE z (i int);
				CREATE FUNCTION f(int) RETURNS void LANGUAGE sql AS 'INSERT INTO a VALUES ($1)'`)
			w := hijack(t, r.connect(""))
			steps := []scriptStep{{send: parse("begin", "BEGIN"), ends: 1},
				{send: parse("commit", "COMMIT"), ends: 1},
				{send: parse("fails", "SELECT 1/0"), ends: 1}}
			if tc.before != nil {
				steps = append(steps, scriptStep{send: tc.before, ends: 1})
			}
			w.play(steps)
			got := r.cutAt(w, tc.msgs, tc.toServer, tc.typ, tc.at, tc.ends)
			for _, m := range strings.Split(got, "E(")[1:] {
				if tc.told == "" || !strings.Contains(tc.told, m[:5]) {
					t.Errorf("told %s", got)
				}
			}
			if is := rebound(t, admin); is != tc.want {
				t.Errorf("the tables have %s, want %s; told %s", is, tc.want, got)
			}
		})
	}
}

// rebound is what the tables have.
func rebound(t *testing.T, c *pgconn.PgConn) string {
	t.Helper()
	return exec(t, c, `SELECT coalesce(string_agg(v, ',' ORDER BY v), '') FROM (
		SELECT 'a ' || i FROM a UNION ALL SELECT 'b ' || i FROM b UNION ALL
		SELECT 'z ' || i FROM z) AS t (v)`)
}

// TestSkippedUnnamedStatementIsNotRestored: the server skipped the Parse of a new unnamed
// statement, so that the old one is what a client has at the next primary.
func TestSkippedUnnamedStatementIsNotRestored(t *testing.T) {
	r := newRig(t, nil)
	w := hijack(t, r.connect(""))
	parse := func(name, sql string) []byte {
		return pgwire.AppendSync(pgwire.AppendParse(nil, name, sql, nil))
	}
	w.play([]scriptStep{{send: parse("fails", "SELECT 1/0"), ends: 1},
		{send: parse("", "SELECT 'old'"), ends: 1},
		{send: join(noSync(bindRun("fails")), parse("", "SELECT 'new'")), ends: 1}})
	r.change()
	got := strings.Join(w.play([]scriptStep{{send: bindRun(""), ends: 1}}), " ")
	if !strings.Contains(got, "old") {
		t.Errorf("got %s", got)
	}
}

// TestRandomPipelines has random pipelines that make, use, describe and drop the unnamed statement
// and one with a name, over any number of batches, and cuts each at messages to the server: the
// client and the tables must have what they have without a cut, or it is told an error.
func TestRandomPipelines(t *testing.T) {
	s := newStage(t, nil)
	cells, kept := 0, 0
	for seed := range uint64(*pipelines) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		sc := script{name: fmt.Sprintf("seed %d", seed),
			steps: []scriptStep{randomPipeline(rnd, 8)}}
		want := s.run(&sc, faultCut, -1, true)
		for at := rnd.IntN(3); at < want.sent; at += 2 + rnd.IntN(3) {
			cells++
			got := s.run(&sc, faultCut, at, true)
			told := strings.Join(got.seen, " ")
			if strings.Contains(told, "E 08007") || strings.Contains(told, "E 40001") {
				continue
			}
			if diff := difference(want.seen, got.seen); diff != "" || want.table != got.table {
				t.Errorf("%s: cut at %d of %d: %s; table %s, want %s", sc.name, at, want.sent,
					diff, got.table, want.table)
			}
			kept++
		}
	}
	t.Logf("%d cells, %d told nothing", cells, kept)
	if kept < cells/2 {
		t.Error("too many were told an error")
	}
}

var pipelines = flag.Int("pipelines", 3, "how many random pipelines are cut")

// randomPipeline is n batches in one write. Each statement takes the same parameter.
func randomPipeline(rnd *rand.Rand, n int) scriptStep {
	texts := []string{"INSERT INTO t VALUES ($1, 'a')", "INSERT INTO t VALUES ($1, 'b')",
		"UPDATE t SET b = b || 'u' WHERE a < $1", "SELECT b || 'r' FROM t WHERE a < $1 ORDER BY a"}
	parse := func(name string) []byte {
		return pgwire.AppendParse(nil, name, texts[rnd.IntN(len(texts))], []uint32{23})
	}
	out := parse("")
	for i := range n {
		name := []string{"", "", "", "s"}[rnd.IntN(4)]
		switch rnd.IntN(8) {
		case 0, 1, 2:
			if name != "" {
				out = pgwire.AppendClose(out, 'S', name)
			}
			out = append(out, parse(name)...)
		case 3:
			out = pgwire.AppendDescribe(out, 'S', name)
		}
		out = append(out, bindRun(name, strconv.Itoa(i))...)
	}
	return scriptStep{send: out, ends: n}
}
