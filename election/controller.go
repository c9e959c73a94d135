package election

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Controller runs the decisions of the group while this node leads it: observe, decide, act. All
// that it does is bound to the leadership's context and to the epoch of an intent.
type Controller struct {
	co     Coordinator
	policy Policy
	log    *zap.Logger

	// mu guards what follows; it is never held while another component is called.
	mu       sync.Mutex
	decision Decision
	requests []*pendingRequest
	lastID   uint64
	isLeader bool
	ledAt    time.Time // when the leadership began

	// wake has one place: a request came in.
	wake chan struct{}
	// What follows belongs to RunLeader's goroutine: when the input was gathered, when the primary
	// was last seen to work, how often in a row a change did not advance or was replaced, and the
	// phases measured before the transition of phasesEpoch.
	inputAt, usableAt  time.Time
	failures, replaced int
	phasesEpoch        uint64
	begunAt            time.Time // when the intent of phasesEpoch was begun
	phases             map[string]int64
	sync               syncTracker
}

var _ LeaderLoop = (*Controller)(nil)

// NewController returns a controller; RunLeader runs it.
func NewController(co Coordinator, policy Policy) *Controller {
	return &Controller{co: co, policy: policy, log: co.Log(), wake: make(chan struct{}, 1)}
}

// LastDecision returns the newest decision, or how far the change in progress is.
func (c *Controller) LastDecision() Decision {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.decision
	d.Evidence = slices.Clone(d.Evidence)
	return d
}

// RunLeader decides and acts until ctx, the leadership, ends. It is called again at the next
// leadership, never twice at once; all its goroutines have ended when it returns.
func (c *Controller) RunLeader(ctx context.Context) {
	c.usableAt, c.failures = time.Time{}, 0
	c.sync = syncTracker{}
	c.startRequests()
	defer c.leaveRequests()
	c.recall(ctx) // of a leader that is gone
	ticker := time.NewTicker(c.policy.Tick)
	defer ticker.Stop()
	for ctx.Err() == nil {
		// The channels are taken before the input is read, so that no change is missed; what asked
		// for a look before that is answered by this one.
		c.forgetWakes(ticker.C)
		state, stateChanged := c.co.State()
		_, observed := c.co.Observations()
		c.settleRequests(state)
		d := Decide(c.input(state), c.policy)
		if at := c.inputAt.Add(-d.UsableAge); d.WasUsable && at.After(c.usableAt) {
			c.usableAt = at
		}
		c.record(d)
		c.refuseRequests(d.Refusals)
		if err := c.act(ctx, state, d); err != nil && ctx.Err() == nil {
			c.failures++
			c.log.Warn("change of the lock did not advance", zap.Error(err),
				zap.Int("failures", c.failures))
			pauseFor(ctx, c.policy.RetryPause*time.Duration(min(c.failures, 10)))
			continue
		}
		if d.Do != ActHold {
			continue
		}
		c.tendSync(ctx, state)
		c.failures = 0
		select {
		case <-ctx.Done():
		case <-stateChanged:
		case <-observed:
		case <-c.wake:
		case <-ticker.C:
		}
	}
}

// forgetWakes takes what is left of a tick and of a wake.
func (c *Controller) forgetWakes(tick <-chan time.Time) {
	select {
	case <-tick:
	default:
	}
	select {
	case <-c.wake:
	default:
	}
}

// act carries a decision out; it returns when the step is done, void or failed.
func (c *Controller) act(ctx context.Context, s *State, d Decision) error {
	switch d.Do {
	case ActHold:
		return nil
	case ActBegin:
		return c.begin(ctx, s, d)
	case ActContinue:
		return c.runTransition(ctx, s, *d.Intent)
	}
	panic("BUG: action " + string(d.Do))
}

// begin writes the intent of a new change. One that stops the primary in order makes it
// write a checkpoint first, so that the stop is short.
func (c *Controller) begin(ctx context.Context, s *State, d Decision) error {
	it := *d.Intent
	it.Evidence = d.Evidence
	it.Slots = slotsOf(Input{State: s, Observations: c.observations(s, time.Now())})
	if it.drains() {
		until := c.announce(ctx, s, it)
		if err := c.checkpointFirst(ctx, s, until); err != nil {
			c.recall(ctx)
			c.notBegun(ctx, d.RequestID, err)
			return err
		}
		if it.Auto && !c.isStillDue(it) {
			c.recall(ctx)
			return nil // it decides anew
		}
	}
	start := time.Now()
	epoch, err := c.beginIntent(ctx, it, 0)
	if err != nil {
		c.recall(ctx)
		c.notBegun(ctx, d.RequestID, err)
		return err
	}
	c.markRequest(d.RequestID, epoch)
	phases := map[string]int64{phaseIntent: time.Since(start).Milliseconds()}
	if !c.usableAt.IsZero() && !it.drains() {
		phases[phaseDetect] = start.Sub(c.usableAt).Milliseconds()
	}
	c.phasesEpoch, c.phases, c.begunAt = epoch, phases, start
	return nil
}

