package election_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"holdfast/election"
)

var (
	leaseRuns = flag.Int("lease.runs", 3000, "schedules of the lease simulation")
	leaseSeed = flag.Int("lease.seed", 0, "seed of the first schedule")
)

// leaseBug is a mistake that the simulation has to find.
type leaseBug string

const (
	leaseSound         leaseBug = ""
	bugPromiseFromSend leaseBug = "promise counted from send"
	bugLeaseFromAnswer leaseBug = "lease counted from receipt"
	bugNoSilence       leaseBug = "forgotten silence after restart"
	bugForgotEndorsed  leaseBug = "endorsement not durable"
	bugReleaseNewer    leaseBug = "release cancels newer renewals"
	bugFormerSelf      leaseBug = "restarted lessee releases for its former self"
	bugShortened       leaseBug = "promise shortened by an overtaken message"
	bugLostDisk        leaseBug = "voter that lost its disk knows nothing"
	bugShortPromise    leaseBug = "promise as long as the lease"
)

const (
	simRate  = 0.0009                // clocks differ by less than 0.001, as assumed
	simReach = 99 * time.Millisecond // from the end of a lease until nothing arrives any more
)

// simClock is one host's: it runs at its own rate, from its own start.
type simClock struct {
	rate   float64
	offset int64
}

func (c simClock) at(now int64) int64 { return int64(float64(now)*c.rate) + c.offset }

// when is the true time at which the clock shows that.
func (c simClock) when(at int64) int64 { return int64(float64(at-c.offset) / c.rate) }

// simVoter is a voter with its disk.
type simVoter struct {
	*election.Promises
	simClock
	disk, floor uint64
	// perLessee replaces Promises under bugShortened: the last message wins.
	perLessee map[uint64]*election.Promises
	newest    map[uint64]uint64 // highest sequence number of each incarnation
}

// simLessee is one incarnation of a proxy; a former one may live on beside the next.
type simLessee struct {
	simClock
	name        string
	incarnation uint64
	tally       *election.Tally
	epoch       uint64
	given       uint64
	cheat       int64 // deadline by bugLeaseFromAnswer, 0 if none
	effect      int64 // true time until which something of the epoch may arrive
	relay       *election.Relay
	release     func() // sends the release that waits for what was lent
	left        int64  // end of the lease that was given up, for bugRelayOn
}

type simMsg struct {
	at   int64
	what func()
}

// leaseSim runs lessees and voters against each other under one schedule. True time is in
// nanoseconds; every host has a clock of its own. Messages are lost, doubled, delayed, overtaken.
type leaseSim struct {
	r       *rand.Rand
	t       election.Timing
	now     int64
	bug     leaseBug
	voters  []*simVoter
	lessees []*simLessee
	sides   []*simLessee // sidecars, which borrow from the lessees
	queue   []simMsg
	begun   uint64                  // epoch of the newest intent
	yes     map[uint64]map[int]bool // voters that have answered an endorsement of the epoch
	locks   []uint64                // epochs of all locks
	former  int                     // of lessees' incarnations, for bugFormerSelf
}

func newLeaseSim(seed int, bug leaseBug) *leaseSim {
	t, _ := election.TimingOf(election.ProfileLAN)
	s := &leaseSim{
		r: rand.New(rand.NewPCG(uint64(seed), 1)), t: t, now: int64(time.Hour), bug: bug,
		begun: 1, locks: []uint64{1}, yes: map[uint64]map[int]bool{1: {0: true, 1: true, 2: true}},
	}
	if bug == bugShortPromise {
		s.t.Promise = s.t.Lease
	}
	for range 3 {
		v := &simVoter{simClock: s.newClock(), disk: 1}
		s.startVoter(v, true)
		s.voters = append(s.voters, v)
	}
	for i := range 2 {
		s.lessees = append(s.lessees, s.newLessee(fmt.Sprintf("p%d", i)))
	}
	for i := range 2 {
		l := s.newLessee(fmt.Sprintf("side%d", i))
		l.tally = election.NewBorrowerTally(s.t)
		l.tally.Begin(l.epoch)
		s.sides = append(s.sides, l)
	}
	return s
}

func (s *leaseSim) newClock() simClock {
	c := simClock{rate: 1 + (s.r.Float64()*2-1)*simRate}
	if s.bug != bugShortened { // promises counted from send are safe with one clock only
		c.offset = int64(s.r.IntN(20)-10) * int64(time.Second)
	}
	return c
}

