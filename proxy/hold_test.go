package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// start runs a statement beside the test.
func start(c *pgconn.PgConn, sql string) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := tryExec(c, sql)
		done <- err
	}()
	return done
}

func mustWait(t *testing.T, done <-chan error, d time.Duration) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("answered although it had to wait: %v", err)
	case <-time.After(d):
	}
}

func TestWrongIncarnationIsNotUsed(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	r.proxy.Cut(r.epoch)
	r.epoch++
	r.topo.Set(&proxy.Primary{
		Name: "pg", Addr: r.line.Addr(), Epoch: r.epoch, Incarnation: "1",
		Lease: proxytest.NewLease(time.Hour),
	})
	done := start(c, "SELECT 1")
	mustWait(t, done, 500*time.Millisecond)
	r.lead(1<<40, 1<<40)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestGateClosesAndOpensUnnoticed(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	pid := exec(t, c, "SELECT pg_backend_pid()")
	r.lease.Set(-time.Second, time.Hour) // doubt: nothing new
	done := start(c, "SELECT 1")
	mustWait(t, done, 300*time.Millisecond)
	r.lease.Set(time.Hour, time.Hour)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// An answer that arrives after the end of the lease stays here until it is renewed.
	done = start(c, "SELECT pg_sleep(0.2)")
	time.Sleep(50 * time.Millisecond)
	r.lease.Set(-time.Second, -time.Second)
	mustWait(t, done, 500*time.Millisecond)
	r.lease.Set(time.Hour, time.Hour)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if now := exec(t, c, "SELECT pg_backend_pid()"); now != pid {
		t.Error("the backend was given up although the lease was only late")
	}
}

// heldInsert starts a write to t that is with the server, and is done once end is called.
func (r *rig) heldInsert(c *pgconn.PgConn) (done <-chan error, end func()) {
	r.t.Helper()
	admin := r.superuser()
	exec(r.t, admin, "BEGIN; LOCK TABLE t")
	done = start(c, insertOne)
	waits := fmt.Sprintf("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = %d", c.PID())
	r.eventually(func() bool { return exec(r.t, admin, waits) == "1" }, "the server has it")
	return done, func() { exec(r.t, admin, "ROLLBACK") }
}

func TestGateDropsWhatCameUnderALostLease(t *testing.T) {
	r := newRig(t, guardExplicit)
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	done, end := r.heldInsert(c)
	answered := make(chan struct{})
	told := sync.OnceFunc(func() { close(answered) })
	r.line.Watch(nil, func(typ byte, _ []byte) bool {
		if typ == 'C' {
			told()
		}
		return true
	})
	r.lease.Set(-time.Second, -time.Second)
	end()
	select {
	case <-answered:
	case <-time.After(20 * time.Second):
		t.Fatal("the server does not answer")
	}
	mustWait(t, done, 400*time.Millisecond)
	r.change()
	if got := code(<-done); got != "08007" {
		t.Fatalf("got %s: the answer of the old epoch was delivered, or guessed", got)
	}
}

// What an open block sends after the end of the lease waits for it at the proxy: another primary
// may have begun (DESIGN.md I3). A sequence shows what was executed and never committed.
func TestGateHoldsWhatABlockSendsAfterTheLease(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE SEQUENCE passed")
	direct, err := dial(context.Background(), fmt.Sprintf("host=127.0.0.1 port=%d "+
		"user=app dbname=app password='%s' sslmode=disable", r.server.Port, proxytest.Password))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(context.Background())
	const isCalled = "SELECT is_called FROM passed"
	exec(t, c, "BEGIN")
	r.lease.Set(-time.Second, -time.Second)
	done := start(c, "SELECT nextval('passed')")
	mustWait(t, done, 300*time.Millisecond)
	if v := exec(t, direct, isCalled); v != "f" {
		t.Error("the statement reached the server after the end of the lease")
	}
	r.lease.Set(time.Hour, time.Hour)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if v := exec(t, direct, isCalled); v != "t" {
		t.Error("the statement was answered and not executed")
	}
}

func TestHoldExpiresAndTheSessionStays(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.HoldTimeout = 300 * time.Millisecond })
	c := r.connect("")
	exec(t, c, "SET work_mem = '5MB'")
	r.topo.Set(nil)
	r.proxy.Cut(r.epoch)
	wantCode(t, c, "SELECT 1", "40001")
	ctx := context.Background()
	if got := code(c.ExecParams(ctx, "SELECT 1", nil, nil, nil, nil).Read().Err); got != "40001" {
		t.Fatalf("extended: %s", got)
	}
	r.lead(1<<40, 1<<40)
	if v := exec(t, c, "SHOW work_mem"); v != "5MB" {
		t.Fatalf("work_mem %s", v)
	}
}

