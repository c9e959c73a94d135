package election

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"holdfast/pgwire"
)

// failover promotes the best recruit. The fence, endorsement and recruits, is complete before
// somebody is chosen; the choice is durable before the order to promote is given.
func (t *transition) failover(ctx context.Context) error {
	to := t.it.To
	if to != "" {
		// An earlier coordinator chose it from enough recruits, whose pledges are durable.
		if err := t.endorseOnly(ctx); err != nil {
			return err
		}
	} else {
		g := t.newGathering(t.it.Only)
		choice, back, err := g.gather(ctx)
		if err != nil {
			return err
		}
		if g.consent != nil {
			return t.takeOver(*g.consent)
		}
		if back && t.it.Only != "" && !t.isMaintained() {
			// What the operator asked for cannot be done: back to what is decided without one.
			return t.replace(IntentFailover, "", t.it.Cause+"; then: "+choice.Missing)
		}
		if back {
			return t.goBack("no candidate: " + choice.Missing)
		}
		to = choice.To
		if err := t.c.setTarget(ctx, t.it.Epoch, to); err != nil {
			return err
		}
		t.measure(phaseChoose, g.readyAt)
	}
	err := t.promote(ctx, to)
	if err == nil || ctx.Err() != nil || errors.Is(err, errIntentVoid) {
		return err
	}
	cause := fmt.Sprintf("%s; then %s was not promoted: %v", t.it.Cause, to, err)
	if t.it.Only != "" && t.failoverMissing() != "" {
		// Without what the operator accepted nobody could be promoted, and no other request is
		// taken while an intent stands.
		return t.replaceBy(Intent{
			Kind: IntentFailover, Only: t.it.Only, AcceptLoss: t.it.AcceptLoss,
		}, cause)
	}
	return t.replace(IntentFailover, "", cause)
}

// isMaintained tells that nobody but an operator may choose whom to promote.
func (t *transition) isMaintained() bool {
	return t.maintenance() != nil
}

func (t *transition) maintenance() *Maintenance {
	s, _ := t.c.co.State()
	return s.Maintenance
}

// endorseOnly waits for the endorsement and measures it.
func (t *transition) endorseOnly(ctx context.Context) error {
	defer t.measure(phaseEndorse, time.Now())
	t.note("waits until a majority endorses the epoch")
	return t.endorse(ctx, t.c.policy.EndorseTimeout)
}

// gathering collects the endorsement and the recruits of one intent.
type gathering struct {
	t       *transition
	sel     Selection
	targets []Member
	// failed are the members whose first order ended without an answer of theirs.
	failed     map[string]bool
	isEndorsed bool
	// consent is what an operator asks for in the place of waiting.
	consent *Request
	// start is when it began; readyAt, when it could have chosen for the first time.
	start, readyAt time.Time
}

// recruitAnswer is what one order to recruit brought.
type recruitAnswer struct {
	member Member
	res    OrderResult
	err    error
}

// newGathering prepares the recruiting of all data members but the old holder.
func (t *transition) newGathering(only string) *gathering {
	g := &gathering{t: t, failed: map[string]bool{}}
	g.sel = Selection{
		Lock: *t.lock, Sync: SyncRules(t.state, t.c.policy),
		Tried: triedBut(t.it.Tried, t.lock.Holder), Only: only, Silent: map[string]string{},
		LagMaxBytes: t.c.policy.LagMaxBytes, AcceptLoss: t.it.AcceptLoss,
	}
	for _, m := range DataMembers(t.members) {
		if m.Name != t.lock.Holder {
			g.targets = append(g.targets, m)
			g.sel.Silent[m.Name] = "has not answered yet"
		}
	}
	in := t.input()
	g.sel.SlotsLacking = slotsLacking(in.Observations, t.it.Slots)
	for _, o := range in.Observations {
		if o.Node == t.lock.Holder && o.Member.Timeline == t.lock.Timeline {
			g.sel.KnownLSN = o.Member.LSN
		}
	}
	return g
}

// triedBut returns the tried members without the old holder, which is restarted, not promoted.
func triedBut(tried []string, holder string) []string {
	var out []string
	for _, name := range tried {
		if name != holder {
			out = append(out, name)
		}
	}
	return out
}