// checkpointFirst orders the checkpoint that precedes a switchover, and leaves the proxies their
// time; it gives up when the primary turns out to be dead meanwhile.
func (c *Controller) checkpointFirst(ctx context.Context, s *State, until time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, c.policy.CheckpointTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		o := Order{V: Version, Kind: OrderCheckpoint, Epoch: s.Lock.Epoch}
		_, err := c.co.Call(ctx, s.Lock.Holder, o)
		if left := time.Until(until); err == nil && left > 0 {
			pauseFor(ctx, left)
		}
		done <- err
	}()
	ticker := time.NewTicker(c.policy.Tick)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
			if now, _ := c.co.State(); now.Lock != nil && now.Lock.Epoch == s.Lock.Epoch &&
				!judgePrimary(c.input(now), c.policy).isDead {
				continue
			}
			cancel()
			<-done
			return errors.New("the primary was lost before the switchover began")
		}
	}
}

// input gathers what a decision rests on.
func (c *Controller) input(s *State) Input {
	now := time.Now()
	c.inputAt = now
	in := Input{
		State: s, Observations: c.observations(s, now), ChangeAges: c.co.UnplannedChanges(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	in.Requests = notBegunYet(s, c.requests)
	return in
}

func (c *Controller) observations(s *State, now time.Time) []Observation {
	c.mu.Lock()
	ledAt := c.ledAt
	c.mu.Unlock()
	return observationsFor(c.co, s, ledAt, now)
}

// observationsFor returns the reports, with an entry for each member that has not reported to this
// leader: its age is that of the leadership. A report may be older than the leadership: kept where
// it was made, or by this leader since it led before.
func observationsFor(co Coordinator, s *State, ledAt, now time.Time) []Observation {
	obs, _ := co.Observations()
	obs = slices.Clone(obs)
	for i := range obs {
		if led := now.Sub(ledAt); obs[i].Age > led {
			obs[i].ledFor = max(led, 1)
		}
	}
	for _, m := range s.Members {
		if !slices.ContainsFunc(obs, func(o Observation) bool { return o.Node == m.Name }) {
			obs = append(obs, Observation{Report: Report{Node: m.Name}, Age: now.Sub(ledAt)})
		}
	}
	return obs
}

// record keeps a decision for status, and logs it when it says something new.
func (c *Controller) record(d Decision) {
	c.mu.Lock()
	isNew := d.Summary != c.decision.Summary
	if d.Do != ActContinue || c.decision.Do != ActContinue ||
		c.decision.Intent.Epoch != d.Intent.Epoch {
		c.decision = d
	} else {
		isNew = false // keep what note said about the same intent
	}
	c.mu.Unlock()
	if isNew {
		c.log.Info("decision", zap.String("do", string(d.Do)), zap.String("summary", d.Summary),
			zap.Strings("evidence", d.Evidence))
	}
}

// note says how far the change in progress is, for status.
func (c *Controller) note(it Intent, text string) {
	summary := intentText(it) + ": " + text
	c.mu.Lock()
	isNew := c.decision.Summary != summary
	c.decision.Do, c.decision.Intent, c.decision.Summary = ActContinue, &it, summary
	c.mu.Unlock()
	if isNew {
		c.log.Info("change of the lock", zap.Uint64("epoch", it.Epoch),
			zap.String("kind", string(it.Kind)), zap.String("step", text))
	}
}

// newControllerFor returns a controller with the policy that follows from a node's configuration.
func newControllerFor(co Coordinator, cfg Config) *Controller {
	p := DefaultPolicy(co.Timing())
	p.SyncMode, p.DrainTimeout = cfg.SyncMode, cfg.DrainTimeout
	p.SyncWait, p.SyncDegradeAfter, p.Fence = cfg.SyncWait, cfg.SyncDegradeAfter, cfg.Fence
	p.CutAfter, p.HoldTimeout = cfg.CutOffAfter, cfg.HoldTimeout
	p.PrewarmTime = cfg.PrewarmTime
	return NewController(co, p)
}
