package main_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/config"
	"holdfast/election"
)

// sidecarRun is a cluster with a sidecar, and the one session that goes through it.
type sidecarRun struct {
	operator
	sidecar *holdfast.ClusterNode
	conn    *pgx.Conn
	rows    int // that were committed, numbered from 0
}

// TestE2ESidecar takes one session through a sidecar, a proxy that has no vote and no PostgreSQL:
// the primary dies, and changes on request; the node that lends to the sidecar is lost, with a
// standby and with the primary; the sidecar itself stands still past the end of every lease, and
// in a failover. There is no error, and each commit is there once.
func TestE2ESidecar(t *testing.T) {
	r := startSidecar(t)
	exec1(t, r.conn, "CREATE TABLE op (i int)")
	exec1(t, r.conn, "SET sidecar.kept = 'all the time'")
	r.under(t, "kill -9 of the postmaster", func() {
		change(t, r.c, (*holdfast.ClusterNode).KillPostmaster)
	})
	r.under(t, "switchover", func() { r.lead(t, away(t, r.c)) })
	r.loseLender(t, false)
	r.loseLender(t, true)
	r.under(t, "sidecar stopped past every lease", func() { r.freeze(t, func() {}) })
	r.under(t, "primary killed while the sidecar is stopped", func() {
		r.freeze(t, func() { change(t, r.c, (*holdfast.ClusterNode).KillPostmaster) })
	})
	if got := queryText(t, r.conn, "SELECT current_setting('sidecar.kept')"); got != "all the time" {
		t.Errorf("the session's setting is %q", got)
	}
	got := queryText(t, r.conn, "SELECT concat_ws(' ', count(*), count(DISTINCT i), min(i), max(i))"+
		" FROM op")
	want := fmt.Sprintf("%d %[1]d 0 %d", r.rows, r.rows-1)
	if got != want {
		t.Errorf("rows, different ones, first and last are %s, not %s", got, want)
	}
	checkWhole(t, r.c)
}

// startSidecar starts three nodes, whose servers let in the sidecar's address, and the sidecar.
func startSidecar(t *testing.T) *sidecarRun {
	t.Helper()
	r := &sidecarRun{operator: operator{t: t, binary: buildBinary(t)}}
	r.c = newCluster(t, holdfast.ClusterConfig{Binary: r.binary, Prefix: "holdfast-sidecar"})
	var err error
	if r.sidecar, err = r.c.NewSidecar(t.Context(), "app-1"); err != nil {
		t.Fatal(err)
	}
	for _, n := range r.c.Nodes {
		configure(t, n, func(cfg *config.Config) {
			cfg.Postgres.AllowFrom = []string{r.sidecar.Host}
		})
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.sidecar.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the sidecar ends with:\n%s", r.sidecar.LogTail(25))
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := r.sidecar.KillNode(ctx); err != nil {
			t.Error(err)
		}
	})
	waitHealthy(t, r.c)
	makeDatabase(t, r.c)
	st := r.awaitLease(t)
	names := []string{"node1", "node2", "node3"}
	if got := slices.Sorted(slices.Values(st.Voters.Names)); !slices.Equal(got, names) {
		t.Errorf("the voters are %q beside a sidecar", got)
	}
	r.conn = connect(t, e2eDSN(r.sidecar))
	return r
}

// awaitLease waits until the sidecar has a lease of the lock that the group has.
func (r *sidecarRun) awaitLease(t *testing.T) holdfast.Status {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		group, err := r.c.Status(t.Context())
		st, err2 := r.sidecar.Status(t.Context())
		if err == nil && err2 == nil && st.Lease.State == "ok" && st.Lease.Epoch == group.Epoch {
			return st
		}
		if time.Now().After(end) {
			t.Fatalf("the sidecar has the lease %+v, the group epoch %d: %v, %v", st.Lease,
				group.Epoch, err, err2)
		}
	}
}

// under has the session commit row after row while something is done.
func (r *sidecarRun) under(t *testing.T, what string, do func()) {
	t.Helper()
	load := startCounterBy(t, r.conn, func(row int) string {
		return fmt.Sprintf("INSERT INTO op VALUES (%d)", r.rows+row)
	})
	waitUntil(t, time.Now().Add(200*time.Millisecond)) // it commits when the fault comes
	do()
	r.awaitLease(t)
	load.end(t, what)
	r.rows += load.rows
	r.commit(t, what)
}

