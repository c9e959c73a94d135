package election_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"holdfast/election"
)

// TestRestartDuringSwitchover: a restart of the primary is asked for while a switchover away from
// it is under way. It is refused, since the member is a standby then: what stops would be the new
// primary.
func TestRestartDuringSwitchover(t *testing.T) {
	simGroup(t, func(r *simRun) {
		old := r.newest().Lock.Holder
		to := map[string]string{"pg1": "pg2", "pg2": "pg3", "pg3": "pg1"}[old]
		switched := make(chan error, 1)
		go func() { switched <- r.request(to) }()
		for isBegun := false; !isBegun; time.Sleep(time.Millisecond) {
			r.w.mu.Lock()
			isBegun = r.w.state.Intent != nil
			r.w.mu.Unlock()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err := r.ask(ctx, election.Request{Kind: election.RequestRestart, Member: old})
		if !errors.Is(err, election.ErrRefused) {
			t.Errorf("restart: %v", err)
		}
		if err := <-switched; err != nil {
			t.Errorf("switchover: %v", err)
		}
		c := r.newest()
		if !r.waitSettled(20*time.Second, r.ackedNow()) || c.Lock.Holder != to ||
			r.newest().Lock.Epoch != c.Lock.Epoch {
			t.Errorf("change is %+v, then %+v; %s", c, r.newest(),
				r.controllers[r.w.leader].LastDecision().Summary)
		}
	})
}

// TestRestartOfNoHolder: such an intent, which a leader of an older release has begun, does not
// stand for ever.
func TestRestartOfNoHolder(t *testing.T) {
	simGroup(t, func(r *simRun) {
		lock := r.newest().Lock
		r.w.mu.Lock()
		other := map[string]string{"pg1": "pg2", "pg2": "pg3", "pg3": "pg1"}[lock.Holder]
		_, err := r.w.nodes[r.w.leader].applyLocked(election.Command{
			Kind: election.CommandBegin, Begin: &election.BeginIntent{
				Request: "r", Kind: election.IntentRestart, From: lock.Holder,
				FromEpoch: lock.Epoch, To: other, Planned: true,
			},
		})
		r.w.mu.Unlock()
		if err != nil || !r.waitSettled(20*time.Second, r.ackedNow()) {
			t.Errorf("%v; not settled: %s", err, r.controllers[r.w.leader].LastDecision().Summary)
		}
		if c := r.newest(); c.Lock.Holder != lock.Holder || c.Lock.Epoch <= lock.Epoch {
			t.Errorf("change is %+v after %+v", c, lock)
		}
	})
}
