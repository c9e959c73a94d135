package proxy_test

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// What was executed, and whose answers were lost, is never executed again, and never answered with
// more than is known.
func TestLostBatchesAreNotGuessed(t *testing.T) {
	q := func(sqls ...string) []byte {
		var out []byte
		for _, s := range sqls {
			out = pgwire.AppendQuery(out, s)
		}
		return out
	}
	for name, tc := range map[string]struct {
		block []string
		send  []byte
		at    func(byte, []byte) bool
		ends  int    // ReadyForQuery that are due
		want  string // what the client is told, in order
		rows  string
	}{
		"failed block: ROLLBACK, INSERT": {
			[]string{"SELECT 1/0"}, extended("ROLLBACK", "INSERT INTO t VALUES (1)"),
			answer('1'), 1, "08007 ZI", "1",
		},
		"failed block: ROLLBACK TO, INSERT, COMMIT": {
			[]string{"INSERT INTO t VALUES (1)", "SAVEPOINT s", "SELECT 1/0"},
			extended("ROLLBACK TO s", "INSERT INTO t VALUES (2)", "COMMIT"),
			answer('1'), 1, "C(COMMIT) ZI", "2",
		},
		"block: ROLLBACK, INSERT": {
			nil, extended("ROLLBACK", "INSERT INTO t VALUES (1)"), answer('1'), 1,
			"08007 ZI", "1",
		},
		"a second transaction in a pipeline": {
			[]string{"INSERT INTO t VALUES (0)"},
			q("COMMIT", "BEGIN", "INSERT INTO t VALUES (1)", "COMMIT"), committed, 4,
			"C(COMMIT) ZI C(BEGIN) ZT C(INSERT 0 1) ZT C(COMMIT) ZI", "2",
		},
		"a string that commits behind an INSERT": {
			nil, q("INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2); COMMIT"), answer('C'), 2,
			"08007 ZE 08007 ZE", "2",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, guardExplicit)
			w := r.inBlock(tc.block...)
			got := executedThenLost(t, r, w, tc.send, tc.at)
			if tc.ends > 1 {
				got += w.until(tc.ends-1, 8*time.Second)
			}
			at := 0
			for _, want := range strings.Fields(tc.want) {
				i := strings.Index(got[at:], want)
				if i < 0 {
					t.Fatalf("got %s, want %s", got, tc.want)
				}
				at += i + len(want)
			}
			if n := r.rows(); n != tc.rows {
				t.Errorf("%s rows; the client was told %s", n, got)
			}
		})
	}
}

// A COMMIT that was answered is no answer to what follows it.
func TestCommitIsNoAnswerToWhatFollows(t *testing.T) {
	r := newRig(t, nil)
	w := r.inBlock("INSERT INTO t VALUES (0)")
	w.send(extended("COMMIT", "INSERT INTO t SELECT 1 FROM pg_sleep(30)"))
	r.eventually(func() bool { return r.sleepers() == "1" }, "the COMMIT is done, the INSERT not")
	r.change()
	got := w.until(1, 8*time.Second)
	if !strings.Contains(got, "C(COMMIT)") || !strings.Contains(got, "E(08007") {
		t.Errorf("got %s", got)
	}
	if n := r.rows(); n != "1" {
		t.Errorf("%s rows", n)
	}
}

// Half of a transaction is not committed because its BEGIN was lost.
func TestLostBeginFailsTheBlock(t *testing.T) {
	r := newRig(t, noReplay)
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	w := hijack(t, c)
	cut := make(chan struct{})
	r.line.Watch(func(typ byte, b []byte) bool {
		if typ == 'Q' && strings.HasPrefix(string(b), "BEGIN; INS") {
			r.topo.Set(nil)
			close(cut)
			return false
		}
		return true
	}, nil)
	w.send(pgwire.AppendQuery(nil, "BEGIN; INSERT INTO t VALUES (1)"))
	<-cut
	r.line.Watch(nil, nil)
	w.send(pgwire.AppendQuery(pgwire.AppendQuery(nil, "INSERT INTO t VALUES (2)"), "COMMIT"))
	time.Sleep(200 * time.Millisecond) // all is there before there is a primary
	r.lead(1<<40, 1<<40)
	got := w.until(3, 8*time.Second)
	if n := r.rows(); n != "0" {
		t.Errorf("half of the transaction was committed: %s rows; %s", n, got)
	}
}

