package election_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/election"
)

// simGroup runs f against a group that has a primary and three members, without faults.
func simGroup(t *testing.T, f func(r *simRun)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newSimRun(1, bugNone)
		r.w.letsAllIn = true
		end := r.start()
		r.lead(false)
		if !r.waitSettled(10*time.Second, 0) {
			t.Error("no primary")
		}
		f(r)
		end()
		for _, v := range r.w.violations {
			t.Error(v)
		}
	})
}

// request asks the leader for a switchover.
func (r *simRun) request(to string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return r.ask(ctx, election.Request{Kind: election.RequestSwitchover, Member: to})
}

// ask asks the leader.
func (r *simRun) ask(ctx context.Context, q election.Request) error {
	_, err := r.controllers[r.w.leader].Request(ctx, q)
	return err
}

func (r *simRun) newest() election.Change {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return r.w.state.History[len(r.w.state.History)-1]
}

func (r *simRun) kill(name string) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	r.w.nodes[name].killLocked()
}

func (r *simRun) ackedNow() int {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return len(r.w.acked)
}

func TestFailoverPhases(t *testing.T) {
	simGroup(t, func(r *simRun) {
		old := r.newest().Lock.Holder
		start := time.Now()
		r.kill(old)
		if !r.waitSettled(10*time.Second, r.ackedNow()) {
			t.Error("not settled after the primary was killed")
		}
		c := r.newest()
		if c.Kind != election.IntentFailover || c.From != old || c.Lock.Holder == old {
			t.Errorf("change is %+v", c)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("took %s", took)
		}
		for _, phase := range strings.Fields("detect intent endorse recruit choose promote repoint") {
			if _, ok := c.PhasesMS[phase]; !ok {
				t.Errorf("phase %s is missing in %v", phase, c.PhasesMS)
			}
		}
	})
}

func TestSwitchoverRequests(t *testing.T) {
	simGroup(t, func(r *simRun) {
		old := r.newest().Lock.Holder
		to := map[string]string{"pg1": "pg2", "pg2": "pg3", "pg3": "pg1"}[old]
		for name, text := range map[string]string{"pg9": "no member", old: "is the primary already"} {
			err := r.request(name)
			if !errors.Is(err, election.ErrRefused) || !strings.Contains(err.Error(), text) {
				t.Errorf("switchover to %s: %v", name, err)
			}
		}
		if err := r.request(to); err != nil {
			t.Error(err)
		}
		c := r.newest()
		if c.Kind != election.IntentSwitchover || c.Lock.Holder != to {
			t.Errorf("change is %+v", c)
		}
		if !r.waitSettled(10*time.Second, r.ackedNow()) {
			t.Error("not settled after the switchover")
		}
		if err := r.request(""); err != nil {
			t.Error(err)
		}
		if c = r.newest(); c.Lock.Holder == to {
			t.Errorf("change is %+v", c)
		}
	})
}

// TestSwitchoverGoesBack: the candidate's agent dies under the switchover; the old primary is the
// primary again under an epoch of its own, and the asker learns it.
func TestSwitchoverGoesBack(t *testing.T) {
	simGroup(t, func(r *simRun) {
		before := r.newest()
		to := map[string]string{"pg1": "pg2", "pg2": "pg3", "pg3": "pg1"}[before.Lock.Holder]
		answer := make(chan error, 1)
		go func() { answer <- r.request(to) }()
		r.awaitIntent()
		r.w.mu.Lock()
		r.w.nodes[to].isUp = false
		leads := r.w.leader == to
		r.w.mu.Unlock()
		if leads {
			r.lead(false)
		}
		err := <-answer
		// The asker of a node that died learns nothing from it.
		if !errors.Is(err, election.ErrFailed) && (!leads || !errors.Is(err, election.ErrNotLeading)) {
			t.Errorf("answer is %v", err)
		}
		if !r.waitSettled(20*time.Second, r.ackedNow()) {
			t.Error("not settled after the switchover failed")
		}
		c := r.newest()
		if c.Kind != election.IntentRestart || c.Lock.Holder != before.Lock.Holder ||
			c.Lock.Epoch <= before.Lock.Epoch || c.Lock.Timeline != before.Lock.Timeline {
			t.Errorf("change is %+v after %+v", c, before)
		}
	})
}

