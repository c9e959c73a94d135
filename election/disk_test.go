package election_test

import (
	"slices"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// startGroupOnDisks starts a group with a disk for each node that can fail.
func startGroupOnDisks(t *testing.T) (*electiontest.Group, map[string]*election.Disk) {
	t.Helper()
	disks := make(map[string]*election.Disk)
	g, _ := startGroupWith(t, 3, func(name string, n *election.Node) {
		disks[name] = n.UseFaultyDisk()
	})
	return g, disks
}

// failLeadersDisk takes the leader's disk away and shows what must go on without it (I6).
func failLeadersDisk(t *testing.T, fail func(*election.Disk) (heal func())) {
	t.Helper()
	g, disks := startGroupOnDisks(t)
	epoch := change(t, g, election.IntentBootstrap, "node1")
	waitGranted(t, g, epoch)
	old := waitLeader(t, g)
	heal := fail(disks[old])
	defer func() { heal() }()

	// A disk is written to at an election or by an entry: a change of the state is one.
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = g.Running[old].Apply(t.Context(), election.Command{
			Kind: election.CommandRegister, Register: &election.RegisterMembers{
				Cluster: "test", Members: g.Nodes[:2],
			},
		})
	}()
	var others []*election.Node
	for name, n := range g.Running {
		if name != old {
			others = append(others, n)
		}
	}
	electiontest.Wait(t, "silence", 10*time.Second, g.Running[old].IsSilent)
	electiontest.Wait(t, "another leader", 20*time.Second, func() bool {
		l := others[0].Leader()
		return l != "" && l != old && l == others[1].Leader()
	})
	// The leases of the process with the broken disk go on: they need no log.
	start := g.Running[old].Lease().Until()
	electiontest.Wait(t, "renewed lease", 5*time.Second, func() bool {
		return g.Running[old].Lease().Until() > start
	})
	heal()
	heal = func() {}
	<-written
	electiontest.Wait(t, "old leader follows", 20*time.Second, func() bool {
		l := g.Running[old].Leader()
		return !g.Running[old].IsSilent() && l != "" && l == others[0].Leader()
	})
}

func TestGroupGoesOnWhenTheLeadersDiskFails(t *testing.T) {
	failLeadersDisk(t, func(d *election.Disk) func() {
		d.Fail(true)
		return func() { d.Fail(false) }
	})
}

// TestGroupGoesOnWhenTheLeadersLogIsFull: a vote still finds room. The leader that cannot write its
// log would be elected again and again.
func TestGroupGoesOnWhenTheLeadersLogIsFull(t *testing.T) {
	failLeadersDisk(t, func(d *election.Disk) func() {
		d.FailLogs(true)
		return func() { d.FailLogs(false) }
	})
}

func TestGroupGoesOnWhenTheLeadersDiskHangs(t *testing.T) {
	failLeadersDisk(t, func(d *election.Disk) func() { return d.Hang() })
}

