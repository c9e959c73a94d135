package election_test

import (
	"context"
	"errors"
	"slices"
	"strings"
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
				FromEpoch: lock.Epoch, To: other, StopsHolder: true,
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

// lossyGroup runs f in maintenance, when the primary's server is lost for good, one standby is
// empty, and the other, to, may lack commits.
func lossyGroup(t *testing.T, f func(r *simRun, old election.Lock, to string)) {
	t.Helper()
	simGroup(t, func(r *simRun) {
		old := r.newest().Lock
		next := map[string]string{"pg1": "pg2", "pg2": "pg3", "pg3": "pg1"}
		gone, to := next[old.Holder], next[next[old.Holder]]
		r.w.mu.Lock()
		_, err := r.w.nodes[r.w.leader].applyLocked(maintenanceCommand(true))
		for _, name := range []string{old.Holder, gone} {
			r.w.nodes[name].killLocked()
			r.w.nodes[name].pg.phase = election.PhaseEmpty // its disk is gone
		}
		r.w.mu.Unlock()
		if err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Second)
		f(r, old, to)
	})
}

func (r *simRun) failover(to string, isLossy bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return r.ask(ctx, election.Request{
		Kind: election.RequestFailover, Member: to, AcceptLoss: isLossy,
	})
}

// TestLossyFailover: without the operator's consent it is refused, with words that name what is
// missing; with it the member is promoted (DESIGN.md I47), in maintenance too (I48).
func TestLossyFailover(t *testing.T) {
	lossyGroup(t, func(r *simRun, old election.Lock, to string) {
		if c := r.newest(); c.Lock.Epoch != old.Epoch {
			t.Errorf("promoted in maintenance: %+v", c)
		}
		err := r.failover(to, false)
		if !errors.Is(err, election.ErrRefused) || !strings.Contains(err.Error(), "it is empty") {
			t.Errorf("without consent: %v", err)
		}
		if err := r.failover(to, true); err != nil {
			t.Errorf("with consent: %v", err)
		}
		if c := r.newest(); c.Lock.Holder != to || !c.Asked {
			t.Errorf("change is %+v", c)
		}
	})
}

// TestLossyFailoverIsTriedAgain: a promotion that fails takes the operator's consent not away:
// without it nobody could be promoted, and an intent that stands refuses every other request.
func TestLossyFailoverIsTriedAgain(t *testing.T) {
	lossyGroup(t, func(r *simRun, old election.Lock, to string) {
		r.w.mu.Lock()
		r.w.nodes[to].pg.promotesBadly = 4 // more than one intent tries
		r.w.mu.Unlock()
		if err := r.failover(to, true); err != nil {
			t.Errorf("answer is %v; %s", err, r.controllers[r.w.leader].LastDecision().Summary)
		}
		if c := r.newest(); c.Lock.Holder != to || c.Lock.Epoch < old.Epoch+2 || !c.Asked {
			t.Errorf("change is %+v", c)
		}
	})
}

// TestFailoverGoesBackToAServerStartedByHand: a standby's node dies together with the primary's
// server, which somebody starts again while the failover waits: it is the primary again.
func TestFailoverGoesBackToAServerStartedByHand(t *testing.T) {
	simGroup(t, func(r *simRun) {
		old := r.newest().Lock
		r.w.mu.Lock()
		for _, name := range r.w.names {
			if name != old.Holder && name != r.w.leader {
				r.w.nodes[name].isCut = true // orders to it hang
				break
			}
		}
		r.w.nodes[old.Holder].killLocked()
		r.w.mu.Unlock()
		for isBegun := false; !isBegun; time.Sleep(time.Millisecond) {
			r.w.mu.Lock()
			isBegun = r.w.state.Intent != nil
			r.w.mu.Unlock()
		}
		r.w.mu.Lock()
		pg := &r.w.nodes[old.Holder].pg
		pg.phase, pg.isOpen = election.PhasePrimary, false
		pg.incarnation++
		r.w.mu.Unlock()
		time.Sleep(10 * time.Second)
		c := r.newest()
		if c.Kind != election.IntentRestart || c.Lock.Holder != old.Holder ||
			c.Lock.Incarnation == old.Incarnation {
			t.Errorf("change is %+v; %s", c, r.controllers[r.w.leader].LastDecision().Summary)
		}
	})
}

// namedRun is a failover in maintenance to a member that something happens to once it has begun.
type namedRun struct {
	*simRun
	old       election.Lock
	to, other string
	named     *simServer
	// answer is that of the operator's request.
	answer chan error
}

