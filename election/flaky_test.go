package election_test

import (
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// TestDoubtfulNodeLetsOthersLead: a node whose disk has silenced it of late is not elected as long
// as another one can be, and is where no other one can.
func TestDoubtfulNodeLetsOthersLead(t *testing.T) {
	g, _ := startGroupWith(t, 3, nil)
	leader := waitLeader(t, g)
	var doubtful, other string
	for name := range g.Running {
		switch {
		case name == leader:
		case doubtful == "":
			doubtful = name
		default:
			other = name
		}
	}
	// Those two take turns; at each turn the doubtful one could be elected as well.
	for range 6 {
		g.Running[doubtful].DoubtDisk(3) // 6.4 s, and the other one needs less than two
		g.Stop(leader)
		if l := waitLeader(t, g); l != other {
			t.Fatalf("%s leads, whose disk stalls", l)
		}
		g.Start(leader)
		electiontest.Wait(t, "its log", 20*time.Second, func() bool {
			return g.Running[leader].LastIndex() == g.Running[other].LastIndex() &&
				g.Running[leader].AppliedIndex() == g.Running[other].AppliedIndex()
		})
		leader, other = other, leader
	}
	// The one that is left needs the doubtful one's log: it has an entry that the other has not.
	g.Stop(other)
	mustApply(t, g, election.Command{
		Kind: election.CommandRegister, Register: &election.RegisterMembers{
			Cluster: "test", Members: g.Nodes,
		},
	})
	g.Stop(leader)
	g.Running[doubtful].DoubtDisk(1)
	g.Start(other)
	electiontest.Wait(t, "the only leader that there can be", 20*time.Second, func() bool {
		return g.Running[doubtful].Leader() == doubtful
	})
}
