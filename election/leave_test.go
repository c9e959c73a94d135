package election_test

import (
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// TestSidecarGivesItsLoanBack: after the end of a real sidecar no voter has anything lent, over
// the connections that it closes.
func TestSidecarGivesItsLoanBack(t *testing.T) {
	g, gates := startGroup(t, 3)
	epoch := change(t, g, election.IntentBootstrap, "node1")
	waitGranted(t, g, epoch)
	plain := g.Change
	g.Change = func(cfg *election.Config, deps *election.Deps) {
		plain(cfg, deps)
		cfg.Voter = cfg.Name != "side1"
	}
	side := g.Start("side1")
	lent := func() (n int) {
		for _, m := range g.Nodes {
			if g.Running[m.Name].Lent(epoch) > 0 {
				n++
			}
		}
		return n
	}
	electiontest.Wait(t, "a loan", 20*time.Second, func() bool {
		e, _ := side.Granted()
		return e == epoch && lent() > 0
	})
	g.Stop("side1")
	if n := lent(); n > 0 {
		t.Errorf("%d nodes wait for a sidecar that has ended", n)
	}
	if !gates["side1"].hasCut(epoch) {
		t.Error("its gate was not cut")
	}
}
