package election_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/election"
)

// stepView is a node in whose group a step of a switchover fails.
type stepView struct {
	*simNode
	step *badStep
}

// badStep says which; mu guards what is counted.
type badStep struct {
	// order is asked before an order is given: it may wait, and its error is the order's.
	order func(ctx context.Context, member string, o election.Order) error
	// endorse is asked before an epoch is endorsed; n is how many epochs were asked for before.
	endorse func(ctx context.Context, n int) error
	// losesLead: the leadership is lost, which lost tells, when the lock of the switchover is
	// written for the first time; isLost: it is not written.
	losesLead, isLost bool
	lost              chan struct{}
	old               *simNode // pg1

	mu      sync.Mutex
	epochs  []uint64
	commits int
}

// Call implements election.Coordinator.
func (v stepView) Call(
	ctx context.Context, member string, o election.Order,
) (election.OrderResult, error) {
	if v.step.order != nil {
		if err := v.step.order(ctx, member, o); err != nil {
			return election.OrderResult{}, err
		}
	}
	return v.simNode.Call(ctx, member, o)
}

// EndorseAll implements election.Coordinator.
func (v stepView) EndorseAll(ctx context.Context, epoch uint64, recruits ...string) error {
	v.step.mu.Lock()
	if n := len(v.step.epochs); n == 0 || v.step.epochs[n-1] != epoch {
		v.step.epochs = append(v.step.epochs, epoch)
	}
	n := len(v.step.epochs) - 2 // the first is that of the bootstrap
	v.step.mu.Unlock()
	if v.step.endorse != nil {
		if err := v.step.endorse(ctx, n); err != nil {
			return err
		}
	}
	return v.simNode.EndorseAll(ctx, epoch, recruits...)
}

// isFirst tells whether it is asked for the first time.
func (b *badStep) isFirst() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.commits++
	return b.commits == 1
}

// Apply implements election.Coordinator.
func (v stepView) Apply(ctx context.Context, c election.Command) (election.Result, error) {
	isLast := v.step.losesLead && c.Kind == election.CommandCommitLock && c.Commit.Lock.Timeline > 1
	if isLast && v.step.isFirst() {
		if !v.step.isLost {
			_, _ = v.simNode.Apply(ctx, c)
		}
		close(v.step.lost)
		return election.Result{}, errSim
	}
	return v.simNode.Apply(ctx, c)
}

// hangs lets orders of a kind, but those of other nodes, not be answered.
func hangs(kind election.OrderKind, member string) *badStep {
	return &badStep{order: func(ctx context.Context, m string, o election.Order) error {
		if o.Kind != kind || m != member {
			return nil
		}
		<-ctx.Done()
		time.Sleep(10 * time.Millisecond) // what was sent is called off
		return ctx.Err()
	}}
}

// fails lets orders of a kind fail.
func fails(kind election.OrderKind) *badStep {
	return &badStep{order: func(_ context.Context, _ string, o election.Order) error {
		if o.Kind == kind {
			return errSim
		}
		return nil
	}}
}

// takes lets each step of a switchover take so long, less than its own bound.
func takes(d time.Duration) *badStep {
	slow := func(ctx context.Context, d time.Duration) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	}
	return &badStep{
		endorse: func(ctx context.Context, n int) error {
			if n == 0 {
				return slow(ctx, 4*d)
			}
			return nil
		},
		order: func(ctx context.Context, m string, o election.Order) error {
			switch o.Kind {
			case election.OrderStop, election.OrderRecruit, election.OrderPromote:
				return slow(ctx, d)
			}
			return nil
		},
	}
}

// failingPolicy has bounds that leave a hold of 8 s, 2 s of it for the way back.
func failingPolicy() election.Policy {
	p := simPolicy(bugNone)
	p.SyncMode = simMode(1)
	p.HoldTimeout, p.BackTime = 8*time.Second, 2*time.Second
	return p
}