// awaitIntent waits until a change has begun, as long as one that is refused would be.
func (r *simRun) awaitIntent() {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		r.w.mu.Lock()
		isBegun := r.w.state.Intent != nil
		r.w.mu.Unlock()
		if isBegun {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// TestSwitchoverOutlivesItsLeader: the leader changes under a switchover, which goes on; the asker,
// who asked the leader before, has the outcome all the same.
func TestSwitchoverOutlivesItsLeader(t *testing.T) {
	simGroup(t, func(r *simRun) {
		for range 5 {
			before := r.newest()
			to := map[string]string{"pg1": "pg2", "pg2": "pg3", "pg3": "pg1"}[before.Lock.Holder]
			asked := r.w.leader
			answer := make(chan error, 1)
			go func() { answer <- r.request(to) }()
			r.awaitIntent()
			for range 20 {
				if r.lead(false); r.w.leader != asked {
					break
				}
			}
			err := <-answer
			if c := r.newest(); err != nil || c.Lock.Holder != to {
				t.Errorf("answer is %v, change is %+v", err, c)
			}
			if !r.waitSettled(20*time.Second, r.ackedNow()) {
				t.Error("not settled after the switchover")
			}
		}
	})
}

// TestNothingPromotedWithoutRecruits: one standby is silent and the primary's node gone; status
// says what is missing, and the failover goes on once the standby is back.
func TestNothingPromotedWithoutRecruits(t *testing.T) {
	simGroup(t, func(r *simRun) {
		old := r.newest()
		other := ""
		r.w.mu.Lock()
		for _, name := range r.w.names {
			if name != old.Lock.Holder && name != r.w.leader {
				other = name
			}
		}
		r.w.nodes[old.Lock.Holder].killLocked()
		r.w.nodes[old.Lock.Holder].pg.phase = election.PhaseEmpty // its disk is gone
		r.w.nodes[other].isUp = false
		r.w.mu.Unlock()
		time.Sleep(5 * time.Second)
		if c := r.newest(); c.Lock.Epoch != old.Lock.Epoch {
			t.Errorf("change is %+v", c)
		}
		d := r.controllers[r.w.leader].LastDecision()
		if !strings.Contains(d.Summary, "synchronous mode needs 2 of") {
			t.Errorf("decision is %q", d.Summary)
		}
		r.w.mu.Lock()
		r.w.nodes[other].isUp = true
		r.w.mu.Unlock()
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
			if r.newest().Lock.Epoch != old.Lock.Epoch {
				break
			}
			time.Sleep(simTick)
		}
		if c := r.newest(); c.Kind != election.IntentFailover {
			t.Errorf("change is %+v", c)
		}
	})
}

// TestFailoverGoesBack: a standby's node dies together with the primary's server; as nobody may be
// promoted without it, the primary is started in place.
func TestFailoverGoesBack(t *testing.T) {
	simGroup(t, func(r *simRun) {
		old := r.newest().Lock
		r.w.mu.Lock()
		for _, name := range r.w.names {
			if name != old.Holder && name != r.w.leader {
				r.w.nodes[name].isUp = false
				break
			}
		}
		r.w.nodes[old.Holder].killLocked()
		r.w.mu.Unlock()
		time.Sleep(10 * time.Second)
		c := r.newest()
		if c.Kind != election.IntentRestart || c.Lock.Holder != old.Holder ||
			!strings.Contains(c.Cause, "no candidate: synchronous mode needs 2 of") {
			t.Errorf("change is %+v", c)
		}
	})
}

func TestRequestWithoutLeadership(t *testing.T) {
	w := newSimWorld(1, bugNone)
	c := election.NewController(w.nodes["pg1"], simPolicy(bugNone))
	_, err := c.Request(t.Context(), election.Request{Kind: election.RequestSwitchover})
	if !errors.Is(err, election.ErrNotLeading) {
		t.Errorf("answer is %v", err)
	}
}
