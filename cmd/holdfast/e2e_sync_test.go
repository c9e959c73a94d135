package main_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/config"
)

// syncDelay is synchronous.degrade_after here.
const syncDelay = 2 * time.Second

// startSyncCluster starts three nodes in a mode.
func startSyncCluster(t *testing.T, mode string) *holdfast.Cluster {
	t.Helper()
	c := newCluster(t, holdfast.ClusterConfig{Binary: buildBinary(t), Prefix: "holdfast-sync"})
	for _, n := range c.Nodes {
		err := n.Configure(func(cfg *config.Config) {
			cfg.Synchronous.Mode, cfg.Synchronous.DegradeAfter = mode, syncDelay
		})
		if err == nil {
			err = n.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	waitHealthy(t, c)
	return c
}

// waitSync waits until status says what ok wants of the sync set.
func waitSync(t *testing.T, c *holdfast.Cluster, what string, limit time.Duration,
	ok func(*holdfast.SyncStatus) bool,
) holdfast.Status {
	t.Helper()
	begin := time.Now()
	for {
		st, err := c.Status(t.Context())
		if err == nil && st.Sync != nil && ok(st.Sync) {
			t.Logf("%s after %.1f s: %s", what, time.Since(begin).Seconds(), st.Sync.Rule)
			return st
		}
		if time.Since(begin) > limit {
			t.Fatalf("sync set is not %s after %s: %+v, %v", what, limit, st.Sync, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func waitsFor(n int) func(*holdfast.SyncStatus) bool {
	return func(s *holdfast.SyncStatus) bool {
		return s.Wait == n && len(s.Leaving) == 0 && (s.Degraded != nil) == (n == 0)
	}
}

// standbysOf are the nodes but the primary.
func standbysOf(c *holdfast.Cluster, primary string) []*holdfast.ClusterNode {
	return slices.DeleteFunc(slices.Clone(c.Nodes), func(n *holdfast.ClusterNode) bool {
		return n.Name == primary
	})
}

// freeze stops servers until the returned function is called, at the latest with the test.
func freeze(t *testing.T, nodes []*holdfast.ClusterNode) (thaw func()) {
	t.Helper()
	for _, n := range nodes {
		if err := n.FreezeServer(); err != nil {
			t.Fatal(err)
		}
	}
	thaw = func() {
		for _, n := range nodes {
			if err := n.ThawServer(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(thaw)
	return thaw
}

// insert commits a row and tells how long that took.
func insert(t *testing.T, conn *pgx.Conn, i int, limit time.Duration) (time.Duration, error) {
	t.Helper()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	_, err := conn.Exec(ctx, fmt.Sprintf("INSERT INTO s VALUES (%d)", i),
		pgx.QueryExecModeSimpleProtocol)
	return time.Since(begin), err
}

// TestE2ESyncQuorum: both standbys hang; commits wait, then go on without them, and status says
// so. The primary's host is lost: nothing is promoted, since nobody has those commits. It comes
// back, and commits wait for standbys again.
func TestE2ESyncQuorum(t *testing.T) {
	c := startSyncCluster(t, "quorum")
	makeDatabase(t, c)
	st := waitSync(t, c, "first", time.Minute, waitsFor(1))
	primary := c.Node(st.Primary)
	conn := connect(t, e2eDSN(primary))
	exec1(t, conn, "CREATE TABLE s (i int)")
	thaw := freeze(t, standbysOf(c, st.Primary))
	took, err := insert(t, conn, 1, time.Minute)
	if err != nil || took < syncDelay {
		t.Fatalf("the first commit without standbys took %s: %v", took, err)
	}
	t.Logf("the first commit without standbys took %s", took)
	st = waitSync(t, c, "degraded", 10*time.Second, waitsFor(0))
	if !slices.ContainsFunc(st.Problems, func(p string) bool {
		return strings.Contains(p, "degraded since") && strings.Contains(p, "nobody is promoted")
	}) {
		t.Errorf("problems are %q", st.Problems)
	}
	for i := range 10 {
		if took, err := insert(t, conn, 2+i, 10*time.Second); err != nil || took >= syncDelay {
			t.Fatalf("a commit while degraded took %s: %v", took, err)
		}
	}
	_ = conn.Close(t.Context())

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := primary.KillNode(ctx); err != nil {
		t.Fatal(err)
	}
	thaw()
	// Longer than any failover takes: the fact under test is that there is none.
	time.Sleep(12 * time.Second)
	now, err := c.Status(t.Context())
	if err != nil || now.Primary != st.Primary || now.Epoch != st.Epoch || now.Intent != nil {
		t.Fatalf("after the loss of a primary that acknowledged alone: %+v, %v", now, err)
	}
	if now.Sync == nil || now.Sync.Degraded == nil {
		t.Errorf("status does not say why nobody is promoted: %+v", now.Sync)
	}
	if err := primary.Start(); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, c)
	waitSync(t, c, "healed", time.Minute, waitsFor(1))
	conn = connect(t, e2eDSN(primary))
	if got := queryText(t, conn, "SELECT count(*) FROM s"); got != "11" {
		t.Errorf("there are %s of 11 rows", got)
	}
	// Now the commits are safe: a failover keeps them.
	if err := primary.KillNode(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitEpoch(ctx, now.Epoch+1, time.Minute); err != nil {
		t.Fatal(err)
	}
	conn = connect(t, e2eDSN(standbysOf(c, primary.Name)[0]))
	if got := queryText(t, conn, "SELECT count(*) FROM s"); got != "11" {
		t.Errorf("after a failover there are %s of 11 rows", got)
	}
}

// TestE2ESyncStrict: commits wait for as long as no standby is there, and never degrade.
func TestE2ESyncStrict(t *testing.T) {
	c := startSyncCluster(t, "strict")
	makeDatabase(t, c)
	st := waitSync(t, c, "first", time.Minute, waitsFor(1))
	conn := connect(t, e2eDSN(c.Node(st.Primary)))
	exec1(t, conn, "CREATE TABLE s (i int)")
	thaw := freeze(t, standbysOf(c, st.Primary))
	done := make(chan error, 1)
	go func() {
		_, err := insert(t, conn, 1, time.Minute)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("a commit was answered without a standby: %v", err)
	case <-time.After(6*syncDelay + 5*time.Second): // walsenders of hung standbys end after 5 s
	}
	now, err := c.Status(t.Context())
	if err != nil || now.Sync == nil || now.Sync.Wait != 1 || now.Sync.Degraded != nil {
		t.Errorf("the sync set is %+v: %v", now.Sync, err)
	}
	thaw()
	if err := <-done; err != nil {
		t.Errorf("after the standbys came back: %v", err)
	}
}

// TestE2ESyncOn: one standby is named; when it hangs the other is, and when both do nobody.
func TestE2ESyncOn(t *testing.T) {
	c := startSyncCluster(t, "on")
	makeDatabase(t, c)
	isNamed := func(s *holdfast.SyncStatus) bool { return waitsFor(1)(s) && len(s.Names) == 1 }
	st := waitSync(t, c, "named", time.Minute, isNamed)
	conn := connect(t, e2eDSN(c.Node(st.Primary)))
	exec1(t, conn, "CREATE TABLE s (i int)")
	first := st.Sync.Names[0]
	thawFirst := freeze(t, []*holdfast.ClusterNode{c.Node(first)})
	if took, err := insert(t, conn, 1, time.Minute); err != nil {
		t.Fatalf("the commit without %s took %s: %v", first, took, err)
	}
	st = waitSync(t, c, "named anew", time.Minute, func(s *holdfast.SyncStatus) bool {
		return isNamed(s) && s.Names[0] != first
	})
	thawSecond := freeze(t, []*holdfast.ClusterNode{c.Node(st.Sync.Names[0])})
	if took, err := insert(t, conn, 2, time.Minute); err != nil {
		t.Fatalf("the commit without standbys took %s: %v", took, err)
	}
	waitSync(t, c, "degraded", 10*time.Second, waitsFor(0))
	thawFirst()
	waitSync(t, c, "healed", time.Minute, isNamed)
	thawSecond()
}