// The rest of a message whose first part went to a backend that is lost is no message.
func TestRestOfALostMessageGoesNowhere(t *testing.T) {
	evil := pgwire.AppendQuery(nil, "INSERT INTO t VALUES ('smuggled')")
	for _, kind := range []string{"query", "copy"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, noReplay)
			c := r.connect("")
			exec(t, c, "CREATE TABLE t (a text)")
			w := hijack(t, c)
			msg := pgwire.AppendQuery(nil, "INSERT INTO t VALUES ('"+strings.Repeat("x", 100000)+
				string(evil[:len(evil)-1]))
			if kind == "copy" {
				w.send(pgwire.AppendQuery(nil, "COPY t FROM STDIN"))
				_ = w.c.SetReadDeadline(time.Now().Add(5 * time.Second))
				if typ, _, err := w.r.ReadMessage(); err != nil || typ != 'G' {
					t.Fatal(typ, err)
				}
				msg = pgwire.AppendMessage(nil, 'd', append(bytes.Repeat([]byte("x"), 30000), evil...))
			}
			w.send(msg[:len(msg)-len(evil)])
			time.Sleep(200 * time.Millisecond) // the first part is with the server
			r.change()
			want := "08007" // of a COPY it is known that it has not ended
			if kind == "copy" {
				want = "40001"
			}
			if got := w.until(1, 8*time.Second); !strings.Contains(got, want) {
				t.Errorf("got %s", got)
			}
			w.send(evil)
			w.send(pgwire.AppendQuery(nil, "SELECT 1"))
			if got := w.until(1, 8*time.Second); !strings.Contains(got, "C(SELECT 1)") {
				t.Errorf("got %s", got)
			}
			if n := r.rows(); n != "0" {
				t.Errorf("bytes inside a message were executed: %s rows", n)
			}
		})
	}
}

func TestHoldThatExpiresInsideAMessage(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.HoldTimeout, c.HoldNoticeAfter = 400*time.Millisecond, 0
	})
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a text)")
	w := hijack(t, c)
	msg := pgwire.AppendQuery(nil, "INSERT INTO t VALUES ('"+strings.Repeat("x", 200000)+"')")
	w.send(msg[:100000])
	time.Sleep(100 * time.Millisecond) // the first part is with the server
	r.topo.Set(nil)
	r.proxy.Cut(r.epoch)
	if got := w.until(1, 8*time.Second); !strings.Contains(got, "08007") {
		t.Errorf("got %s", got)
	}
	w.send(msg[100000:])
	r.lead(1<<40, 1<<40)
	w.send(pgwire.AppendQuery(nil, "SELECT 1"))
	if got := w.until(1, 8*time.Second); !strings.Contains(got, "C(SELECT 1)") {
		t.Errorf("got %s", got)
	}
}

// What a client still sends of a COPY that was answered with an error is ignored, as by
// PostgreSQL.
func TestRestOfACopyIsIgnored(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.HoldTimeout, c.HoldNoticeAfter = 500*time.Millisecond, 0
	})
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a text)")
	w := hijack(t, c)
	w.send(pgwire.AppendQuery(nil, "COPY t FROM STDIN"))
	_ = w.c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := w.r.ReadMessage(); err != nil {
		t.Fatal(err)
	}
	w.send(pgwire.AppendMessage(nil, 'd', []byte("a\n")))
	time.Sleep(100 * time.Millisecond) // it is with the server
	r.topo.Set(nil)
	r.proxy.Cut(r.epoch)
	w.send(pgwire.AppendMessage(nil, 'd', []byte("b\n")))
	if got := w.until(1, 8*time.Second); !strings.Contains(got, "40001") {
		t.Errorf("got %s", got)
	}
	w.send(pgwire.AppendMessage(nil, 'c', nil))
	time.Sleep(700 * time.Millisecond) // a whole budget of the hold
	r.lead(1<<40, 1<<40)
	w.send(pgwire.AppendQuery(nil, "SELECT 1"))
	if got := w.until(1, 8*time.Second); !strings.Contains(got, "C(SELECT 1)") {
		t.Errorf("got %s", got)
	}
}