func (s *leaseSim) startVoter(v *simVoter, first bool) {
	v.Promises = election.NewPromises(s.t, v.at(s.now), v.disk, first)
	v.Forbid(v.floor)
	v.perLessee = make(map[uint64]*election.Promises)
	v.newest = make(map[uint64]uint64)
}

// newLessee knows some lock that there was; its state may be behind.
func (s *leaseSim) newLessee(name string) *simLessee {
	l := &simLessee{
		simClock: s.newClock(), name: name, incarnation: s.r.Uint64(),
		tally: election.NewTally(s.t, 3), relay: election.NewRelay(s.t),
		epoch: s.locks[s.r.IntN(len(s.locks))],
	}
	if s.bug == bugFormerSelf {
		l.incarnation = 1
		s.former += 1000
		for range s.former {
			l.tally.Send(l.at(s.now)) // it goes on where its former self may have been
		}
	}
	l.tally.Begin(l.epoch)
	return l
}

// send delivers after a delay, perhaps twice, perhaps never.
func (s *leaseSim) send(f func()) {
	for range 1 + s.r.IntN(2)*s.r.IntN(2) {
		if s.r.IntN(6) == 0 {
			continue
		}
		delay := int64(s.r.IntN(400)) * int64(time.Millisecond)
		if s.r.IntN(8) == 0 {
			delay += int64(s.r.IntN(6000)) * int64(time.Millisecond)
		}
		s.queue = append(s.queue, simMsg{s.now + delay, f})
	}
}

// deliver lets time pass until then, message by message.
func (s *leaseSim) deliver(then int64) error {
	for {
		next := -1
		for i, m := range s.queue {
			if m.at <= then && (next < 0 || m.at < s.queue[next].at) {
				next = i
			}
		}
		if next < 0 {
			break
		}
		m := s.queue[next]
		s.queue = slices.Delete(s.queue, next, next+1)
		s.now = max(s.now, m.at)
		m.what()
		if err := s.check(); err != nil {
			return err
		}
	}
	s.now = then
	return nil
}

// renew sends a renewal to every voter.
func (s *leaseSim) renew(l *simLessee) {
	if l.epoch <= l.given {
		return
	}
	sent := l.at(s.now)
	seq, epoch := l.tally.Send(sent)
	r := election.Renewal{Lessee: l.name, Incarnation: l.incarnation, Seq: seq, Epoch: epoch}
	for i, v := range s.voters {
		s.send(func() {
			a := s.take(v, r, sent)
			s.send(func() { s.answer(l, i, a) })
		})
	}
}

// take is a voter's Renew, with the mistakes.
func (s *leaseSim) take(v *simVoter, r election.Renewal, sent int64) election.RenewalAnswer {
	v.newest[r.Incarnation] = max(v.newest[r.Incarnation], r.Seq)
	switch s.bug {
	case bugPromiseFromSend:
		return v.Renew(sent, r)
	case bugShortened:
		a := v.Renew(v.at(s.now), r)
		if a.Granted {
			p := election.NewPromises(s.t, 0, v.Endorsed(), true)
			p.Renew(sent, r)
			v.perLessee[r.Incarnation] = p
		}
		return a
	}
	return v.Renew(v.at(s.now), r)
}

func (s *leaseSim) answer(l *simLessee, voter int, a election.RenewalAnswer) {
	_, before := l.tally.Deadlines()
	l.tally.Answer(fmt.Sprint(voter), a)
	_, after := l.tally.Deadlines()
	if after > before && s.bug == bugLeaseFromAnswer {
		l.cheat = l.at(s.now) + int64(s.t.Lease)
	}
	if end := max(after, l.cheat); l.at(s.now) < end {
		l.effect = l.when(end) + int64(simReach)
	}
}

// release gives the epoch up after the gate is closed: nothing of it is under way any more.
func (s *leaseSim) release(l *simLessee) {
	l.given = l.epoch
	_, l.left = l.tally.Deadlines()
	l.relay.Close(l.epoch)
	seq := l.tally.Release()
	l.cheat, l.effect = 0, 0
	r := election.Renewal{Lessee: l.name, Incarnation: l.incarnation, Seq: seq, Epoch: l.epoch}
	l.release = func() {
		for _, v := range s.voters {
			s.send(func() { s.takeRelease(v, r) })
		}
	}
	s.releaseWhenClear(l)
}

// takeRelease is a voter's Release, with the mistakes.
func (s *leaseSim) takeRelease(v *simVoter, r election.Renewal) {
	if s.bug == bugReleaseNewer {
		r.Seq = max(r.Seq, v.newest[r.Incarnation])
	}
	v.Release(v.at(s.now), r)
	if p := v.perLessee[r.Incarnation]; p != nil {
		p.Release(v.at(s.now), r)
	}
}

