package proxy_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// TestReplayThatComesShort: what a transaction was shown is longer than what it is shown when it is
// run again. The session must be told, and not wait for the rest.
func TestReplayThatComesShort(t *testing.T) {
	r := newRig(t, nil)
	admin := r.connect("")
	exec(t, admin, "CREATE TABLE t (a int PRIMARY KEY, b text)")
	exec(t, admin, "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
	w := hijack(t, r.connect(""))
	w.play([]scriptStep{q("BEGIN"), q("SELECT b FROM t")})
	exec(t, admin, "DELETE FROM t WHERE a = 2")
	r.line.Cut()
	got := w.play([]scriptStep{q("SELECT 1"), q("ROLLBACK")})
	want := []string{"E 40001", `Z "E"`, `C "ROLLBACK\x00"`, `Z "I"`}
	if !slices.Equal(got, want) {
		t.Fatalf("got %q", got)
	}
}

// TestReplayInsideAMessage: the client has a part of a row when its unit is run again. Nothing else
// may come before the rest of the row.
func TestReplayInsideAMessage(t *testing.T) {
	r := newRig(t, nil)
	exec(t, r.connect(""), "SELECT 1")
	w := hijack(t, r.connect(""))
	w.play([]scriptStep{q("BEGIN"), q("SET LOCAL TimeZone = 'Asia/Tokyo'")})
	r.line.CutInside('D', 100000)
	got := w.play([]scriptStep{q("SELECT repeat('x', 300000)"), q("COMMIT")})
	if len(got) != 6 || !strings.Contains(got[1], strings.Repeat("x", 300000)) ||
		got[5] != `Z "I"` {
		for i := range got {
			got[i] = fmt.Sprintf("%.60s (%d)", got[i], len(got[i]))
		}
		t.Fatalf("got %q", got)
	}
}

// TestReplayThatNeverBegins: the next primary is lost while the session is made what it was when
// its unit began, and there is no other for longer than it may wait.
func TestReplayThatNeverBegins(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.HoldTimeout = time.Second })
	w := hijack(t, r.connect(""))
	parse := pgwire.AppendSync(pgwire.AppendParse(nil, "p", "SELECT 7", nil))
	w.play([]scriptStep{q("BEGIN"), {send: parse, ends: 1}})
	var once sync.Once
	gone := make(chan struct{})
	r.line.Watch(func(typ byte, _ []byte) bool {
		if typ == 'C' { // Close: it is rewound
			once.Do(func() { r.topo.Set(nil); close(gone) })
			return false
		}
		return true
	}, nil)
	r.line.Cut()
	<-gone
	r.line.Watch(nil, nil)
	got := w.play([]scriptStep{q("SELECT 1")})
	r.lead(0, 0)
	got = append(got, w.play([]scriptStep{q("ROLLBACK"), {send: bindRun("p"), ends: 1}})...)
	want := []string{"E 40001", `Z "E"`, `C "ROLLBACK\x00"`, `Z "I"`}
	if len(got) != 9 || !slices.Equal(got[:4], want) {
		t.Fatalf("got %q", got)
	}
}

// TestCompletionBeforeAHeldEnd: the end of a Query whose commit was guarded waits for the session's
// settings, and the server is lost. The client gets the completion and then the end.
func TestCompletionBeforeAHeldEnd(t *testing.T) {
	r := newRig(t, nil)
	w := hijack(t, r.connect(""))
	w.play([]scriptStep{q("PREPARE s AS SELECT set_config('a.b', 'c', false)")})
	var at atomic.Int32 // its completion has passed, its end too, and what is behind that was cut
	r.line.Watch(nil, func(typ byte, body []byte) bool {
		switch {
		case typ == 'C' && string(body) == "SELECT 1\x00":
			at.CompareAndSwap(0, 1)
		case typ == 'Z':
			at.CompareAndSwap(1, 2)
		default: // the first answer to the question for the settings
			return !at.CompareAndSwap(2, 3)
		}
		return true
	})
	got := w.play([]scriptStep{q("EXECUTE s")})
	if len(got) != 4 || got[2] != `C "SELECT 1\x00"` || got[3] != `Z "I"` || at.Load() != 3 {
		t.Fatalf("got %q, at %d", got, at.Load())
	}
}

// TestQueriesThatAreGuardedLookTheSame compares what a client of the server sees with what a client
// of the proxy sees.
func TestQueriesThatAreGuardedLookTheSame(t *testing.T) {
	r := newRig(t, nil)
	owner := r.connect("")
	var seen [2][]string
	exec(t, owner, guardedSchema)
	for i, port := range []string{fmt.Sprintf(" port=%d", r.server.Port), ""} {
		exec(t, owner, "TRUNCATE t, noisy, late, ruled")
		c, err := dial(t.Context(), r.dsn("search_path=s"+port))
		if err != nil {
			t.Fatal(err)
		}
		w := hijack(t, c)
		for _, sql := range guardedQueries {
			seen[i] = append(seen[i], sql)
			seen[i] = append(seen[i], w.playAll(q(sql))...)
		}
	}
	last := ""
	for i := range max(len(seen[0]), len(seen[1])) {
		if i >= len(seen[0]) || i >= len(seen[1]) || seen[0][i] != seen[1][i] {
			t.Fatalf("%s: the server says %q, the proxy %q", last, seen[0][i:min(i+4, len(seen[0]))],
				seen[1][i:min(i+4, len(seen[1]))])
		}
		if slices.Contains(guardedQueries, seen[0][i]) {
			last = seen[0][i]
		}
	}
}

