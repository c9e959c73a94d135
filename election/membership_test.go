package election_test

import (
	"context"
	"errors"
	"maps"
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

// startChangingGroup starts a group whose commits wait for nobody, so that any member may leave.
func startChangingGroup(t *testing.T, n int) *electiontest.Group {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	g := electiontest.NewGroup(t, n)
	g.Change = func(cfg *election.Config, deps *election.Deps) {
		deps.Gate = &gate{}
		deps.Loop = func(election.Coordinator) election.LeaderLoop { return idle{} }
		cfg.SyncMode = election.SyncOff
	}
	for _, m := range g.Nodes {
		g.Start(m.Name)
	}
	return g
}

// startNew starts a node that is not in the group yet.
func startNew(t *testing.T, g *electiontest.Group, name string) election.Member {
	t.Helper()
	m := election.Member{
		Name: name, Address: electiontest.FreeAddr(t), Postgres: electiontest.FreeAddr(t),
	}
	g.Nodes = append(slices.Clone(g.Nodes), m)
	g.Start(name)
	return m
}

func changeMember(t *testing.T, n *election.Node, c election.MemberChange) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	_, err := n.ChangeMember(ctx, election.MemberRequest{Change: c})
	return err
}

func add(t *testing.T, n *election.Node, m election.Member) {
	t.Helper()
	c := election.MemberChange{Kind: election.MemberAdd, Member: m}
	if err := changeMember(t, n, c); err != nil {
		t.Fatalf("add %s: %v", m.Name, err)
	}
}

func remove(t *testing.T, n *election.Node, name string) {
	t.Helper()
	c := election.MemberChange{
		Kind: election.MemberRemove, Member: election.Member{Name: name},
	}
	if err := changeMember(t, n, c); err != nil {
		t.Fatalf("remove %s: %v", name, err)
	}
}

