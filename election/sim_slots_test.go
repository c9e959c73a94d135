package election_test

import (
	"time"

	"holdfast/election"
)

// Mistakes about physical slots that the simulation must find.
const (
	bugSimNoSlots  simBug = "slots are not made before a promotion"
	bugSimSlotOnce simBug = "a slot that is gone is not made again"
	bugSimSlotPast simBug = "a standby moves the others' slots to its own position"
)

// simSlots are the physical slots of a server, and the WAL that it keeps: entries from oldest on.
type simSlots struct {
	at map[string]int // the first entry that is kept for that member
	// late are the slots that begin after what the member needs: made after a rewind or a clone,
	// which take no slots along, or moved to where such a one of the primary is.
	late         map[string]bool
	oldest, redo int
	// since is when slots may first have been missing, zero if none is; dropped, when somebody
	// dropped one; tended, when the agent looked.
	since, dropped, tended time.Time
}

// simSlotsMax is how long a slot may be missing: agents look every two seconds.
const simSlotsMax = 3500 * time.Millisecond

// resetSlotsLocked is a directory that was made anew: its WAL begins at oldest.
func (n *simNode) resetSlotsLocked(oldest int) {
	n.pg.slots = simSlots{oldest: oldest, redo: len(n.pg.wal), since: time.Now()}
}

// ensureSlotsLocked makes the slots that are missing, which keep WAL since the last checkpoint.
func (n *simNode) ensureSlotsLocked() {
	s := &n.pg.slots
	if s.at == nil {
		s.at, s.late = map[string]int{}, map[string]bool{}
	}
	for _, name := range n.w.servers {
		if _, ok := s.at[name]; !ok && name != n.name {
			s.at[name] = max(s.redo, s.oldest)
			s.late[name] = n.w.nodes[name].neededOfLocked(n) < s.at[name]
		}
	}
	s.since = time.Time{}
}

// neededOfLocked is the first entry that a member needs if it follows up: what is past that in its
// own WAL is of another history, and is rewound.
func (n *simNode) neededOfLocked(up *simNode) int { return commonLen(n.pg.wal, up.pg.wal) }

// wentBackLocked is a member that was rewound to up's history, or cloned: servers in another
// history keep for it what it needed of that one, and it needs more of it now.
func (n *simNode) wentBackLocked(up *simNode) {
	for _, name := range n.w.servers {
		o := n.w.nodes[name]
		at, isThere := o.pg.slots.at[n.name]
		if isThere && !isPrefix(o.pg.wal, up.pg.wal) && n.neededOfLocked(o) < at {
			o.pg.slots.late[n.name] = true
		}
	}
}

// missesSlotLocked tells a member for which there is no slot.
func (n *simNode) missesSlotLocked() string {
	for _, name := range n.w.servers {
		if _, ok := n.pg.slots.at[name]; !ok && name != n.name {
			return name
		}
	}
	return ""
}

// dropSlotLocked is somebody who drops a slot by hand.
func (w *simWorld) dropSlotLocked(n *simNode) string {
	if l := w.state.Lock; l != nil && w.rng.IntN(2) == 0 {
		n = w.nodes[l.Holder]
	}
	name := w.servers[w.rng.IntN(len(w.servers))]
	if _, ok := n.pg.slots.at[name]; ok {
		delete(n.pg.slots.at, name)
		n.pg.slots.dropped = time.Now()
		if n.pg.slots.since.IsZero() {
			n.pg.slots.since = time.Now()
		}
	}
	return "slot of " + name + " on " + n.name + " dropped"
}

// tickSlotsLocked is what servers and agents do about slots and WAL, and what must hold then.
func (w *simWorld) tickSlotsLocked() {
	for _, name := range w.servers {
		n := w.nodes[name]
		isPrimary := n.pg.phase == election.PhasePrimary
		if !isPrimary && n.pg.phase != election.PhaseStandby || n.pg.disk.state != "" {
			if !n.pg.slots.since.IsZero() {
				n.pg.slots.since = time.Now() // nobody can make one
			}
			continue
		}
		if isPrimary {
			w.streamSlotsLocked(n)
		}
		if n.isAwakeLocked() && time.Since(n.pg.slots.tended) > 2*time.Second {
			n.pg.slots.tended = time.Now()
			n.tendSlotsLocked(isPrimary)
		} else if !n.isAwakeLocked() && !n.pg.slots.since.IsZero() {
			n.pg.slots.since = time.Now()
		}
		if w.rng.IntN(40) == 0 {
			n.checkpointLocked(isPrimary)
		}
		n.catchUpLocked()
		w.checkSlotsLocked(n)
	}
}

