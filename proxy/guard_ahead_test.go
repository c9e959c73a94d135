package proxy_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// superuser is a connection to the server that passes the proxy by.
func (r *rig) superuser() *pgconn.PgConn {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := pgconn.Connect(ctx, fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=app "+
		"password='%s' sslmode=disable", r.server.Port, proxytest.Password))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Close(ctx)
	})
	return c
}

// stuck plays a statement whose question for the xid the server does not get done: what it has to
// look up is locked. The client has its answer.
func (r *rig) stuck(w *raw, step scriptStep) (admin *pgconn.PgConn) {
	r.t.Helper()
	admin = r.superuser()
	exec(r.t, admin, "SELECT pg_cancel_backend(0), pg_backend_pid()") // known from here on
	answered, locked := make(chan struct{}), make(chan error, 1)
	var asked, told sync.Once
	r.line.Watch(func(typ byte, _ []byte) bool {
		if typ == 'F' {
			asked.Do(func() {
				<-answered
				_, err := tryExec(admin, "BEGIN; LOCK TABLE pg_catalog.pg_proc"+
					" IN ACCESS EXCLUSIVE MODE")
				locked <- err
			})
		}
		return true
	}, func(typ byte, _ []byte) bool {
		if typ == 'Z' {
			told.Do(func() { close(answered) })
		}
		return true
	})
	w.play([]scriptStep{step})
	select {
	case err := <-locked:
		if err != nil {
			r.t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		r.t.Fatal("no question went behind the write")
	}
	r.eventually(func() bool { return exec(r.t, admin, waitsForProc) == "1" }, "the question waits")
	r.line.Watch(nil, nil)
	return admin
}

// ofWaits are the clients' server processes that wait for the lock of stuck. The proxy's own
// questions, which come when they like, may wait for it too.
const (
	ofWaits = " FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted" +
		" AND relation = 'pg_catalog.pg_proc'::regclass AND usename = 'app'"
	waitsForProc = "SELECT count(*)" + ofWaits
)

// TestQuestionThatIsCanceled: a cancel request, or anything else, ends the question for the xid
// that went behind a statement, and with it the client's transaction, although the statement was
// answered. The client hears of none of it: its transaction is run again, or is told to be lost.
func TestQuestionThatIsCanceled(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.Reuse = false }) // a server process looks it up once
	admin := r.connect("")
	exec(t, admin, "CREATE TABLE t (a int)")
	exec(t, admin, "CREATE SEQUENCE s")
	r.until(func() bool { return proxy.KnowsSetters(r.proxy, "app") }) // else any write may set
	for name, play := range map[string]func(t *testing.T, r *rig, client *pgconn.PgConn) string{
		"the client waits":                          canceledForNext,
		"the client has sent more":                  canceledForMore,
		"what was shown does not come again":        canceledForGood,
		"the line breaks":                           cutInQuestion,
		"a request of a client that has its answer": canceledLate,
	} {
		t.Run(name, func(t *testing.T) {
			want := play(t, r, r.connect(""))
			if n := exec(t, admin, "SELECT count(*) FROM t"); n != want {
				t.Errorf("%s rows, want %s", n, want)
			}
			exec(t, admin, "TRUNCATE t")
		})
	}
}

const insertOne = "INSERT INTO t VALUES (1)"

// begun is a client in a transaction block.
func begun(t *testing.T, c *pgconn.PgConn) *raw {
	w := hijack(t, c)
	w.play([]scriptStep{q("BEGIN")})
	return w
}

// cancelQuestion cancels the question that stuck has left waiting.
func cancelQuestion(t *testing.T, admin *pgconn.PgConn) {
	t.Helper()
	exec(t, admin, "SELECT pg_cancel_backend(pid)"+ofWaits)
	exec(t, admin, "ROLLBACK")
}

