package election

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"
)

// transition carries one intent to its lock, or replaces it by a further one. Every step is
// idempotent, so that the next leader can start anew from the intent alone.
type transition struct {
	c  *Controller
	it Intent
	// lock is the lock that the intent replaces; nil at bootstrap.
	lock    *Lock
	members []Member
	// state is the replicated state in which the intent was found: the rules of its sync set do
	// not change as long as an intent stands.
	state *State
	// lead is the leadership's context; the steps' own ends also when the intent is void.
	lead context.Context
	// phases is written by the transition's goroutine only.
	phases map[string]int64
	// slots tell of logical slots that are lost with the promotion.
	slots []string
	// first is the rule that the first lock brings with it; nil if it follows from what the
	// primary's agent tells.
	first *SyncRule
}

// runTransition goes on with an intent until it became a lock, was replaced, or a step failed.
func (c *Controller) runTransition(lead context.Context, s *State, it Intent) error {
	t := &transition{
		c: c, it: it, lock: s.Lock, members: s.Members, state: s, lead: lead,
		phases: map[string]int64{},
	}
	if c.phasesEpoch == it.Epoch {
		t.phases = maps.Clone(c.phases)
	}
	ctx, cancel := context.WithCancel(lead)
	defer cancel()
	var watch sync.WaitGroup
	watch.Go(func() { t.monitorIntent(ctx, cancel) })
	defer watch.Wait()
	defer cancel()
	err := t.run(ctx)
	if errors.Is(err, errIntentVoid) || err != nil && lead.Err() == nil && ctx.Err() != nil {
		c.log.Info("the intent was replaced or finished by another coordinator",
			zap.Uint64("epoch", it.Epoch))
		return nil
	}
	return err
}

// run dispatches on the kind.
func (t *transition) run(ctx context.Context) error {
	if t.it.Kind == IntentBootstrap {
		return t.bootstrap(ctx)
	}
	if t.lock == nil {
		return fmt.Errorf("%s: there is no lock to replace", t.it.Kind)
	}
	switch t.it.Kind {
	case IntentFailover:
		return t.failover(ctx)
	case IntentSwitchover:
		return t.switchover(ctx)
	case IntentRestart:
		return t.restart(ctx)
	}
	return fmt.Errorf("intent of unknown kind %q: a newer release made it", t.it.Kind)
}

