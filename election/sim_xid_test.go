package election_test

import (
	"slices"

	"holdfast/election"
)

// Mistakes about transaction ids and the sync set that the simulation must find.
const (
	bugSimLateXid simBug = "next xid read too late"
	bugSimWidened simBug = "sync set widened before the record"
	bugSimNoBound simBug = "a promotion tells no boundary of transaction ids"
)

// writeLocked writes a transaction on the server.
func (n *simNode) writeLocked() (entry uint64) {
	entry = n.w.entryLocked(n.pg.timeline())
	n.pg.wal = append(n.pg.wal, entry)
	n.w.xids[entry] = n.pg.nextXid
	n.pg.nextXid++
	return entry
}

// boundLocked is what the agent of a promoted standby finds out about transaction ids. Somebody
// who was logged in to the standby takes some as soon as it is a primary.
func (n *simNode) boundLocked() {
	next := uint64(3)
	for _, e := range slices.Backward(n.pg.wal) {
		if xid, ok := n.w.xids[e]; ok {
			next = xid + 1
			break
		}
	}
	n.pg.nextXid, n.pg.lo = next, next
	d := n.dice(actAgent)
	for range d.upto(3) {
		n.writeLocked()
	}
	n.pg.hi = n.pg.nextXid
	switch n.w.bug {
	case bugSimLateXid:
		n.pg.lo = n.pg.hi
	case bugSimNoBound:
		n.pg.lo, n.pg.hi = 1<<62, 1<<62
	}
}

// dropLocked is a server that ends: nobody is told about the commits that it was asked for.
func (n *simNode) dropLocked() {
	n.w.doubtful = append(n.w.doubtful, n.pg.pending...)
	n.pg.pending = nil
}

// resolveLocked tells clients what became of their commits, by the boundaries of the epochs since
// (DESIGN 10.12), as the proxy does; it looks at what the new primary really has.
func (w *simWorld) resolveLocked(s *election.State) {
	doubtful, wal := w.doubtful, w.nodes[s.Lock.Holder].pg.wal
	w.doubtful = nil
	if w.isFenceless {
		return // boundaries are promised to proxies that keep to their leases
	}
	for _, c := range doubtful {
		told, isKnown := w.fateLocked(s, c)
		switch {
		case !isKnown: // told that nobody can know
		case told != 0 && told != c.entry:
			w.violate("xid %d of epoch %d is told committed under %d and was another's", c.xid,
				c.epoch, s.Lock.Epoch)
		case told == 0 && slices.Contains(wal, c.entry):
			w.violate("xid %d of epoch %d is told lost under %d and is there", c.xid, c.epoch,
				s.Lock.Epoch)
		}
	}
}

// fateLocked is what whoever asks is told about a commit: the entry that has its id in the new
// primary's WAL, 0 if none has; or that nobody can know.
func (w *simWorld) fateLocked(s *election.State, c simCommit) (told uint64, isKnown bool) {
	isAsked, isKnown := true, true
	for _, h := range s.History {
		switch {
		case h.Lock.Epoch <= c.epoch:
		case c.xid >= h.Lock.XidHi:
			isAsked = false // it never arrived
		case c.xid >= h.Lock.XidLo:
			isKnown = false
		}
	}
	if !isAsked {
		return 0, true
	}
	for _, e := range w.nodes[s.Lock.Holder].pg.wal {
		if w.xids[e] == c.xid {
			told = e
		}
	}
	return told, isKnown
}
