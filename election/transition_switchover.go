package election

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"holdfast/pgwire"
)

// switchover moves the lock to a chosen standby: drain and release, stop the old primary in order,
// let the candidate take its last WAL, promote. Whatever fails before the lock is entered leads
// back to the old primary, which has every commit.
func (t *transition) switchover(ctx context.Context) error {
	if t.it.To == "" {
		return t.goBack("the switchover has no target")
	}
	if t.it.Auto && t.maintenance().overtook(t.it) {
		return t.goBack("a maintenance began before the change")
	}
	forth, cancel := t.forward(ctx)
	defer cancel()
	err := t.switchoverSteps(forth)
	if err == nil || ctx.Err() != nil || errors.Is(err, errIntentVoid) {
		return err
	}
	cause := fmt.Sprintf("switchover to %s failed: %v", t.it.To, err)
	return t.goBack(cause)
}

// errTurnsBack is why the steps of a planned change end before their own bounds.
var errTurnsBack = errors.New("what is left of proxy.hold_timeout is for the way back")

// forward bounds the steps of a planned change together, so that the way back is within the time
// that clients are held (DESIGN.md I94). A leader that finds the intent counts from then.
func (t *transition) forward(ctx context.Context) (context.Context, context.CancelFunc) {
	p := t.c.policy
	if p.HoldTimeout == 0 {
		return context.WithCancel(ctx)
	}
	begun := time.Now()
	if t.c.phasesEpoch == t.it.Epoch && !t.c.begunAt.IsZero() {
		begun = t.c.begunAt
	}
	return context.WithDeadlineCause(ctx, begun.Add(p.HoldTimeout-p.BackTime), errTurnsBack)
}

// turnedBack adds to the error of a step that it was ended for the way back.
func turnedBack(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errTurnsBack) {
		return fmt.Errorf("%w: %w", errTurnsBack, err)
	}
	return err
}

func (t *transition) switchoverSteps(ctx context.Context) (err error) {
	defer func() { err = turnedBack(ctx, err) }()
	shutdown, err := t.drainAndStop(ctx)
	if err != nil {
		return err
	}
	if err := t.gatherAfterStop(ctx, shutdown); err != nil {
		return err
	}
	return t.promote(ctx, t.it.To)
}

// drainAndStop lets sessions finish what is open, closes the old epoch, and stops the primary in
// order. It returns the shutdown checkpoint.
func (t *transition) drainAndStop(ctx context.Context) (pgwire.LSN, error) {
	p := t.c.policy
	start := time.Now()
	t.note("sessions are drained")
	bound := t.it.drainTime(p.DrainTimeout) + p.EndorseTimeout
	ectx, cancel := context.WithTimeout(ctx, bound)
	err := t.endorse(ectx, bound)
	cancel()
	t.measure(phaseEndorse, start)
	if err != nil {
		return 0, fmt.Errorf("endorse: %w", err)
	}
	start = time.Now()
	t.note("%s is stopped", t.lock.Holder)
	res, err := t.insist(ctx, p.StopTimeout, stopAttempts, t.lock.Holder, Order{Kind: OrderStop})
	t.measure(phaseStop, start)
	if err != nil {
		return 0, err
	}
	if res.LSN == 0 {
		return 0, fmt.Errorf("order stop to %s: it does not tell its shutdown checkpoint",
			t.lock.Holder)
	}
	return res.LSN, nil
}

// stopAttempts is how often the stop of the old primary is ordered before going back.
const stopAttempts = 2

// gatherAfterStop recruits the candidate, once it has the shutdown checkpoint, and the other
// standbys as far as they answer in time.
func (t *transition) gatherAfterStop(ctx context.Context, shutdown pgwire.LSN) error {
	t.note("%s takes the last WAL, up to %s", t.it.To, shutdown)
	g := t.newGathering(t.it.To)
	g.start = time.Now()
	g.sel.ShutdownLSN = shutdown
	// It may have been promoted under this very intent by an earlier coordinator.
	g.sel.Tried = append(g.sel.Tried[:len(g.sel.Tried):len(g.sel.Tried)], t.it.To)
	bounded, cancel := context.WithTimeout(ctx, t.c.policy.RecruitTimeout)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel()
	answers := make(chan recruitAnswer)
	for _, m := range g.targets {
		wait := pgwire.LSN(0)
		if m.Name == t.it.To {
			wait = shutdown
		}
		workers.Go(func() { t.runRecruit(bounded, m, wait, answers) })
	}
	var grace <-chan time.Time
	for {
		choice := Choose(g.sel)
		if choice.To != "" {
			if g.isSettled() {
				return nil
			}
			if grace == nil {
				grace = time.After(t.c.policy.RecruitGrace)
			}
		}
		select {
		case <-grace:
			return nil
		case <-bounded.Done():
			if choice.To != "" && ctx.Err() == nil {
				return nil // it came late, and the others are not waited for any longer
			}
			return fmt.Errorf("%s (%w)", choice.Missing, bounded.Err())
		case a := <-answers:
			g.take(a)
		}
	}
}
