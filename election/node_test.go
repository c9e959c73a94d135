package election_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// idle is a leader loop that decides nothing.
type idle struct{}

func (idle) RunLeader(ctx context.Context) { <-ctx.Done() }

func (idle) Request(context.Context, election.Request) ([]election.Check, error) {
	return nil, nil
}

func (idle) LastDecision() election.Decision { return election.Decision{} }

// gate records what the lessee asks of it.
type gate struct {
	mu      sync.Mutex
	drained []uint64
	cut     []uint64
}

func (g *gate) Drain(_ context.Context, epoch uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drained = append(g.drained, epoch)
}

func (g *gate) Cut(epoch uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cut = append(g.cut, epoch)
}

func (g *gate) hasCut(epoch uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range g.cut {
		if e >= epoch {
			return true
		}
	}
	return false
}

func startGroup(t *testing.T, n int) (*electiontest.Group, map[string]*gate) {
	t.Helper()
	return startGroupWith(t, n, nil)
}

// startGroupWith starts a group; made sees each node before it starts.
func startGroupWith(t *testing.T, n int, made func(string, *election.Node),
) (*electiontest.Group, map[string]*gate) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	g := electiontest.NewGroup(t, n)
	g.Made = made
	gates := make(map[string]*gate)
	g.Change = func(cfg *election.Config, deps *election.Deps) {
		gates[cfg.Name] = &gate{}
		deps.Gate = gates[cfg.Name]
		deps.Loop = func(election.Coordinator) election.LeaderLoop { return idle{} }
	}
	for _, m := range g.Nodes {
		g.Start(m.Name)
	}
	return g, gates
}

func leaderOf(g *electiontest.Group) string {
	for _, n := range g.Running {
		if l := n.Leader(); l != "" && g.Running[l] != nil && g.Running[l].Leader() == l {
			return l
		}
	}
	return ""
}

func waitLeader(t *testing.T, g *electiontest.Group) string {
	t.Helper()
	electiontest.Wait(t, "leader", 20*time.Second, func() bool { return leaderOf(g) != "" })
	electiontest.Wait(t, "members registered", 20*time.Second, func() bool {
		for _, n := range g.Running {
			if s, _ := n.State(); len(s.Members) != len(g.Nodes) {
				return false
			}
		}
		return true
	})
	return leaderOf(g)
}

// mustApply writes a command through whoever leads; leadership may change meanwhile, and the
// commands are idempotent.
func mustApply(t *testing.T, g *electiontest.Group, c election.Command) election.Result {
	t.Helper()
	var r election.Result
	electiontest.Wait(t, "apply", 20*time.Second, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		n := g.Running[leaderOf(g)]
		if n == nil {
			return false
		}
		var err error
		r, err = n.Apply(ctx, c)
		return err == nil
	})
	return r
}

