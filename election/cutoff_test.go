package election_test

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// answerAt is a server that answers a request for TLS, as a member's postmaster does.
func answerAt(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte{'N'})
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
}

// sumOfSidecars adds up what the nodes' newest reports say of their sidecars.
func sumOfSidecars(g *electiontest.Group, leader string) (total, cut, reach int,
	first time.Duration,
) {
	obs, _ := g.Running[leader].Observations()
	for _, o := range obs {
		if b := o.Borrowers; b != nil {
			total, cut, reach = total+b.Total, cut+b.CutOff, reach+b.Reach["node2"]
			first = max(first, b.Longest)
		}
	}
	return total, cut, reach, first
}

// TestBlindNodesTellWhomTheyReach: nodes that cannot use the primary tell for how long, and which
// of the other members answer them; sidecars tell the same through the nodes that lend to them, in
// counts.
func TestBlindNodesTellWhomTheyReach(t *testing.T) {
	g, _ := startGroup(t, 3)
	answerAt(t, g.Nodes[1].Postgres) // and nobody at the primary's, nor at the third's
	epoch := change(t, g, election.IntentBootstrap, "node1")
	waitGranted(t, g, epoch)
	leader := waitLeader(t, g)
	electiontest.Wait(t, "blind nodes", 20*time.Second, func() bool {
		obs, _ := g.Running[leader].Observations()
		for _, o := range obs {
			knows := o.Node == "node2" || len(o.Reaches) == 1 && o.Reaches[0] == "node2"
			if o.Epoch != epoch || o.BlindFor < time.Second || !knows {
				return false
			}
		}
		return len(obs) == 3
	})

	old := g.Change
	var blind, under atomic.Int64
	under.Store(int64(epoch))
	g.Change = func(cfg *election.Config, deps *election.Deps) {
		old(cfg, deps)
		cfg.Voter = false
		deps.Blind = func() (uint64, time.Duration) {
			return uint64(under.Load()), time.Duration(blind.Load())
		}
	}
	for _, name := range []string{"sidecar1", "sidecar2", "sidecar3"} {
		g.Start(name)
	}
	electiontest.Wait(t, "sidecars that see the primary", 20*time.Second, func() bool {
		total, cut, _, _ := sumOfSidecars(g, leader)
		return total == 3 && cut == 0
	})
	blind.Store(int64(14 * time.Second)) // less than Config.CutOffAfter
	time.Sleep(2 * time.Second)
	if _, cut, _, _ := sumOfSidecars(g, leader); cut != 0 {
		t.Errorf("%d sidecars count before their time", cut)
	}
	blind.Store(int64(23 * time.Second)) // two looks in a row, of which there is one in 10 to 20 s
	electiontest.Wait(t, "blind sidecars", time.Minute, func() bool {
		total, cut, reach, first := sumOfSidecars(g, leader)
		return total == 3 && cut == 3 && reach == 3 && first == 23*time.Second
	})
	blind.Store(0)
	electiontest.Wait(t, "sidecars that see it again", 20*time.Second, func() bool {
		total, cut, _, _ := sumOfSidecars(g, leader)
		return total == 3 && cut == 0
	})
	t.Run("no reason", func(t *testing.T) { blindForNoReason(t, g, leader, &blind, &under) })
	g.Stop("sidecar2") // gives its loan back
	electiontest.Wait(t, "a sidecar less", 20*time.Second, func() bool {
		total, _, _, _ := sumOfSidecars(g, leader)
		return total == 2
	})
}

// blindForNoReason has three sidecars whose proxies fail, and whose word counts for nothing.
func blindForNoReason(t *testing.T, g *electiontest.Group, leader string,
	blind, under *atomic.Int64,
) {
	epoch := under.Load()
	under.Store(epoch - 1) // nobody has tried under this one
	blind.Store(int64(23 * time.Second))
	time.Sleep(2 * time.Second)
	if _, cut, _, _ := sumOfSidecars(g, leader); cut != 0 {
		t.Errorf("%d sidecars count for the primary before", cut)
	}
	blind.Store(0)
	time.Sleep(time.Second)
	answerAt(t, g.Nodes[0].Postgres) // logins alone run out of time: it is slow
	under.Store(epoch)
	blind.Store(int64(23 * time.Second))
	electiontest.Wait(t, "nodes that see the primary", 20*time.Second, func() bool {
		obs, _ := g.Running[leader].Observations()
		return !slices.ContainsFunc(obs, func(o election.Observation) bool { return o.BlindFor > 0 })
	})
	time.Sleep(2 * time.Second)
	if total, cut, _, _ := sumOfSidecars(g, leader); total != 3 || cut != 0 {
		t.Errorf("%d of %d sidecars are cut off from a primary that answers them", cut, total)
	}
}