// endorse asks a voter for the epoch of the intent that stands.
func (s *leaseSim) endorse(i int) {
	epoch := s.begun
	s.send(func() { s.tryEndorse(i, epoch) })
}

// tryEndorse endorses, or tries again when the promises have run out.
func (s *leaseSim) tryEndorse(i int, epoch uint64) {
	v := s.voters[i]
	wait := v.MayEndorse(v.at(s.now), epoch)
	if s.bug == bugShortened {
		wait = 0
		for _, p := range v.perLessee {
			wait = max(wait, p.MayEndorse(v.at(s.now), epoch))
		}
	}
	if epoch != s.begun || v.Endorsed() > epoch {
		return
	}
	if wait > 0 {
		life := v.Promises
		s.queue = append(s.queue, simMsg{v.when(v.at(s.now)+int64(wait)) + 1, func() {
			if v.Promises == life {
				s.tryEndorse(i, epoch)
			}
		}})
		return
	}
	v.disk = max(v.disk, epoch)
	v.Endorse(epoch)
	if s.yes[epoch] == nil {
		s.yes[epoch] = make(map[int]bool)
	}
	s.yes[epoch][i] = true
}

func (s *leaseSim) restart(v *simVoter) {
	v.simClock = s.newClock()
	if s.bug == bugForgotEndorsed {
		v.disk = 0
	}
	s.startVoter(v, s.bug == bugNoSilence)
}

// loseDisk restarts a voter on an empty disk; what the others know of is in their logs.
func (s *leaseSim) loseDisk(v *simVoter) {
	v.disk, v.floor = 0, s.begun
	if s.bug == bugLostDisk {
		v.floor = 0
	}
	s.restart(v)
}

// step does one random thing and checks the invariant.
func (s *leaseSim) step() error {
	then := s.now + int64(s.r.IntN(200))*int64(time.Millisecond)
	if err := s.deliver(then); err != nil {
		return err
	}
	l := s.lessees[s.r.IntN(len(s.lessees))]
	current := s.locks[len(s.locks)-1]
	side := s.sides[s.r.IntN(len(s.sides))]
	switch s.r.IntN(60) {
	case 0, 1:
		s.restart(s.voters[s.r.IntN(3)])
	case 2:
		s.loseDisk(s.voters[s.r.IntN(3)])
	case 3:
		// The former one may be dead, or hang and go on later.
		if len(s.lessees) > 3 || s.r.IntN(2) == 0 {
			s.lessees = s.lessees[1:]
		}
		s.lessees = append(s.lessees, s.newLessee(l.name))
	case 4, 5, 6:
		if s.begun == current || s.r.IntN(4) == 0 { // else the intent is replaced
			s.begun++
		}
	case 7, 8:
		if s.begun > current && len(s.yes[s.begun]) >= 2 {
			s.locks = append(s.locks, s.begun)
		}
	case 9, 10, 11, 12, 13, 14:
		s.endorse(s.r.IntN(3))
	case 15, 16, 17:
		if l.epoch < s.begun && l.given < l.epoch { // it sees the intent
			s.release(l)
		}
	case 18, 19, 20:
		if l.epoch < current { // it sees the lock: what came before is over
			s.release(l)
			l.epoch = current
			l.tally.Begin(l.epoch)
		}
	case 21, 22:
		if side.epoch < s.begun && side.given < side.epoch {
			s.giveBack(side)
		}
	case 23, 24, 25:
		if side.epoch < current {
			s.giveBack(side)
			side.epoch = current
			side.tally.Begin(side.epoch)
		}
	case 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38:
		s.borrow(side)
	default:
		s.renew(l)
	}
	return s.check()
}

// check is the invariant: while something of an epoch may still arrive, no majority has endorsed
// a higher one.
func (s *leaseSim) check() error {
	for _, l := range slices.Concat(s.lessees, s.sides) {
		for e := l.epoch + 1; e <= s.begun; e++ {
			if s.now < l.effect && len(s.yes[e]) >= 2 {
				return fmt.Errorf("%s may use epoch %d though %d is endorsed", l.name, l.epoch, e)
			}
		}
	}
	return nil
}

// runLease runs schedules until the invariant breaks; it returns the one that broke it.
func runLease(bug leaseBug, first, runs int) (int, error) {
	for seed := first; seed < first+runs; seed++ {
		s := newLeaseSim(seed, bug)
		for i := range 250 {
			if err := s.step(); err != nil {
				return seed, fmt.Errorf("step %d: %w", i, err)
			}
		}
	}
	return -1, nil
}
