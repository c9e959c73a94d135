package main_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/config"
)

// testReplace loses a standby's node for good and puts a new one in its place. The lost one comes
// back later, and is no part of the group any more.
func (o operator) testReplace(t *testing.T, primary, through *holdfast.ClusterNode) {
	t.Helper()
	i := slices.IndexFunc(o.c.Nodes, func(n *holdfast.ClusterNode) bool {
		return n != primary && n != through
	})
	lost, before := o.c.Nodes[i], waitHealthy(t, o.c)
	if err := lost.KillNode(t.Context()); err != nil {
		t.Fatal(err)
	}
	fresh, err := o.c.AddNode(t.Context(), quick)
	if err == nil {
		err = fresh.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for {
		out, err := o.run(through, "member", "replace", lost.Name, fresh.Name, fresh.Raft,
			"--dry-run")
		if err == nil {
			break
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("the lost node cannot be replaced: %s", out)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if out, err := o.run(through, "member", "replace", primary.Name, fresh.Name,
		fresh.Raft); err == nil || !strings.Contains(out, "is the primary: switch over") {
		t.Errorf("the primary was replaced: %s", out)
	}
	begin = time.Now()
	o.must(through, "member", "replace", lost.Name, fresh.Name, fresh.Raft)
	took := time.Since(begin)
	o.c.Nodes = slices.DeleteFunc(o.c.Nodes, func(n *holdfast.ClusterNode) bool { return n == lost })
	after := waitHealthy(t, o.c)
	t.Logf("%s replaced by %s after %.1f s, streaming after %.1f s", lost.Name, fresh.Name,
		took.Seconds(), time.Since(begin).Seconds())
	names := o.names()
	o.waitVoters(t, through, names...)
	if after.Epoch != before.Epoch {
		t.Errorf("epoch %d, then %d", before.Epoch, after.Epoch)
	}
	sync := waitSync(t, o.c, "of the new node", 30*time.Second, func(s *holdfast.SyncStatus) bool {
		return slices.Contains(s.Names, fresh.Name) && len(s.Leaving) == 0
	})
	if slices.Contains(sync.Sync.Names, lost.Name) {
		t.Errorf("commits may wait for a node that was replaced: %+v", sync.Sync)
	}
	o.testReturn(t, lost, through, after, names)
}

func (o operator) names() []string {
	var names []string
	for _, n := range o.c.Nodes {
		names = append(names, n.Name)
	}
	return names
}

// testReturn starts a node that was replaced: it changes nothing, and its proxy lets nobody in.
func (o operator) testReturn(t *testing.T, lost, through *holdfast.ClusterNode,
	before holdfast.Status, voters []string,
) {
	t.Helper()
	if err := lost.Start(); err != nil {
		t.Fatal(err)
	}
	// Longer than the promise of lan and several elections: the fact is that nothing happens.
	time.Sleep(3 * time.Second)
	// A leader that removes a node tries once to give it the log up to there, whenever it answers.
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		st, err := lost.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.Lease.State != "none" {
			t.Fatalf("a node that was replaced has a lease: %+v", st.Lease)
		}
		if st.Leader == "" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("a node that was replaced has the leader %q", st.Leader)
		}
	}
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out, err := o.run(lost, "status", "--ready")
		if err != nil && strings.Contains(out, "was removed from the group") {
			break // it has heard of it from the others
		}
		if time.Now().After(end) {
			t.Fatalf("a node that was replaced is ready: %s", out)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if conn, err := pgx.Connect(ctx, e2eDSN(lost)); err == nil {
		t.Error("a node that was replaced lets a client in")
		_ = conn.Close(t.Context())
	}
	o.waitVoters(t, through, voters...)
	if now := waitHealthy(t, o.c); now.Epoch != before.Epoch || now.Primary != before.Primary {
		t.Errorf("%s epoch %d, then %s epoch %d", before.Primary, before.Epoch, now.Primary,
			now.Epoch)
	}
	if err := lost.KillNode(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestE2EWitness: two nodes with PostgreSQL and a witness. Under load the witness's node is lost,
// with a switchover meanwhile, and comes back; then the primary's node is lost: the standby takes
// over by the witness's vote, and the old primary comes back.
func TestE2EWitness(t *testing.T) {
	o := operator{t: t, binary: buildBinary(t)}
	c := newCluster(t, holdfast.ClusterConfig{Binary: o.binary, Prefix: "holdfast-witness"})
	o.c = c
	witness := c.Nodes[2]
	for _, n := range c.Nodes {
		configure(t, n, func(cfg *config.Config) {
			quick(cfg)
			cfg.Synchronous.Mode = "on" // quorum waits for nobody with two
			self := &cfg.Group.Nodes[2]
			self.Witness, self.Postgres = true, ""
			if n == witness {
				cfg.Postgres.Enabled, cfg.Proxy.Enabled = false, false
			}
		})
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	first := waitHealthy(t, c)
	makeDatabase(t, c)
	conn := connect(t, e2eDSN(away(t, c)))
	exec1(t, conn, "CREATE TABLE op (i int)")
	o.loseWitness(t, conn, witness, first)
	o.losePrimary(t, conn, witness)
}

// loseWitness loses the witness: no change of roles, and a majority for one that is asked for.
func (o operator) loseWitness(t *testing.T, conn *pgx.Conn, witness *holdfast.ClusterNode,
	first holdfast.Status,
) {
	t.Helper()
	load := startCounter(t, conn)
	if err := witness.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := witness.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second) // longer than every lease: a failover would have come
	st, err := o.c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Epoch != first.Epoch || st.Intent != nil {
		t.Errorf("without its witness the group has changed: epoch %d, then %d, %+v", first.Epoch,
			st.Epoch, st.Intent)
	}
	load.end(t, "witness lost")
	if load.rows == 0 || load.gap > 2*time.Second {
		t.Errorf("%d commits without the witness, longest pause %v", load.rows, load.gap)
	}
	to := "node1"
	if first.Primary == to {
		to = "node2"
	}
	load = startCounter(t, conn)
	o.must(o.c.Node(to), "switchover", "--to", to)
	load.end(t, "switchover without the witness")
	if err := witness.Start(); err != nil {
		t.Fatal(err)
	}
	if st := waitHealthy(t, o.c); st.Primary != to || st.Epoch != first.Epoch+1 {
		t.Errorf("%s is primary under epoch %d", st.Primary, st.Epoch)
	}
}

// losePrimary loses the primary's node, while a session is elsewhere.
func (o operator) losePrimary(t *testing.T, was *pgx.Conn, witness *holdfast.ClusterNode) {
	t.Helper()
	_ = was.Close(t.Context())
	before := waitHealthy(t, o.c)
	lost := o.c.Node(before.Primary)
	other := standbysOf(o.c, lost.Name)[0]
	conn := connect(t, e2eDSN(other))
	have := queryText(t, conn, "SELECT count(*) FROM op")
	// Its outcome can be looked up, unlike that of several statements in one string.
	load := startCounterOf(t, conn, "INSERT INTO op VALUES (1)")
	time.Sleep(500 * time.Millisecond)
	if err := lost.KillNode(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, err := o.c.WaitEpoch(t.Context(), before.Epoch, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if after.Primary != other.Name || after.Last.Kind != "failover" {
		t.Errorf("%s is primary by a %s", after.Primary, after.Last.Kind)
	}
	// Without a standby commits go on after synchronous.degrade_after.
	waitSync(t, o.c, "degraded", 30*time.Second, waitsFor(0))
	load.end(t, "primary lost beside a witness")
	if err := lost.Start(); err != nil {
		t.Fatal(err)
	}
	if st := waitHealthy(t, o.c); st.Primary != other.Name || st.Epoch != after.Epoch {
		t.Errorf("%s is primary under epoch %d", st.Primary, st.Epoch)
	}
	if m := memberOf(t, after, witness.Name); !m.Voter || m.Postgres != "" {
		t.Errorf("the witness is %+v", m)
	}
	got := queryText(t, conn, fmt.Sprintf("SELECT count(*) - %d FROM op", load.rows))
	if got != have {
		t.Errorf("%s rows and %d committed ones became %s and those", have, load.rows, got)
	}
}
