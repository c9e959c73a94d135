package main_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/config"
)

// waitVoters waits until exactly these vote and nothing is under way.
func (o operator) waitVoters(t *testing.T, n *holdfast.ClusterNode, names ...string) {
	t.Helper()
	slices.Sort(names)
	var last *holdfast.VotersStatus
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		st, err := n.Status(t.Context())
		if err == nil && st.Voters != nil {
			last = st.Voters
			have := slices.Sorted(slices.Values(last.Names))
			if slices.Equal(have, names) && last.Change == "" {
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the voters are not %q but %+v", names, last)
}

// quick lets a standby that is away count no more after a short time.
func quick(cfg *config.Config) { cfg.Synchronous.DegradeAfter = syncDelay }

// TestE2EMembers: under load a fourth node joins, the first primary leaves, a node is
// lost and replaced, a witness comes and goes; then a majority is lost, and one node goes on.
func TestE2EMembers(t *testing.T) {
	o := operator{t: t, binary: buildBinary(t)}
	c := newCluster(t, holdfast.ClusterConfig{Binary: o.binary, Prefix: "holdfast-members"})
	o.c = c
	for _, n := range c.Nodes {
		configure(t, n, quick)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	first := c.Node(waitHealthy(t, c).Primary)
	makeDatabase(t, c)
	through := away(t, c)
	conn := connect(t, e2eDSN(through))
	exec1(t, conn, "CREATE TABLE op (i int)")
	load := startCounter(t, conn)
	fourth := o.testAdd(t, through)
	o.testLeave(t, first, fourth, through)
	o.testReplace(t, fourth, through)
	o.testWitness(t, through)
	load.end(t, "members changed")
	_ = conn.Close(t.Context())
	t.Run("lost quorum", func(t *testing.T) { o.testLostQuorum(t, fourth) })
}

// testAdd adds a fourth node.
func (o operator) testAdd(t *testing.T, through *holdfast.ClusterNode) *holdfast.ClusterNode {
	t.Helper()
	if out, err := o.run(through, "member", "add", "node4", "127.0.0.1:9"); err == nil ||
		!strings.Contains(out, "start it first") {
		t.Errorf("a node that does not run was added: %s", out)
	}
	fourth, err := o.c.AddNode(t.Context(), quick)
	if err != nil {
		t.Fatal(err)
	}
	if err := fourth.Start(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for {
		out, err := o.run(through, "member", "add", fourth.Name, fourth.Raft, "--dry-run")
		if err == nil {
			break
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("the new node is not ready to be added: %s", out)
		}
		time.Sleep(100 * time.Millisecond)
	}
	begin = time.Now()
	o.must(through, "member", "add", fourth.Name, fourth.Raft)
	added := time.Since(begin)
	waitHealthy(t, o.c)
	t.Logf("a fourth voter after %.1f s, streaming after %.1f s", added.Seconds(),
		time.Since(begin).Seconds())
	o.waitVoters(t, through, "node1", "node2", "node3", "node4")
	return fourth
}

// testLeave removes the first primary, after a switchover to the new node.
func (o operator) testLeave(t *testing.T, first, fourth, through *holdfast.ClusterNode) {
	t.Helper()
	if out, err := o.run(through, "member", "remove", first.Name); err == nil ||
		!strings.Contains(out, "is the primary: switch over") {
		t.Errorf("the primary was removed: %s", out)
	}
	o.must(through, "switchover", "--to", fourth.Name)
	waitHealthy(t, o.c)
	o.must(through, "member", "remove", first.Name)
	st, err := fourth.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Sync == nil || strings.Contains(st.Sync.Rule, first.Name) {
		t.Errorf("commits may wait for a member that was removed: %+v", st.Sync)
	}
	if err := o.c.RemoveNode(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, o.c)
	var names []string
	for _, n := range o.c.Nodes {
		names = append(names, n.Name)
	}
	o.waitVoters(t, through, names...)
	// Two members with PostgreSQL would be left, and commits wait for nobody.
	for _, n := range standbysOf(o.c, fourth.Name) {
		if out, err := o.run(through, "member", "remove", n.Name); err == nil ||
			!strings.Contains(out, "--accept-fewer-standbys") {
			t.Errorf("the last but one standby was removed: %s", out)
		}
	}
}

// testWitness adds a voter without PostgreSQL and removes it again.
func (o operator) testWitness(t *testing.T, through *holdfast.ClusterNode) {
	t.Helper()
	w, err := o.c.AddNode(t.Context(), func(cfg *config.Config) {
		cfg.Postgres.Enabled, cfg.Proxy.Enabled = false, false
		self := &cfg.Group.Nodes[len(cfg.Group.Nodes)-1]
		self.Witness, self.Postgres = true, ""
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for {
		out, err := o.run(through, "member", "add", w.Name, w.Raft)
		if err == nil {
			break
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("the witness is not added: %s", out)
		}
		time.Sleep(100 * time.Millisecond)
	}
	st, err := through.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m := memberOf(t, st, w.Name); !m.Voter || m.Postgres != "" || len(st.Voters.Names) != 4 {
		t.Errorf("the witness is %+v among %+v", m, st.Voters)
	}
	o.must(through, "member", "remove", w.Name)
	if err := w.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.c.Nodes = slices.DeleteFunc(o.c.Nodes, func(n *holdfast.ClusterNode) bool { return n == w })
}

// recoverRaft runs the offline command.
func (o operator) recoverRaft(n *holdfast.ClusterNode, args ...string) (string, error) {
	args = append([]string{"raft", "recover", "-c", n.ConfigPath}, args...)
	out, err := exec.CommandContext(o.t.Context(), o.binary, args...).CombinedOutput()
	o.t.Logf("holdfast %s: %v\n%s", strings.Join(args, " "), err, out)
	return string(out), err
}

// testLostQuorum loses all nodes but the primary's: it goes on alone when it is told to, and the
// others join it again on empty Raft directories.
func (o operator) testLostQuorum(t *testing.T, primary *holdfast.ClusterNode) {
	lost := standbysOf(o.c, primary.Name)
	before := waitHealthy(t, o.c)
	if out, err := o.recoverRaft(primary, "--yes"); err == nil || !strings.Contains(out, "running") {
		t.Errorf("a node that runs is recovered: %s", out)
	}
	for _, n := range lost {
		if err := n.KillNode(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := primary.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := o.recoverRaft(primary); err == nil || !strings.Contains(out, "two groups") ||
		!strings.Contains(out, "nothing was changed") {
		t.Errorf("no warning: %s", out)
	}
	if out, err := o.recoverRaft(primary, "--yes"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := primary.Start(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for {
		if out, err := o.run(primary, "status", "--ready"); err == nil {
			break
		} else if time.Since(begin) > 20*time.Second {
			t.Fatalf("the node alone takes no clients: %s", out)
		}
		time.Sleep(100 * time.Millisecond)
	}
	conn := connect(t, e2eDSN(primary))
	exec1(t, conn, "INSERT INTO op VALUES (2)")
	t.Logf("the first commit came %.1f s after the start", time.Since(begin).Seconds())
	_ = conn.Close(t.Context())
	if pid := primary.Postmaster(); pid != memberOf(t, before, primary.Name).Pid {
		t.Errorf("the server was restarted, pid %d", pid)
	}
	if err := lost[0].Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if code, err := lost[0].Wait(ctx); err != nil || code == 0 ||
		!strings.Contains(lost[0].LogTail(5), "recovered without this one") {
		t.Errorf("a node of the former group runs: %d, %v", code, err)
	}
	names := []string{primary.Name}
	for _, n := range lost {
		if err := os.RemoveAll(filepath.Join(n.Dir, "state", "raft")); err != nil {
			t.Fatal(err)
		}
		configure(t, n, quick) // its file has to name a node of the group
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		names = append(names, n.Name)
	}
	o.waitVoters(t, primary, names...)
	waitHealthy(t, o.c)
}
