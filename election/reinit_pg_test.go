package election_test

import (
	"os"
	"testing"

	"holdfast/election"
)

// TestAgentPromotionEndsReinit: a clone that was asked for and did not come about is nothing to go
// back to once the data is the group's. Else the member threw it away when it next followed another
// one, weeks later, and what it may have lost was told to nobody.
func TestAgentPromotionEndsReinit(t *testing.T) {
	c := newAgentCluster(t, 2)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.waitStreaming("n2", "n1")
	before, err := os.Stat(c.cfgs["n2"].DataDir)
	if err != nil {
		t.Fatal(err)
	}
	c.crash("n1") // nothing to clone from
	c.do("n2", election.Order{Kind: election.OrderReinit})
	c.epoch = 2
	c.do("n2", election.Order{Kind: election.OrderRecruit})
	p := c.do("n2", election.Order{Kind: election.OrderPromote})
	c.commit("n2", p)
	c.open("n2")
	c.waitStreaming("n1", "n2")

	c.epoch = 3
	stop := c.do("n2", election.Order{Kind: election.OrderStop})
	c.do("n1", election.Order{Kind: election.OrderRecruit, WaitLSN: stop.LSN})
	p = c.do("n1", election.Order{Kind: election.OrderPromote})
	c.commit("n1", p)
	c.waitStreaming("n2", "n1")
	if now, err := os.Stat(c.cfgs["n2"].DataDir); err != nil || !os.SameFile(before, now) {
		t.Errorf("it was cloned anew (%v)", err)
	}
}
