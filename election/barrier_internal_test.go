package election

import (
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
)

// lockOwner is a proxy whose sessions have advisory locks in an epoch; 0 is none.
type lockOwner struct{ epoch atomic.Uint64 }

func (o *lockOwner) LocksBehind(epoch uint64) bool {
	e := o.epoch.Load()
	return e != 0 && e < epoch
}

// barrierTest is a lessee beside another one, p, with the same voters.
type barrierTest struct {
	a, b       *lesseeTest
	owns, none *lockOwner
}

// withTwo runs two lessees; the first one's proxy has locks of epoch 1.
func withTwo(t *testing.T, f func(t *testing.T, w *barrierTest)) {
	t.Helper()
	inBubble(t, func(t *testing.T, a *lesseeTest) {
		w := &barrierTest{a: a, owns: &lockOwner{}, none: &lockOwner{}}
		w.owns.epoch.Store(1)
		w.b = &lesseeTest{diary: &diary{}, fsm: newFSM()}
		w.b.gate = &slowGate{diary: w.b.diary}
		w.b.lessee = newLessee("q", a.timing, 5*time.Second, a.lessee.voters, w.b.fsm, w.b.gate,
			zap.NewNop(), bubbleNow)
		a.locks, w.b.locks = w.owns, w.none
		a.lockBarrier, w.b.lockBarrier = 2*time.Second, 2*time.Second
		f(t, w)
	})
}

// change is a failover to the epoch that both see.
func (w *barrierTest) change(from, to uint64) {
	w.a.set(intended(from, to, IntentFailover))
	w.b.set(intended(from, to, IntentFailover))
	w.endorse(to)
	w.a.set(locked(to))
	w.b.set(locked(to))
}

func (w *barrierTest) endorse(to uint64) {
	w.a.mu.Lock()
	defer w.a.mu.Unlock()
	for _, v := range w.a.voters {
		v.promises.Endorse(to)
	}
}

func (l *lesseeTest) isOpen(epoch uint64) bool {
	select {
	case <-l.barrierOf(epoch):
		return true
	default:
		return false
	}
}

func (w *barrierTest) begin(t *testing.T) {
	w.a.start(t)
	w.b.start(t)
	w.a.set(locked(1))
	w.b.set(locked(1))
	pass(w.a.timing.Interval)
	if !w.a.holds() || !w.b.holds() || !w.b.isOpen(1) {
		t.Fatal("no leases, or a barrier without a change")
	}
}

// TestBarrierWaitsForLocks (DESIGN 10.10): a proxy has the lease and waits until the other one's
// sessions have their locks again; then it waits no longer.
func TestBarrierWaitsForLocks(t *testing.T) {
	withTwo(t, func(t *testing.T, w *barrierTest) {
		w.begin(t)
		w.change(1, 2)
		for range 10 {
			pass(100 * time.Millisecond)
			if !w.a.holds() || !w.b.holds() || w.a.isOpen(2) || w.b.isOpen(2) {
				t.Fatal("open before the locks were taken again, or no lease to take them with")
			}
		}
		w.owns.epoch.Store(2)
		pass(4 * w.a.timing.Interval / lockGateLook)
		if !w.a.isOpen(2) || !w.b.isOpen(2) {
			t.Error("shut although the locks were taken again")
		}
		if w.b.lateLocks() != "" {
			t.Error("late")
		}
		// The locks are there in the next epoch too: what was told of the one before is over.
		w.change(2, 3)
		pass(100 * time.Millisecond)
		if w.b.isOpen(3) {
			t.Error("open before the locks were taken again the second time")
		}
	})
}

// TestBarrierCostsNothing without locks: it is open with the very answers that grant the lease.
func TestBarrierCostsNothing(t *testing.T) {
	withTwo(t, func(t *testing.T, w *barrierTest) {
		w.owns.epoch.Store(0)
		w.begin(t)
		before := bubbleNow()
		w.change(1, 2)
		if bubbleNow() != before || !w.b.holds() || !w.b.isOpen(2) || !w.a.isOpen(2) {
			t.Error("shut though nobody has locks")
		}
		if n := w.b.count("renew 2"); n != 0 { // the diary of the voters is a's
			t.Errorf("%d renewals", n)
		}
	})
}

// TestBarrierHasAnEnd, and is no longer than configured.
func TestBarrierHasAnEnd(t *testing.T) {
	withTwo(t, func(t *testing.T, w *barrierTest) {
		w.begin(t)
		w.change(1, 2)
		pass(w.b.lockBarrier - 100*time.Millisecond)
		if w.b.isOpen(2) {
			t.Error("open before its end")
		}
		pass(200 * time.Millisecond)
		if !w.b.isOpen(2) || !strings.Contains(w.b.lateLocks(), "epoch 2") {
			t.Errorf("shut behind its end, or nobody is told: %q", w.b.lateLocks())
		}
		w.b.lockBarrier = 0
		w.change(2, 3)
		if !w.b.isOpen(3) {
			t.Error("shut although it is switched off")
		}
	})
}

