package election_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"holdfast/election"
)

var leaseRuns = flag.Int("lease.runs", 3000, "schedules of the lease simulation")

// leaseBug is a mistake that the simulation has to find.
type leaseBug string

const (
	leaseSound         leaseBug = ""
	bugPromiseFromSend leaseBug = "promise counted from send"
	bugLeaseFromAnswer leaseBug = "lease counted from receipt"
	bugNoSilence       leaseBug = "forgotten silence after restart"
	bugForgotEndorsed  leaseBug = "endorsement not durable"
	bugReleaseAll      leaseBug = "release of the former self"
)

// simVoter is a voter with its disk.
type simVoter struct {
	promises *election.Promises
	disk     uint64
}

// simLessee is one incarnation of a proxy.
type simLessee struct {
	name        string
	incarnation uint64
	tally       *election.Tally
	epoch       uint64
	rate        float64 // of its clock
	cheat       int64   // deadline by the bug, 0 if none
}

type simMsg struct {
	at   int64
	what func()
}

// leaseSim runs lessees and voters against each other under one schedule. True time is in
// nanoseconds; the lessees' clocks run at their own rates.
type leaseSim struct {
	r       *rand.Rand
	t       election.Timing
	now     int64
	bug     leaseBug
	voters  []*simVoter
	lessees []*simLessee
	queue   []simMsg
	asked   uint64 // epoch that is to be endorsed
}

func newLeaseSim(seed uint64, bug leaseBug) *leaseSim {
	t, _ := election.TimingOf(election.ProfileLAN)
	s := &leaseSim{r: rand.New(rand.NewPCG(seed, 1)), t: t, now: int64(time.Hour), bug: bug}
	for range 3 {
		s.voters = append(s.voters, &simVoter{
			promises: election.NewPromises(t, s.now, 0, true), disk: 1,
		})
	}
	for _, v := range s.voters {
		v.promises.Endorse(1)
	}
	for i := range 2 {
		s.lessees = append(s.lessees, s.newLessee(fmt.Sprintf("p%d", i), 1))
	}
	s.asked = 1
	return s
}

func (s *leaseSim) newLessee(name string, epoch uint64) *simLessee {
	l := &simLessee{
		name: name, incarnation: s.r.Uint64(), tally: election.NewTally(s.t, 3), epoch: epoch,
		rate: 1 + (s.r.Float64()*2-1)*0.0009,
	}
	l.tally.Begin(epoch)
	return l
}

func (s *leaseSim) clock(l *simLessee) int64 { return int64(float64(s.now) * l.rate) }

// send delivers after a delay, perhaps twice, perhaps never.
func (s *leaseSim) send(f func()) {
	for range 1 + s.r.IntN(2)*s.r.IntN(2) {
		if s.r.IntN(6) == 0 {
			continue
		}
		delay := int64(s.r.IntN(400)) * int64(time.Millisecond)
		if s.r.IntN(8) == 0 {
			delay += int64(s.r.IntN(4000)) * int64(time.Millisecond)
		}
		s.queue = append(s.queue, simMsg{s.now + delay, f})
	}
}

func (s *leaseSim) deliver() {
	var rest []simMsg
	ready := s.queue
	s.queue = nil
	s.r.Shuffle(len(ready), func(i, j int) { ready[i], ready[j] = ready[j], ready[i] })
	for _, m := range ready {
		if m.at <= s.now {
			m.what()
		} else {
			rest = append(rest, m)
		}
	}
	s.queue = append(rest, s.queue...)
}

// renew sends a renewal to every voter.
func (s *leaseSim) renew(l *simLessee) {
	sent := s.clock(l) // the sender's clock, as a voter would read it from the message
	seq, epoch := l.tally.Send(s.clock(l))
	r := election.Renewal{Lessee: l.name, Incarnation: l.incarnation, Seq: seq, Epoch: epoch}
	for i, v := range s.voters {
		s.send(func() {
			at := s.now
			if s.bug == bugPromiseFromSend {
				at = sent
			}
			a := v.promises.Renew(at, r)
			s.send(func() { s.answer(l, i, a) })
		})
	}
}

func (s *leaseSim) answer(l *simLessee, voter int, a election.RenewalAnswer) {
	_, before := l.tally.Deadlines()
	l.tally.Answer(fmt.Sprint(voter), a)
	_, after := l.tally.Deadlines()
	if after > before && s.bug == bugLeaseFromAnswer {
		l.cheat = s.clock(l) + int64(s.t.Lease)
	}
}

func (s *leaseSim) mayUse(l *simLessee) bool {
	_, until := l.tally.Deadlines()
	return s.clock(l) < max(until, l.cheat)
}

// release gives the epoch up; with the seeded bug a restarted process does so for its former
// self, whose messages may still be answered to it.
func (s *leaseSim) release(l *simLessee, incarnation uint64) {
	seq := l.tally.Release()
	l.cheat = 0
	if s.bug == bugReleaseAll {
		seq = 1 << 60
	}
	r := election.Renewal{Lessee: l.name, Incarnation: incarnation, Seq: seq, Epoch: l.epoch}
	for _, v := range s.voters {
		s.send(func() { v.promises.Release(s.now, r) })
	}
}

// endorse asks a voter for the epoch that is wanted.
func (s *leaseSim) endorse(v *simVoter) {
	epoch := s.asked
	s.send(func() {
		if v.promises.MayEndorse(s.now, epoch) == 0 {
			v.disk = max(v.disk, epoch)
			v.promises.Endorse(epoch)
		}
	})
}

