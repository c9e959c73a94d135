package election_test

import "holdfast/election"

// Mistakes about configurations that the simulation must find.
const (
	bugSimWitness simBug = "a witness counts as a standby"
	bugSimNearest simBug = "positions of recruits are not compared"
)

// simMode is the mode of a schedule.
func simMode(seed uint64) string {
	if seed%10 == 3 {
		return election.SyncOff
	}
	return []string{election.SyncStrict, election.SyncQuorum, election.SyncOn,
		election.SyncQuorum}[seed%4]
}

// configure makes a schedule one of a group with a witness, or without synchronous replication.
func (w *simWorld) configure(seed uint64, bug simBug) {
	w.isFenceless, w.isMild = seed%3 == 0, seed%8 == 7
	w.hasWitness = seed%7 == 5
	mode := simMode(seed)
	// The quorum of two servers waits for nobody, as docs/synchronous.md has it.
	w.isOff = bug != bugFewRecruits &&
		(mode == election.SyncOff || mode == election.SyncQuorum && w.hasWitness)
	if w.isOff {
		w.isFenceless = false // nothing then protects what was acknowledged
	}
	w.fence, w.waived = simFence(seed, bug), map[uint64]bool{}
	if w.isOff {
		w.fence = election.FenceLease
	}
	w.state = &election.State{V: 1}
	for i, n := range w.names {
		m := election.Member{Name: n, Postgres: n + ":5432"}
		if w.hasWitness && i == len(w.names)-1 {
			m.Postgres = ""
		} else {
			w.servers = append(w.servers, n)
		}
		w.state.Members = append(w.state.Members, m)
	}
}

// isWitness tells that the node has no PostgreSQL.
func (n *simNode) isWitness() bool { return n.index >= len(n.w.servers) }

// withWitnessLocked is what a coordinator sees that takes every voter for a server.
func (n *simNode) withWitnessLocked() *election.State {
	if n.view.Lock == nil {
		return n.view // it would wait for ever for its data directory
	}
	s := *n.view
	s.Members = nil
	for _, m := range n.view.Members {
		m.Postgres = m.Name + ":5432"
		s.Members = append(s.Members, m)
	}
	return &s
}

// simRecruit is what a recruit answered to a coordinator.
type simRecruit struct {
	by, member string
	epoch      uint64
}

// noteRecruitLocked notes the position that a recruit answered.
func (n *simNode) noteRecruitLocked(member string, o election.Order, r *election.OrderResult) {
	if o.Kind != election.OrderRecruit {
		return
	}
	n.w.recruits[simRecruit{n.name, member, o.Epoch}] = *r
	if n.w.bug == bugSimNearest {
		r.LSN = 1000000
	}
}

// forgetRecruitsLocked is a coordinator that begins to lead: it asks anew.
func (n *simNode) forgetRecruitsLocked() {
	for k := range n.w.recruits {
		if k.by == n.name {
			delete(n.w.recruits, k)
		}
	}
}

// checkTarget: of those that answered, the furthest is chosen, unless an operator named another
// one. Without synchronous replication that bounds what is lost.
func (n *simNode) checkTarget(t *election.SetTarget) {
	w := n.w
	w.mu.Lock()
	defer w.mu.Unlock()
	it := w.state.Intent
	if it == nil || it.Epoch != t.Epoch || it.Kind != election.IntentFailover || it.Only != "" {
		return
	}
	to := w.recruits[simRecruit{n.name, t.To, t.Epoch}]
	for _, name := range w.servers {
		r, ok := w.recruits[simRecruit{n.name, name, t.Epoch}]
		if ok && r.Timeline == to.Timeline && r.LSN > to.LSN {
			w.violate("%s is chosen under epoch %d at %s, and %s answered %s", t.To, t.Epoch,
				to.LSN, name, r.LSN)
		}
	}
}

// checkLossLocked: without synchronous replication commits that were acknowledged may be lost, and
// whoever asks for one is told so: it is never taken for another transaction that has its id.
func (w *simWorld) checkLossLocked(after *election.State) {
	wal := w.nodes[after.Lock.Holder].pg.wal
	has := make(map[uint64]bool, len(wal))
	for _, e := range wal {
		has[e] = true
	}
	for entry, c := range w.ackedWhole {
		if has[entry] {
			continue
		}
		delete(w.acked, entry)
		delete(w.ackedWhole, entry)
		w.lost++
		if told, isKnown := w.fateLocked(after, c); isKnown && told != 0 {
			w.violate("xid %d that epoch %d acknowledged is lost under %d and is told committed",
				c.xid, c.epoch, after.Lock.Epoch)
		}
	}
}
