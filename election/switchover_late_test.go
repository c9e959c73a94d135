package election_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/election"
)

// lateView is a node in whose group the target of a switchover answers just before the time to
// recruit is over, and nobody else does.
type lateView struct {
	*simNode
	to string
}

// Call implements election.Coordinator.
func (v lateView) Call(
	ctx context.Context, member string, o election.Order,
) (election.OrderResult, error) {
	if o.Kind != election.OrderRecruit {
		return v.simNode.Call(ctx, member, o)
	}
	if member != v.to {
		<-ctx.Done()
		time.Sleep(10 * time.Millisecond) // what was sent is called off
		return election.OrderResult{}, ctx.Err()
	}
	late := time.Now().Add(simPolicy(bugNone).RecruitTimeout - 30*time.Millisecond)
	res, err := v.simNode.Call(ctx, member, o)
	time.Sleep(time.Until(late))
	return res, err
}

// TestSwitchoverToALateTarget: a target that has the shutdown checkpoint when the time is over is
// promoted, though it is not known yet that the others do not answer.
func TestSwitchoverToALateTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newSimRun(1, bugNone)
		to := "pg2" // pg1 makes the first data directory
		for name, n := range r.w.nodes {
			p := simPolicy(bugNone)
			p.SyncMode, p.Fence = simMode(1), r.w.fence
			r.controllers[name] = election.NewController(lateView{n, to}, p)
		}
		end := r.start()
		r.lead(false)
		if !r.waitSettled(10*time.Second, 0) {
			t.Error("no primary")
		}
		if err := r.request(to); err != nil {
			t.Error(err)
		}
		if c := r.newest(); c.Kind != election.IntentSwitchover || c.Lock.Holder != to {
			t.Errorf("change is %+v", c)
		}
		end()
		for _, v := range r.w.violations {
			t.Error(v)
		}
	})
}
