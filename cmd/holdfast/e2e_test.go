package main_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/election"
)

// needCluster skips the test, or fails it where everything must be there, unless a cluster of
// real servers can run.
func needCluster(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("a real cluster takes too long for -short")
	}
	if _, err := holdfast.FindPostgres(); err != nil {
		if os.Getenv("HOLDFAST_REQUIRE_POSTGRES") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// skipUnlessCI skips a test that this machine does not allow; in CI, where all of it has to run, it
// fails.
func skipUnlessCI(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// buildBinary builds holdfast as users get it; HOLDFAST_BINARY names one that is built already.
func buildBinary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("HOLDFAST_BINARY"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "holdfast")
	cmd := exec.Command("go", "build", "-tags", "hashicorpmetrics", "-o", path, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// newCluster prepares three nodes that do not run yet; all of it ends with the test, and nothing
// may be left of it.
func newCluster(t *testing.T, cfg holdfast.ClusterConfig) *holdfast.Cluster {
	t.Helper()
	needCluster(t)
	t.Cleanup(func() { goleak.VerifyNone(t) })
	c, err := holdfast.NewCluster(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	endWithTest(t, c)
	return c
}

// endWithTest closes a cluster, and shows what its nodes said if the test has failed.
func endWithTest(t *testing.T, c *holdfast.Cluster) {
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range c.Nodes {
				t.Logf("log of %s ends with:\n%s", n.Name, n.LogTail(25))
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// startCluster starts three nodes and waits until they are healthy; all of it ends with the test.
func startCluster(t *testing.T) *holdfast.Cluster {
	t.Helper()
	c, err := holdfast.StartCluster(t.Context(), holdfast.ClusterConfig{
		Binary: buildBinary(t), Prefix: "holdfast-e2e",
	})
	if err != nil {
		t.Fatal(err)
	}
	endWithTest(t, c)
	begin := time.Now()
	st := waitHealthy(t, c)
	t.Logf("three nodes from nothing in %.1f s, primary %s", time.Since(begin).Seconds(),
		st.Primary)
	return c
}

func waitHealthy(t *testing.T, c *holdfast.Cluster) holdfast.Status {
	t.Helper()
	st, err := c.WaitHealthy(t.Context(), 2*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// e2eUser owns a database of the same name.
const e2eUser, e2ePassword = "bench", "not a secret"

func e2eDSN(n *holdfast.ClusterNode) string {
	return fmt.Sprintf("postgres://%s:%s@%s/%s", e2eUser,
		strings.ReplaceAll(e2ePassword, " ", "%20"), n.Proxy, e2eUser)
}

// makeDatabase makes the role and the database through a proxy.
func makeDatabase(t *testing.T, c *holdfast.Cluster) {
	t.Helper()
	secret, err := c.Secret("superuser")
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, fmt.Sprintf("postgres://postgres:%s@%s/postgres", secret,
		c.Nodes[0].Proxy))
	for _, sql := range []string{
		fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", e2eUser, e2ePassword),
		fmt.Sprintf("CREATE DATABASE %s OWNER %s", e2eUser, e2eUser),
	} {
		exec1(t, conn, sql)
	}
}

// connect opens a session that the test closes at its end.
func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return conn
}

func exec1(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func queryText(t *testing.T, conn *pgx.Conn, sql string) string {
	t.Helper()
	text, err := tryText(t, conn, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return text
}

// TestE2E is the main job on real input, in the order of the issue, and then what a cluster that
// went through it still has to do.
func TestE2E(t *testing.T) {
	needCluster(t)
	// Registered first, so that it looks last: what drives the cluster in this process has ended.
	t.Cleanup(func() { goleak.VerifyNone(t) })
	c := startCluster(t)
	makeDatabase(t, c)
	if !t.Run("pgbench", func(t *testing.T) { testPgbench(t, c) }) {
		return
	}
	for _, sub := range []struct {
		name string
		test func(*testing.T, *holdfast.Cluster)
	}{
		{"raft index stands still", testSteadyIndex},
		{"idle session", testIdleSession},
		{"open transaction", testOpenTransaction},
		{"login without primary", testLoginWithoutPrimary},
		{"cancel", testCancel},
		{"terminate", testTerminate},
		{"load", testLoad},
		{"nobody goes round the proxy", testNoWayRound},
	} {
		t.Run(sub.name, func(t *testing.T) {
			waitHealthy(t, c)
			sub.test(t, c)
		})
	}
}

// e2eTime is how long pgbench runs, and when the faults come.
const (
	e2eTime         = 60 * time.Second
	e2eKillAt       = 15 * time.Second
	e2eSwitchoverAt = 30 * time.Second
	e2eNodeAway     = 5 * time.Second
)

// testPgbench runs pgbench through node3's proxy, kills the primary's postmaster, switches over
// to a node that is not pgbench's, and then kills that whole node. Where pgbench cannot try again,
// as before 15, it is left out: the prober alone commits through all of it.
func testPgbench(t *testing.T, c *holdfast.Cluster) {
	bench := c.Node("node3")
	triesAgain := pgbenchTriesAgain(t, c)
	if triesAgain {
		runPgbench(t, c, bench, "-i", "-q", "-s", "8")
	}
	prober := holdfast.NewProber(e2eDSN(c.Node("node2")), 5*time.Millisecond)
	if err := prober.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer prober.Stop()

	begin := time.Now()
	done := make(chan string, 1)
	if triesAgain {
		go func() {
			done <- runPgbench(t, c, bench, "-T", strconv.Itoa(int(e2eTime.Seconds())), "-c", "8",
				"-j", "2", "--max-tries", "100")
		}()
	}
	faultsUnderLoad(t, c, prober, begin)
	if triesAgain {
		if left := time.Until(begin.Add(e2eTime)); left < 0 {
			t.Errorf("the faults took %v longer than pgbench", -left)
		}
		select {
		case out := <-done:
			if !t.Failed() {
				checkPgbench(t, bench, out)
			}
		case <-time.After(2 * time.Minute):
			t.Fatal("pgbench does not end")
		}
	}
	if t.Failed() {
		return
	}
	prober.Stop()
	checkProber(t, prober)
	checkWhole(t, c)
}

// pgbenchTriesAgain tells that pgbench repeats transactions that fail with 40001.
func pgbenchTriesAgain(t *testing.T, c *holdfast.Cluster) bool {
	t.Helper()
	help, err := exec.CommandContext(t.Context(), c.Program("pgbench"), "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	is := bytes.Contains(help, []byte("--max-tries"))
	if !is {
		t.Log("this pgbench is older than 15 and cannot try again: the prober is the load")
	}
	return is
}

// faultsUnderLoad are the faults of the main job, some time after its beginning.
func faultsUnderLoad(t *testing.T, c *holdfast.Cluster, prober *holdfast.Prober, begin time.Time) {
	t.Helper()
	waitUntil(t, begin.Add(e2eKillAt))
	f := beginFault(t, c, "kill -9 of the postmaster")
	primary := c.Node(f.before.Primary)
	if err := primary.KillPostmaster(); err != nil {
		t.Fatal(err)
	}
	f.end(t, c, prober)

	waitUntil(t, begin.Add(e2eSwitchoverAt))
	f = beginFault(t, c, "switchover")
	target, other := c.Node("node1"), c.Node("node2")
	if f.before.Primary == target.Name {
		target, other = other, target
	}
	if err := c.Switchover(t.Context(), target.Name); err != nil {
		t.Fatal(err)
	}
	f.end(t, c, prober)

	// The prober must not sit on the node that is killed.
	prober.Redirect(e2eDSN(other))
	waitUntil(t, time.Now().Add(time.Second))
	killNode(t, c, target, prober)
}

// killNode kills the whole node of the primary, which must be the target, and starts it again.
func killNode(t *testing.T, c *holdfast.Cluster, target *holdfast.ClusterNode,
	prober *holdfast.Prober,
) {
	t.Helper()
	f := beginFault(t, c, "kill -9 of the whole node")
	if f.before.Primary != target.Name {
		t.Fatalf("primary is %s, want %s", f.before.Primary, target.Name)
	}
	if err := target.KillNode(t.Context()); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	if _, err := c.WaitEpoch(t.Context(), f.before.Epoch, time.Minute); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, killed.Add(e2eNodeAway))
	if err := target.Start(); err != nil {
		t.Fatal(err)
	}
	f.end(t, c, prober)
}

// runPgbench runs pgbench through a node's proxy to its end; its exit code must be 0.
func runPgbench(t *testing.T, c *holdfast.Cluster, n *holdfast.ClusterNode, args ...string,
) string {
	host, port, err := net.SplitHostPort(n.Proxy)
	if err != nil {
		t.Error(err)
		return ""
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	args = append(args, "-h", host, "-p", port, "-U", e2eUser, e2eUser)
	cmd := exec.CommandContext(ctx, c.Program("pgbench"), args...)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+e2ePassword, "LC_ALL=C")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("pgbench %s: %v\n%s", strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

// e2eFault is one fault and what it took.
type e2eFault struct {
	name   string
	at     time.Time
	before holdfast.Status
}

func beginFault(t *testing.T, c *holdfast.Cluster, name string) e2eFault {
	t.Helper()
	st := waitHealthy(t, c)
	return e2eFault{name: name, at: time.Now(), before: st}
}

// end waits until there is a new epoch and three members stream, and prints the time without a
// commit and the phases.
func (f e2eFault) end(t *testing.T, c *holdfast.Cluster, p *holdfast.Prober) {
	t.Helper()
	after, err := c.WaitEpoch(t.Context(), f.before.Epoch, time.Minute)
	if err != nil {
		t.Fatalf("%s: %v", f.name, err)
	}
	seen := time.Now()
	healthy := waitHealthy(t, c)
	now := time.Now()
	t.Logf("%s of %s: %d ms without a commit; %s %s -> %s, epoch %d: %s; healthy after %.1f s; "+
		"cause: %s", f.name, f.before.Primary, p.Gap(f.at, now).Milliseconds(),
		after.Last.Kind, after.Last.From, after.Last.To, after.Last.Epoch,
		phasesOf(after.Last), now.Sub(f.at).Seconds(), after.Last.Cause)
	if healthy.Epoch != f.before.Epoch+1 {
		t.Errorf("%s: epoch went from %d to %d: more than one change", f.name, f.before.Epoch,
			healthy.Epoch)
	}
	checkHistory(t, c, f.at, seen)
}

func phasesOf(c *holdfast.ChangeStatus) string {
	var parts []string
	for _, name := range election.PhaseNames() {
		if ms, ok := c.PhasesMS[name]; ok {
			parts = append(parts, fmt.Sprintf("%s %d ms", name, ms))
		}
	}
	return strings.Join(parts, ", ")
}

// waitUntil waits for a moment of the scenario.
func waitUntil(t *testing.T, at time.Time) {
	t.Helper()
	select {
	case <-time.After(time.Until(at)):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

var pgbenchCount = regexp.MustCompile(`number of transactions actually processed: (\d+)`)

// checkPgbench holds what pgbench says against its tables: each transaction that it counts is
// there exactly once.
func checkPgbench(t *testing.T, n *holdfast.ClusterNode, out string) {
	t.Helper()
	t.Logf("pgbench:\n%s", strings.TrimSpace(out))
	if strings.Contains(out, "aborted") {
		t.Error("a client was aborted")
	}
	m := pgbenchCount.FindStringSubmatch(out)
	if m == nil {
		t.Fatal("pgbench does not say how many transactions it ran")
	}
	conn := connect(t, e2eDSN(n))
	got := queryText(t, conn, `SELECT concat_ws(' ', (SELECT count(*) FROM pgbench_history),
		(SELECT sum(delta) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts),
		(SELECT sum(tbalance) FROM pgbench_tellers),
		(SELECT sum(bbalance) FROM pgbench_branches))`)
	f := strings.Fields(got)
	if len(f) != 5 || f[1] != f[2] || f[1] != f[3] || f[1] != f[4] {
		t.Errorf("sums of history, accounts, tellers and branches differ: %v", f)
	}
	if f[0] != m[1] {
		t.Errorf("pgbench counts %s transactions, its history has %s", m[1], f[0])
	}
}

// checkProber holds the prober's rows against what it was told.
func checkProber(t *testing.T, p *holdfast.Prober) {
	t.Helper()
	r, err := p.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("prober: %d commits acknowledged, %d in doubt, %d refused, %d lost, %d doubled",
		r.Acknowledged, r.InDoubt, r.Refused, r.Lost, r.Doubled)
	if r.Wrong() != 0 || r.Acknowledged == 0 {
		t.Errorf("the database breaks promises: %+v", r)
	}
	if n := p.Dropped(); n != 0 {
		t.Errorf("the prober lost its connection %d times: %v", n, p.LastError())
	}
}

// checkWhole looks whether the cluster is as whole as at its beginning: three members on one
// timeline, each with the slots of the others, and no server was asked for a slot it did not have.
func checkWhole(t *testing.T, c *holdfast.Cluster) {
	t.Helper()
	st := waitHealthy(t, c)
	for _, m := range st.Members {
		if m.Timeline != st.Timeline {
			t.Errorf("%s is on timeline %d, the lock on %d", m.Name, m.Timeline, st.Timeline)
		}
		for _, other := range st.Members {
			slot := election.SlotName(other.Name)
			if other.Name != m.Name && !slices.Contains(m.Slots, slot) {
				t.Errorf("%s has no slot %s: %v", m.Name, slot, m.Slots)
			}
		}
	}
	if len(st.Problems) > 0 {
		t.Errorf("problems: %v", st.Problems)
	}
	checkServerLogs(t, c)
}
