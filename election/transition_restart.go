package election

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// restart makes the holder the primary again under a new epoch: after a crash, after somebody
// else started it, because a change to another member did not succeed, or because an operator
// wants its server restarted.
func (t *transition) restart(ctx context.Context) error {
	if t.it.To != t.lock.Holder {
		// It could never become a lock, and would stop the holder again and again.
		return t.goBack(fmt.Sprintf("a restart of %s, which is not the primary", t.it.To))
	}
	if t.it.StopsHolder {
		forth, cancel := t.forward(ctx)
		_, err := t.drainAndStop(forth)
		err = turnedBack(forth, err)
		cancel()
		if err != nil && (ctx.Err() != nil || errors.Is(err, errIntentVoid)) {
			return err
		}
		if err != nil {
			return t.goBack(fmt.Sprintf("restart of %s failed: %v", t.lock.Holder, err))
		}
	} else if err := t.endorseOnly(ctx); err != nil {
		return err
	}
	holder := t.lock.Holder
	t.note("%s is started", holder)
	start := time.Now()
	o := Order{Kind: OrderStartPrimary, Members: t.members}
	o.SyncNames = startRule(t.state, t.c.policy, holder).Setting()
	res, err := t.insist(ctx, t.c.policy.StartTimeout, promoteAttempts, holder, o)
	t.measure(phaseStart, start)
	if err == nil && (res.Incarnation == "" || res.Timeline != t.lock.Timeline) {
		err = fmt.Errorf("order start-primary to %s: it answers timeline %d, the lock's is %d,"+
			" incarnation %q", holder, res.Timeline, t.lock.Timeline, res.Incarnation)
	}
	if err == nil {
		// Recruits of a change that was given up stream again.
		t.repoint(ctx, holder)
		l := *t.lock
		l.Incarnation, l.XidLo, l.XidHi = res.Incarnation, res.XidLo, res.XidHi
		return t.commit(l, "")
	}
	if ctx.Err() != nil {
		return err
	}
	if r := t.takesOver(); r != nil {
		return t.takeOver(*r)
	}
	if why := t.failoverMissing(); why != "" {
		t.note("%v; no failover either: %s", err, why)
		return err
	}
	cause := fmt.Sprintf("%s; then %v", t.it.Cause, err)
	return t.replace(IntentFailover, "", cause)
}

// failoverMissing tells why a failover must not or cannot follow; empty if it may.
func (t *transition) failoverMissing() string {
	in := t.input()
	if m := in.State.Maintenance; m != nil && !t.it.StopsHolder {
		return m.text()
	}
	return failoverMissing(in, t.c.policy)
}

// bootstrap makes the first primary. There is no older epoch, but the endorsement makes sure that
// a majority takes part.
func (t *transition) bootstrap(ctx context.Context) error {
	if err := t.endorseOnly(ctx); err != nil {
		return err
	}
	to, rule := t.it.To, startRule(t.state, t.c.policy, t.it.To)
	if in := t.input(); isAdopted(in, to) {
		t.note("%s is taken over as it runs", to)
		var isLess bool
		if rule, isLess = adoptRule(in, t.c.policy, to); isLess {
			if !allKnowSync(in, t.c.policy) {
				return errors.New("take over with fewer standbys than the configuration asks for: " +
					"not all nodes have told that they would know")
			}
			t.first = &rule
			t.note("%s is taken over as it runs; until others are cloned commits wait for %s", to, rule)
		}
	} else {
		t.note("%s makes the first data directory", to)
	}
	start := time.Now()
	o := Order{Kind: OrderBootstrap, Members: t.members, SyncNames: rule.Setting()}
	res, err := t.call(ctx, t.c.policy.BootstrapTimeout, to, o)
	t.measure(phaseBootstrap, start)
	if err != nil {
		t.note("%v", err)
		return err
	}
	if res.Incarnation == "" || res.SystemID == "" || res.Timeline == 0 {
		return fmt.Errorf("order bootstrap to %s: incomplete answer: timeline %d, incarnation %q,"+
			" system id %q", to, res.Timeline, res.Incarnation, res.SystemID)
	}
	return t.commit(Lock{
		Holder: to, Incarnation: res.Incarnation, Timeline: res.Timeline, PromotionLSN: res.LSN,
		XidLo: res.XidLo, XidHi: res.XidHi,
	}, res.SystemID)
}
