package main_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	holdfast "holdfast/cmd/holdfast"
)

// operator runs the command line against a node.
type operator struct {
	t      *testing.T
	binary string
	c      *holdfast.Cluster
}

// run returns what a command printed, and its error.
func (o operator) run(n *holdfast.ClusterNode, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(o.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, o.binary, append(args, "--url", "http://"+n.HTTP)...)
	cmd.Env = append(os.Environ(), "HOLDFAST_HTTP_TOKEN_FILE="+n.TokenFile)
	out, err := cmd.CombinedOutput()
	o.t.Logf("holdfast %s: %v\n%s", strings.Join(args, " "), err, out)
	return string(out), err
}

func (o operator) must(n *holdfast.ClusterNode, args ...string) string {
	o.t.Helper()
	out, err := o.run(n, args...)
	if err != nil {
		o.t.Fatalf("%s: %v\n%s", args[0], err, out)
	}
	return out
}

// maintain begins a maintenance and waits until every node has heard of it.
func (o operator) maintain(t *testing.T, n *holdfast.ClusterNode, args ...string) {
	t.Helper()
	o.must(n, append([]string{"maintenance", "on"}, args...)...)
	for deadline := time.Now().Add(10 * time.Second); ; {
		heard := 0
		for _, n := range o.c.Nodes {
			if st, err := n.Status(t.Context()); err == nil && st.Maintenance != nil {
				heard++
			}
		}
		if heard == len(o.c.Nodes) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("only %d nodes know of the maintenance", heard)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// startServer starts a node's PostgreSQL as its owner would by hand.
func (o operator) startServer(n *holdfast.ClusterNode) {
	o.t.Helper()
	info, err := os.Stat(n.DataDir)
	if err != nil {
		o.t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	cmd := exec.Command(o.c.Program("pg_ctl"), "-D", n.DataDir, "-l", "/dev/null", "-w", "start")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
	}
	if err := cmd.Run(); err != nil {
		o.t.Fatalf("pg_ctl start: %v", err)
	}
}

// counter commits row after row on one session until it is stopped.
type counter struct {
	stop chan struct{}
	done chan struct{}
	rows int
	gap  time.Duration
	err  error
}

func startCounter(t *testing.T, conn *pgx.Conn) *counter {
	return startCounterOf(t, conn, "BEGIN; INSERT INTO op VALUES (1); COMMIT")
}

func startCounterOf(t *testing.T, conn *pgx.Conn, sql string) *counter {
	return startCounterBy(t, conn, func(int) string { return sql })
}

// startCounterBy runs what sqlOf gives for the number of a row, from 0.
func startCounterBy(t *testing.T, conn *pgx.Conn, sqlOf func(row int) string) *counter {
	c := &counter{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for last := time.Now(); ; {
			select {
			case <-c.stop:
				return
			default:
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			_, c.err = conn.Exec(ctx, sqlOf(c.rows), pgx.QueryExecModeSimpleProtocol)
			cancel()
			if c.err != nil {
				return
			}
			c.rows++
			c.gap = max(c.gap, time.Since(last))
			last = time.Now()
			time.Sleep(2 * time.Millisecond) // the load is bounded
		}
	}()
	return c
}

// end stops the load and returns how long it stood at most.
func (c *counter) end(t *testing.T, what string) {
	t.Helper()
	close(c.stop)
	<-c.done
	if c.err != nil {
		t.Errorf("%s: the session got an error after %d commits: %v", what, c.rows, c.err)
	}
	t.Logf("%s: %d commits, longest pause %d ms", what, c.rows, c.gap.Milliseconds())
}

// TestE2EOperator is what an operator does by hand: restarts, dry runs, maintenance, and a failover
// that may lose commits.
func TestE2EOperator(t *testing.T) {
	o := operator{t: t, binary: buildBinary(t)}
	c := newCluster(t, holdfast.ClusterConfig{Binary: o.binary, Prefix: "holdfast-operator"})
	o.c = c
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	waitHealthy(t, c)
	makeDatabase(t, c)
	conn := connect(t, e2eDSN(away(t, c)))
	exec1(t, conn, "CREATE TABLE op (i int)")
	t.Run("restart", func(t *testing.T) { o.testRestart(t, conn) })
	t.Run("dry run", o.testDryRun)
	t.Run("reinit", o.testReinit)
	t.Run("maintenance", func(t *testing.T) { o.testMaintenance(t, conn) })
	_ = conn.Close(t.Context())
	t.Run("lossy failover", o.testLossyFailover)
	history := o.must(c.Nodes[0], "history")
	for _, want := range []string{
		"restart, planned", "restart, unplanned", "failover, planned", "accepts the loss",
		"was started again by somebody else",
	} {
		if !strings.Contains(history, want) {
			t.Errorf("history does not have %q", want)
		}
	}
}

// testRestart restarts the primary and a standby under load: a pause, and none.
func (o operator) testRestart(t *testing.T, conn *pgx.Conn) {
	before := waitHealthy(t, o.c)
	load := startCounter(t, conn)
	o.must(o.c.Nodes[0], "restart", before.Primary)
	after := waitHealthy(t, o.c)
	load.end(t, "restart of the primary")
	old, now := memberOf(t, before, before.Primary), memberOf(t, after, before.Primary)
	if after.Primary != before.Primary || after.Epoch <= before.Epoch ||
		old.Incarnation == now.Incarnation {
		t.Errorf("%s epoch %d %s, then %s epoch %d %s", before.Primary, before.Epoch,
			old.Incarnation, after.Primary, after.Epoch, now.Incarnation)
	}
	standby := standbysOf(o.c, after.Primary)[0]
	pid := standby.Postmaster()
	load = startCounter(t, conn)
	o.must(o.c.Nodes[0], "restart", standby.Name)
	last := waitHealthy(t, o.c)
	load.end(t, "restart of a standby")
	if last.Epoch != after.Epoch || standby.Postmaster() == pid {
		t.Errorf("epoch %d, then %d; postmaster %d, then %d", after.Epoch, last.Epoch, pid,
			standby.Postmaster())
	}
}

func memberOf(t *testing.T, st holdfast.Status, name string) holdfast.MemberStatus {
	t.Helper()
	for _, m := range st.Members {
		if m.Name == name {
			return m
		}
	}
	t.Fatalf("no member %s", name)
	return holdfast.MemberStatus{}
}

// testDryRun: every precondition is printed, and nothing is written.
func (o operator) testDryRun(t *testing.T) {
	before := waitHealthy(t, o.c)
	standby := standbysOf(o.c, before.Primary)[0]
	out := o.must(o.c.Nodes[0], "switchover", "--to", standby.Name, "--dry-run")
	for _, want := range []string{
		"ok     no other change", "ok     " + standby.Name + " streams from", "nothing was changed",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	out, err := o.run(o.c.Nodes[0], "switchover", "--to", before.Primary, "--dry-run")
	if err == nil || !strings.Contains(out, "FAILS  "+before.Primary+" is not the primary") {
		t.Errorf("to the primary: %v\n%s", err, out)
	}
	out, err = o.run(o.c.Nodes[0], "failover", "--to", standby.Name)
	if err == nil || !strings.Contains(out, "can be used") {
		t.Errorf("failover while the primary works: %v\n%s", err, out)
	}
	after := waitHealthy(t, o.c)
	if after.RaftLastIndex != before.RaftLastIndex {
		t.Errorf("log index %d, then %d", before.RaftLastIndex, after.RaftLastIndex)
	}
}

// testReinit clones a standby anew: other data in its place, the old kept aside.
func (o operator) testReinit(t *testing.T) {
	st := waitHealthy(t, o.c)
	standby := standbysOf(o.c, st.Primary)[0]
	before, err := os.Stat(standby.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := o.run(o.c.Nodes[0], "reinit", st.Primary); err == nil ||
		!strings.Contains(out, "is the one to copy") {
		t.Errorf("reinit of the primary: %v\n%s", err, out)
	}
	o.must(o.c.Nodes[0], "reinit", standby.Name)
	for deadline := time.Now().Add(time.Minute); ; {
		after, err := os.Stat(standby.DataDir)
		if err == nil && !os.SameFile(before, after) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the data is still the old one")
		}
		time.Sleep(100 * time.Millisecond)
	}
	if now := waitHealthy(t, o.c); now.Epoch != st.Epoch {
		t.Errorf("epoch %d, then %d", st.Epoch, now.Epoch)
	}
	old, err := os.Stat(fmt.Sprintf("%s.lost-%d", standby.DataDir, st.Epoch))
	if err != nil || !os.SameFile(before, old) {
		t.Errorf("the old data is not kept: %v", err)
	}
}

// testMaintenance: the primary's server dies and nobody is promoted; the operator starts it again,
// and the sessions go on.
func (o operator) testMaintenance(t *testing.T, conn *pgx.Conn) {
	before := waitHealthy(t, o.c)
	primary := o.c.Node(before.Primary)
	o.maintain(t, o.c.Nodes[0], "--reason", "kernel update")
	if err := primary.KillPostmaster(); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := conn.Exec(ctx, "SELECT 1", pgx.QueryExecModeSimpleProtocol)
		answer <- err
	}()
	// Longer than any failover takes: the fact under test is that there is none.
	time.Sleep(8 * time.Second)
	st, err := o.c.Status(t.Context())
	if err != nil || st.Epoch != before.Epoch || st.Intent != nil {
		t.Fatalf("in maintenance: %+v, %v", st, err)
	}
	out := o.must(o.c.Nodes[0], "status")
	for _, want := range []string{"maintenance since", "kernel update", "nothing is promoted"} {
		if !strings.Contains(out, want) {
			t.Errorf("status does not have %q", want)
		}
	}
	o.startServer(primary)
	if st, err = o.c.WaitEpoch(t.Context(), before.Epoch, time.Minute); err != nil {
		t.Fatal(err)
	}
	if st.Primary != before.Primary {
		t.Errorf("primary is %s", st.Primary)
	}
	if err := <-answer; err != nil {
		t.Errorf("the session that waited: %v", err)
	}
	o.must(o.c.Nodes[0], "maintenance", "off")
	waitHealthy(t, o.c)
}

// testLossyFailover: one standby is stopped and the primary's host is lost. The other standby may
// lack acknowledged commits, so only an operator can promote it.
func (o operator) testLossyFailover(t *testing.T) {
	before := waitHealthy(t, o.c)
	// A standby that was away may not be counted yet: with one alone nothing would be lost.
	waitSync(t, o.c, "of both standbys", time.Minute, func(s *holdfast.SyncStatus) bool {
		return len(s.Names) == 2 && len(s.Leaving) == 0
	})
	primary := o.c.Node(before.Primary)
	standbys := standbysOf(o.c, before.Primary)
	stopped, other := standbys[0], standbys[1]
	o.maintain(t, other)
	if err := stopped.KillPostmaster(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := primary.KillNode(ctx); err != nil {
		t.Fatal(err)
	}
	out := ""
	for deadline := time.Now().Add(30 * time.Second); ; {
		var err error
		if out, err = o.run(other, "failover", "--to", other.Name); err == nil {
			st, err := other.Status(t.Context())
			t.Fatalf("a failover that may lose commits was done: %+v, %v", st, err)
		}
		// It is refused for other reasons until the group has seen that all is lost.
		if strings.Contains(out, stopped.Name+": it is stopped") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the refusal does not say what is missing:\n%s", out)
		}
		time.Sleep(300 * time.Millisecond)
	}
	out = o.must(other, "failover", "--to", other.Name, "--accept-data-loss")
	if !strings.Contains(out, "warning: commits that are not on "+other.Name+" are lost") ||
		!strings.Contains(out, "primary is "+other.Name) {
		t.Errorf("printed:\n%s", out)
	}
	o.must(other, "maintenance", "off")
	if err := primary.Start(); err != nil {
		t.Fatal(err)
	}
	st := waitHealthy(t, o.c)
	if st.Primary != other.Name {
		t.Errorf("primary is %s", st.Primary)
	}
	conn := connect(t, e2eDSN(primary))
	exec1(t, conn, fmt.Sprintf("INSERT INTO op SELECT %d", 2))
}