func checkPlayed(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func canceledForNext(t *testing.T, r *rig, client *pgconn.PgConn) (rows string) {
	w := begun(t, client)
	same := r.count("replays_total", "same")
	cancelQuestion(t, r.stuck(w, q(insertOne)))
	checkPlayed(t, w.play([]scriptStep{q(insertOne), q("COMMIT")}), `C "INSERT 0 1\x00"`, `Z "T"`,
		`C "COMMIT\x00"`, `Z "I"`)
	if n := r.count("replays_total", "same") - same; n != 1 {
		t.Errorf("run again %v times", n)
	}
	return "2"
}

// What the client has sent behind the question ends in the failed block of the server, and its
// answers are not for the client.
func canceledForMore(t *testing.T, r *rig, client *pgconn.PgConn) (rows string) {
	w := begun(t, client)
	admin := r.stuck(w, x(insertOne))
	w.send(append(q(insertOne).send, x("COMMIT").send...))
	time.Sleep(50 * time.Millisecond) // some of it is with the server
	cancelQuestion(t, admin)
	if got := w.until(2, 20*time.Second); got != "C(INSERT 0 1) ZT 1 2 C(COMMIT) ZI " {
		t.Errorf("got %s", got)
	}
	return "2"
}

func canceledForGood(t *testing.T, r *rig, client *pgconn.PgConn) (rows string) {
	w := begun(t, client)
	cancelQuestion(t, r.stuck(w, q("INSERT INTO t VALUES (nextval('s')) RETURNING a")))
	checkPlayed(t, w.play([]scriptStep{q(insertOne), q(insertOne), q("ROLLBACK")}),
		"E 40001", `Z "E"`, "E 25P02", `Z "E"`, `C "ROLLBACK\x00"`, `Z "I"`)
	return "0"
}

func cutInQuestion(t *testing.T, r *rig, client *pgconn.PgConn) (rows string) {
	w := begun(t, client)
	admin := r.stuck(w, q(insertOne))
	r.line.Cut()
	exec(t, admin, "ROLLBACK")
	checkPlayed(t, w.play([]scriptStep{q("COMMIT")}), `C "COMMIT\x00"`, `Z "I"`)
	return "1"
}

// The client waits for nothing: a server that had been asked nothing would take no notice.
func canceledLate(t *testing.T, r *rig, client *pgconn.PgConn) (rows string) {
	pid, key := client.PID(), client.SecretKey()
	w := begun(t, client)
	late, begun := r.count("cancels_total", "late"), r.count("replays_total", "begun")
	admin := r.stuck(w, q(insertOne))
	err := pgwire.SendCancel(context.Background(), r.proxy.Addrs()[0].String(), pid, key,
		new(net.Dialer).DialContext)
	if err != nil {
		t.Fatal(err)
	}
	exec(t, admin, "ROLLBACK")
	checkPlayed(t, w.play([]scriptStep{q("COMMIT")}), `C "COMMIT\x00"`, `Z "I"`)
	if n := r.count("cancels_total", "late") - late; n != 1 {
		t.Errorf("%v requests were late", n)
	}
	if n := r.count("replays_total", "begun") - begun; n != 0 {
		t.Errorf("run again %v times", n)
	}
	return "1"
}

// sentBy are the messages that the proxy sends for these steps, by their types and what a Query
// says.
func (r *rig) sentBy(w *raw, steps ...scriptStep) string {
	r.t.Helper()
	var mu sync.Mutex
	var sent []string
	r.line.Watch(func(typ byte, body []byte) bool {
		mu.Lock()
		defer mu.Unlock()
		text := string(typ)
		if word, _, _ := strings.Cut(string(body), " "); typ == 'Q' {
			text = strings.TrimRight(word, "\x00")
		}
		sent = append(sent, text)
		return true
	}, nil)
	w.play(steps)
	r.line.Watch(nil, nil)
	mu.Lock()
	defer mu.Unlock()
	return strings.Join(sent, " ")
}

// TestQuestionGoesAhead: a transaction is asked for its xid once, behind its first write, and its
// COMMIT is sent as it is. Where it has no xid by then, its COMMIT is asked for it.
func TestQuestionGoesAhead(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.Reuse = false }) // it is reset meanwhile
	exec(t, r.connect(""), "CREATE TABLE t (a int)")
	exec(t, r.connect(""), "CREATE FUNCTION f() RETURNS void LANGUAGE sql"+
		" AS 'INSERT INTO t VALUES (1)'")
	r.until(func() bool { return proxy.KnowsSetters(r.proxy, "app") }) // else any write may set
	const insert, update = "INSERT INTO t VALUES (1)", "UPDATE t SET a = a WHERE false"
	for name, tc := range map[string]struct {
		steps []scriptStep
		want  string
	}{
		"simple":   {[]scriptStep{q("BEGIN"), q(insert), q("COMMIT")}, "BEGIN INSERT F COMMIT"},
		"extended": {[]scriptStep{x("BEGIN"), x(insert), x("COMMIT")}, "P B E S P B E S F P B E S"},
		"in one batch": {[]scriptStep{x("BEGIN", insert), x("COMMIT")},
			"P B E P B E S F P B E S"},
		"several writes": {[]scriptStep{q("BEGIN"), q(insert), q(insert), q("COMMIT")},
			"BEGIN INSERT F INSERT COMMIT"},
		"no xid at first": {[]scriptStep{q("BEGIN"), q(update), q(insert), q("COMMIT")},
			"BEGIN UPDATE F INSERT F COMMIT"},
		"no xid": {[]scriptStep{q("BEGIN"), q(update), q("COMMIT")}, "BEGIN UPDATE F F COMMIT"},
		"written by a function": {[]scriptStep{q("BEGIN"), q("SELECT f()"), q("COMMIT")},
			"BEGIN SELECT F COMMIT"},
		"chained": {[]scriptStep{q("BEGIN"), q(insert), q("COMMIT AND CHAIN"), q(insert),
			q("COMMIT")}, "BEGIN INSERT F COMMIT INSERT F COMMIT"},
		"savepoint": {[]scriptStep{q("BEGIN"), q("SAVEPOINT s"), q(insert), q("ROLLBACK TO s"),
			q("COMMIT")}, "BEGIN SAVEPOINT INSERT F ROLLBACK COMMIT"},
		"a write that fails": {[]scriptStep{q("BEGIN"), q("SAVEPOINT s"),
			q("INSERT INTO t VALUES (1/0)"), q("ROLLBACK TO s"), q(insert), q("COMMIT")},
			"BEGIN SAVEPOINT INSERT F ROLLBACK INSERT F COMMIT"},
		"rolled back": {[]scriptStep{q("BEGIN"), q(insert), q("ROLLBACK")},
			"BEGIN INSERT F ROLLBACK"},
	} {
		t.Run(name, func(t *testing.T) {
			w := hijack(t, r.connect(""))
			if got := r.sentBy(w, tc.steps...); got != tc.want {
				t.Errorf("sent %s, want %s", got, tc.want)
			}
		})
	}
}