// gather runs endorsement and recruiting side by side until a candidate can be chosen. isBack
// tells that none can be, but the old holder can be the primary again; or, where only one may be
// chosen, that this one cannot.
func (g *gathering) gather(ctx context.Context) (choice Choice, isBack bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel()
	g.start = time.Now()
	endorsed := make(chan error, 2) // of the promises, and of the fence
	workers.Go(func() { endorsed <- g.t.endorse(ctx, g.t.c.policy.EndorseTimeout) })
	answers := make(chan recruitAnswer)
	for _, m := range g.targets {
		workers.Go(func() { g.t.runRecruit(ctx, m, 0, answers) })
	}
	ticker := time.NewTicker(g.t.c.policy.Tick)
	defer ticker.Stop()
	var grace, claim <-chan time.Time
	isGraceOver := false
	for {
		choice = Choose(g.sel)
		if g.consent = g.t.takesOver(); g.consent != nil {
			return choice, false, nil
		}
		if claim == nil && choice.To != "" && g.mayClaim() {
			claim = time.After(g.t.c.policy.RecruitGrace) // those that can be reached release
		}
		if choice.To != "" && g.isEndorsed && g.readyAt.IsZero() {
			g.readyAt = time.Now()
		}
		isHeld := g.t.maintenance().overtook(g.t.it)
		switch {
		case choice.To != "" && g.isEndorsed && !isHeld && (g.isSettled() || isGraceOver):
			g.t.note("%s is chosen at %s", choice.To, choice.ToLSN)
			return choice, false, nil
		case choice.To != "" && g.isEndorsed && grace == nil:
			grace = time.After(g.graceTime())
		case isHeld && time.Since(g.start) > g.t.c.policy.ReportFresh &&
			holderRuns(g.t.input(), g.t.c.policy): // a report from before its end says so, too
			choice.Missing = "a maintenance began before the change"
			return choice, true, nil
		case choice.To == "" && !isHeld && g.isRoundOver() && (g.sel.Only != "" &&
			!g.t.isMaintained() || holderIsBack(g.t.input(), g.t.c.policy)):
			return choice, true, nil
		default:
			g.noteWait(choice, isHeld)
		}
		select {
		case <-ctx.Done():
			return choice, false, ctx.Err()
		case err := <-endorsed:
			if err != nil {
				return choice, false, err
			}
			if !g.isEndorsed {
				g.isEndorsed = true
				g.t.measure(phaseEndorse, g.start)
			}
		case a := <-answers:
			g.take(a)
		case <-claim:
			names := g.sel.fencedNames()
			workers.Go(func() {
				endorsed <- g.t.endorse(ctx, g.t.c.policy.EndorseTimeout, names...)
			})
		case <-grace:
			isGraceOver = true
		case <-g.t.c.wake:
		case <-ticker.C:
		}
	}
}

// noteWait says what is waited for.
func (g *gathering) noteWait(choice Choice, isHeld bool) {
	switch {
	case choice.To == "" && g.sel.Only != "" && g.isRoundOver():
		g.t.note("nobody else is promoted before the maintenance ends: %s", choice.Missing)
	case choice.To == "":
		g.t.note("no candidate yet: %s", choice.Missing)
	case isHeld:
		g.t.note("nobody is promoted before the maintenance ends, which began before this change")
	default:
		g.t.note("waits until a majority endorses the epoch")
	}
}

// mayClaim tells that the recruits of a complete fence may stand in for promises.
func (g *gathering) mayClaim() bool {
	return g.t.c.policy.Fence == FenceRecruit && !g.isEndorsed && fenceHolds(g.t.state,
		g.sel.fencedNames())
}

// graceTime is how long better candidates are waited for. When the recruits are known to have all
// that was acknowledged it is short; else only the other members can tell.
func (g *gathering) graceTime() time.Duration {
	if g.sel.isSynchronous() && len(g.sel.Tried) == 0 {
		return g.t.c.policy.RecruitGrace
	}
	return g.t.c.policy.RecruitTimeout
}

// take enters one answer.
func (g *gathering) take(a recruitAnswer) {
	name := a.member.Name
	if a.err != nil {
		g.failed[name] = true
		g.sel.Silent[name] = a.err.Error()
		return
	}
	delete(g.sel.Silent, name)
	g.sel.Recruits = append(g.sel.Recruits,
		Recruit{Member: a.member, Timeline: a.res.Timeline, LSN: a.res.LSN})
	// The phase ends with the last answer that was waited for.
	g.t.phases[phaseRecruit] = time.Since(g.start).Milliseconds()
}

// isSettled tells that nobody is waited for: each member has answered, or failed to.
func (g *gathering) isSettled() bool {
	return len(g.sel.Recruits) == len(g.targets) || g.isRoundOver()
}

// isRoundOver tells that each member has answered or failed at least once.
func (g *gathering) isRoundOver() bool {
	for _, m := range g.targets {
		if _, isSilent := g.sel.Silent[m.Name]; isSilent && !g.failed[m.Name] {
			return false
		}
	}
	return true
}

// runRecruit orders one member to recruit until it answers or ctx ends.
func (t *transition) runRecruit(
	ctx context.Context, m Member, waitLSN pgwire.LSN, answers chan<- recruitAnswer,
) {
	for ctx.Err() == nil {
		o := Order{Kind: OrderRecruit, WaitLSN: waitLSN}
		res, err := t.call(ctx, t.c.policy.RecruitTimeout, m.Name, o)
		select {
		case answers <- recruitAnswer{m, res, err}:
		case <-ctx.Done():
		}
		if err == nil {
			return
		}
		pauseFor(ctx, t.c.policy.RetryPause)
	}
}
