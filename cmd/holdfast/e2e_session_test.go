package main_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	holdfast "holdfast/cmd/holdfast"
)

// sqlState is the code of an error of the server or the proxy.
func sqlState(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.Code
	}
	return ""
}

// away is a node that is not the primary's: its proxy outlives what is done to the primary.
func away(t *testing.T, c *holdfast.Cluster) *holdfast.ClusterNode {
	t.Helper()
	p, err := c.Primary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		if n != p {
			return n
		}
	}
	t.Fatal("there is only one node")
	return nil
}

// change does something to the primary and waits for the next epoch.
func change(t *testing.T, c *holdfast.Cluster, do func(*holdfast.ClusterNode) error) {
	t.Helper()
	st := waitHealthy(t, c)
	if err := do(c.Node(st.Primary)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitEpoch(t.Context(), st.Epoch, time.Minute); err != nil {
		t.Fatal(err)
	}
}

// testSteadyIndex does normal work for a minute: no node may see a new entry in the Raft log.
func testSteadyIndex(t *testing.T, c *holdfast.Cluster) {
	conn := connect(t, e2eDSN(c.Nodes[0]))
	exec1(t, conn, "CREATE TABLE steady (i int)")
	indexes := func() string {
		text := ""
		for _, n := range c.Nodes {
			st, err := n.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			text += fmt.Sprintf("%s %d epoch %d; ", n.Name, st.RaftLastIndex, st.Epoch)
		}
		return text
	}
	before := indexes()
	commits := 0
	for end := time.Now().Add(time.Minute); time.Now().Before(end); commits++ {
		exec1(t, conn, "INSERT INTO steady VALUES (1)")
		waitUntil(t, time.Now().Add(20*time.Millisecond))
	}
	if after := indexes(); after != before {
		t.Errorf("the log grew in a minute of normal work: %s, then %s", before, after)
	}
	t.Logf("%d commits; %s", commits, before)
}

// testIdleSession leaves a session idle with all it can have, through a kill and a switchover.
func testIdleSession(t *testing.T, c *holdfast.Cluster) {
	conn := connect(t, e2eDSN(away(t, c)))
	const channel = "e2e_idle"
	for _, sql := range []string{
		"SET work_mem = '7MB'", "SET search_path = pg_catalog, public",
		"SET e2e.tenant = 'forty-two'", "SELECT set_config('TimeZone', 'Asia/Kathmandu', false)",
		"PREPARE by_sql(int) AS SELECT ($1 + 1)::text", "LISTEN " + channel,
	} {
		exec1(t, conn, sql)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if _, err := conn.Prepare(ctx, "by_protocol", "SELECT current_setting($1)"); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		got := queryText(t, conn, `SELECT concat_ws(' ', current_setting('work_mem'),
			current_setting('search_path'), current_setting('e2e.tenant'),
			current_setting('TimeZone'), (SELECT string_agg(c, ',')
			FROM pg_listening_channels() c))`)
		want := "7MB pg_catalog, public forty-two Asia/Kathmandu " + channel
		if got != want {
			t.Errorf("state is %q, want %q", got, want)
		}
		if got := queryText(t, conn, "EXECUTE by_sql(41)"); got != "42" {
			t.Errorf("EXECUTE gives %s", got)
		}
		var zone string
		if err := conn.QueryRow(ctx, "by_protocol", "TimeZone").Scan(&zone); err != nil {
			t.Error(err)
		}
		exec1(t, conn, "NOTIFY "+channel+", 'after'")
		n, err := conn.WaitForNotification(ctx)
		if err != nil || n.Payload != "after" {
			t.Errorf("notification %v, %v", n, err)
		}
	}
	check()
	first := queryText(t, conn, "SELECT pg_backend_pid()::text")
	change(t, c, (*holdfast.ClusterNode).KillPostmaster)
	check()
	if second := queryText(t, conn, "SELECT inet_server_addr()::text || pg_backend_pid()"); second ==
		first {
		t.Error("the session did not move at all")
	}
	change(t, c, func(n *holdfast.ClusterNode) error {
		return c.Switchover(t.Context(), away(t, c).Name)
	})
	check()
}

// testOpenTransaction kills the primary under open transactions. One goes on as if nothing had
// happened. The client of one that has seen what cannot be seen again, a clock, is told that it can
// repeat it, and repeats it on the same connection.
func testOpenTransaction(t *testing.T, c *holdfast.Cluster) {
	conn := connect(t, e2eDSN(away(t, c)))
	exec1(t, conn, "CREATE TABLE open_tx (i int)")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	run := func(sql string) error {
		_, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
		return err
	}
	exec1(t, conn, "BEGIN")
	exec1(t, conn, "INSERT INTO open_tx VALUES (0)")
	change(t, c, (*holdfast.ClusterNode).KillPostmaster)
	exec1(t, conn, "INSERT INTO open_tx VALUES (9)")
	exec1(t, conn, "COMMIT")
	exec1(t, conn, "BEGIN")
	exec1(t, conn, "INSERT INTO open_tx VALUES (1)")
	_ = queryText(t, conn, "SELECT clock_timestamp()::text")
	change(t, c, (*holdfast.ClusterNode).KillPostmaster)
	if err := run("INSERT INTO open_tx VALUES (2)"); sqlState(err) != "40001" {
		t.Errorf("the next statement gives %v, want 40001", err)
	}
	if got := conn.PgConn().TxStatus(); got != 'E' {
		t.Errorf("the block's status is %c, want E", got)
	}
	if err := run("SELECT 1"); sqlState(err) != "25P02" {
		t.Errorf("a statement in the failed block gives %v, want 25P02", err)
	}
	exec1(t, conn, "ROLLBACK")
	for _, sql := range []string{"BEGIN", "INSERT INTO open_tx VALUES (3)", "COMMIT"} {
		exec1(t, conn, sql)
	}
	if got := queryText(t, conn, "SELECT string_agg(i::text, ',') FROM open_tx"); got != "0,9,3" {
		t.Errorf("the table has %s, want 0,9,3", got)
	}
}

// testLoginWithoutPrimary logs in while there is no primary: the client waits and gets in.
func testLoginWithoutPrimary(t *testing.T, c *holdfast.Cluster) {
	n := away(t, c)
	_ = connect(t, e2eDSN(n)) // the proxy knows the role's secret from here on
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	change(t, c, func(p *holdfast.ClusterNode) error {
		if err := p.KillPostmaster(); err != nil {
			return err
		}
		conn, err := pgx.Connect(ctx, e2eDSN(n))
		if err != nil {
			return fmt.Errorf("login while there is no primary: %w", err)
		}
		defer conn.Close(ctx)
		var one int
		return conn.QueryRow(ctx, "SELECT 1").Scan(&one)
	})
}

// testCancel cancels a statement after the session has moved: the client's own key still works.
func testCancel(t *testing.T, c *holdfast.Cluster) {
	conn := connect(t, e2eDSN(away(t, c)))
	cancelOnce := func() {
		t.Helper()
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		failed := make(chan error, 1)
		go func() {
			_, err := conn.Exec(ctx, "SELECT pg_sleep(50)")
			failed <- err
		}()
		// A cancel that comes before the statement does nothing, so it is sent until it works.
		for {
			select {
			case err := <-failed:
				if sqlState(err) != "57014" {
					t.Errorf("the cancelled statement gives %v, want 57014", err)
				}
				return
			case <-time.After(200 * time.Millisecond):
			}
			if err := conn.PgConn().CancelRequest(ctx); err != nil {
				t.Errorf("cancel: %v", err)
			}
		}
	}
	cancelOnce()
	change(t, c, func(*holdfast.ClusterNode) error {
		return c.Switchover(t.Context(), away(t, c).Name)
	})
	cancelOnce()
}

// testTerminate ends the primary's node in an orderly way: exit code 0, PostgreSQL lives on, and
// sessions of other proxies do not notice.
func testTerminate(t *testing.T, c *holdfast.Cluster) {
	st := waitHealthy(t, c)
	n := c.Node(st.Primary)
	pid := n.Postmaster()
	prober := newProber(t, away(t, c))
	// A transaction through the node's own proxy that is open when the signal comes.
	conn := connect(t, e2eDSN(n))
	exec1(t, conn, "CREATE TABLE drained (i int)")
	exec1(t, conn, "BEGIN")
	exec1(t, conn, "INSERT INTO drained VALUES (1)")
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := n.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, begin.Add(500*time.Millisecond))
	exec1(t, conn, "INSERT INTO drained VALUES (2)")
	exec1(t, conn, "COMMIT")
	var pe *pgconn.PgError
	if _, err := conn.Exec(ctx, "SELECT 1"); err == nil || errors.As(err, &pe) &&
		pe.Code != "57P01" {
		t.Errorf("after the drained transaction: %v, want an end of the session", err)
	}
	code, err := n.Wait(ctx)
	if err != nil || code != 0 {
		t.Fatalf("exit code %d, %v; the log ends with:\n%s", code, err, n.LogTail(10))
	}
	t.Logf("drained and ended in %.1f s", time.Since(begin).Seconds())
	// Longer than any promise of the profile: nobody may take the primary for dead.
	waitUntil(t, time.Now().Add(5*time.Second))
	if got := n.Postmaster(); got != pid || pid == 0 {
		t.Errorf("postmaster was %d, is %d", pid, got)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	after := waitHealthy(t, c)
	if after.Epoch != st.Epoch {
		t.Errorf("epoch went from %d to %d: %+v", st.Epoch, after.Epoch, after.Last)
	}
	if got := n.Postmaster(); got != pid {
		t.Errorf("postmaster was %d, is %d after the restart", pid, got)
	}
	conn = connect(t, e2eDSN(n))
	if got := queryText(t, conn, "SELECT count(*)::text FROM drained"); got != "2" {
		t.Errorf("of the drained transaction %s rows are there, want 2", got)
	}
	prober.Stop()
	t.Logf("longest time without a commit: %d ms",
		prober.Gap(begin, time.Now()).Milliseconds())
	checkProber(t, prober)
}

// newProber starts a prober with a table of its own.
func newProber(t *testing.T, n *holdfast.ClusterNode) *holdfast.Prober {
	t.Helper()
	conn := connect(t, e2eDSN(n))
	exec1(t, conn, "DROP TABLE IF EXISTS holdfast_probe")
	p := holdfast.NewProber(e2eDSN(n), 5*time.Millisecond)
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

// testLoad runs the demo's load in this process through a switchover and a kill, and lets its
// ledger judge.
func testLoad(t *testing.T, c *holdfast.Cluster) {
	secret, err := c.Secret("superuser")
	if err != nil {
		t.Fatal(err)
	}
	cfg := holdfast.LoadConfig{Sessions: 24, Superuser: "postgres", SuperuserPassword: secret}
	for _, n := range c.Nodes {
		cfg.Proxies = append(cfg.Proxies, n.Proxy)
	}
	l := holdfast.NewLoad(cfg)
	if err := l.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := l.Start(ctx); err != nil {
		t.Fatal(err)
	}
	stop := func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		l.Stop(ctx)
	}
	defer stop()
	change(t, c, func(*holdfast.ClusterNode) error {
		return c.Switchover(t.Context(), away(t, c).Name)
	})
	l.Changed()
	change(t, c, (*holdfast.ClusterNode).KillPostmaster)
	l.Changed()
	waitUntil(t, time.Now().Add(2*time.Second))
	stop()
	report, _, err := l.Check(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	st := l.Stats()
	t.Logf("%+v\n%+v", report, st)
	if report.Wrong() != 0 || report.Acknowledged != st.Commits || report.Pending != 0 {
		t.Errorf("the database breaks promises: %+v", report)
	}
	if st.Dropped != 0 || st.Cut != 0 || st.StateWrong != 0 || st.Refused != 0 || st.Kept != 24 {
		t.Errorf("sessions noticed: %+v", st)
	}
	if st.StateChecks == 0 {
		t.Error("no session looked at its state")
	}
}

// testNoWayRound tries to reach every server without a proxy: PostgreSQL's own rules refuse it.
func testNoWayRound(t *testing.T, c *holdfast.Cluster) {
	for _, n := range c.Nodes {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		conn, err := pgx.Connect(ctx, fmt.Sprintf("postgres://%s:x@%s/%s", e2eUser, n.Postgres,
			e2eUser))
		if err == nil {
			_ = conn.Close(ctx)
		}
		cancel()
		if sqlState(err) != "28000" {
			t.Errorf("%s: %v, want 28000 (no pg_hba.conf entry)", n.Name, err)
		}
	}
}
