package election_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// obedient is an agent that counts the orders that it is given.
type obedient struct {
	*newsAgent
	orders *atomic.Int64
}

func (o obedient) Do(context.Context, election.Order) (election.OrderResult, error) {
	o.orders.Add(1)
	return election.OrderResult{}, nil
}

// TestDeposedLeaderOrdersNothing: an order that rests on the leadership alone is given only once a
// majority says that this node leads still; a leader that has just lost the others does not know.
func TestDeposedLeaderOrdersNothing(t *testing.T) {
	var orders atomic.Int64
	g := electiontest.NewGroup(t, 3)
	g.Change = func(_ *election.Config, deps *election.Deps) {
		deps.Agent = obedient{&newsAgent{changed: make(chan struct{})}, &orders}
		deps.Loop = func(election.Coordinator) election.LeaderLoop { return idle{} }
	}
	for _, m := range g.Nodes {
		g.Start(m.Name)
	}
	name := waitLeader(t, g)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	reinit := election.Order{Kind: election.OrderReinit, Epoch: 1}
	if _, err := g.Running[name].Call(ctx, name, reinit); err != nil || orders.Load() != 1 {
		t.Fatalf("of the leader: %v, %d orders", err, orders.Load())
	}
	for _, m := range g.Nodes {
		if m.Name != name {
			g.Stop(m.Name)
		}
	}
	// Answers of those two that were on their way may speak for it once each.
	var err error
	done := orders.Load()
	for range 6 {
		done = orders.Load()
		if _, err = g.Running[name].Call(ctx, name, reinit); err != nil {
			break
		}
	}
	if err == nil || orders.Load() != done {
		t.Errorf("of one without a majority: %v, %d orders", err, orders.Load()-done)
	}
}

// TestEndorsementNeedsTheLeadership: voters endorse the intent that is in their logs, whoever asks;
// to a coordinator that a majority does not take for the leader it does not count (I92).
func TestEndorsementNeedsTheLeadership(t *testing.T) {
	g, _ := startGroup(t, 3)
	leader := waitLeader(t, g)
	r := mustApply(t, g, election.Command{Kind: election.CommandBegin, Begin: &election.BeginIntent{
		Kind: election.IntentBootstrap, To: "node1", Cause: "test", Request: t.Name(),
	}})
	if r.Refused != "" {
		t.Fatal(r.Refused)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for name, n := range g.Running {
		electiontest.Wait(t, "the intent", 20*time.Second, func() bool {
			return n.AppliedIndex() == g.Running[leader].AppliedIndex()
		})
		if name == leader {
			continue
		}
		err := n.EndorseAll(ctx, r.Epoch)
		if err == nil || !strings.Contains(err.Error(), "this node is not the leader") {
			t.Errorf("of one that does not lead: %v", err)
		}
	}
	if err := g.Running[leader].EndorseAll(ctx, r.Epoch); err != nil {
		t.Errorf("of the leader: %v", err)
	}
}
