package election_test

import (
	"fmt"

	"holdfast/election"
)

// faultOfProcessLocked does something to a node's process, its disk or its network, or ends that.
func (w *simWorld) faultOfProcessLocked(n *simNode, kind int) string {
	switch kind {
	case 14:
		n.endProcessLocked() // the next tick starts it anew
		return "process of " + n.name + " restarted"
	case 15:
		n.endProcessLocked()
		if w.haveMemoriesLocked(n) {
			n.lease.disk = election.SimDisk{IsBlank: true}
			return "voter of " + n.name + " lost its disk"
		}
		return "process of " + n.name + " restarted"
	case 16, 17:
		n.pauseLocked()
		life := n.lease.life
		w.endLater(8000, func() {
			if n.lease.life == life {
				n.resumeLocked()
			}
		})
		return "process of " + n.name + " paused"
	case 18:
		n.lease.isStalled = true
		w.endLater(8000, func() { n.lease.isStalled = false })
		return "Raft disk of " + n.name + " hangs"
	}
	to := w.names[w.rng.IntN(len(w.names))]
	w.oneWay[n.name][to] = true
	w.endLater(8000, func() { w.oneWay[n.name][to] = false })
	return fmt.Sprintf("%s to %s cut", n.name, to)
}

// aimLocked does something to a process or its disk in the middle of a change.
func (w *simWorld) aimLocked(before, after *election.State) {
	if !w.isFaulty || after.Intent == nil || before.Intent != nil &&
		before.Intent.Epoch == after.Intent.Epoch || w.rng.IntN(3) > 0 {
		return
	}
	// A process that does not see the change, and a voter that does not remember it.
	behind, forgetful := w.leader, w.leader
	for behind == w.leader {
		behind = w.names[w.rng.IntN(len(w.names))]
	}
	for _, name := range w.names {
		if name != behind && name != w.leader {
			forgetful = name
		}
	}
	w.nodes[behind].lease.isStalled = true
	w.endLater(12000, func() { w.nodes[behind].lease.isStalled = false })
	kind := 14 + w.rng.IntN(2)
	w.endLater(5000, func() {
		if w.isFaulty && forgetful != w.leader {
			w.faultOfProcessLocked(w.nodes[forgetful], kind)
		}
	})
}

// endLater ends a fault after up to that many milliseconds.
func (w *simWorld) endLater(ms int, end func()) {
	w.laterLocked(w.jitterLocked(ms), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		end()
	})
}

// haveMemoriesLocked tells that a voter may lose its disk: one at a time, which is assumed.
func (w *simWorld) haveMemoriesLocked(but *simNode) bool {
	for _, name := range w.names {
		if v := w.nodes[name]; v != but && (v.lease.disk.IsBlank || !v.isAwakeLocked()) {
			return false
		}
	}
	return true
}

// fault does one bad thing, or ends one.
func (r *simRun) fault() string {
	w := r.w
	w.mu.Lock()
	name := w.names[w.rng.IntN(len(w.names))]
	n := w.nodes[name]
	kind := w.rng.IntN(25)
	if w.isMild {
		kind = 12 + w.rng.IntN(7)
	}
	what, q := "", election.Request{}
	switch kind {
	case 0, 1, 2:
		what = "server of " + name + " killed"
		if w.state.Lock != nil && kind > 0 {
			n = w.nodes[w.state.Lock.Holder]
			what = "server of the primary " + n.name + " killed"
		}
		n.killLocked()
	case 3:
		n.isUp = !n.isUp
		what = fmt.Sprintf("node %s up: %t", name, n.isUp)
	case 4:
		n.isUp = !n.isUp
		if !n.isUp {
			n.killLocked()
		}
		what = fmt.Sprintf("node and server %s up: %t", name, n.isUp)
	case 5, 6:
		n.isCut = !n.isCut
		what = fmt.Sprintf("%s cut off: %t", name, n.isCut)
	case 7:
		n.isSlow = !n.isSlow
		what = fmt.Sprintf("%s slow: %t", name, n.isSlow)
	case 8, 9, 10, 20:
		q = w.requestLocked(name)
		what = fmt.Sprintf("asked for: %s %s, lossy: %t", q.Kind, q.Member, q.AcceptLoss)
	case 11, 21:
		what = w.maintainLocked()
	case 12, 13:
		what = "new leader"
	case 22, 23:
		what = w.faultOfDiskLocked(w.nodes[w.servers[w.rng.IntN(len(w.servers))]])
	case 24:
		what = w.dropSlotLocked(w.nodes[w.servers[w.rng.IntN(len(w.servers))]])
	default:
		what = w.faultOfProcessLocked(n, kind)
	}
	if leader := w.leader; q.Kind != "" && leader != "" {
		r.askLaterLocked(leader, q)
	}
	isLost := w.leader != "" && !w.majorityLocked(w.leader) || w.leader == ""
	w.mu.Unlock()
	if kind == 12 || kind == 13 || isLost {
		simSleep(0, classFaults)
		r.lead(kind == 12)
	}
	return what
}

func (n *simNode) killLocked() {
	if n.pg.phase == election.PhasePrimary || n.pg.phase == election.PhaseStandby {
		n.pg.phase, n.pg.isClean, n.pg.isOpen = election.PhaseStopped, false, false
		n.dropLocked()
		// A standby keeps what it flushed, a primary all that it wrote.
	}
}

// heal ends all faults.
func (r *simRun) heal() {
	r.w.mu.Lock()
	r.w.lossy = 0
	for _, name := range r.w.names {
		n := r.w.nodes[name]
		n.isUp, n.isCut, n.isSlow, n.lease.isStalled = true, false, false, false
		n.resumeLocked()
		clear(r.w.oneWay[n.name])
		r.w.mendDiskLocked(n)
		if n.pg.phase == election.PhaseStopped && n.pg.promotedAt == 0 {
			n.pg.phase = election.PhaseStandby // agents start standbys
			n.pg.incarnation++
		}
	}
	r.w.mu.Unlock()
	simSleep(0, classFaults)
	r.lead(false)
	simSleep(0, classFaults)
	r.endMaintenance()
}
