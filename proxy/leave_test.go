package proxy_test

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// loseCommitAnswer cuts the line when the server has committed and lose is called; the channel is
// closed as soon as it has.
func (r *rig) loseCommitAnswer() (committed <-chan struct{}, lose func()) {
	cut, now := make(chan struct{}), make(chan struct{})
	isLost := false
	r.line.Watch(nil, func(typ byte, body []byte) bool {
		if isLost || typ != 'C' || string(body) != "COMMIT\x00" {
			return true
		}
		isLost = true
		close(cut)
		<-now
		return false
	})
	return cut, sync.OnceFunc(func() { close(now) })
}

// commitInFlight is a session whose COMMIT of one row in a new table t was executed and not
// answered. The statements given come before its transaction.
func (r *rig) commitInFlight(before ...string) (c *pgconn.PgConn, done <-chan error) {
	r.t.Helper()
	return r.commitInFlightAfter(func() {}, before...)
}

// commitInFlightAfter is commitInFlight where something happens on the server between the commit
// and the loss of its answer, before anybody can look for its outcome.
func (r *rig) commitInFlightAfter(first func(), before ...string,
) (c *pgconn.PgConn, done <-chan error) {
	r.t.Helper()
	c = r.connect("")
	for _, sql := range append([]string{"CREATE TABLE t (a int)"}, before...) {
		exec(r.t, c, sql)
	}
	exec(r.t, c, "BEGIN")
	exec(r.t, c, "INSERT INTO t VALUES (1)")
	committed, lose := r.loseCommitAnswer()
	defer lose()
	done = start(c, "COMMIT")
	<-committed
	first()
	lose()
	r.line.Watch(nil, nil)
	return c, done
}

// A session that cannot be carried ends with 57P01, which clients take for "not executed"; the
// COMMIT that was in flight is answered before.
func TestCommitOfAnUnmovableSessionIsAnswered(t *testing.T) {
	r := newRig(t, nil)
	c, done := r.commitInFlight("SELECT pg_advisory_lock(g) FROM generate_series(1, 2) g")
	r.change()
	if err := <-done; err != nil {
		t.Fatalf("COMMIT: %v", err)
	}
	if _, err := tryExec(c, "SELECT 1"); code(err) != "57P01" {
		t.Errorf("the session was not told: %v", err)
	}
	if n := exec(t, r.connect(""), "SELECT count(*) FROM t"); n != "1" {
		t.Fatalf("rows: %s", n)
	}
}

// A commit that was looked up is answered once it is as durable as the server's own setting asks,
// also where the group's mode asks for nothing: the setting may be another one for a while.
func TestFoundCommitWaitsAsTheServerAsks(t *testing.T) {
	r := newRig(t, nil)
	_, done := r.commitInFlightAfter(func() {
		r.server.Exec("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
		r.server.Exec("SELECT pg_reload_conf()")
		r.eventually(func() bool {
			return r.server.Exec("SHOW synchronous_standby_names")[0][0] == "nobody"
		}, "the server asks for a standby")
	})
	r.change()
	mustWait(t, done, 500*time.Millisecond)
	r.server.Exec("ALTER SYSTEM RESET synchronous_standby_names")
	r.server.Exec("SELECT pg_reload_conf()")
	if err := <-done; err != nil {
		t.Fatalf("COMMIT: %v", err)
	}
}

func TestCommitInFlightAtShutdownIsUnknown(t *testing.T) {
	r := newRig(t, nil)
	_, done := r.commitInFlight()
	r.proxy.Cut(r.epoch) // and no other primary comes
	mustWait(t, done, 100*time.Millisecond)
	if err := r.proxy.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; code(err) != "08007" {
		t.Fatalf("got %v", err)
	}
}

func TestCloseEndsAStatementThatWasSentAgain(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	sent, end := make(chan struct{}, 1), make(chan struct{})
	t.Cleanup(func() { close(end) })
	count := 0
	r.line.Watch(func(typ byte, body []byte) bool {
		if typ == 'Q' && strings.Contains(string(body), "SELECT 42") {
			if count++; count == 1 {
				return false // lost on its way; it only reads, so it is sent again
			}
			sent <- struct{}{}
			<-end // and no answer comes
		}
		return true
	}, nil)
	done := start(c, "SELECT 42")
	<-sent
	closed := make(chan error, 1)
	go func() { closed <- r.proxy.Close() }()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Fatal("Close waits for the server")
	}
	if err := <-done; err == nil {
		t.Error("the statement was answered")
	}
}

