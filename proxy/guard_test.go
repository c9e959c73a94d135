package proxy_test

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// TestHeldSyncIsBounded (DESIGN 10.17): while the Sync that commits is held back, the server keeps
// the transaction and its locks. If the lease does not come back this ends within hold_timeout: the
// client is told that nothing was executed, and the server has let go.
func TestHeldSyncIsBounded(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.HoldTimeout, c.HoldNoticeAfter = 500*time.Millisecond, 0
	})
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	w := hijack(t, c)
	asked := func(_ byte, body []byte) bool {
		if strings.Contains(string(body), "pg_current_xact_id_if_assigned") {
			r.lease.Set(-time.Second, -time.Second)
		}
		return true
	}
	r.line.Watch(asked, nil)
	w.send(q("INSERT INTO t VALUES (1)").send)
	locks := func() string {
		return r.server.ExecIn("app", "SELECT count(*) FROM pg_locks "+
			"WHERE relation = 't'::regclass")[0][0]
	}
	r.eventually(func() bool { return locks() == "1" }, "the server has the transaction open")
	r.eventually(func() bool { return locks() == "0" }, "the server lets go")
	if got := w.until(1, 20*time.Second); !strings.Contains(got, "40001") {
		t.Errorf("told %s", got)
	}
	r.line.Watch(nil, nil)
	r.lease.Set(time.Hour, time.Hour)
	w.send(q("SELECT 1").send)
	if got := w.until(1, 20*time.Second); !strings.Contains(got, "C(SELECT 1)") {
		t.Errorf("the session goes on with %s", got)
	}
	if v := exec(t, r.connect(""), "SELECT count(*) FROM t"); v != "0" {
		t.Errorf("%s rows", v)
	}
}

// TestOldBackendIsEndedFirst (DESIGN 10.13): the connection breaks while the server is in the
// middle of COMMIT, where it would stay for long. Nothing is known before that process has ended,
// so it is ended, and the transaction is run again: once.
func TestOldBackendIsEndedFirst(t *testing.T) {
	for name, settings := range map[string][]string{
		"plain": nil,
		// What a process's start looks like as text, and who may see it, are settings of the role.
		"times as text": {"ALTER ROLE app SET datestyle = 'SQL, DMY'",
			"ALTER ROLE app SET timezone = 'Asia/Kolkata'"},
		"a timeout for look-ups": {"ALTER ROLE holdfast_lookup SET statement_timeout = '5ms'"},
		"another role": {"CREATE ROLE owner", "GRANT owner TO app", "GRANT ALL ON SCHEMA public TO owner",
			"ALTER ROLE app SET role = 'owner'"},
	} {
		t.Run(name, func(t *testing.T) { checkOldBackendIsEnded(t, settings) })
	}
}

func checkOldBackendIsEnded(t *testing.T, settings []string) {
	r := newRig(t, func(c *proxy.Config) { c.HoldTimeout = 10 * time.Second })
	for _, sql := range settings {
		r.server.ExecIn("app", sql)
	}
	admin := r.connect("")
	exec(t, admin, "CREATE TABLE t (a int)")
	exec(t, admin, "CREATE TABLE naps (seconds int)")
	exec(t, admin, "INSERT INTO naps VALUES (60)")
	exec(t, admin, `CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM pg_sleep((SELECT coalesce(sum(seconds), 0) FROM naps)); RETURN NULL; END$$`)
	exec(t, admin, "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t "+
		"DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION nap()")
	c := r.connect("")
	exec(t, c, "BEGIN")
	exec(t, c, "INSERT INTO t VALUES (1)")
	done := make(chan error, 1)
	go func() {
		_, err := tryExec(c, "COMMIT")
		done <- err
	}()
	r.eventually(func() bool { return r.sleepers() == "1" }, "the server is in COMMIT")
	r.server.ExecIn("app", "DELETE FROM naps")
	r.line.Cut()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("told %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("no answer while the old process sleeps")
	}
	rows := r.server.ExecIn("app", "SELECT count(*) FROM t")[0][0]
	if n := r.sleepers(); n != "0" || rows != "1" {
		t.Errorf("%s processes sleep, %s rows", n, rows)
	}
}

// TestXIDFunctions: what a COMMIT's question calls is what it is meant to be, on this server.
func TestXIDFunctions(t *testing.T) {
	r := newRig(t, nil)
	for name, oid := range proxy.XIDFunctions() {
		got := r.server.ExecIn("app", "SELECT '"+name+"'::regprocedure::oid")[0][0]
		if got != fmt.Sprint(oid) {
			t.Errorf("%s is %s, not %d", name, got, oid)
		}
	}
}