// A COPY of the extended protocol is committed by the Sync, not by its CommandComplete.
func TestCopyIsNotDoneBeforeItsSync(t *testing.T) {
	r := newRig(t, noReplay)
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	w := hijack(t, c)
	w.send(extended("COPY t FROM STDIN"))
	_ = w.c.SetReadDeadline(time.Now().Add(5 * time.Second))
	for typ := byte(0); typ != 'G'; {
		var err error
		if typ, _, err = w.r.ReadMessage(); err != nil {
			t.Fatal(err)
		}
	}
	m := pgwire.AppendMessage(nil, 'd', []byte("1\n"))
	w.send(pgwire.AppendFlush(pgwire.AppendMessage(m, 'c', nil)))
	if typ, _, err := w.r.ReadMessage(); err != nil || typ != 'C' {
		t.Fatal(string(typ), err)
	}
	r.change()
	w.send(pgwire.AppendSync(nil))
	if got := w.until(1, 8*time.Second); !strings.Contains(got, "E(40001") {
		t.Errorf("got %s", got)
	}
	if n := r.rows(); n != "0" {
		t.Errorf("%s rows", n)
	}
}

// A COPY FROM STDIN that was never answered is not begun again: nobody would read its data.
func TestLostCopyDoesNotHang(t *testing.T) {
	r := newRig(t, noReplay)
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	w := hijack(t, c)
	cut := make(chan struct{})
	done := false
	r.line.Watch(func(typ byte, _ []byte) bool {
		if !done && typ == 'H' {
			done = true
			close(cut)
			return false
		}
		return true
	}, nil)
	m := pgwire.AppendParse(nil, "", "COPY t FROM STDIN", nil)
	m = pgwire.AppendBind(m, "", "")
	m = pgwire.AppendExecute(m, "", 0)
	w.send(pgwire.AppendFlush(m))
	<-cut
	m = pgwire.AppendMessage(nil, 'd', []byte("1\n"))
	m = pgwire.AppendMessage(m, 'c', nil)
	w.send(pgwire.AppendSync(m))
	if got := w.until(1, 8*time.Second); !strings.Contains(got, "E(") {
		t.Errorf("got %s", got)
	}
}

// What a statement can do is judged by the text that the server has for it.
func TestWritesInDisguiseAreNotRepeated(t *testing.T) {
	for name, tc := range map[string]struct {
		options string
		setup   []string
		send    func(oid uint32) []byte
		at      byte
	}{
		"a name that is closed and prepared anew": {"", nil, func(uint32) []byte {
			m := pgwire.AppendClose(nil, 'S', "x")
			m = pgwire.AppendParse(m, "x", "INSERT INTO t VALUES (1)", nil)
			m = pgwire.AppendBind(m, "", "x")
			return pgwire.AppendSync(pgwire.AppendExecute(m, "", 0))
		}, '3'},
		"a character with a backslash in it": {"client_encoding=SJIS", nil, func(uint32) []byte {
			return pgwire.AppendQuery(nil, "SELECT E'\x95\x5c'; INSERT INTO t VALUES (1); --'")
		}, 'T'},
		"a parameter of a domain": {"", []string{
			"CREATE FUNCTION f(int) RETURNS bool LANGUAGE plpgsql AS " +
				"'BEGIN INSERT INTO t VALUES ($1); RETURN true; END'",
			"CREATE DOMAIN d AS int CHECK (f(VALUE))",
		}, func(oid uint32) []byte {
			m := pgwire.AppendParse(nil, "", "SELECT $1", []uint32{oid})
			m = pgwire.AppendMessage(m, 'B', []byte("\x00\x00\x00\x00\x00\x01\x00\x00\x00\x017\x00\x00"))
			return pgwire.AppendSync(pgwire.AppendExecute(m, "", 0))
		}, '1'},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			c := r.connect(tc.options)
			exec(t, c, "CREATE TABLE t (a int)")
			oid := 0
			for _, s := range tc.setup {
				exec(t, c, s)
			}
			if len(tc.setup) > 0 {
				oid, _ = strconv.Atoi(exec(t, c, "SELECT 'd'::regtype::oid::int"))
			}
			w := hijack(t, c)
			w.send(pgwire.AppendSync(pgwire.AppendParse(nil, "x", "SELECT 1", nil)))
			_ = w.until(1, 8*time.Second)
			got := executedThenLost(t, r, w, tc.send(uint32(oid)), answer(tc.at))
			if n := r.rows(); n != "1" || !strings.Contains(got, "E(08007") {
				t.Errorf("%s rows; %s", n, got)
			}
		})
	}
}