func (s *leaseSim) restart(v *simVoter) {
	disk := v.disk
	if s.bug == bugForgotEndorsed {
		disk = 0
	}
	v.promises = election.NewPromises(s.t, s.now, disk, s.bug == bugNoSilence)
}

// step does one random thing and checks the invariant: while a lessee may use an epoch, no
// majority has endorsed a higher one.
func (s *leaseSim) step() error {
	s.now += int64(s.r.IntN(200)) * int64(time.Millisecond)
	s.deliver()
	switch l := s.lessees[s.r.IntN(len(s.lessees))]; s.r.IntN(20) {
	case 0:
		s.restart(s.voters[s.r.IntN(3)])
	case 1:
		i := s.r.IntN(len(s.lessees))
		s.lessees[i] = s.newLessee(l.name, s.lessees[i].epoch)
	case 2:
		if s.majority(s.asked) {
			s.asked++
		}
	case 3, 4, 5, 6:
		s.endorse(s.voters[s.r.IntN(3)])
	case 7:
		if l.epoch < s.asked { // it has seen the intent
			s.release(l, l.incarnation)
			if s.bug == bugReleaseAll { // another process that still uses the epoch
				s.lessees[0].incarnation = l.incarnation
				s.lessees[0].name = l.name
			}
			if s.majority(s.asked) {
				l.epoch = s.asked
				l.tally.Begin(l.epoch)
			}
		}
	case 8:
		if s.majority(s.asked) && l.epoch < s.asked {
			l.cheat = 0
			l.epoch = s.asked
			l.tally.Begin(l.epoch)
		}
	default:
		s.renew(l)
	}
	for _, l := range s.lessees {
		for e := l.epoch + 1; e <= s.asked; e++ {
			if s.mayUse(l) && s.majority(e) {
				return fmt.Errorf("%s may use epoch %d though %d is endorsed", l.name, l.epoch, e)
			}
		}
	}
	return nil
}

func (s *leaseSim) majority(epoch uint64) bool {
	n := 0
	for _, v := range s.voters {
		if v.disk >= epoch {
			n++
		}
	}
	return n >= 2
}

// runLease runs schedules until the invariant breaks; it returns how many held.
func runLease(bug leaseBug, runs int) (int, error) {
	for seed := range runs {
		s := newLeaseSim(uint64(seed), bug)
		for range 200 {
			if err := s.step(); err != nil {
				return seed, fmt.Errorf("seed %d: %w", seed, err)
			}
		}
	}
	return runs, nil
}

func TestLeaseIsSafe(t *testing.T) {
	if _, err := runLease(leaseSound, *leaseRuns); err != nil {
		t.Fatal(err)
	}
}

func TestLeaseSimulationFindsSeededBugs(t *testing.T) {
	for _, bug := range []leaseBug{
		bugPromiseFromSend, bugLeaseFromAnswer, bugNoSilence, bugForgotEndorsed, bugReleaseAll,
	} {
		if n, err := runLease(bug, *leaseRuns); err == nil {
			t.Errorf("%s: not found in %d schedules", bug, n)
		} else {
			t.Logf("%s: found by %v", bug, err)
		}
	}
}

func TestReleaseTakesBackOnlyWhatCameBefore(t *testing.T) {
	tm, _ := election.TimingOf(election.ProfileLAN)
	p := election.NewPromises(tm, 0, 1, true)
	r := election.Renewal{Lessee: "a", Incarnation: 7, Seq: 5, Epoch: 1}
	if !p.Renew(1, r).Granted {
		t.Fatal("not granted")
	}
	// Of another incarnation, and of an older sequence number: the promise stands.
	p.Release(2, election.Renewal{Lessee: "a", Incarnation: 8, Seq: 99, Epoch: 1})
	p.Release(2, election.Renewal{Lessee: "a", Incarnation: 7, Seq: 4, Epoch: 1})
	if p.MayEndorse(3, 2) == 0 {
		t.Error("a release took back a promise that it must not")
	}
	p.Release(4, election.Renewal{Lessee: "a", Incarnation: 7, Seq: 6, Epoch: 1})
	if p.MayEndorse(5, 2) != 0 {
		t.Error("a release had no effect")
	}
	if p.Renew(6, r).Granted {
		t.Error("a renewal that the release overtook was granted")
	}
}

func TestAnswersBeforeAReleaseAreIgnored(t *testing.T) {
	tm, _ := election.TimingOf(election.ProfileLAN)
	y := election.NewTally(tm, 3)
	y.Begin(1)
	seq, _ := y.Send(100)
	y.Release()
	for _, v := range []string{"a", "b", "c"} {
		y.Answer(v, election.RenewalAnswer{Seq: seq, Granted: true})
	}
	if _, until := y.Deadlines(); until != 0 {
		t.Error("a lease came back after its release")
	}
}

func TestTimingsAreSafe(t *testing.T) {
	for _, p := range []string{election.ProfileLAN, election.ProfileCloud, election.ProfileWAN} {
		tm, err := election.TimingOf(p)
		if err != nil || tm.Validate() != nil {
			t.Errorf("%s: %v %v", p, err, tm.Validate())
		}
		tm.Promise = tm.Lease
		if tm.Validate() == nil {
			t.Errorf("%s: a promise as short as the lease is taken", p)
		}
	}
}