// TestSilentNodeSeesTheChange: a node whose disk hangs follows the state of the others, gives its
// lease up in time, and gets the next one; else its proxy would hold up every change, and serve
// nobody afterwards.
func TestSilentNodeSeesTheChange(t *testing.T) {
	g, disks := startGroupOnDisks(t)
	waitGranted(t, g, change(t, g, election.IntentBootstrap, "node1"))
	old := waitLeader(t, g)
	goOn := disks[old].Hang()
	defer func() { goOn() }()
	written := make(chan struct{})
	go func() { // steady state writes nothing
		defer close(written)
		_, _ = g.Running[old].Apply(t.Context(), election.Command{
			Kind: election.CommandRegister, Register: &election.RegisterMembers{
				Cluster: "test", Members: g.Nodes[:2],
			},
		})
	}()
	silent := g.Running[old]
	electiontest.Wait(t, "another leader", 20*time.Second, func() bool {
		for name, n := range g.Running {
			if name != old && n.Leader() != "" && n.Leader() != old {
				return silent.IsSilent()
			}
		}
		return false
	})
	delete(g.Running, old) // the helpers ask the others only
	defer func() { g.Running[old] = silent }()
	tm, _ := election.TimingOf(election.ProfileLAN)
	// Without its reports the leader would take a primary there for one that nobody speaks for.
	electiontest.Wait(t, "reports of the silent node", 10*time.Second, func() bool {
		obs, _ := g.Running[waitLeader(t, g)].Observations()
		return silent.IsSilent() && slices.ContainsFunc(obs, func(o election.Observation) bool {
			return o.Node == old && o.Age < tm.Interval*4
		})
	})
	begin := time.Now()
	epoch := change(t, g, election.IntentFailover, "node2")
	if took := time.Since(begin); took > tm.Promise {
		t.Errorf("the change took %v", took)
	}
	electiontest.Wait(t, "lease of the silent node", 10*time.Second, func() bool {
		e, _ := silent.Granted()
		s, _ := silent.State()
		return e == epoch && s.Lock.Epoch == epoch && silent.IsSilent()
	})
	// What is asked of it goes to the node that leads now.
	_, err := silent.Request(t.Context(), election.Request{
		Kind: election.RequestSwitchover, Member: "node3",
	})
	if err != nil {
		t.Errorf("switchover by the silent node: %v", err)
	}
	if _, _, err := silent.LeaderView(t.Context()); err != nil {
		t.Errorf("observations by the silent node: %v", err)
	}
	goOn()
	goOn = func() {}
	<-written
	electiontest.Wait(t, "its own log", 20*time.Second, func() bool {
		return !silent.IsSilent() && silent.LastIndex() == g.Running[waitLeader(t, g)].LastIndex()
	})
}

// TestFollowerWithoutRoomSeesTheChange: a follower that cannot write entries is not silent, and has
// what the others committed from them: else its proxy would serve nobody after a change.
func TestFollowerWithoutRoomSeesTheChange(t *testing.T) {
	g, disks := startGroupOnDisks(t)
	waitGranted(t, g, change(t, g, election.IntentBootstrap, "node1"))
	full := ""
	for name := range g.Running {
		if name != waitLeader(t, g) {
			full = name
		}
	}
	disks[full].FailLogs(true)
	node := g.Running[full]
	delete(g.Running, full) // the helpers ask the others only
	defer func() { g.Running[full] = node }()
	epoch := change(t, g, election.IntentFailover, "node2")
	electiontest.Wait(t, "lease of the node without room", 10*time.Second, func() bool {
		e, _ := node.Granted()
		s, _ := node.State()
		return e == epoch && s.Lock.Epoch == epoch && !node.IsSilent()
	})
	disks[full].FailLogs(false)
	electiontest.Wait(t, "its own log", 20*time.Second, func() bool {
		return node.LastIndex() == g.Running[waitLeader(t, g)].LastIndex()
	})
}

// TestRestartedNodeNeedsNoLeader: a node that starts while nobody leads, or before the leader turns
// to it again, knows from the others what is committed, and its proxy has the lease (I6a).
func TestRestartedNodeNeedsNoLeader(t *testing.T) {
	g, disks := startGroupOnDisks(t)
	epoch := change(t, g, election.IntentBootstrap, "node1")
	waitGranted(t, g, epoch)
	leader := waitLeader(t, g)
	var other, restarted string
	for _, m := range g.Nodes {
		switch {
		case m.Name == leader:
		case other == "":
			other = m.Name
		default:
			restarted = m.Name
		}
	}
	g.Stop(restarted)
	var heal []func()
	for _, name := range []string{leader, other} {
		heal = append(heal, disks[name].Hang())
	}
	written := make(chan struct{})
	go func() { // a write, without which no disk is seen to hang
		defer close(written)
		_, _ = g.Running[leader].Apply(t.Context(), election.Command{
			Kind:     election.CommandRegister,
			Register: &election.RegisterMembers{Cluster: "test", Members: g.Nodes[:2]},
		})
	}()
	defer func() {
		for _, f := range heal {
			f()
		}
		<-written
	}()
	electiontest.Wait(t, "silence of the leader", 30*time.Second, func() bool {
		return g.Running[leader].IsSilent() && g.Running[other].Leader() == ""
	})
	n := g.Start(restarted)
	electiontest.Wait(t, "the lease without a leader", 20*time.Second, func() bool {
		e, _ := n.Granted()
		return e == epoch
	})
	if l := n.Leader(); l != "" {
		t.Errorf("%s leads: the test shows nothing", l)
	}
}
