package election_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// wipe removes a stopped node's Raft directory.
func wipe(t *testing.T, g *electiontest.Group, name string) {
	t.Helper()
	if err := os.RemoveAll(g.Config(name).Dir); err != nil {
		t.Fatal(err)
	}
}

func waitProblem(t *testing.T, n *election.Node, text string) {
	t.Helper()
	electiontest.Wait(t, "the problem "+text, 20*time.Second, func() bool {
		return strings.Contains(strings.Join(n.Problems(), "\n"), text)
	})
}

// TestWipedVoterElectsNobodyWithoutTheLog: an entry is on two of three nodes; one of them loses
// its disk while the other is away. The third, which lacks the entry, must not be elected by the
// vote of the one that has forgotten it, whichever of the two starts first (DESIGN.md I78).
func TestWipedVoterElectsNobodyWithoutTheLog(t *testing.T) {
	for _, order := range []string{"wiped first", "wiped last"} {
		t.Run(order, func(t *testing.T) {
			g, _ := startGroup(t, 3)
			change(t, g, election.IntentBootstrap, "node1")
			has := waitLeader(t, g)
			var wiped, lacks string
			for _, m := range g.Nodes {
				switch {
				case m.Name == has:
				case wiped == "":
					wiped = m.Name
				default:
					lacks = m.Name
				}
			}
			g.Stop(lacks)
			epoch := change(t, g, election.IntentFailover, "node2")
			g.Stop(wiped)
			g.Stop(has)
			wipe(t, g, wiped)
			if order == "wiped first" {
				g.Start(wiped)
				g.Start(lacks)
			} else {
				g.Start(lacks)
				g.Start(wiped)
			}
			waitProblem(t, g.Running[wiped], "waits for an answer of "+has)
			// The time of several elections: in it nothing may happen.
			time.Sleep(3 * time.Second)
			for _, name := range []string{wiped, lacks} {
				if l := g.Running[name].Leader(); l != "" {
					t.Errorf("%s follows %s, which lacks epoch %d", name, l, epoch)
				}
			}
			g.Start(has)
			electiontest.Wait(t, "the entry on all nodes", 30*time.Second, func() bool {
				for _, n := range g.Running {
					if s, _ := n.State(); s.Lock == nil || s.Lock.Epoch != epoch || n.Leader() == "" {
						return false
					}
				}
				return true
			})
			waitGranted(t, g, epoch)
			// It votes again: with one of the others it makes a majority.
			g.Stop(has)
			waitLeader(t, g)
			waitGranted(t, g, change(t, g, election.IntentFailover, "node1"))
		})
	}
}

// TestMajorityThatLostItsLogElectsNobody: what two of three nodes had stored the third need not
// have; whether to go on without it is for an operator to say.
func TestMajorityThatLostItsLogElectsNobody(t *testing.T) {
	g, _ := startGroup(t, 3)
	waitGranted(t, g, change(t, g, election.IntentBootstrap, "node1"))
	for _, name := range []string{"node1", "node2", "node3"} {
		g.Stop(name)
	}
	wipe(t, g, "node1")
	wipe(t, g, "node2")
	for _, name := range []string{"node3", "node1", "node2"} {
		g.Start(name)
	}
	waitProblem(t, g.Running["node1"], "2 of the 3 voters have lost theirs")
	waitProblem(t, g.Running["node2"], "holdfast raft recover")
	if l := g.Running["node3"].Leader(); l != "" {
		t.Errorf("%s was elected", l)
	}
}

// TestNodeRemembersThatItLostItsLog: a node that was wiped and began a log of its own while it
// reached nobody is still one without a memory after the next start.
func TestNodeRemembersThatItLostItsLog(t *testing.T) {
	g, _ := startGroup(t, 3)
	waitGranted(t, g, change(t, g, election.IntentBootstrap, "node1"))
	for _, name := range []string{"node1", "node2", "node3"} {
		g.Stop(name)
	}
	wipe(t, g, "node3")
	for range 2 {
		g.Start("node3")
		waitProblem(t, g.Running["node3"], "waits for an answer of node1, node2")
		g.Stop("node3")
	}
	g.Start("node1")
	g.Start("node3")
	waitProblem(t, g.Running["node3"], "waits for an answer of node2")
	g.Start("node2")
	waitLeader(t, g)
	for _, n := range g.Running {
		if got := n.Problems(); len(got) > 0 {
			t.Errorf("%s: %q", n.Name(), got)
		}
	}
	// What it keeps of that ends when Raft's own rules say as much.
	g.Stop("node3")
	g.Start("node3")
	waitLeader(t, g)
}
