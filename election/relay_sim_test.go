package election_test

import (
	"holdfast/election"
)

// Mistakes about what lessees lend to sidecars.
const (
	bugRelayFirst   leaseBug = "relay releases before what it lent was released"
	bugRelayWhole   leaseBug = "relay lends a whole lease instead of what is left"
	bugRelayOn      leaseBug = "relay lends on after it gave the epoch up"
	bugBorrowAnswer leaseBug = "loan counted from receipt"
	bugRelayReach   leaseBug = "loan that ran out counts as returned at once"
)

// borrow asks some lessee for what is left of its lease.
func (s *leaseSim) borrow(l *simLessee) {
	if l.epoch <= l.given {
		return
	}
	relay := s.lessees[s.r.IntN(len(s.lessees))]
	sent := l.at(s.now)
	seq, epoch := l.tally.Send(sent)
	r := election.Renewal{Lessee: l.name, Incarnation: l.incarnation, Seq: seq, Epoch: epoch}
	s.send(func() {
		a := s.lend(relay, r)
		s.send(func() {
			_, before := l.tally.Deadlines()
			s.answer(l, 0, a)
			_, after := l.tally.Deadlines()
			if after > before && s.bug == bugBorrowAnswer && l.given < l.epoch {
				l.effect = max(l.effect, l.when(l.at(s.now)+a.Left)+int64(simReach))
			}
		})
	})
}

// lend is a relay's answer, with the mistakes.
func (s *leaseSim) lend(l *simLessee, r election.Renewal) election.RenewalAnswer {
	doubt, until := l.tally.Deadlines()
	now := l.at(s.now)
	switch {
	case s.bug == bugRelayWhole && until > now:
		doubt, until = now+int64(s.t.Doubt), now+int64(s.t.Lease)
	case s.bug == bugRelayOn && l.given == r.Epoch && l.left > now:
		return election.NewRelay(s.t).Renew(now, r, r.Epoch, l.left, l.left)
	}
	return l.relay.Renew(now, r, l.epoch, doubt, until)
}

// giveBack is a sidecar's release, to whoever may have lent to it.
func (s *leaseSim) giveBack(l *simLessee) {
	l.given = l.epoch
	seq := l.tally.Release()
	l.effect = 0
	r := election.Renewal{Lessee: l.name, Incarnation: l.incarnation, Seq: seq, Epoch: l.epoch}
	for _, relay := range s.lessees {
		s.send(func() {
			relay.relay.Release(relay.at(s.now), r)
			s.releaseWhenClear(relay)
		})
	}
}

// releaseWhenClear sends a lessee's release once nothing that it lent is outstanding.
func (s *leaseSim) releaseWhenClear(l *simLessee) {
	if l.release == nil {
		return
	}
	wait := l.relay.Outstanding(l.at(s.now), l.given)
	if s.bug == bugRelayReach {
		wait = max(0, wait-(s.t.Promise-s.t.Lease))
	}
	if wait > 0 && s.bug != bugRelayFirst {
		s.queue = append(s.queue, simMsg{l.when(l.at(s.now)+int64(wait)) + 1, func() {
			s.releaseWhenClear(l)
		}})
		return
	}
	send := l.release
	l.release = nil
	send()
}