// TestQuestionThatFails: a COMMIT whose question the server refuses has the server's own error, and
// the transaction is rolled back, in both protocols.
func TestQuestionThatFails(t *testing.T) {
	r := newRig(t, nil)
	admin := r.connect("")
	exec(t, admin, "CREATE TABLE t (a int)")
	r.server.ExecIn("app", "REVOKE EXECUTE ON FUNCTION pg_current_xact_id_if_assigned() FROM PUBLIC")
	r.server.ExecIn("app", "CREATE ROLE humble LOGIN PASSWORD 'x'")
	r.server.ExecIn("app", "GRANT INSERT ON t TO humble")
	r.server.ExecIn("app", "GRANT humble TO app")
	c := r.connect("")
	exec(t, c, "SET ROLE humble")
	w := hijack(t, c)
	for _, c := range []struct {
		commit scriptStep
		ready  string
	}{{q("COMMIT"), "ZI"}, {x("COMMIT"), "ZE"}} { // a batch ends where it fails
		w.send(q("BEGIN").send)
		w.until(1, 20*time.Second)
		w.send(q("INSERT INTO t VALUES (1)").send)
		w.until(1, 20*time.Second)
		w.send(c.commit.send)
		if got := w.until(1, 20*time.Second); !strings.Contains(got, "42501") ||
			!strings.Contains(got, c.ready) {
			t.Errorf("told %s, want %s", got, c.ready)
		}
		w.send(q("ROLLBACK").send)
		w.until(1, 20*time.Second)
	}
	if n := exec(t, admin, "SELECT count(*) FROM t"); n != "0" {
		t.Errorf("%s rows", n)
	}
}

// TestQuestionThatFailsUndoesAll: what a transaction has made of its session is gone with it.
func TestQuestionThatFailsUndoesAll(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "BEGIN")
	exec(t, c, "SELECT set_config('app.' || 'tenant', '1', false)") // no new server could have it
	r.server.ExecIn("app", "REVOKE EXECUTE ON FUNCTION pg_current_xact_id_if_assigned() FROM PUBLIC")
	wantCode(t, c, "COMMIT", "42501")
	r.change()
	if got, err := tryExec(c, "SELECT 1"); got != "1" {
		t.Errorf("%q %v", got, err)
	}
}

// TestHalfClosedWhileAsked: a client that sends a write and nothing more, not even an ear for the
// answer's end, has sent it.
func TestHalfClosedWhileAsked(t *testing.T) {
	r := newRig(t, nil)
	exec(t, r.connect(""), "CREATE TABLE t (a int)")
	const insert = "INSERT INTO t VALUES (1)"
	for i, send := range [][]byte{q(insert).send, x(insert).send,
		append(append(q("BEGIN").send, q(insert).send...), q("COMMIT").send...)} {
		w := hijack(t, r.connect(""))
		asked, left := make(chan struct{}), make(chan struct{})
		var once sync.Once
		r.line.Watch(nil, func(typ byte, _ []byte) bool {
			if typ == 'V' || typ == 'D' {
				once.Do(func() { close(asked) })
				<-left // the answer to the question comes after the end of the client
			}
			return true
		})
		w.send(send)
		<-asked
		if err := w.c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		close(left)
		want := fmt.Sprint(i + 1)
		r.eventually(func() bool {
			return r.server.ExecIn("app", "SELECT count(*) FROM t")[0][0] == want
		}, "the write is committed")
		r.line.Watch(nil, nil)
		r.eventually(func() bool { return len(r.proxy.Sessions()) == 1 }, "its session ends")
	}
}

// TestGuardedMessagesAreBounded: what waits for the xid is there as a whole. A message that has no
// text of the client's in it, and says that it is longer than such messages are, ends its session,
// as with the server, and nobody else's.
func TestGuardedMessagesAreBounded(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.InspectBytesMax = 1024 })
	other := r.connect("")
	exec(t, other, "CREATE TABLE t (a int)")
	long := func(typ byte, start string, size int) []byte {
		return pgwire.AppendMessage(nil, typ, append([]byte(start), make([]byte, size)...))
	}
	bound := func(sql string) []byte {
		return pgwire.AppendBind(pgwire.AppendParse(nil, "", sql, nil), "", "")
	}
	for name, send := range map[string][]byte{
		"Execute": append(bound("COMMIT"), long('E', "\x00\x00\x00\x00\x00", 1<<20)...),
		"Sync": append(pgwire.AppendExecute(bound("INSERT INTO t VALUES (1)"), "", 0),
			long('S', "", 1<<20)...),
	} {
		w := hijack(t, r.connect(""))
		w.send(q("BEGIN").send)
		w.until(1, 20*time.Second)
		if name == "Sync" {
			w.send(q("ROLLBACK").send)
			w.until(1, 20*time.Second)
		}
		go func() { _, _ = w.c.Write(send) }()
		if got := w.rest(20 * time.Second); !strings.Contains(got, "E(08P01") {
			t.Errorf("%s: told %s", name, got)
		}
	}
	// Larger than what is inspected, and as long as it may be.
	w := hijack(t, r.connect(""))
	w.send(q("BEGIN").send)
	w.until(1, 20*time.Second)
	portal := strings.Repeat("p", 5000)
	out := pgwire.AppendBind(pgwire.AppendParse(nil, "", "COMMIT", nil), portal, "")
	w.send(pgwire.AppendSync(pgwire.AppendExecute(out, portal, 0)))
	if got := w.until(1, 20*time.Second); !strings.Contains(got, "C(COMMIT) ZI") {
		t.Errorf("told %s", got)
	}
	if n := exec(t, other, "SELECT count(*) FROM t"); n != "0" {
		t.Errorf("%s rows", n)
	}
}