// TestSwitchoverStepsThatFail: whatever fails, there is one primary within the time for which
// clients are held, the old one or the new one, and clients write on (DESIGN.md I94). pg1 is the
// old primary, pg2 the target.
func TestSwitchoverStepsThatFail(t *testing.T) {
	const old, to = "pg1", "pg2"
	p := failingPolicy()
	for name, tc := range map[string]struct {
		step *badStep
		// to is the primary in the end, kind the change that made it.
		to, kind, cause string
		// isBegun: an intent stood, so that clients were held.
		isBegun bool
	}{
		"CHECKPOINT too slow": {hangs(election.OrderCheckpoint, old), old, "bootstrap", "", false},
		"drain not finished": {&badStep{endorse: func(ctx context.Context, n int) error {
			if n == 0 { // clients that do not finish: their proxies keep the lease so long
				time.Sleep(p.DrainTimeout + simTiming().Promise)
			}
			return nil
		}}, "pg2", "switchover", "operator", true},
		"no endorsement": {&badStep{endorse: func(ctx context.Context, n int) error {
			if n == 0 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}}, "pg1", "restart", "endorse", true},
		"stop hangs":             {hangs(election.OrderStop, old), old, "restart", "stop", true},
		"stop hangs once it was": {stopsUnheard(), old, "restart", "order stop to pg1", true},
		"no shutdown checkpoint": {hangs(election.OrderRecruit, to), old, "restart", to, true},
		"promotion hangs":        {hangs(election.OrderPromote, to), old, "restart", "promote", true},
		"promotion fails":        {fails(election.OrderPromote), old, "restart", "promote to", true},
		"each step slow": {takes(900 * time.Millisecond), "pg1", "restart",
			"what is left of proxy.hold_timeout", true},
	} {
		t.Run(name, func(t *testing.T) {
			failStep(t, p, tc.step, nil, func(r *simRun, held time.Duration, err error) {
				c := r.newest()
				if c.Lock.Holder != tc.to || string(c.Kind) != tc.kind ||
					!strings.Contains(c.Cause, tc.cause) {
					t.Errorf("change is %+v", c)
				}
				if held > p.HoldTimeout || tc.isBegun != (held > 0) {
					t.Errorf("clients were held for %v", held)
				}
				isDone := tc.to == "pg2"
				if isDone != (err == nil) || !isDone && tc.isBegun && !errors.Is(err, election.ErrFailed) {
					t.Errorf("answer is %v", err)
				}
			})
		})
	}
}

// stopsUnheard lets the server stop in order and the answer be lost.
func stopsUnheard() *badStep {
	s := &badStep{}
	s.order = func(ctx context.Context, m string, o election.Order) error {
		if o.Kind != election.OrderStop {
			return nil
		}
		_, _ = s.old.do(ctx, o)
		<-ctx.Done()
		time.Sleep(10 * time.Millisecond)
		return ctx.Err()
	}
	return s
}

// TestSwitchoverWhoseLockIsNotAnswered: the leadership ends while the lock is written, which has no
// answer. The next leader finds it written, or goes on with the intent; the target is the primary.
func TestSwitchoverWhoseLockIsNotAnswered(t *testing.T) {
	p := failingPolicy()
	for name, isWritten := range map[string]bool{"written": true, "not written": false} {
		t.Run(name, func(t *testing.T) {
			step := &badStep{isLost: !isWritten, losesLead: true}
			change := func(r *simRun) {
				<-step.lost
				r.lead(false)
			}
			failStep(t, p, step, change, func(r *simRun, held time.Duration, _ error) {
				if c := r.newest(); c.Lock.Holder != "pg2" || c.Kind != election.IntentSwitchover {
					t.Errorf("change is %+v", c)
				}
				if held > p.HoldTimeout {
					t.Errorf("clients were held for %v", held)
				}
			})
		})
	}
}

// failStep asks for a switchover from pg1 to pg2 in which a step fails, while change runs, and
// calls check with how long the intents stood and with what the asker was told.
func failStep(t *testing.T, p election.Policy, step *badStep, change func(*simRun),
	check func(r *simRun, held time.Duration, err error),
) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newSimRun(1, bugNone)
		for name, n := range r.w.nodes {
			q := p
			q.Fence = r.w.fence
			r.controllers[name] = election.NewController(stepView{n, step}, q)
		}
		step.old, step.lost = r.w.nodes["pg1"], make(chan struct{})
		end := r.start()
		r.lead(false)
		if !r.waitSettled(10*time.Second, 0) {
			t.Error("no primary")
		}
		answer := make(chan error, 1)
		go func() { answer <- r.request("pg2") }()
		changed := make(chan struct{})
		go func() {
			defer close(changed)
			if change != nil {
				change(r)
			}
		}()
		held := r.watchHold(p.CheckpointTimeout + p.HoldTimeout + 5*time.Second)
		err := <-answer
		<-changed
		if !r.waitSettled(10*time.Second, r.ackedNow()) {
			t.Errorf("clients do not write on: %s", r.controllers[r.w.leader].LastDecision().Summary)
		}
		check(r, held, err)
		end()
		for _, v := range r.w.violations {
			t.Error(v)
		}
	})
}

// watchHold measures how long an intent stands, within limit.
func (r *simRun) watchHold(limit time.Duration) (held time.Duration) {
	const step = 10 * time.Millisecond
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(step) {
		r.w.mu.Lock()
		if r.w.state.Intent != nil {
			held += step
		}
		r.w.mu.Unlock()
	}
	return held
}