// TestQuestionFixesNoSnapshot (DESIGN 10.16): where no statement of the client has taken a
// snapshot, ours does not: SET TRANSACTION goes on being allowed, and a repeatable read sees what
// it would.
func TestQuestionFixesNoSnapshot(t *testing.T) {
	r := newRig(t, nil)
	other := r.connect("")
	exec(t, other, "CREATE TABLE t (a int)")
	w := hijack(t, r.connect(""))
	w.play([]scriptStep{q("BEGIN"), q("SAVEPOINT s")})
	w.send(q("UPDATE t SET", "ROLLBACK TO s", "RELEASE s").send) // a syntax error takes none
	w.until(3, 20*time.Second)
	w.send(q("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").send)
	if got := w.until(1, 20*time.Second); got != "C(SET) ZT " {
		t.Errorf("SET TRANSACTION: %s", got)
	}
	exec(t, other, "INSERT INTO t VALUES (1)")
	w.send(q("DELETE FROM t").send)
	if got := w.until(1, 20*time.Second); got != "C(DELETE 1) ZT " {
		t.Errorf("DELETE: %s", got)
	}
}

// TestRefusedQuestionIsNotAskedAhead: a server that refuses the question costs a session one
// backend, and not one for each of its transactions.
func TestRefusedQuestionIsNotAskedAhead(t *testing.T) {
	r := newRig(t, nil)
	exec(t, r.connect(""), "CREATE TABLE t (a int)")
	for _, sql := range []string{
		"CREATE ROLE humble", "GRANT INSERT ON t TO humble", "GRANT humble TO app",
		"REVOKE EXECUTE ON FUNCTION pg_current_xact_id_if_assigned() FROM PUBLIC",
	} {
		r.server.ExecIn("app", sql)
	}
	c := r.connect("")
	exec(t, c, "SET ROLE humble")
	for range 3 {
		exec(t, c, "BEGIN")
		exec(t, c, "INSERT INTO t VALUES (1)")
		wantCode(t, c, "COMMIT", "42501")
	}
	if n := r.count("backend_losses_total", "in_transaction"); n != 1 {
		t.Errorf("%v backends were lost", n)
	}
}

// TestQuestionOfAReplayFails: the question before a COMMIT that is run again is canceled by
// somebody else. The error is the answer to the COMMIT, which was never sent, and the session goes
// on (DESIGN.md I33).
func TestQuestionOfAReplayFails(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.Reuse = false }) // a server process looks it up once
	exec(t, r.connect(""), "CREATE TABLE t (a int)")
	r.until(func() bool { return proxy.KnowsSetters(r.proxy, "app") }) // else any write may set
	admin := r.superuser()
	exec(t, admin, "SELECT pg_cancel_backend(0), pg_backend_pid()") // known from here on
	w := begun(t, r.connect(""))
	w.play([]scriptStep{q(insertOne)})
	var isCut, isLocked atomic.Bool
	locked := make(chan error, 1)
	r.line.Watch(func(typ byte, body []byte) bool {
		switch {
		case typ == 'Q' && strings.HasPrefix(string(body), "COMMIT"):
			return isCut.Swap(true)
		case typ == 'F' && isCut.Load() && !isLocked.Swap(true):
			_, err := tryExec(admin, "BEGIN; LOCK TABLE pg_catalog.pg_proc IN ACCESS EXCLUSIVE MODE")
			locked <- err
		}
		return true
	}, nil)
	w.send(pgwire.AppendQuery(nil, "COMMIT"))
	if err := <-locked; err != nil {
		t.Fatal(err)
	}
	r.eventually(func() bool { return exec(t, admin, waitsForProc) == "1" }, "the question waits")
	cancelQuestion(t, admin)
	checkPlayed(t, w.play([]scriptStep{{ends: 1}}), "E 57014", `Z "I"`)
	checkPlayed(t, w.play([]scriptStep{q(insertOne)}), `C "INSERT 0 1\x00"`, `Z "I"`)
	if n := exec(t, r.connect(""), "SELECT count(*) FROM t"); n != "1" {
		t.Errorf("%s rows", n)
	}
}