// change takes the group through a whole change of the lock, as the controller would.
func change(t *testing.T, g *electiontest.Group, kind election.IntentKind, to string) uint64 {
	t.Helper()
	leader := g.Running[waitLeader(t, g)]
	s, _ := leader.State()
	b := election.BeginIntent{Kind: kind, To: to, Cause: "test", Request: t.Name()}
	if s.Lock != nil {
		b.From, b.FromEpoch = s.Lock.Holder, s.Lock.Epoch
	}
	r := mustApply(t, g, election.Command{Kind: election.CommandBegin, Begin: &b})
	if r.Refused != "" {
		t.Fatal(r.Refused)
	}
	// Another node may have become the leader meanwhile.
	electiontest.Wait(t, "the intent", 20*time.Second, func() bool {
		s, _ := leader.State()
		return s.Intent != nil && s.Intent.Epoch == r.Epoch
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := leader.EndorseAll(ctx, r.Epoch); err != nil {
		t.Fatal(err)
	}
	c := mustApply(t, g, election.Command{
		Kind:   election.CommandCommitLock,
		Commit: &election.CommitLock{Lock: election.Lock{Epoch: r.Epoch, Holder: to}},
	})
	if c.Refused != "" {
		t.Fatal(c.Refused)
	}
	return r.Epoch
}

func waitGranted(t *testing.T, g *electiontest.Group, epoch uint64) {
	t.Helper()
	electiontest.Wait(t, "lease", 10*time.Second, func() bool {
		for _, n := range g.Running {
			if e, _ := n.Granted(); e != epoch {
				return false
			}
		}
		return true
	})
}

func TestGroupElectsAndLeases(t *testing.T) {
	g, gates := startGroup(t, 3)
	first := change(t, g, election.IntentBootstrap, "node1")
	waitGranted(t, g, first)

	start := time.Now()
	second := change(t, g, election.IntentFailover, "node2")
	if second <= first {
		t.Fatalf("epochs do not grow: %d after %d", second, first)
	}
	// All lessees were there to release: nobody waits for a promise to run out.
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("a change with everybody there took %s", d)
	}
	waitGranted(t, g, second)
	for name, gt := range gates {
		if !gt.hasCut(first) {
			t.Errorf("the gate of %s was not cut", name)
		}
	}
}

func TestSwitchoverDrainsFirst(t *testing.T) {
	g, gates := startGroup(t, 3)
	waitGranted(t, g, change(t, g, election.IntentBootstrap, "node1"))
	change(t, g, election.IntentSwitchover, "node2")
	for name, gt := range gates {
		gt.mu.Lock()
		if len(gt.drained) != 1 {
			t.Errorf("%s drained %v", name, gt.drained)
		}
		gt.mu.Unlock()
	}
}

func TestNoLogEntryInSteadyState(t *testing.T) {
	g, _ := startGroup(t, 3)
	epoch := change(t, g, election.IntentBootstrap, "node1")
	waitGranted(t, g, epoch)
	n := g.Running["node1"]
	electiontest.Wait(t, "quiet log", 5*time.Second, func() bool {
		i := n.LastIndex()
		time.Sleep(300 * time.Millisecond)
		return i == n.LastIndex()
	})
	before, until := n.LastIndex(), n.Lease().Until()
	time.Sleep(3 * time.Second)
	if after := n.LastIndex(); after != before {
		t.Errorf("the log grew from %d to %d while nothing happened", before, after)
	}
	if n.Lease().Until() <= until {
		t.Error("the lease was not renewed meanwhile")
	}
}

// TestAppliedIndex: an entry that is on disk but not committed is no part of the state, and does
// not count as applied.
func TestAppliedIndex(t *testing.T) {
	g, disks := startGroupOnDisks(t)
	change(t, g, election.IntentBootstrap, "node1")
	leader := waitLeader(t, g)
	n := g.Running[leader]
	electiontest.Wait(t, "all applied", 5*time.Second, func() bool {
		return n.AppliedIndex() == n.LastIndex()
	})
	before := n.AppliedIndex()
	for _, m := range g.Nodes {
		if m.Name != leader {
			disks[m.Name].FailLogs(true) // the leader is still heard and followed
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := n.Apply(ctx, election.Command{Kind: election.CommandRegister,
		Register: &election.RegisterMembers{Cluster: g.Config(leader).Cluster, Members: g.Nodes}})
	if err == nil {
		t.Fatal("an entry was committed without a majority")
	}
	electiontest.Wait(t, "the entry on the leader's disk", 20*time.Second, func() bool {
		return n.LastIndex() > before
	})
	if now := n.AppliedIndex(); now != before {
		t.Errorf("the applied index is %d, was %d: the entry is not committed", now, before)
	}
}

func TestUnreachableLesseeCostsItsPromise(t *testing.T) {
	g, _ := startGroup(t, 3)
	waitGranted(t, g, change(t, g, election.IntentBootstrap, "node1"))
	leader := waitLeader(t, g)
	for _, m := range g.Nodes {
		if m.Name != leader {
			g.Running[m.Name].Vanish() // without a release
			g.Stop(m.Name)
			break
		}
	}
	start := time.Now()
	change(t, g, election.IntentFailover, "node2")
	tm, _ := election.TimingOf(election.ProfileLAN)
	if d := time.Since(start); d < tm.Promise-tm.Interval-time.Second {
		t.Errorf("the new epoch began after %s although a promise of %s stood", d, tm.Promise)
	}
}

func TestNodeComesBack(t *testing.T) {
	g, _ := startGroup(t, 3)
	epoch := change(t, g, election.IntentBootstrap, "node1")
	waitGranted(t, g, epoch)
	g.Stop("node2")
	g.Start("node2")
	electiontest.Wait(t, "state after a restart", 20*time.Second, func() bool {
		s, _ := g.Running["node2"].State()
		e, _ := g.Running["node2"].Granted()
		return s.Lock != nil && s.Lock.Epoch == epoch && e == epoch
	})
}

func TestSidecarFollowsAndLeases(t *testing.T) {
	g, _ := startGroup(t, 3)
	epoch := change(t, g, election.IntentBootstrap, "node1")
	old := g.Change
	g.Change = func(cfg *election.Config, deps *election.Deps) {
		old(cfg, deps)
		cfg.Voter = false
	}
	side := g.Start("sidecar")
	electiontest.Wait(t, "lease of the sidecar", 10*time.Second, func() bool {
		e, _ := side.Granted()
		return e == epoch
	})
	next := change(t, g, election.IntentFailover, "node3")
	electiontest.Wait(t, "next lease of the sidecar", 10*time.Second, func() bool {
		e, _ := side.Granted()
		return e == next
	})
}

func TestCertificateOfAnotherGroupIsRefused(t *testing.T) {
	g, _ := startGroup(t, 3)
	waitLeader(t, g)
	ca, err := election.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	cfg := g.Config("node1")
	dir := t.TempDir()
	cfg.CAFile, cfg.CertFile, cfg.KeyFile = electiontest.WriteCert(t, dir, ca, "spy")
	cfg.Name, cfg.Voter = "spy", false
	n, err := election.New(cfg, election.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if s, _ := n.State(); s.Cluster != "" {
		t.Error("a stranger reads the state")
	}
	if err := n.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestBadIdentities(t *testing.T) {
	g := electiontest.NewGroup(t, 3)
	base := g.Config("node1")
	other, err := election.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	otherCA, _, _ := electiontest.WriteCert(t, dir, other, "node1")
	for name, tc := range map[string]struct {
		change func(*election.Config)
		want   string
	}{
		"missing key": {func(c *election.Config) { c.KeyFile = "/nowhere" }, "holdfast init"},
		"open key": {func(c *election.Config) {
			if err := os.Chmod(c.KeyFile, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "chmod 600"},
		"wrong CA":   {func(c *election.Config) { c.CAFile = otherCA }, "check certificate"},
		"wrong name": {func(c *election.Config) { c.Name = "node2" }, `for node "node1"`},
	} {
		cfg := base
		if err := os.Chmod(cfg.KeyFile, 0o600); err != nil {
			t.Fatal(err)
		}
		tc.change(&cfg)
		_, err := election.New(cfg, election.Deps{})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want something with %q", name, err, tc.want)
		}
	}
}

// TestNodeThatLostItsDiskComesBack: it takes over what the others know before it promises.
func TestNodeThatLostItsDiskComesBack(t *testing.T) {
	g, _ := startGroup(t, 3)
	change(t, g, election.IntentBootstrap, "node1")
	epoch := change(t, g, election.IntentFailover, "node2")
	waitGranted(t, g, epoch)
	g.Stop("node3")
	if err := os.RemoveAll(g.Config("node3").Dir); err != nil {
		t.Fatal(err)
	}
	g.Start("node3")
	electiontest.Wait(t, "state on a new disk", 20*time.Second, func() bool {
		s, _ := g.Running["node3"].State()
		e, blank := g.Running["node3"].VoterMemory()
		return s.Lock != nil && s.Lock.Epoch == epoch && e == epoch && !blank
	})
	waitGranted(t, g, change(t, g, election.IntentFailover, "node3"))
}

// TestAnotherListOfNodesIsTold: a node whose list is not that of the group says so.
func TestAnotherListOfNodesIsTold(t *testing.T) {
	g, _ := startGroup(t, 3)
	change(t, g, election.IntentBootstrap, "node1")
	if got := g.Running["node2"].Problems(); len(got) > 0 {
		t.Fatalf("problems of a sound node: %q", got)
	}
	for _, name := range []string{"node1", "node2", "node3"} {
		g.Stop(name)
	}
	old := g.Change
	g.Change = func(cfg *election.Config, deps *election.Deps) {
		old(cfg, deps)
		cfg.Nodes = slices.Clone(cfg.Nodes)
		cfg.Nodes[2].Name = "node4"
	}
	got := strings.Join(g.Start("node2").Problems(), "\n")
	for _, want := range []string{"node4 at", "node3 at", "only in the group", "group.nodes"} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want something with %q", got, want)
		}
	}
}