const guardedSchema = `CREATE SCHEMA s; SET search_path = s;
CREATE TABLE t (a int PRIMARY KEY, b text);
CREATE TABLE noisy (a int); CREATE TABLE late (a int); CREATE TABLE ruled (a int);
CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN RAISE NOTICE 'a is %', NEW.a; IF NEW.a < 0 THEN RAISE EXCEPTION 'no'; END IF;
RETURN NEW; END$$;
CREATE TRIGGER n BEFORE INSERT ON noisy FOR EACH ROW EXECUTE FUNCTION say();
CREATE CONSTRAINT TRIGGER l AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION say();
CREATE RULE twice AS ON INSERT TO ruled DO ALSO INSERT INTO t VALUES (NEW.a + 100, 'r')`

var guardedQueries = []string{
	"INSERT INTO t VALUES (1, 'a')", "INSERT INTO t VALUES (1, 'a')",
	"INSERT INTO t VALUES (2, 'a') RETURNING b;",
	"; INSERT INTO t VALUES (3, 'a') -- comment", "/* c */ UPDATE t SET b = 'z' RETURNING *;;",
	"INSERT INTO nowhere VALUES (1)", "INSERT INTO t VALUE",
	"PREPARE p AS SELECT * FROM t", "EXECUTE p", "EXECUTE p()", "EXECUTE nothing",
	"PREPARE p2(int) AS INSERT INTO t VALUES ($1, 'p') RETURNING a", "EXECUTE p2(7)",
	"EXECUTE p2(7)", "EXECUTE p2", "PREPARE p3 AS SELECT", "EXECUTE p3",
	"INSERT INTO ruled VALUES (1)", "SELECT * FROM t",
	"INSERT INTO noisy VALUES (1)", "INSERT INTO late VALUES (1)", "INSERT INTO late VALUES (-1)",
	"WITH x AS (INSERT INTO t VALUES (20, 'w') RETURNING a) SELECT * FROM x",
	"SELECT * FROM late", "UPDATE t SET b = b WHERE false",

	"INSERT INTO t VALUES (1, 'a') RETURNING b",
	"INSERT INTO noisy VALUES (2) RETURNING a",
}

// TestCopyLooksTheSame compares conversations with COPY in the same way.
func TestCopyLooksTheSame(t *testing.T) {
	r := newRig(t, nil)
	owner := r.connect("")
	exec(t, owner, "CREATE TABLE t (a int, b text)")
	insert := func(a int) []byte { return extended(fmt.Sprintf("INSERT INTO t VALUES (%d, 'x')", a)) }
	prepare := pgwire.AppendSync(pgwire.AppendParse(nil, "c", "COPY t FROM STDIN", nil))
	for name, steps := range map[string][]scriptStep{
		"execute of a prepared copy": {
			{send: prepare, ends: 1},
			{send: pgwire.AppendQuery(nil, "EXECUTE c"), typ: 'G'},
			{send: copyData("1\ta"), ends: 1}, q("SELECT * FROM t"),
		},
		"insert and copy in one batch": {
			{send: append(noSync(insert(1)), extended("COPY t FROM STDIN")...), typ: 'G'},
			{send: pgwire.AppendSync(copyData("2\ta")), ends: 1}, q("SELECT * FROM t"),
		},
		"copy behind a batch": {
			{send: append(append(insert(1), pgwire.AppendQuery(nil, "COPY t FROM STDIN")...),
				copyData("2\ta")...), ends: 2},
			q("SELECT * FROM t"), q("INSERT INTO t VALUES (3, 'x')"), q("SELECT * FROM t"),
		},
		"stray end": {
			{send: append(append(insert(1), copyData()...), insert(2)...), ends: 2},
			q("SELECT * FROM t"),
		},
		"copy fails": {
			{send: pgwire.AppendQuery(nil, "COPY t FROM STDIN"), typ: 'G'},
			{send: pgwire.AppendMessage(nil, 'f', []byte("no\x00")), ends: 1},
			q("SELECT * FROM t"),
		},
	} {
		var seen [2][]string
		for i, port := range []string{fmt.Sprintf(" port=%d", r.server.Port), ""} {
			exec(t, owner, "TRUNCATE t")
			c, err := dial(t.Context(), r.dsn(port))
			if err != nil {
				t.Fatal(err)
			}
			seen[i] = hijack(t, c).play(steps)
		}
		if d := difference(seen[0], seen[1]); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// playAll is play with notices, by their text, and with errors by code, text and position.
func (w *raw) playAll(st scriptStep) []string {
	w.t.Helper()
	var seen []string
	w.send(st.send)
	_ = w.c.SetReadDeadline(time.Now().Add(30 * time.Second))
	for ends := st.ends; ends > 0; {
		typ, body, err := w.r.ReadMessage()
		if err != nil {
			return append(seen, "gone: "+err.Error())
		}
		switch typ {
		case 'N', 'E':
			e, _ := pgwire.ParseError(body)
			seen = append(seen, fmt.Sprintf("%c %s %s %s", typ, e.Code, e.Message, body))
		case 'Z':
			ends--
			fallthrough
		default:
			seen = append(seen, fmt.Sprintf("%c %q", typ, body))
		}
	}
	return seen
}