// TestCommitBehindWhatWasAnswered: the server is lost with a pipeline whose COMMIT it has executed,
// when a statement before that was answered. Its own text only reads: what it commits does not.
func TestCommitBehindWhatWasAnswered(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.CommitGuard = proxy.GuardOff })
	w := hijack(t, r.connect(""))
	w.play([]scriptStep{q("CREATE TABLE t (a int)")})
	for name, tc := range map[string]struct{ sql, want string }{
		"wrote":  {"INSERT INTO t VALUES (1)", "E 08007"},
		"read":   {"SELECT 1", `C "COMMIT\x00"`}, // all of it is run again
		"notify": {"NOTIFY news", "E 08007"},
	} {
		t.Run(name, func(t *testing.T) {
			lost := make(chan struct{})
			var selected, cut atomic.Bool
			r.line.Watch(nil, func(typ byte, body []byte) bool {
				selected.Store(selected.Load() || bytes.HasPrefix(body, []byte("SELECT 2\x00")))
				if typ == 'Z' && selected.Load() && cut.CompareAndSwap(false, true) {
					time.Sleep(200 * time.Millisecond) // meanwhile the server executes the COMMIT
					close(lost)
					return false
				}
				return true
			})
			w.send(q("BEGIN", tc.sql, "SELECT FROM generate_series(1, 2)", "COMMIT").send)
			<-lost
			r.line.Watch(nil, nil)
			got := w.play([]scriptStep{{ends: 4}})
			if len(got) < 2 || got[len(got)-2] != tc.want {
				t.Errorf("got %q", got)
			}
		})
	}
}

// TestBlockOfALostCommit: without a guard the COMMIT of a pipeline may have been executed, and then
// all of its block has. What is told of each has to be true, and the same where the server has
// executed all as where it has had nothing.
func TestBlockOfALostCommit(t *testing.T) {
	batches := func(all ...[]byte) scriptStep {
		return scriptStep{send: join(all...), ends: len(all)}
	}
	r := newRig(t, func(c *proxy.Config) { c.CommitGuard = proxy.GuardOff })
	admin := r.directly("")
	exec(t, admin, "CREATE TABLE t (a int)")
	for name, tc := range map[string]struct {
		send scriptStep
		want string // the SQLSTATE of each, or -
	}{
		"writes": {q("BEGIN", "INSERT INTO t VALUES (1)", "SELECT 1", "COMMIT"),
			"08007 08007 08007 08007"},
		"behind a read": {q("SELECT 1 AS mine", "BEGIN", "INSERT INTO t VALUES (1)", "COMMIT",
			"SELECT 2"),
			"40001 08007 08007 08007 -"},
		"only reads": {q("BEGIN", "SELECT count(*) FROM t", "SAVEPOINT s", "COMMIT", "SELECT 2"),
			"- - - - -"},
		"rolled back, then one that writes": {q("BEGIN", "INSERT INTO t VALUES (1)", "ROLLBACK",
			"BEGIN", "INSERT INTO t VALUES (2)", "COMMIT"), "40001 40001 - 08007 08007 08007"},
		"rolled back to a savepoint": {q("BEGIN", "SAVEPOINT s", "INSERT INTO t VALUES (1)",
			"ROLLBACK TO s", "COMMIT"), "08007 08007 08007 08007 08007"},
		"committed by a string": {q("BEGIN", "SELECT 1", "INSERT INTO t VALUES (1); COMMIT",
			"INSERT INTO t VALUES (2)"), "08007 08007 08007 08007"},
		"one batch, a write behind it": {batches(extended("BEGIN", "INSERT INTO t VALUES (1)",
			"COMMIT"), extended("INSERT INTO t VALUES (2)")), "08007 08007"},
	} {
		for _, executed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/executed %v", name, executed), func(t *testing.T) {
				exec(t, admin, "TRUNCATE t")
				if got := lostInAPipeline(t, r, admin, tc.send, executed); got != tc.want {
					t.Errorf("told %s, want %s; %s rows", got, tc.want, r.rows())
				}
			})
		}
	}
}

