package election_test

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
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
	again := c.do("n1", election.Order{Kind: election.OrderStartPrimary})
	c.do("n2", election.Order{Kind: election.OrderFollow, Upstream: c.member("n1")})
	c.commit("n1", again)
	c.open("n1")
	pid := c.pid("n1")
	c.late("n1", election.Order{Kind: election.OrderStop, Epoch: 2})
	if now := c.pid("n1"); now != pid {
		t.Fatalf("the late order to stop has ended the primary: postmaster %d was %d", now, pid)
	}
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

// TestAgentStartsNothingForALateOrder: an operator has stopped servers on purpose since the lock of
// the order's epoch was entered. That holds after a start of the agent, too, whose node may first
// read a state from before that lock.
func TestAgentStartsNothingForALateOrder(t *testing.T) {
	c := newAgentCluster(t, 3)
	c.start("n1", "n2", "n3")
	c.bootstrap("")
	c.open("n1")
	c.waitStreaming("n2", "n1")
	c.waitStreaming("n3", "n1")
	c.epoch = 2 // the primary was restarted, n2 ordered to follow it; n3 hears of the lock alone
	c.do("n1", election.Order{Kind: election.OrderStop})
	again := c.do("n1", election.Order{Kind: election.OrderStartPrimary})
	c.do("n2", election.Order{Kind: election.OrderFollow, Upstream: c.member("n1")})
	before, _ := c.src.State()
	c.commit("n1", again)
	c.open("n1")
	c.waitStreaming("n2", "n1")
	c.waitStreaming("n3", "n1")
	c.src.set(func(s *election.State) {
		s.Maintenance = &election.Maintenance{Since: time.Now()}
	})
	for _, name := range []string{"n3", "n2", "n1"} {
		c.stopByHand(name)
	}
	c.lateStarts()
	for name := range c.cfgs {
		electiontest.Wait(t, name+" to note the lock", 20*time.Second, func() bool {
			b, err := os.ReadFile(c.cfgs[name].DataDir + ".holdfast/agent.json")
			return err == nil && strings.Contains(string(b), `"lock_epoch": 2`)
		})
		c.close(name)
	}
	c.src.set(func(s *election.State) { s.Lock = before.Lock })
	c.start("n1", "n2", "n3")
	c.lateStarts()
}

// stopByHand stops a server as pg_ctl does.
func (c *agentCluster) stopByHand(name string) {
	c.t.Helper()
	if err := signalProcess(c.pid(name), syscall.SIGINT); err != nil {
		c.t.Fatal(err)
	}
	c.wait(name, "stopped", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStopped
	})
}

// lateStarts gives each order of epoch 2 again that starts a server. None may run after that.
func (c *agentCluster) lateStarts() {
	c.t.Helper()
	c.late("n1", election.Order{Kind: election.OrderStartPrimary, Epoch: 2})
	c.late("n1", election.Order{Kind: election.OrderPromote, Epoch: 2})
	for _, name := range []string{"n2", "n3"} {
		c.late(name, election.Order{Kind: election.OrderFollow, Epoch: 2,
			Upstream: c.member("n1")})
	}
	for name := range c.cfgs {
		if pid := c.pid(name); pid != 0 && isRunning(pid) {
			c.t.Errorf("a late order has started %s", name)
		}
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