func TestHoldTellsAndCancels(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.HoldNoticeAfter = 100 * time.Millisecond })
	c := r.connect("")
	notices := make(chan string, 8)
	cfg, err := pgconn.ParseConfig(r.dsn(""))
	if err != nil {
		t.Fatal(err)
	}
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notices <- n.Message }
	told, err := pgconn.ConnectConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close(context.Background())
	r.topo.Set(nil)
	r.proxy.Cut(r.epoch)
	done, done2 := start(c, "SELECT 1"), start(told, "SELECT 1")
	select {
	case n := <-notices:
		if !strings.Contains(n, "waiting") {
			t.Errorf("notice %q", n)
		}
	case <-time.After(5 * time.Second):
		t.Error("no notice")
	}
	if err := c.CancelRequest(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := code(<-done); got != "57014" {
		t.Fatalf("cancel while held: %s", got)
	}
	r.lead(1<<40, 1<<40)
	if err := <-done2; err != nil {
		t.Fatal(err)
	}
	exec(t, c, "SELECT 1")
}

func TestLoginWaitsForAPrimary(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.HoldTimeout = 400 * time.Millisecond })
	r.connect("") // its secret is known from here on
	r.topo.Set(nil)
	r.proxy.Cut(r.epoch)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := dial(ctx, r.dsn("")); code(err) != "57P03" {
		t.Fatalf("login without a primary: %v", err)
	}
	type result struct {
		c   *pgconn.PgConn
		err error
	}
	got := make(chan result, 1)
	go func() {
		c, err := dial(ctx, r.dsn(""))
		got <- result{c, err}
	}()
	time.Sleep(100 * time.Millisecond)
	r.lead(1<<40, 1<<40)
	res := <-got
	if res.err != nil {
		t.Fatal(res.err)
	}
	exec(t, res.c, "SELECT 1")
	_ = res.c.Close(ctx)
}

func TestDrainLetsTransactionsFinish(t *testing.T) {
	r := newRig(t, nil)
	c, idle := r.connect(""), r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	exec(t, c, "BEGIN")
	exec(t, c, "INSERT INTO t VALUES (1)")
	drained := make(chan struct{})
	go func() {
		r.proxy.Drain(context.Background(), r.epoch)
		close(drained)
	}()
	time.Sleep(50 * time.Millisecond)
	waits := start(idle, "SELECT 1")
	mustWait(t, waits, 200*time.Millisecond)
	select {
	case <-drained:
		t.Fatal("drained with a transaction open")
	default:
	}
	exec(t, c, "INSERT INTO t VALUES (2)")
	exec(t, c, "COMMIT")
	<-drained
	r.change()
	if err := <-waits; err != nil {
		t.Fatal(err)
	}
	if n := exec(t, c, "SELECT count(*) FROM t"); n != "2" {
		t.Fatalf("rows: %s", n)
	}
}

func TestUnmovableSessionIsTold(t *testing.T) {
	r := newRig(t, nil)
	for what, sql := range map[string]string{
		"temporary table": "CREATE TEMP TABLE x (a int)",
		"advisory locks":  "SELECT pg_advisory_lock(g) FROM generate_series(1, 2) g",
		"WITH HOLD":       "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
	} {
		c := r.connect("")
		exec(t, c, "BEGIN; "+sql+"; COMMIT")
		exec(t, c, sql[:0]+"SELECT 1")
		r.change()
		_, err := tryExec(c, "SELECT 1")
		if code(err) != "57P01" || !c.IsClosed() {
			t.Errorf("%s: got %v, closed %v", what, err, c.IsClosed())
		}
	}
}