// watchLeases looks at leases until the returned function is called, which tells whether one was
// ever in doubt, or the test has ended.
func watchLeases(t *testing.T, nodes map[string]*election.Node) (stop func() []string) {
	nodes = maps.Clone(nodes)
	done, ended := make(chan struct{}), make(chan []string)
	go func() {
		var bad []string
		for {
			for name, n := range nodes {
				if n.Now() >= n.Lease().Doubt() && !slices.Contains(bad, name) {
					bad = append(bad, name)
				}
			}
			select {
			case <-done:
				ended <- bad
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	stop = sync.OnceValue(func() []string { close(done); return <-ended })
	t.Cleanup(func() { stop() })
	return stop
}

// TestGroupGrowsAndShrinks: three voters become four, five and three again, and no node loses its
// lease or is in doubt about it meanwhile.
func TestGroupGrowsAndShrinks(t *testing.T) {
	g := startChangingGroup(t, 3)
	epoch := change(t, g, election.IntentBootstrap, "node1")
	waitGranted(t, g, epoch)
	first := map[string]*election.Node{}
	for name, n := range g.Running {
		first[name] = n
	}
	stop := watchLeases(t, first)
	for _, name := range []string{"node4", "node5"} {
		m := startNew(t, g, name)
		electiontest.Wait(t, "a word about a node outside", 20*time.Second, func() bool {
			return strings.Contains(strings.Join(g.Running[name].Problems(), "\n"),
				"not in the group yet")
		})
		add(t, g.Running["node2"], m)
		electiontest.Wait(t, "lease of "+name, 20*time.Second, func() bool {
			e, _ := g.Running[name].Granted()
			return e == epoch
		})
	}
	if set := g.Running["node5"].VoterSet(); set != 2 {
		t.Errorf("node5 has taken voter set %d", set)
	}
	// The second is asked itself: nobody of the group answers it when it is out.
	for name, asked := range map[string]string{"node3": "node5", "node2": "node2"} {
		if bad := stop(); len(bad) > 0 {
			t.Fatalf("leases in doubt while members changed: %q", bad)
		}
		gone := g.Running[name]
		delete(first, name)
		stop = watchLeases(t, first)
		remove(t, g.Running[asked], name)
		electiontest.Wait(t, name+" to say that it is out", 20*time.Second, func() bool {
			return strings.Contains(strings.Join(gone.Problems(), "\n"), "was removed")
		})
	}
	if bad := stop(); len(bad) > 0 {
		t.Errorf("leases in doubt while members changed: %q", bad)
	}
	// The removed ones do not count any more: neither for the log nor for an epoch.
	g.Stop("node2")
	g.Stop("node3")
	g.Nodes = slices.DeleteFunc(slices.Clone(g.Nodes), func(m election.Member) bool {
		return m.Name == "node2" || m.Name == "node3"
	})
	waitGranted(t, g, change(t, g, election.IntentFailover, "node5"))
	s, _ := g.Running["node4"].State()
	if s.Voters.Version != 4 || !slices.Equal(s.Voters.Names, []string{"node1", "node4", "node5"}) {
		t.Errorf("voters %+v", s.Voters)
	}
	// One that was removed can come again, under its name.
	back := election.Member{Name: "node3", Address: electiontest.FreeAddr(t)}
	g.Nodes = append(g.Nodes, back)
	if err := os.RemoveAll(g.Config("node3").Dir); err != nil {
		t.Fatal(err)
	}
	g.Start("node3")
	add(t, g.Running["node1"], back)
	waitGranted(t, g, s.Lock.Epoch)
}

// TestRecoverGroup: two of three nodes are lost for good. The third goes on as the only voter, what
// comes back with the old log is refused, and on empty directories the others join again.
func TestRecoverGroup(t *testing.T) {
	g := startChangingGroup(t, 3)
	epoch := change(t, g, election.IntentBootstrap, "node1")
	waitGranted(t, g, epoch)
	cfg := g.Config("node2")
	if _, err := election.PlanRecovery(cfg); err == nil ||
		!strings.Contains(err.Error(), "running") {
		t.Errorf("a node that runs is recovered: %v", err)
	}
	for _, name := range []string{"node1", "node2", "node3"} {
		g.Stop(name)
	}
	plan, err := election.PlanRecovery(cfg)
	if err != nil || plan.Epoch != epoch || plan.Lock == nil || len(plan.Voters) != 3 {
		t.Fatalf("plan %+v, %v", plan, err)
	}
	if _, err := election.RecoverGroup(cfg); err != nil {
		t.Fatal(err)
	}
	g.Start("node2")
	electiontest.Wait(t, "lease of a voter alone", 20*time.Second, func() bool {
		e, _ := g.Running["node2"].Granted()
		return e == epoch
	})
	next := change(t, g, election.IntentFailover, "node2")
	if next <= epoch+100 {
		t.Errorf("epoch %d follows %d: the lost nodes may have used it", next, epoch)
	}
	old, err := election.New(g.Config("node3"), election.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	err = old.Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "remove that directory") {
		t.Errorf("a node of the former group takes part: %v", err)
	}
	if err := old.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"node1", "node3"} {
		if err := os.RemoveAll(g.Config(name).Dir); err != nil {
			t.Fatal(err)
		}
		g.Start(name)
	}
	electiontest.Wait(t, "three voters again", 30*time.Second, func() bool {
		s, _ := g.Running["node1"].State()
		return s.Voters != nil && len(s.Voters.Names) == 3 && len(s.Voters.Prev) == 0
	})
	waitGranted(t, g, next)
	// They have taken part in the recovery now, and start as ever.
	g.Stop("node3")
	g.Start("node3")
	waitGranted(t, g, next)
}

// formerAgent remembers that its node was a member.
type formerAgent struct{}

func (formerAgent) Status() election.MemberStatus { return election.MemberStatus{} }

func (formerAgent) Changed() <-chan struct{} { return nil }

func (formerAgent) Do(context.Context, election.Order) (election.OrderResult, error) {
	return election.OrderResult{}, errors.New("no PostgreSQL")
}

func (formerAgent) WasMember() (string, bool) { return "/state/agent.json", true }

// TestFormerMemberFormsNoGroup: a node that lost its Raft directory writes no first configuration,
// which could be that of other members than the group has, and joins once the group answers
// (DESIGN.md I76).
func TestFormerMemberFormsNoGroup(t *testing.T) {
	g := startChangingGroup(t, 3)
	epoch := change(t, g, election.IntentBootstrap, "node1")
	waitGranted(t, g, epoch)
	for _, m := range g.Nodes {
		g.Stop(m.Name)
	}
	if err := os.RemoveAll(g.Config("node3").Dir); err != nil {
		t.Fatal(err)
	}
	plain := g.Change
	g.Change = func(cfg *election.Config, deps *election.Deps) {
		plain(cfg, deps)
		if cfg.Name == "node3" {
			deps.Agent = formerAgent{}
		}
	}
	n, err := election.New(g.Config("node3"), election.Deps{Agent: formerAgent{}})
	if err != nil {
		t.Fatal(err)
	}
	err = n.Start(t.Context())
	if !errors.Is(err, election.ErrFormerMember) || !strings.Contains(err.Error(), "agent.json") {
		t.Errorf("a former member begins a group: %v", err)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
	g.Start("node1")
	g.Start("node2")
	electiontest.Wait(t, "a leader with the lock", 20*time.Second, func() bool {
		s, _ := g.Running["node1"].State()
		return s.Lock != nil
	})
	g.Start("node3")
	electiontest.Wait(t, "lease of the former member", 20*time.Second, func() bool {
		e, _ := g.Running["node3"].Granted()
		return e == epoch
	})
}