// TestBarrierOfTheMissing: whoever was not heard of for a promise is not waited for, neither one
// that died with its lease nor one that died behind its release, but for one change.
func TestBarrierOfTheMissing(t *testing.T) {
	withTwo(t, func(t *testing.T, w *barrierTest) {
		w.begin(t)
		// a is cut off: it neither renews nor releases.
		w.a.lessee.mu.Lock()
		w.a.lessee.voters = nil
		w.a.lessee.mu.Unlock()
		pass(w.a.timing.Promise + w.a.timing.Interval)
		w.b.set(intended(1, 2, IntentFailover))
		w.endorse(2)
		if w.b.set(locked(2)); !w.b.isOpen(2) {
			t.Error("one whose promise has run out is waited for")
		}
	})
	withTwo(t, func(t *testing.T, w *barrierTest) {
		w.begin(t)
		w.a.set(intended(1, 2, IntentFailover)) // it releases, and is not heard of any more
		w.b.set(intended(1, 2, IntentFailover))
		w.endorse(2)
		if w.b.set(locked(2)); w.b.isOpen(2) {
			t.Error("one that released with locks is not waited for")
		}
		if pass(w.b.timing.Promise + w.b.timing.Interval); !w.b.isOpen(2) {
			t.Error("shut")
		}
		w.b.set(intended(2, 3, IntentFailover))
		w.endorse(3)
		if w.b.set(locked(3)); !w.b.isOpen(3) {
			t.Error("one that is missing for long is waited for again")
		}
	})
}

// TestBarrierUnderAWaivedPromise (I70): a proxy that is cut off with the old primary is waited for
// only if it had locks when it was last heard of.
func TestBarrierUnderAWaivedPromise(t *testing.T) {
	tm, _ := TimingOf(ProfileLAN)
	for _, tc := range []struct {
		holds    bool
		endorsed uint64
		want     bool
	}{{true, 2, true}, {false, 2, false}, {false, 0, true}} {
		p := NewPromises(tm, 0, 0, true)
		p.Renew(1, Renewal{Lessee: "cut off", Seq: 1, Epoch: 1, Holds: tc.holds})
		p.Endorse(tc.endorsed)
		if a := p.Renew(2, Renewal{Lessee: "p", Seq: 1, Epoch: 2}); !a.Granted || a.Shut != tc.want {
			t.Errorf("%+v: %+v", tc, a)
		}
		after := 1 + int64(tm.Promise)
		if a := p.Renew(after, Renewal{Lessee: "p", Seq: 2, Epoch: 2}); a.Shut {
			t.Errorf("%+v: shut behind the promise", tc)
		}
	}
}

// TestBarrierOfBorrowers: sidecars with locks get their loan at once and are waited for by all;
// those without get one when the barrier is open.
func TestBarrierOfBorrowers(t *testing.T) {
	withTwo(t, func(t *testing.T, w *barrierTest) {
		w.owns.epoch.Store(0)
		w.begin(t)
		owner := &lockOwner{}
		owner.epoch.Store(1)
		var side [2]*lesseeTest
		for i := range side {
			side[i] = withBorrowerOf(t, w.a, []LockBook{owner, &lockOwner{}}[i])
			side[i].set(locked(1))
		}
		pass(2 * w.a.timing.Interval)
		if !side[0].holds() || !side[1].holds() {
			t.Fatal("no loans")
		}
		for _, l := range side {
			l.set(intended(1, 2, IntentFailover))
		}
		w.change(1, 2)
		for _, l := range side {
			l.set(locked(2))
		}
		pass(300 * time.Millisecond)
		if !side[0].holds() || side[1].holds() {
			t.Fatalf("loans: with locks %v, without %v", side[0].holds(), side[1].holds())
		}
		if side[0].isOpen(2) || w.a.isOpen(2) || w.b.isOpen(2) {
			t.Fatal("open before a sidecar has its locks again")
		}
		owner.epoch.Store(2)
		pass(w.a.timing.Interval)
		if !side[0].isOpen(2) || !side[1].isOpen(2) || !w.a.isOpen(2) || !w.b.isOpen(2) ||
			!side[1].holds() {
			t.Error("shut although the sidecar has its locks again")
		}
	})
}

// withBorrowerOf runs a borrower of l with that lock book.
func withBorrowerOf(t *testing.T, l *lesseeTest, locks LockBook) *lesseeTest {
	b := &lesseeTest{diary: &diary{}, fsm: newFSM()}
	b.gate = &slowGate{diary: b.diary}
	b.lessee = newLessee("side", l.timing, 5*time.Second,
		[]voterClient{relayOf{l.voters[0], l.lessee}}, b.fsm, b.gate, l.log, bubbleNow)
	b.locks, b.lockBarrier = locks, l.lockBarrier
	b.borrow()
	b.start(t)
	return b
}

// barrierSim is lessees and voters with messages that are lost and late.
type barrierSim struct {
	r       *rand.Rand
	t       Timing
	now     int64
	voters  [3]*Promises
	lessees [3]*barrierLessee
	queue   []func()
	at      []int64
	told    map[string]map[int]bool // voters that have a lessee's release with locks
}