func TestAdministratorsOrderReachesTheClient(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	pid := exec(t, c, "SELECT pg_backend_pid()")
	r.server.Exec("SELECT pg_terminate_backend(" + pid + ")")
	_, err := tryExec(c, "SELECT 1")
	if code(err) != "57P01" || !c.IsClosed() {
		t.Fatalf("got %v, closed %v", err, c.IsClosed())
	}
}

// In the place of an answer the order is the answer, as without a proxy.
func TestOrderAnswersWhatIsInFlight(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.CommitGuard = proxy.GuardOff })
	r.server.ExecIn("app", "CREATE TABLE w (a int)")
	r.server.ExecIn("app", "GRANT ALL ON w TO app")
	r.server.ExecIn("app", "CREATE FUNCTION slow(int) RETURNS int LANGUAGE sql AS "+
		"$$INSERT INTO public.w VALUES ($1); SELECT pg_sleep(20); SELECT 1$$")
	for _, sql := range []string{"SELECT slow(1)", "INSERT INTO w SELECT slow(1)",
		"SELECT pg_terminate_backend(pg_backend_pid())",
		"/* temp */ SELECT slow(1)"} {
		c := r.connect("")
		if strings.Contains(sql, "temp") { // a session that no other server can take
			exec(t, c, "CREATE TEMP TABLE x (a int)")
		}
		done := start(c, sql)
		if !strings.Contains(sql, "backend_pid") {
			r.eventually(func() bool {
				return r.server.Exec(fmt.Sprintf("SELECT wait_event FROM pg_stat_activity "+
					"WHERE pid = %d", c.PID()))[0][0] == "PgSleep"
			}, "it sleeps")
			r.server.Exec(fmt.Sprintf("SELECT pg_terminate_backend(%d)", c.PID()))
		}
		err := <-done
		var pe *pgconn.PgError
		if !errors.As(err, &pe) || pe.Code != "57P01" || pe.Severity != "FATAL" || !c.IsClosed() {
			t.Errorf("%s: got %v, closed %v", sql, err, c.IsClosed())
		}
	}
	if n := r.server.ExecIn("app", "SELECT count(*) FROM w")[0][0]; n != "0" {
		t.Errorf("%s rows of what was told to have ended", n)
	}
	// A ROLLBACK that the order comes before is not answered either: the next statement would get
	// the order, behind what looked like a good connection.
	c := r.connect("")
	exec(t, c, "BEGIN")
	process, err := os.FindProcess(int(c.PID()))
	if err != nil {
		t.Fatal(err)
	}
	signal := func(sig os.Signal) {
		t.Helper()
		if err := process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	done := start(c, "ROLLBACK")
	r.eventually(func() bool {
		return slices.ContainsFunc(r.proxy.Sessions(), func(s proxy.SessionInfo) bool {
			return s.PID == c.PID() && s.State == "active"
		})
	}, "it is sent")
	signal(syscall.SIGTERM)
	signal(syscall.SIGCONT)
	if err := <-done; code(err) != "57P01" {
		t.Errorf("ROLLBACK: got %v", err)
	}
	// What commits on the way is not given up as a whole: nobody knows how much of it was done.
	r.server.ExecIn("app", "CREATE PROCEDURE parts() LANGUAGE plpgsql AS "+
		"$$BEGIN INSERT INTO w VALUES (1); COMMIT; PERFORM pg_sleep(20); END$$")
	for _, sql := range []string{"CALL parts()", "BEGIN; INSERT INTO w VALUES (1); COMMIT; " +
		"SELECT pg_sleep(20)"} {
		c := r.connect("")
		done := start(c, sql)
		r.eventually(func() bool {
			return r.server.Exec(fmt.Sprintf("SELECT wait_event FROM pg_stat_activity "+
				"WHERE pid = %d", c.PID()))[0][0] == "PgSleep"
		}, "it sleeps")
		r.server.Exec(fmt.Sprintf("SELECT pg_terminate_backend(%d)", c.PID()))
		if err := <-done; code(err) != "08007" {
			t.Errorf("%s: got %v", sql, err)
		}
	}
}