// monitorIntent ends the steps when the intent does not stand any more.
func (t *transition) monitorIntent(ctx context.Context, cancel context.CancelFunc) {
	for {
		s, changed := t.c.co.State()
		if s.Intent == nil || s.Intent.Epoch != t.it.Epoch {
			cancel()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// measure adds the time since start to a phase.
func (t *transition) measure(phase string, start time.Time) {
	t.phases[phase] += time.Since(start).Milliseconds()
}

// note tells status how far it is.
func (t *transition) note(format string, args ...any) {
	t.c.note(t.it, fmt.Sprintf(format, args...))
}

// input is what is known now.
func (t *transition) input() Input {
	s, _ := t.c.co.State()
	return Input{State: s, Observations: t.c.observations(s, time.Now())}
}

// endorse waits until a majority of voters endorsed the epoch: from then on nobody may use an
// older one. It asks again until ctx ends.
func (t *transition) endorse(ctx context.Context, timeout time.Duration, recruits ...string) error {
	var why error
	for {
		actx, cancel := context.WithTimeout(ctx, timeout)
		err := t.c.co.EndorseAll(actx, t.it.Epoch, recruits...)
		cancel()
		switch {
		case err == nil:
			return ctx.Err()
		case ctx.Err() != nil:
			// What the voters said last, also if only the end of ctx came after it.
			return errors.Join(cmp.Or(why, err), ctx.Err())
		}
		why = err
		t.note("no majority endorses the epoch yet: %v", err)
		pauseFor(ctx, t.c.policy.RetryPause)
	}
}

// call gives one order under the intent's epoch; it gives up early when the member's node has
// fallen silent.
func (t *transition) call(
	ctx context.Context, timeout time.Duration, member string, o Order,
) (OrderResult, error) {
	o.V, o.Epoch = Version, t.it.Epoch
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var watch sync.WaitGroup
	watch.Go(func() { t.monitorMember(ctx, cancel, member) })
	defer watch.Wait()
	defer cancel()
	res, err := t.c.co.Call(ctx, member, o)
	if err != nil {
		return OrderResult{}, fmt.Errorf("order %s to %s: %w", o.Kind, member, err)
	}
	return res, nil
}

// monitorMember cancels an order to a node that has not reported for twice the time a report
// counts.
func (t *transition) monitorMember(ctx context.Context, cancel func(), member string) {
	ticker := time.NewTicker(t.c.policy.Tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, o := range t.input().Observations {
			if o.Node == member && o.Age > 2*t.c.policy.ReportFresh {
				cancel()
				return
			}
		}
	}
}

// insist repeats an order until it succeeds, timeout has passed, or it failed attempts times.
func (t *transition) insist(
	ctx context.Context, timeout time.Duration, attempts int, member string, o Order,
) (OrderResult, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for n := 1; ; n++ {
		res, err := t.call(ctx, timeout, member, o)
		if err == nil || n >= attempts || ctx.Err() != nil {
			return res, err
		}
		t.note("%v; asked again", err)
		pauseFor(ctx, t.c.policy.RetryPause)
	}
}

// promoteAttempts is how often a promotion or a start is ordered before another way is looked for.
const promoteAttempts = 3

// promote orders the promotion of a chosen member, whose name is in the intent by now, and makes
// it the holder. An error means that the member was not entered in the lock.
func (t *transition) promote(ctx context.Context, to string) error {
	t.note("%s is promoted", to)
	start := time.Now()
	o := Order{Kind: OrderPromote, Members: t.members}
	o.SyncNames = startRule(t.state, t.c.policy, to).Setting()
	res, err := t.insist(ctx, t.c.policy.PromoteTimeout, promoteAttempts, to, o)
	t.measure(phasePromote, start)
	switch {
	case err != nil:
		return err
	case res.Timeline <= t.lock.Timeline || res.Incarnation == "":
		return fmt.Errorf("order promote to %s: it answers timeline %d after %d, incarnation %q",
			to, res.Timeline, t.lock.Timeline, res.Incarnation)
	}
	if res.Timeline != t.lock.Timeline+1 {
		// It follows a promotion that was never entered in a lock. Whoever was logged in there took
		// xids that clients of the old primary had too (DESIGN 10.12): nothing is certain.
		res.XidLo = 0
	}
	if res.HasLogical { // an agent of an older release does not tell
		t.slots = slotsLost(t.it.Slots, to, res.Logical)
	}
	t.repoint(ctx, to)
	return t.commit(Lock{
		Holder: to, Incarnation: res.Incarnation, Timeline: res.Timeline, PromotionLSN: res.LSN,
		XidLo: res.XidLo, XidHi: res.XidHi,
	}, "")
}

// repoint makes the other standbys stream from the new primary before anybody may commit there: a
// quorum commit waits for one of them (DESIGN 10.11b). It is bounded: a standby that does not
// answer follows by itself once it sees the lock. The old holder is left to its agent, which acts
// on a committed lock only, so that going back stays possible until then.
func (t *transition) repoint(ctx context.Context, to string) {
	start := time.Now()
	defer t.measure(phaseRepoint, start)
	ctx, cancel := context.WithTimeout(ctx, t.c.policy.FollowTimeout)
	defer cancel()
	o := Order{Kind: OrderFollow, Upstream: t.member(to)}
	answers := make(chan error)
	waiting := 0
	var orders sync.WaitGroup
	defer orders.Wait()
	defer cancel()
	for _, m := range DataMembers(t.members) {
		if m.Name == to || m.Name == t.lock.Holder {
			continue
		}
		waiting++
		orders.Go(func() {
			_, err := t.call(ctx, t.c.policy.FollowTimeout, m.Name, o)
			select {
			case answers <- err:
			case <-ctx.Done():
			}
		})
	}
	var grace <-chan time.Time
	for waiting > 0 {
		select {
		case <-ctx.Done():
			return
		case <-grace:
			return
		case err := <-answers:
			waiting--
			if err != nil {
				t.c.log.Info("a standby was not re-pointed and follows by itself",
					zap.Uint64("epoch", t.it.Epoch), zap.Error(err))
			} else if grace == nil {
				grace = time.After(t.c.policy.RecruitGrace)
			}
		}
	}
}

// commit enters the new lock. It uses the leadership's context: the intent disappears with it.
func (t *transition) commit(l Lock, systemID string) error {
	l.Epoch = t.it.Epoch
	start := time.Now()
	if t.c.phasesEpoch == t.it.Epoch && !t.c.begunAt.IsZero() {
		t.phases[phaseTotal] = start.Sub(t.c.begunAt).Milliseconds() + t.phases[phaseDetect]
	}
	err := t.c.commitLock(t.lead, l, systemID, maps.Clone(t.phases), t.ruleOf(l.Holder),
		t.slots)
	if err != nil {
		return err
	}
	t.measure(phaseCommit, start)
	t.c.replaced = 0
	t.c.log.Info("leader lock changed", zap.Uint64("epoch", l.Epoch),
		zap.String("kind", string(t.it.Kind)), zap.String("from", t.it.From),
		zap.String("to", l.Holder), zap.Uint32("timeline", l.Timeline),
		zap.Stringer("lsn", l.PromotionLSN), zap.String("cause", t.it.Cause),
		zap.Any("phases_ms", t.phases))
	for _, line := range t.slots {
		t.c.log.Warn("logical slot", zap.Uint64("epoch", l.Epoch), zap.String("what", line))
	}
	return nil
}

// replacePauses bounds the growth of the pause between intents that replace each other.
const replacePauses = 25

// replace puts a fresh intent with a higher epoch in the place of this one.
func (t *transition) replace(kind IntentKind, to, cause string) error {
	return t.replaceBy(Intent{Kind: kind, To: to}, cause)
}

// replaceBy puts an intent in the place of this one. The replicated state adds this one's target,
// which may have been ordered to promote, to those tried.
func (t *transition) replaceBy(it Intent, cause string) error {
	if it.Only != "" {
		it.Request = nextRequest(t.it.Request, wishSame)
	}
	epoch, err := t.replaceWith(it, cause)
	if err == nil && it.Only != "" {
		t.c.moveRequest(t.it.Epoch, epoch) // it is the same wish
	}
	return err
}

// replaceWith is replaceBy for another wish; it returns the fresh epoch.
func (t *transition) replaceWith(it Intent, cause string) (uint64, error) {
	it.From, it.FromEpoch, it.Cause, it.Evidence = t.it.From, t.it.FromEpoch, cause, t.it.Evidence
	it.Slots = t.it.Slots
	it.Request = cmp.Or(it.Request, nextRequest(t.it.Request, wishInstead))
	t.note("replaced: %s", cause)
	t.c.replaced++
	if t.c.replaced > 1 {
		// Nothing has worked for a while: do not fill the log with epochs.
		pauseFor(t.lead, t.c.policy.RetryPause*time.Duration(min(t.c.replaced, replacePauses)))
	}
	epoch, err := t.c.beginIntent(t.lead, it, t.it.Epoch)
	if err != nil {
		return 0, err
	}
	t.c.phasesEpoch, t.c.phases = epoch, maps.Clone(t.phases)
	return epoch, nil
}

// goBack makes the old holder the primary again, under a fresh epoch.
func (t *transition) goBack(cause string) error {
	return t.replace(IntentRestart, t.lock.Holder, cause+"; back to "+t.lock.Holder)
}

// member returns the member of that name.
func (t *transition) member(name string) Member {
	for _, m := range t.members {
		if m.Name == name {
			return m
		}
	}
	return Member{Name: name}
}