// streamSlotsLocked moves the slots of standbys that stream, back as well.
func (w *simWorld) streamSlotsLocked(n *simNode) {
	for _, name := range w.servers {
		m := w.nodes[name]
		if m.pg.upstream == n.name && w.isStreamingLocked(m, false) {
			n.pg.slots.at[name] = len(m.pg.wal)
			n.pg.slots.late[name] = false
		}
	}
}

// tendSlotsLocked is what the agent does every two seconds.
func (n *simNode) tendSlotsLocked(isPrimary bool) {
	if n.w.bug != bugSimSlotOnce {
		n.ensureSlotsLocked()
	}
	if isPrimary || n.pg.upstream == "" || !n.w.isStreamingLocked(n, false) {
		return
	}
	up := n.w.nodes[n.pg.upstream]
	for _, name := range n.w.servers {
		to, isThere := up.pg.slots.at[name]
		switch {
		case name == up.name:
			to, isThere = n.pg.slots.redo, true
		case n.w.bug == bugSimSlotPast:
			to = len(n.pg.wal)
		}
		to = min(to, len(n.pg.wal))
		if at, has := n.pg.slots.at[name]; has && isThere && at < to {
			n.pg.slots.at[name], n.pg.slots.late[name] = to, up.pg.slots.late[name]
		}
	}
}

// catchUpLocked: a slot is late until the member has got to where it begins.
func (n *simNode) catchUpLocked() {
	for name, isLate := range n.pg.slots.late {
		if isLate && n.w.nodes[name].neededOfLocked(n) >= n.pg.slots.at[name] {
			n.pg.slots.late[name] = false
		}
	}
}

// checkpointLocked removes the WAL that neither crash recovery nor a slot needs.
func (n *simNode) checkpointLocked(isPrimary bool) {
	s := &n.pg.slots
	if isPrimary {
		s.redo = len(n.pg.wal)
	} else if up, ok := n.w.nodes[n.pg.upstream]; ok {
		s.redo = max(s.redo, min(len(n.pg.wal), up.pg.slots.redo))
	}
	keep := s.redo
	for _, at := range s.at {
		keep = min(keep, at)
	}
	s.oldest = max(s.oldest, keep)
}

// checkSlotsLocked: a slot is missing for a moment at most, and what a standby needs is there if
// its slot was.
func (w *simWorld) checkSlotsLocked(n *simNode) {
	s := &n.pg.slots
	name := n.missesSlotLocked()
	if name != "" && s.since.IsZero() {
		s.since = time.Now()
	}
	if name != "" && time.Since(s.since) > simSlotsMax {
		w.violate("%s has no slot for %s for %s", n.name, name, time.Since(s.since))
	}
	if l := w.state.Lock; l == nil || l.Holder != n.name || n.pg.phase != election.PhasePrimary {
		return
	}
	for _, other := range w.servers {
		m := w.nodes[other]
		_, hasSlot := s.at[other]
		if hasSlot && m.pg.upstream == n.name && m.pg.phase == election.PhaseStandby &&
			isPrefix(m.pg.wal, n.pg.wal) && len(m.pg.wal) < s.oldest && !s.late[other] {
			w.violate("%s has removed WAL that %s needs, in spite of its slot", n.name, other)
		}
	}
}

// checkSlotsOfLockLocked: after a change of roles there is a slot for every member (DESIGN 9).
func (w *simWorld) checkSlotsOfLockLocked(l *election.Lock) {
	n := w.nodes[l.Holder]
	isDropped := !n.pg.slots.dropped.Before(n.pg.startedAt)
	if name := n.missesSlotLocked(); name != "" && !isDropped {
		w.violate("%s is the primary under epoch %d without a slot for %s", l.Holder, l.Epoch,
			name)
	}
}
