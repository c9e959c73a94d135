package election_test

import (
	"errors"
	"testing"

	"holdfast/election"
)

// TestAgentRefusesOrdersThatAreOver: an order arrives when a later lock than that of its epoch is
// entered, or its own. The pledge does not tell: it was raised by that order's epoch, and by none
// since. What is there goes on.
func TestAgentRefusesOrdersThatAreOver(t *testing.T) {
	c := newAgentCluster(t, 2)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.waitStreaming("n2", "n1")

	c.epoch = 2 // the primary was restarted under an epoch of its own
	c.do("n1", election.Order{Kind: election.OrderStop})
	c.commit("n1", c.do("n1", election.Order{Kind: election.OrderStartPrimary}))
	c.open("n1")
	pid := c.pid("n1")
	c.late("n1", election.Order{Kind: election.OrderStop, Epoch: 2})
	if now := c.pid("n1"); now != pid {
		t.Fatalf("the late order to stop has ended the primary: postmaster %d was %d", now, pid)
	}
	c.do("n2", election.Order{Kind: election.OrderFollow, Upstream: c.member("n1")})
	c.waitStreaming("n2", "n1")
	c.late("n2", election.Order{Kind: election.OrderRecruit, Epoch: 2})
	c.waitStreaming("n2", "n1")

	c.awaitReceived("n1", "n2")
	c.epoch = 3
	c.do("n2", election.Order{Kind: election.OrderRecruit})
	c.close("n1")
	c.crash("n1")
	c.commit("n2", c.do("n2", election.Order{Kind: election.OrderPromote}))
	c.start("n1") // it comes back by itself, without an order of epoch 3
	c.waitStreaming("n1", "n2")
	c.late("n1", election.Order{Kind: election.OrderPromote, Epoch: 2})
	if got := c.sql("n1", "SELECT pg_is_in_recovery()"); got != "t" {
		t.Error("the late order has promoted a standby of another primary")
	}
}

// late gives an order that has to be refused.
func (c *agentCluster) late(name string, o election.Order) {
	c.t.Helper()
	_, err := c.tryDo(name, o)
	if !errors.Is(err, election.ErrAgentStaleEpoch) {
		c.t.Errorf("late order %s of epoch %d to %s: %v", o.Kind, o.Epoch, name, err)
	}
}