func TestShutdownOfTheServerDoesNot(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	r.server.Stop("fast")
	done := start(c, "SELECT 1")
	mustWait(t, done, 300*time.Millisecond)
	r.server.Start()
	r.lead(1<<40, 1<<40)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestCancelReachesTheServer(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	done := start(c, "SELECT pg_sleep(30)")
	r.eventually(func() bool { return r.sleepers() == "1" }, "the server has it")
	if err := c.CancelRequest(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := code(<-done); got != "57014" {
		t.Fatalf("got %s", got)
	}
}

func TestCancelIsNotRelayedDuringCommit(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
	exec(t, c, `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM pg_sleep(0.6); RETURN NULL; END$$`)
	exec(t, c, "CREATE CONSTRAINT TRIGGER s AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED"+
		" FOR EACH ROW EXECUTE FUNCTION slow()")
	exec(t, c, "BEGIN")
	exec(t, c, "INSERT INTO t VALUES (1)")
	done := start(c, "COMMIT")
	time.Sleep(200 * time.Millisecond)
	if err := c.CancelRequest(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatalf("the cancel reached the COMMIT: %v", err)
	}
}

func TestLoginsAreChecked(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.SessionsMax = 2 })
	ctx := context.Background()
	for _, user := range []string{"app", "nobody_of_that_name"} {
		dsn := strings.Replace(r.dsn(""), "user=app", "user="+user, 1)
		dsn = strings.Replace(dsn, proxytest.Password, "wrong", 1)
		_, err := dial(ctx, dsn)
		want := fmt.Sprintf("password authentication failed for user %q", user)
		if code(err) != "28P01" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", user, err)
		}
	}
	r.connect("")
	r.connect("")
	if _, err := dial(ctx, r.dsn("")); code(err) != "53300" {
		t.Errorf("third session: %v", err)
	}
}

func TestDiscardAllForgets(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "SET work_mem = '5MB'")
	exec(t, c, "PREPARE p AS SELECT 1")
	exec(t, c, "CREATE TEMP TABLE x (a int)")
	exec(t, c, "LISTEN news")
	exec(t, c, "DISCARD ALL")
	r.change()
	if v := exec(t, c, "SHOW work_mem"); v == "5MB" {
		t.Error("a setting came back")
	}
	wantCode(t, c, "EXECUTE p", "26000")
	if v := exec(t, c, "SELECT count(*) FROM pg_listening_channels()"); v != "0" {
		t.Error("a channel came back")
	}
}

func TestCopyAndLargeResults(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	ctx := context.Background()
	exec(t, c, "CREATE TABLE big (a int, b text)")
	var in strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&in, "%d\t%s\n", i, strings.Repeat("x", i%200))
	}
	if _, err := c.CopyFrom(ctx, strings.NewReader(in.String()), "COPY big FROM STDIN"); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if _, err := c.CopyTo(ctx, &out, "COPY (SELECT * FROM big ORDER BY a) TO STDOUT"); err != nil {
		t.Fatal(err)
	}
	if out.String() != in.String() {
		t.Fatalf("COPY changed the data: %d bytes became %d; %s rows", in.Len(), out.Len(),
			exec(t, c, "SELECT count(*) FROM big"))
	}
	if v := exec(t, c, "SELECT repeat('y', 5000000)"); len(v) != 5000000 {
		t.Fatalf("long value: %d bytes", len(v))
	}
	long := "SELECT '" + strings.Repeat("z", 300000) + "'"
	if v := exec(t, c, long); len(v) != 300000 {
		t.Fatalf("long statement: %d bytes", len(v))
	}
	_, err := c.CopyFrom(ctx, strings.NewReader("no number\t\n"), "COPY big FROM STDIN")
	if err == nil {
		t.Fatal("bad COPY succeeded")
	}
	r.change()
	if v := exec(t, c, "SELECT count(*) FROM big"); v != "20000" {
		t.Fatalf("rows: %s", v)
	}
}