// commit commits one row more: whatever was done, the session goes on behind it.
func (r *sidecarRun) commit(t *testing.T, what string) {
	t.Helper()
	if t.Failed() {
		t.Fatalf("%s: see above", what)
	}
	exec1(t, r.conn, fmt.Sprintf("INSERT INTO op VALUES (%d)", r.rows))
	r.rows++
}

// lender finds the node that the sidecar borrows from: the only one that is asked.
func (r *sidecarRun) lender(t *testing.T) *holdfast.ClusterNode {
	t.Helper()
	before := r.borrows(t)
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
		now := r.borrows(t)
		var asked []*holdfast.ClusterNode
		for _, n := range r.c.Nodes {
			if now[n.Name] > before[n.Name] {
				asked = append(asked, n)
			}
		}
		if len(asked) == 1 {
			return asked[0]
		}
		if len(asked) > 1 { // it has just turned to another one
			before = now
		}
	}
	t.Fatal("the sidecar asks no node for a lease")
	return nil
}

// borrows is how often each node that runs was asked to lend; one that never was has no count.
func (r *sidecarRun) borrows(t *testing.T) map[string]int {
	counts := map[string]int{}
	for _, n := range r.c.Nodes {
		count, err := metricOf(t.Context(), new(net.Dialer).DialContext, n,
			`holdfast_election_requests_total{path="borrow"}`)
		if err == nil {
			counts[n.Name] = count
		}
	}
	return counts
}

// lead makes a node the primary.
func (r *sidecarRun) lead(t *testing.T, n *holdfast.ClusterNode) {
	t.Helper()
	before := waitHealthy(t, r.c)
	r.must(n, "switchover", "--to", n.Name)
	if st := waitHealthy(t, r.c); st.Primary != n.Name || st.Epoch != before.Epoch+1 {
		t.Errorf("%s is primary under epoch %d, not %s", st.Primary, st.Epoch, n.Name)
	}
}

// place makes the node that lends the primary's, or another one. The sidecar may turn to the next
// node meanwhile, so that it can take more than one switchover.
func (r *sidecarRun) place(t *testing.T, isPrimary bool) *holdfast.ClusterNode {
	t.Helper()
	for range 5 {
		st, lender := waitHealthy(t, r.c), r.lender(t)
		switch {
		case (lender.Name == st.Primary) == isPrimary:
			return lender
		case isPrimary:
			r.lead(t, lender)
		default:
			r.lead(t, standbysOf(r.c, st.Primary)[0])
		}
	}
	t.Fatal("the sidecar turns to another node with every switchover")
	return nil
}

// loseLender kills the whole node that lends, the primary's or another one. The sidecar turns to
// the next, and the session commits before the lost one is back.
func (r *sidecarRun) loseLender(t *testing.T, isPrimary bool) {
	t.Helper()
	var before holdfast.Status
	var lost *holdfast.ClusterNode
	r.under(t, fmt.Sprintf("kill -9 of the node that lends, of the primary: %v", isPrimary), func() {
		lost = r.place(t, isPrimary)
		before = waitHealthy(t, r.c)
		if err := lost.KillNode(t.Context()); err != nil {
			t.Fatal(err)
		}
		if isPrimary {
			if _, err := r.c.WaitEpoch(t.Context(), before.Epoch, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("borrows from %s, and then from %s", lost.Name, r.lender(t).Name)
	})
	if err := lost.Start(); err != nil {
		t.Fatal(err)
	}
	if st := waitHealthy(t, r.c); !isPrimary && st.Epoch != before.Epoch {
		t.Errorf("epoch %d, then %d: a standby's node was lost", before.Epoch, st.Epoch)
	}
}

// freeze stops the sidecar's process while something is done, and for longer than what it borrowed
// is good for.
func (r *sidecarRun) freeze(t *testing.T, do func()) {
	t.Helper()
	timing, err := election.TimingOf(election.ProfileLAN)
	if err == nil {
		err = r.sidecar.Signal(unix.SIGSTOP)
	}
	if err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(2 * timing.Promise)
	do()
	waitUntil(t, past)
	if err := r.sidecar.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
}