func TestFailedRestoreEndsTheSession(t *testing.T) {
	r := newRig(t, nil)
	r.server.Exec("CREATE ROLE other")
	r.server.Exec("GRANT other TO app")
	c := r.connect("")
	exec(t, c, "SET ROLE other")
	r.server.Exec("DROP ROLE other")
	r.change()
	done := start(c, "SELECT 1")
	select {
	case err := <-done:
		if code(err) != "57P01" {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the session is restored again and again, and its client told nothing")
	}
}

// What has arrived under a lease that is never renewed is kept back, but not for ever.
func TestAnswerKeptBackEndsWithTheBudget(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.HoldTimeout, c.CommitGuard = time.Second, proxy.GuardExplicit
	})
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	done, end := r.heldInsert(c)
	r.lease.Set(-time.Second, -time.Second)
	end()
	select {
	case err := <-done:
		if code(err) != "08007" || c.IsClosed() {
			t.Errorf("got %v, closed %v", err, c.IsClosed())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no answer")
	}
}

// Sessions that dial a host which has vanished leave their places to those who go to the next
// primary, and go there themselves.
func TestVanishedPrimaryBlocksNobody(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.RestoreConcurrency, c.DialTimeout = 1, 30*time.Second
	})
	silent, err := net.Listen("tcp", "127.0.0.1:0") // its backlog accepts, and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	first, second := r.connect(""), r.connect("")
	r.proxy.Cut(r.epoch)
	r.epoch++
	r.topo.Set(&proxy.Primary{
		Name: "pg", Addr: silent.Addr().String(), Epoch: r.epoch, Incarnation: "1",
		Lease: proxytest.NewLease(time.Hour),
	})
	a, b := start(first, "SELECT 1"), start(second, "SELECT 1")
	mustWait(t, a, 300*time.Millisecond)
	r.lead(1<<40, 1<<40)
	for _, done := range []<-chan error{a, b} {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a session waits for a host that is no primary any more")
		}
	}
}

// The end of SET waits for a snapshot when the COMMIT behind it is looked at: each of the two
// messages gets its own ReadyForQuery.
func TestSetAndCommitInOneWrite(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	hc, err := c.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	defer hc.Conn.Close()
	for range 20 {
		out := pgwire.AppendQuery(nil, "SET work_mem = '5MB'")
		out = pgwire.AppendQuery(out, "COMMIT")
		if _, err := hc.Conn.Write(out); err != nil {
			t.Fatal(err)
		}
		_ = hc.Conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		reader := pgwire.NewReader(hc.Conn, 1<<20)
		for ready := 0; ready < 2; {
			typ, _, err := reader.ReadMessage()
			if err != nil {
				t.Fatalf("after %d ReadyForQuery: %v", ready, err)
			}
			if typ == pgwire.SrvReadyForQuery {
				ready++
			}
		}
	}
}

// slowCancels forwards connections to target; cancel requests arrive late.
func slowCancels(t *testing.T, target string, late time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer from.Close()
				to, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer to.Close()
				head := make([]byte, 8)
				if _, err := io.ReadFull(from, head); err != nil {
					return
				}
				if head[4] == 0x04 && head[5] == 0xd2 && head[6] == 0x16 && head[7] == 0x2e {
					time.Sleep(late) // a slow network, as the server sees it
				}
				_, _ = to.Write(head)
				go func() {
					_, _ = io.Copy(from, to)
					_ = from.Close()
				}()
				_, _ = io.Copy(to, from)
			}()
		}
	}()
	return l.Addr().String()
}

