package election_test

import (
	"fmt"
	"testing"
	"time"

	"holdfast/election"
)

// simAsked counts what an operator asked for at random and was told is done.
type simAsked map[election.RequestKind]int

func (a simAsked) add(b simAsked) {
	for k, n := range b {
		a[k] += n
	}
}

// check tells when the schedules do not carry out enough of what is asked for.
func (a simAsked) check(t *testing.T, runs int) {
	for k, share := range map[election.RequestKind]int{
		election.RequestSwitchover: 50, election.RequestRestart: 20, election.RequestFailover: 1000,
	} {
		if runs >= 1000 && a[k] < runs/share {
			t.Errorf("of %d schedules only %d carry out a %s that was asked for", runs, a[k], k)
		}
	}
}

// requestLocked is something that an operator asks for.
func (w *simWorld) requestLocked(name string) election.Request {
	q := election.Request{Kind: election.RequestSwitchover}
	what := w.rng.IntN(6)
	if l := w.state.Lock; l != nil && w.nodes[l.Holder].pg.phase == election.PhaseStopped &&
		w.rng.IntN(4) > 0 {
		what = 6 // what an operator does then, in maintenance at least
	}
	switch what {
	case 0:
		q.Member = name
	case 1: // to the best one
	case 2:
		q.Kind, q.Member = election.RequestRestart, name
	case 3:
		q.Kind, q.Member = election.RequestRestart, name
		if w.state.Lock != nil {
			q.Member = w.state.Lock.Holder
		}
	default:
		q.Kind, q.Member = election.RequestFailover, name
		// Where proxies ignore their leases nothing tells what was acknowledged before the loss.
		q.AcceptLoss = !w.isFenceless && w.rng.IntN(2) == 0
	}
	return q
}

// askLaterLocked asks a node and, if it says that it is done, looks whether that is so.
func (r *simRun) askLaterLocked(leader string, q election.Request) {
	w := r.w
	w.laterLocked(w.jitterLocked(20), func() {
		w.mu.Lock()
		before, incarnation := uint64(0), 0
		if w.state.Lock != nil {
			before = w.state.Lock.Epoch
		}
		if m := w.nodes[q.Member]; m != nil {
			incarnation = m.pg.incarnation
		}
		w.mu.Unlock()
		err := r.askNode(leader, q)
		if err != nil {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.asked[q.Kind]++
		isDone := w.hasChangedLocked(q, before)
		if q.Kind == election.RequestRestart {
			isDone = w.nodes[q.Member].pg.incarnation > incarnation
		}
		if !isDone {
			w.violate("%s of %q is told done after epoch %d, and is not\n%s", q.Kind, q.Member,
				before, w.dumpLocked())
		}
	})
}

// hasChangedLocked tells that the lock was changed as a request says.
func (w *simWorld) hasChangedLocked(q election.Request, after uint64) bool {
	for _, c := range w.state.History {
		if c.Lock.Epoch > after && c.Asked && string(c.Kind) == string(q.Kind) &&
			(q.Member == "" || q.Member == c.Lock.Holder) {
			return true
		}
	}
	return false
}

// maintainLocked begins or ends maintenance, or starts the stopped primary by hand in it.
func (w *simWorld) maintainLocked() string {
	l, leader := w.state.Lock, w.nodes[w.leader]
	if w.state.Maintenance != nil && l != nil && w.rng.IntN(2) == 0 {
		n := w.nodes[l.Holder]
		if n.pg.phase == election.PhaseStopped && n.pg.promotedAt != 0 &&
			n.pg.disk.state == "" {
			n.pg.phase, n.pg.isClean, n.pg.isOpen = election.PhasePrimary, false, false
			n.pg.incarnation++
			return "server of the primary " + n.name + " started by hand"
		}
	}
	isOn := w.state.Maintenance == nil
	if leader != nil {
		_, _ = leader.applyLocked(maintenanceCommand(isOn))
	}
	return fmt.Sprintf("maintenance: %t", isOn)
}

func maintenanceCommand(isOn bool) election.Command {
	return election.Command{
		Kind: election.CommandMaintenance, Maintenance: &election.SetMaintenance{On: isOn},
	}
}

// endMaintenance is what a careful operator does at last.
func (r *simRun) endMaintenance() {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if _, err := r.w.nodes[r.w.leader].applyLocked(maintenanceCommand(false)); err != nil {
		r.w.violate("maintenance does not end: %v", err)
	}
}

// checkOperatorLocked holds what an operator was promised.
func (w *simWorld) checkOperatorLocked(before, after *election.State) {
	if before.Maintenance == nil && after.Maintenance != nil {
		w.maintainedAt = time.Now()
	}
	it, old := after.Intent, before.Intent
	if it != nil && it.AcceptLoss && it.To != "" {
		w.consent[it.FromEpoch] = it.To
	}
	isBegun := it != nil && (old == nil || old.Epoch != it.Epoch)
	// I48. A change that was decided just before the maintenance may still be written.
	if isBegun && old == nil && after.Maintenance != nil && it.Kind == election.IntentFailover &&
		it.Only == "" && time.Since(w.maintainedAt) > simMaintained {
		w.violate("a failover from %s begins by itself in maintenance: %s", it.From, it.Cause)
	}
	l, was := after.Lock, before.Lock
	if old == nil || l == nil || was == nil || l.Epoch == was.Epoch {
		return
	}
	// I46, I47.
	switch {
	case old.Only != "" && l.Holder != old.Only:
		w.violate("an operator asked for %s, the primary is %s", old.Only, l.Holder)
	case old.StopsHolder && (l.Holder != was.Holder || l.Incarnation == was.Incarnation):
		w.violate("a restart of %s %s that was asked for ends with %s %s", was.Holder,
			was.Incarnation, l.Holder, l.Incarnation)
	}
}

// isAcceptedLocked tells that an operator accepted what is lost with a lock: under its intent, or
// one that was replaced since, the member was ordered to promote at that risk.
func (w *simWorld) isAcceptedLocked(before, after *election.State) bool {
	return before.Lock != nil && w.consent[before.Lock.Epoch] == after.Lock.Holder
}

// simMaintained is how long a write that a leader repeats may land after it was decided.
const simMaintained = 5 * time.Second

// withoutOperatorLocked is what a coordinator sees that forgets what the operator wants.
func (n *simNode) withoutOperatorLocked() *election.State {
	s := *n.view
	if n.w.bug == bugMaintenance {
		s.Maintenance = nil
	}
	if it := s.Intent; it != nil && n.w.bug == bugAnyone {
		other := *it
		other.Only = ""
		s.Intent = &other
	}
	return &s
}