type barrierLessee struct {
	name  string
	tally *Tally
	holds bool
	has   bool // its locks, under the newest epoch
}

// TestBarrierSimulation: whoever is open under an epoch is so behind every lessee that told a
// majority that it has locks to take. Seeds are replayable by their number.
func TestBarrierSimulation(t *testing.T) {
	waits := 0
	for seed := range 1000 {
		waits += newBarrierSim(seed).run(t, seed, false)
	}
	if waits == 0 {
		t.Error("nobody ever had to wait")
	}
}

// TestBarrierSimulationBites: a lessee that goes on with one voter's word is found.
func TestBarrierSimulationBites(t *testing.T) {
	found := 0
	for seed := range 1000 {
		if newBarrierSim(seed).run(nil, seed, true) < 0 {
			found++
		}
	}
	if found == 0 {
		t.Error("the mistake is not found")
	}
}

func newBarrierSim(seed int) *barrierSim {
	tm, _ := TimingOf(ProfileLAN)
	s := &barrierSim{r: rand.New(rand.NewPCG(uint64(seed), 10)), t: tm, now: 1,
		told: map[string]map[int]bool{}}
	for i := range s.voters {
		s.voters[i] = NewPromises(tm, 0, 1, true)
		s.lessees[i] = &barrierLessee{name: string(rune('a' + i)), tally: NewTally(tm, 3),
			holds: s.r.IntN(2) == 0}
		s.lessees[i].tally.Begin(1)
	}
	return s
}

// send delivers later, or never.
func (s *barrierSim) send(what func()) {
	if s.r.IntN(4) > 0 {
		s.queue = append(s.queue, what)
		s.at = append(s.at, s.now+s.r.Int64N(int64(60*time.Millisecond)))
	}
}

func (s *barrierSim) pass(d time.Duration) {
	end := s.now + int64(d)
	for {
		next := -1
		for i := range s.at {
			if s.at[i] <= end && (next < 0 || s.at[i] < s.at[next]) {
				next = i
			}
		}
		if next < 0 {
			break
		}
		f := s.queue[next]
		s.now = max(s.now, s.at[next])
		s.queue = append(s.queue[:next], s.queue[next+1:]...)
		s.at = append(s.at[:next], s.at[next+1:]...)
		f()
	}
	s.now = end
}

// renew sends a renewal to all voters; one is what the mistake asks in the place of a majority.
func (s *barrierSim) renew(l *barrierLessee, epoch uint64, one bool) {
	seq, _ := l.tally.Send(s.now)
	r := Renewal{Lessee: l.name, Seq: seq, Epoch: epoch, Holds: l.holds,
		Retakes: l.holds && !l.has}
	for i, v := range s.voters {
		s.send(func() {
			a := v.Renew(s.now, r)
			s.send(func() {
				l.tally.Answer(string(rune('0'+i)), a)
				l.tally.isOpen = l.tally.isOpen || one && a.Granted && !a.Shut && l.tally.epoch == epoch
			})
		})
	}
}

// run is one change of the lock; it returns how many lessees had to wait, -1 if one did not though
// it had to.
func (s *barrierSim) run(t *testing.T, seed int, bug bool) (waits int) {
	for _, l := range s.lessees {
		l.has = true
		s.renew(l, 1, bug)
	}
	s.pass(200 * time.Millisecond)
	for _, l := range s.lessees {
		l.has = false
		seq := l.tally.Release()
		s.told[l.name] = map[int]bool{}
		for i, v := range s.voters {
			for range 1 + s.r.IntN(3) { // it is repeated
				s.send(func() {
					v.Release(s.now, Renewal{Lessee: l.name, Seq: seq, Epoch: 1, Retakes: l.holds})
					s.told[l.name][i] = true
				})
			}
		}
	}
	for endorsed := 0; endorsed < 2; s.pass(5 * time.Millisecond) {
		endorsed = 0
		for _, v := range s.voters {
			if v.MayEndorse(s.now, 2) == 0 && s.r.IntN(3) > 0 {
				v.Endorse(2)
			}
			if v.Endorsed() == 2 {
				endorsed++
			}
		}
	}
	told := map[string]int{}
	for _, l := range s.lessees {
		told[l.name] = len(s.told[l.name])
	}
	for _, l := range s.lessees {
		l.tally.Begin(2)
	}
	for range 40 {
		for _, l := range s.lessees {
			s.renew(l, 2, bug)
		}
		s.pass(20 * time.Millisecond)
		for _, l := range s.lessees {
			if _, until := l.tally.Deadlines(); until > 0 && !l.tally.IsOpen() {
				waits++
			}
			for _, other := range s.lessees {
				isTold := told[other.name] >= 2
				if l.tally.IsOpen() && isTold && other.holds && !other.has {
					if t != nil {
						t.Fatalf("seed %d: %s is open before %s has its locks", seed, l.name, other.name)
					}
					return -1
				}
			}
			if _, until := l.tally.Deadlines(); until > 0 && s.r.IntN(10) == 0 {
				l.has = true // with its own lease
			}
		}
	}
	return waits
}