// A cancel that was asked for while a statement ran must not hit the COMMIT after it.
func TestLateCancelDoesNotReachTheCommit(t *testing.T) {
	r := newRig(t, nil)
	r.proxy.Cut(r.epoch)
	r.epoch++
	r.topo.Set(&proxy.Primary{
		Name: "pg", Addr: slowCancels(t, r.line.Addr(), 400*time.Millisecond), Epoch: r.epoch,
		Incarnation: r.server.Incarnation(), Lease: proxytest.NewLease(time.Hour),
	})
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	exec(t, c, `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM pg_sleep(0.8); RETURN NULL; END$$`)
	exec(t, c, "CREATE CONSTRAINT TRIGGER s AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED"+
		" FOR EACH ROW EXECUTE FUNCTION slow()")
	exec(t, c, "BEGIN")
	exec(t, c, "INSERT INTO t VALUES (1)")
	asked := make(chan error, 1)
	go func() { asked <- c.CancelRequest(context.Background()) }()
	time.Sleep(100 * time.Millisecond) // the request has reached the proxy
	if _, err := tryExec(c, "COMMIT"); err != nil {
		t.Errorf("the cancel reached the COMMIT: %v", err)
	}
	if err := <-asked; err != nil {
		t.Error(err)
	}
}

// A session that the server ends while its COMMIT is in flight is told what became of that, and
// then why it ends (DESIGN.md I6).
func TestFatalWithACommitInFlight(t *testing.T) {
	r := newRig(t, nil)
	// The COMMIT has to be on its way before the time is over, which begins behind the SET.
	w := r.inBlock(insertOne, "SET idle_in_transaction_session_timeout = '2s'")
	ended := make(chan struct{})
	end := sync.OnceFunc(func() { close(ended) })
	r.line.Watch(func(typ byte, body []byte) bool {
		if typ == 'Q' && strings.HasPrefix(string(body), "COMMIT") {
			select {
			case <-ended:
			case <-time.After(20 * time.Second): // the answer will show it
			}
		}
		return true
	}, func(typ byte, _ []byte) bool {
		if typ == 'E' {
			end() // the server has ended the session
		}
		return true
	})
	w.send(pgwire.AppendQuery(nil, "COMMIT"))
	if got := w.rest(30 * time.Second); !strings.HasPrefix(got, "E(40001") ||
		!strings.Contains(got, "ZI E(25P03") {
		t.Errorf("got %s", got)
	}
	if n := r.rows(); n != "0" {
		t.Errorf("%s rows", n)
	}
}

// A message that is none, behind a COMMIT in flight, is come to when that was answered, as a server
// does: the client is told what became of it, and of the violation then.
func TestViolationBehindACommit(t *testing.T) {
	garbage := []byte{'%', 0, 0, 0, 4}
	for name, isLost := range map[string]bool{"answered": false, "lost": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			w := hijack(t, r.connect(""))
			w.play([]scriptStep{q("CREATE TABLE t (a int)"), q("BEGIN"), q("INSERT INTO t VALUES (1)")})
			committed, now, once := make(chan struct{}), make(chan struct{}), sync.Once{}
			r.line.Watch(nil, func(typ byte, body []byte) bool {
				if typ != 'C' || string(body) != "COMMIT\x00" {
					return true
				}
				once.Do(func() { close(committed) })
				<-now
				return !isLost
			})
			w.send(pgwire.AppendQuery(nil, "COMMIT"))
			<-committed
			w.send(garbage)
			time.AfterFunc(300*time.Millisecond, func() { close(now) }) // the proxy has it by then
			got := w.play([]scriptStep{{ends: 1}, {ends: 1}})
			if len(got) != 4 || got[0] != `C "COMMIT\x00"` || got[1] != `Z "I"` || got[2] != "E 08P01" {
				t.Errorf("got %q", got)
			}
		})
	}
}