// namedGroup runs f in it. isGone: the old primary's data is lost; else its server is stopped.
func namedGroup(t *testing.T, isGone bool, spoil func(*simServer), f func(*namedRun)) {
	t.Helper()
	simGroup(t, func(r *simRun) {
		next := map[string]string{"pg1": "pg2", "pg2": "pg3", "pg3": "pg1"}
		n := &namedRun{simRun: r, old: r.newest().Lock, answer: make(chan error, 1)}
		n.to, n.other = next[n.old.Holder], next[next[n.old.Holder]]
		r.w.mu.Lock()
		_, err := r.w.nodes[r.w.leader].applyLocked(maintenanceCommand(true))
		r.w.nodes[n.old.Holder].killLocked()
		if isGone {
			r.w.nodes[n.old.Holder].pg.phase = election.PhaseEmpty
		}
		n.named = &r.w.nodes[n.to].pg
		// Both have all that the other one has.
		rest := &r.w.nodes[n.other].pg
		if len(n.named.wal) < len(rest.wal) {
			n.named.wal = slices.Clone(rest.wal)
		}
		rest.wal = slices.Clone(n.named.wal)
		r.w.mu.Unlock()
		if err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Second)
		go func() { n.answer <- r.failover(n.to, false) }()
		for isBegun := false; !isBegun; time.Sleep(time.Millisecond) {
			r.w.mu.Lock()
			if isBegun = r.w.state.Intent != nil; isBegun {
				spoil(n.named)
			}
			r.w.mu.Unlock()
		}
		f(n)
	})
}

// loseTail takes away WAL that the other standby has.
func loseTail(pg *simServer) { pg.wal = slices.Clone(pg.wal[:len(pg.wal)-2]) }

// awaitLock waits until the lock is another one.
func (n *namedRun) awaitLock() election.Change {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(simTick) {
		if c := n.newest(); c.Lock.Epoch != n.old.Epoch {
			return c
		}
	}
	return n.newest()
}

// TestNamedOrNobodyInMaintenance: the member that the operator named cannot be promoted, or turns
// out to have less; in maintenance nobody else is, until it ends (DESIGN.md I47, I48).
func TestNamedOrNobodyInMaintenance(t *testing.T) {
	for name, spoil := range map[string]func(pg *simServer){
		"promotion fails": func(pg *simServer) { pg.promotesBadly = 1000 },
		"behind":          loseTail,
	} {
		t.Run(name, func(t *testing.T) {
			namedGroup(t, true, spoil, func(n *namedRun) {
				time.Sleep(5 * time.Second)
				err := n.failover(n.other, false)
				if !errors.Is(err, election.ErrRefused) || !strings.Contains(err.Error(), n.to) {
					t.Errorf("another wish is not refused at once: %v", err)
				}
				if err := <-n.answer; err == nil {
					t.Error("it is said to be done")
				}
				if c := n.newest(); c.Lock.Epoch != n.old.Epoch {
					t.Errorf("change is %+v", c)
				}
				n.endMaintenance()
				c := n.awaitLock()
				if c.Kind != election.IntentFailover || c.Lock.Holder != n.other {
					t.Errorf("change is %+v; %s", c, n.controllers[n.w.leader].LastDecision().Summary)
				}
			})
		})
	}
}

// TestNamedIsWaitedForInMaintenance: the member's data goes away and comes back; the wish stands.
func TestNamedIsWaitedForInMaintenance(t *testing.T) {
	lost := func(pg *simServer) { pg.phase = election.PhaseEmpty }
	namedGroup(t, true, lost, func(n *namedRun) {
		time.Sleep(10 * time.Second)
		n.w.mu.Lock()
		n.named.phase = election.PhaseStandby
		n.w.mu.Unlock()
		if err := <-n.answer; err != nil {
			t.Error(err)
		}
		if c := n.newest(); c.Lock.Holder != n.to || !c.Asked {
			t.Errorf("change is %+v", c)
		}
	})
}

// TestNamedGoesBackInMaintenance: the old primary's server is only stopped. It is the primary again
// rather than somebody whom nobody named.
func TestNamedGoesBackInMaintenance(t *testing.T) {
	namedGroup(t, false, loseTail, func(n *namedRun) {
		if err := <-n.answer; !errors.Is(err, election.ErrFailed) {
			t.Errorf("answer is %v", err)
		}
		if c := n.awaitLock(); c.Lock.Holder != n.old.Holder {
			t.Errorf("change is %+v", c)
		}
	})
}
