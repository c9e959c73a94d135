package election_test

import (
	"strings"
	"time"

	"holdfast/election"
)

// tickReportsLocked has the nodes report to the leader.
func (w *simWorld) tickReportsLocked() {
	l, ok := w.nodes[w.leader]
	if !ok {
		return
	}
	for _, name := range w.names {
		n := w.nodes[name]
		if !n.isAwakeLocked() || !w.areConnectedLocked(l.name, name) || w.rng.IntN(3) == 0 {
			continue
		}
		r := election.Report{V: 1, Node: name, Epoch: n.probeEpoch, Probe: n.probe,
			ProbeCount: n.probeCount}
		r.Member = election.MemberStatus{
			Name: name, Phase: n.pg.phase, Incarnation: n.resultLocked().Incarnation,
			Timeline: n.pg.timeline(), LSN: n.pg.lsn(), Pledged: n.pg.pledged,
			Streaming: w.isStreamingLocked(n, false), Upstream: n.pg.upstream + ":5432",
		}
		if n.letsNobodyInLocked() {
			// Nobody can ask it whether it streams.
			r.Member.Phase, r.Member.Streaming = election.PhaseRecovering, false
		}
		n.reportSyncLocked(&r)
		n.reportDiskLocked(&r)
		w.reportLocked(n, l, r)
	}
	l.observedLocked()
}

// reportLocked takes a report to the leader: at once, or late, so that it overtakes others and is
// overtaken; some come a second time. Whoever gets one counts its age from then on.
func (w *simWorld) reportLocked(n, to *simNode, r election.Report) {
	d := w.diceOf(n.name, uint64(time.Now().UnixNano()), 80)
	isLate, isDoubled := w.lossy > 0 && d.chance(0.2), w.lossy > 0 && d.chance(0.02)
	after, again := time.Duration(d.upto(700e6)), time.Duration(d.upto(4e9))
	if isLate {
		w.laterLocked(after, func() { w.deliver(n, to, r) })
	} else {
		to.takeReportLocked(r)
	}
	if isDoubled {
		w.laterLocked(again, func() { w.deliver(n, to, r) })
	}
}

// deliver is the end of a report's way.
func (w *simWorld) deliver(n, to *simNode, r election.Report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if to.isAwakeLocked() && w.reachLocked(n.name, to.name) {
		to.takeReportLocked(r)
		to.observedLocked()
	}
}

// takeReportLocked keeps a report in the place of the one before, mistakes included.
func (n *simNode) takeReportLocked(r election.Report) {
	if l := n.view.Lock; l != nil && n.w.bug == bugSimOldReport {
		r.Epoch, r.Member.Pledged = l.Epoch, max(r.Member.Pledged, l.Epoch)
	}
	n.w.noteLocked(n.name, "hears of "+r.Node+" "+string(r.Member.Phase), r.Epoch)
	n.recv[r.Node] = simReport{r, time.Now()}
}

// observedLocked wakes the node's controller.
func (n *simNode) observedLocked() {
	close(n.observed)
	n.observed = make(chan struct{})
}

// checkProofLocked holds that no server is given up as gone that runs as the lock has it.
func (w *simWorld) checkProofLocked(before, after *election.State) {
	it, l := after.Intent, after.Lock
	if before.Intent != nil || it == nil || l == nil ||
		!strings.Contains(it.Cause, "postmaster is gone") {
		return
	}
	h := w.nodes[l.Holder]
	if h.pg.phase == election.PhasePrimary && h.resultLocked().Incarnation == l.Incarnation {
		w.violate("%s is given up as gone under epoch %d though it runs", l.Holder, l.Epoch)
	}
}
