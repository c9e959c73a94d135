package election_test

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"time"

	"holdfast/election"
)

// do carries an order out as the agent does: one at a time, none below the pledge.
func (n *simNode) do(ctx context.Context, o election.Order) (election.OrderResult, error) {
	n.pgBusy <- struct{}{}
	defer func() { <-n.pgBusy }()
	d := n.dice(actAgent)
	d.nap(30)
	if !n.waitAwake(ctx, &d) {
		return election.OrderResult{}, ctx.Err()
	}
	if o.WaitLSN != 0 {
		n.waitFor(ctx, o, &d)
	}
	if !n.waitDisk(ctx, &d) {
		return election.OrderResult{}, ctx.Err()
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	res, err := n.carryOutLocked(o)
	n.w.noteLocked(n.name, "is ordered to "+string(o.Kind), o.Epoch, n.pg.pledged, uint64(res.LSN))
	return res, err
}

// carryOutLocked is an order that has arrived.
func (n *simNode) carryOutLocked(o election.Order) (election.OrderResult, error) {
	if !n.isAwakeLocked() {
		return election.OrderResult{}, errSim
	}
	if o.Epoch < n.pg.pledged && n.w.bug != bugIgnoresPledge {
		return election.OrderResult{}, fmt.Errorf("epoch %d is below the pledge %d", o.Epoch,
			n.pg.pledged)
	}
	if l := n.view.Lock; l != nil && election.IsOver(o, l.Epoch) && !n.takesLateLocked(o, l) {
		return election.OrderResult{}, fmt.Errorf("the lock is of epoch %d", l.Epoch)
	}
	if n.isWitness() {
		n.w.violate("%s has no PostgreSQL and is ordered to %s", n.name, o.Kind)
		return election.OrderResult{}, errSim
	}
	if n.pg.disk.state != "" {
		return election.OrderResult{}, errSim // no room for the pledge
	}
	if l := n.view.Lock; l != nil && election.IsOver(o, l.Epoch) &&
		n.pg.phase == election.PhaseStopped &&
		(o.Kind == election.OrderStartPrimary || o.Kind == election.OrderFollow) {
		n.w.violate("%s is started by an order of epoch %d though the lock of %d is entered", n.name,
			o.Epoch, l.Epoch)
	}
	isOld := o.Epoch < n.pg.pledged
	n.pg.pledged = max(n.pg.pledged, o.Epoch)
	switch o.Kind {
	case election.OrderBootstrap:
		return n.bootstrapLocked(o)
	case election.OrderRecruit:
		return n.recruitLocked(o)
	case election.OrderPromote:
		if isOld {
			n.w.violate("%s carries out promote %d below its pledge %d", n.name, o.Epoch,
				n.pg.pledged)
		}
		if n.w.targets[o.Epoch] != n.name {
			n.w.violate("%s is promoted under epoch %d, the durable target is %q", n.name, o.Epoch,
				n.w.targets[o.Epoch])
		}
		if l := n.view.Lock; l != nil && l.Epoch > o.Epoch {
			n.w.violate("%s is promoted under epoch %d though that is over: the lock is of %d",
				n.name, o.Epoch, l.Epoch)
		}
		return n.promoteLocked(o)
	case election.OrderFollow:
		return n.followLocked(o)
	case election.OrderStop:
		if n.pg.phase == election.PhasePrimary && n.pg.isOpen && n.pg.promotedAt == o.Epoch {
			n.w.violate("%s is stopped under epoch %d though that is over: it serves", n.name,
				o.Epoch)
		}
		return n.stopLocked()
	case election.OrderStartPrimary:
		return n.startLocked(o)
	case election.OrderRestart:
		return n.restartLocked()
	case election.OrderCheckpoint:
		if n.pg.phase != election.PhasePrimary {
			return election.OrderResult{}, errSim
		}
	}
	return election.OrderResult{V: 1}, nil
}

// takesLateLocked are the mistakes about orders that come when their change is over.
func (n *simNode) takesLateLocked(o election.Order, l *election.Lock) bool {
	switch n.w.bug {
	case bugSimOver:
		return true
	case bugSimStarts:
		return o.Epoch == l.Epoch && o.Kind != election.OrderStop && o.Kind != election.OrderRecruit
	}
	return false
}

// waitFor waits until the server has the position of the order, or the order's end.
func (n *simNode) waitFor(ctx context.Context, o election.Order, d *simDice) {
	for range 40 {
		n.w.mu.Lock()
		isThere := n.pg.lsn() >= o.WaitLSN || n.pg.phase != election.PhaseStandby
		n.w.mu.Unlock()
		if isThere || ctx.Err() != nil {
			return
		}
		d.nap(100)
	}
}

func (n *simNode) resultLocked() election.OrderResult {
	return election.OrderResult{
		V: 1, Timeline: n.pg.timeline(), LSN: n.pg.lsn(), SystemID: "1",
		Incarnation: n.name + "-" + strconv.Itoa(n.pg.incarnation), XidLo: n.pg.lo, XidHi: n.pg.hi,
	}
}

func (n *simNode) bootstrapLocked(o election.Order) (election.OrderResult, error) {
	n.takeSyncLocked(o)
	if n.pg.phase == election.PhaseEmpty {
		n.pg.phase, n.pg.promotedAt = election.PhasePrimary, o.Epoch
		n.pg.wal, n.pg.nextXid = []uint64{n.w.entryLocked(1)}, 3
		n.pg.lo, n.pg.hi = 3, 3
		n.pg.incarnation++
		n.resetSlotsLocked(0)
		n.ensureSlotsLocked()
		n.pg.startedAt = time.Now()
	}
	if n.pg.phase != election.PhasePrimary {
		return election.OrderResult{}, errSim
	}
	return n.resultLocked(), nil
}

func (n *simNode) recruitLocked(o election.Order) (election.OrderResult, error) {
	switch n.pg.phase {
	case election.PhaseEmpty:
		return election.OrderResult{}, errSim
	case election.PhaseStopped:
		// A server that was promoted comes up as a primary again, behind the closed door.
		n.pg.phase = election.PhaseStandby
		n.pg.incarnation++
		if n.pg.promotedAt != 0 {
			n.pg.phase = election.PhasePrimary
		}
	}
	if n.pg.phase == election.PhasePrimary && n.view.Lock != nil &&
		n.view.Lock.Holder != n.name && n.view.Lock.Epoch >= n.pg.promotedAt {
		return election.OrderResult{}, errSim // overtaken: it must rejoin first
	}
	n.pg.upstream = ""
	if n.pg.phase == election.PhaseStandby && n.pg.lsn() < o.WaitLSN {
		return election.OrderResult{}, errSim
	}
	return n.resultLocked(), nil
}

func (n *simNode) promoteLocked(o election.Order) (election.OrderResult, error) {
	n.takeSyncLocked(o)
	if n.pg.promotesBadly > 0 {
		n.pg.promotesBadly--
		return election.OrderResult{}, errSim
	}
	n.pg.startedAt = time.Now()
	if len(o.Members) > 0 && n.w.bug != bugSimNoSlots {
		n.ensureSlotsLocked()
	}
	switch n.pg.phase {
	case election.PhaseStandby:
		n.pg.phase, n.pg.upstream = election.PhasePrimary, ""
		n.pg.wal = append(n.pg.wal, n.w.entryLocked(n.pg.timeline()+1))
		n.pg.promotedAt = o.Epoch
		n.pg.isClean, n.pg.isOpen = false, false
		n.boundLocked()
		if d := n.dice(actAgent); d.chance(n.w.lossy / 2) { // dies in the middle
			n.pg.phase = election.PhaseStopped
			return election.OrderResult{}, errSim
		}
	case election.PhasePrimary:
		n.pg.promotedAt = o.Epoch
	default:
		return election.OrderResult{}, errSim
	}
	return n.resultLocked(), nil
}

func (n *simNode) followLocked(o election.Order) (election.OrderResult, error) {
	up := n.w.nodes[o.Upstream.Name]
	if n.pg.promotedAt != 0 || !isPrefix(n.pg.wal, up.pg.wal) ||
		n.pg.phase != election.PhaseStandby && n.pg.phase != election.PhaseStopped {
		return election.OrderResult{}, errSim // rejoins by itself once it sees the lock
	}
	if n.pg.phase == election.PhaseStopped {
		n.pg.incarnation++
	}
	n.pg.phase, n.pg.upstream = election.PhaseStandby, up.name
	return n.resultLocked(), nil
}

func (n *simNode) stopLocked() (election.OrderResult, error) {
	switch {
	case n.w.bug == bugNoStop && n.pg.phase == election.PhasePrimary:
	case n.pg.phase == election.PhasePrimary:
		n.pg.phase, n.pg.isClean, n.pg.isOpen = election.PhaseStopped, true, false
		n.dropLocked()
		n.pg.wal = append(n.pg.wal, n.w.entryLocked(n.pg.timeline()))
		d := n.dice(actAgent)
		for _, name := range n.w.names {
			m, isSent := n.w.nodes[name], n.w.lossy == 0 || d.upto(8) > 0
			if isSent && m.pg.disk.state == "" && n.w.isStreamingLocked(m, true) {
				m.pg.wal = slices.Clone(n.pg.wal)
			}
		}
	case n.pg.phase != election.PhaseStopped || !n.pg.isClean:
		return election.OrderResult{}, errSim
	}
	return n.resultLocked(), nil
}

// restartLocked stops and starts a standby.
func (n *simNode) restartLocked() (election.OrderResult, error) {
	if n.pg.promotedAt != 0 || n.pg.phase != election.PhaseStandby &&
		n.pg.phase != election.PhaseStopped {
		return election.OrderResult{}, errSim
	}
	n.pg.phase = election.PhaseStandby
	n.pg.incarnation++
	return n.resultLocked(), nil
}

func (n *simNode) startLocked(o election.Order) (election.OrderResult, error) {
	n.takeSyncLocked(o)
	switch n.pg.phase {
	case election.PhaseStopped:
		if n.pg.promotedAt == 0 {
			return election.OrderResult{}, errSim // it has been a standby since
		}
		n.pg.phase, n.pg.isClean, n.pg.isOpen = election.PhasePrimary, false, false
		n.pg.incarnation++
	case election.PhasePrimary:
		if n.pg.promotedAt == o.Epoch {
			return n.resultLocked(), nil
		}
		n.pg.isOpen = false // all sessions are ended
		n.dropLocked()
	default:
		return election.OrderResult{}, errSim
	}
	if len(o.Members) > 0 {
		n.ensureSlotsLocked()
	}
	n.pg.promotedAt, n.pg.startedAt = o.Epoch, time.Now()
	n.pg.lo, n.pg.hi = n.pg.nextXid, n.pg.nextXid
	return n.resultLocked(), nil
}

// tickAgentLocked is what an agent does by itself: it acts on committed locks only.
func (n *simNode) tickAgentLocked() {
	if !n.isAwakeLocked() || n.view.Lock == nil || n.isWitness() || n.pg.disk.state != "" {
		return
	}
	l := n.view.Lock
	if l.Holder == n.name {
		n.pg.isOpen = n.pg.phase == election.PhasePrimary &&
			l.Incarnation == n.resultLocked().Incarnation
		if n.w.bug == bugSameEpoch && n.pg.phase == election.PhaseStopped && !n.pg.isClean {
			n.pg.phase = election.PhasePrimary
			n.pg.incarnation++
			n.pg.isOpen = true
		}
		n.tickSyncLocked()
		return
	}
	if n.pg.promotedAt >= l.Epoch || n.pg.pledged > l.Epoch {
		return
	}
	if n.pg.phase == election.PhaseStopped && n.view.Maintenance != nil {
		return // whoever stopped it starts it
	}
	if n.pg.phase == election.PhasePrimary {
		n.pg.phase, n.pg.isOpen = election.PhaseStopped, false
		n.dropLocked()
	}
	up := n.w.nodes[l.Holder]
	if n.pg.upstream == l.Holder && n.pg.phase == election.PhaseStandby &&
		isPrefix(n.pg.wal, up.pg.wal) && len(n.pg.wal) >= up.pg.slots.oldest {
		return
	}
	if up.pg.phase != election.PhasePrimary || up.pg.timeline() != l.Timeline ||
		!n.w.areConnectedLocked(n.name, l.Holder) {
		return
	}
	if !isPrefix(n.pg.wal, up.pg.wal) || n.pg.promotedAt != 0 {
		n.pg.wal = commonPrefix(n.pg.wal, up.pg.wal) // pg_rewind
		n.resetSlotsLocked(up.pg.slots.oldest)
	}
	if len(n.pg.wal) < up.pg.slots.oldest {
		n.pg.wal = slices.Clone(up.pg.wal) // pg_basebackup
		n.resetSlotsLocked(len(n.pg.wal))
	}
	if n.pg.phase != election.PhaseStandby {
		n.pg.incarnation++
	}
	n.wentBackLocked(up)
	n.pg.phase, n.pg.upstream, n.pg.promotedAt = election.PhaseStandby, l.Holder, 0
}

// isStreamingLocked tells that a standby gets WAL; a clean stop still sends what it has.
func (w *simWorld) isStreamingLocked(m *simNode, isStopping bool) bool {
	if m.pg.phase != election.PhaseStandby || m.pg.upstream == "" {
		return false
	}
	up := w.nodes[m.pg.upstream]
	_, hasSlot := up.pg.slots.at[m.name]
	return (isStopping || up.pg.phase == election.PhasePrimary) && !m.isSlow && hasSlot &&
		len(m.pg.wal) >= up.pg.slots.oldest && m.pg.disk.state != "is full" &&
		w.areConnectedLocked(m.name, up.name) && isPrefix(m.pg.wal, up.pg.wal)
}

// letsNobodyInLocked tells of a standby that takes no logins for as long as it runs: one start of
// four, as if a transaction with many subtransactions were open each time. It streams, acknowledges
// and takes orders as any other.
func (n *simNode) letsNobodyInLocked() bool {
	return !n.w.letsAllIn && n.pg.phase == election.PhaseStandby &&
		(n.pg.incarnation+n.index)%4 == 0
}

// entryLocked makes an entry of the WAL: its number and the timeline that it was written on.
func (w *simWorld) entryLocked(timeline uint32) uint64 {
	w.nextEntry++
	return uint64(timeline)<<32 | w.nextEntry
}

// isPrefix compares the last entry only: each is made once, so what comes before it is the same
// wherever it is.
func isPrefix(a, b []uint64) bool {
	return len(a) <= len(b) && (len(a) == 0 || a[len(a)-1] == b[len(a)-1])
}

func commonPrefix(a, b []uint64) []uint64 { return slices.Clone(a[:commonLen(a, b)]) }

func commonLen(a, b []uint64) int {
	return sort.Search(min(len(a), len(b)), func(i int) bool { return a[i] != b[i] })
}