// lostInAPipeline sends batches and loses the server, once it has executed all that it was sent, or
// when it has had nothing. It returns the SQLSTATE of each, or - where there is none.
func lostInAPipeline(t *testing.T, r *rig, admin *pgconn.PgConn, st scriptStep, executed bool,
) string {
	t.Helper()
	w := hijack(t, r.connect(""))
	isDone := r.leaves(len(st.send))
	if executed { // all that was sent: the server waits for more
		texts := regexp.MustCompile(`[A-Z][A-Z0-9a-z ();,]+`).FindAllString(string(st.send), -1)
		idle := "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle%' AND query = '" +
			texts[len(texts)-1] + "'"
		isDone = func() bool { return exec(t, admin, idle) == "1" }
	}
	lost := make(chan struct{})
	var cut atomic.Bool
	at := func(typ byte, body []byte) bool { // the first message, or answer, of the session itself
		isFirst := strings.ContainsRune("QPC", rune(typ)) && bytes.Contains(body, []byte("BEGIN")) ||
			strings.ContainsRune("QT", rune(typ)) && bytes.Contains(body, []byte("mine"))
		if !isFirst || cut.Swap(true) {
			return true
		}
		for end := time.Now().Add(10 * time.Second); !isDone() && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		if !isDone() {
			t.Error("it was not sent, or not executed, in time")
		}
		close(lost)
		return false
	}
	if executed {
		r.line.Watch(nil, at)
	} else {
		r.line.Watch(at, nil)
	}
	w.send(st.send)
	<-lost
	r.line.Watch(nil, nil)
	var got []string
	for range st.ends {
		code := "-"
		for _, m := range w.play([]scriptStep{{ends: 1}}) {
			if rest, ok := strings.CutPrefix(m, "E "); ok {
				code = rest
			}
		}
		got = append(got, code)
	}
	return strings.Join(got, " ")
}

// TestFailedBlockIsLostWhileIdle: a block that has failed does nothing but end, and loses nothing
// with its server, unless it could have gone back to a savepoint.
func TestFailedBlockIsLostWhileIdle(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*proxy.Config)
		begin  scriptStep
		want   []string
	}{
		"no savepoint": {nil, q("BEGIN", "SELECT 1/0"), []string{`C "ROLLBACK\x00"`, `Z "I"`}},
		"a savepoint": {noReplay, q("BEGIN", "SAVEPOINT s", "SELECT 1/0"),
			[]string{"E 40001", `Z "I"`}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, tc.change)
			w := hijack(t, r.connect(""))
			w.play([]scriptStep{tc.begin})
			r.line.Cut()
			r.eventually(func() bool { return r.count("sessions_restored_total", "") > 0 },
				"it goes on with another backend")
			checkPlayed(t, w.play([]scriptStep{q("COMMIT")}), tc.want...)
		})
	}
}
