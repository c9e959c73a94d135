package election_test

import (
	"context"
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
