package election

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// diary is what happened, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) add(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

// first is where a line is, -1 if nowhere.
func (d *diary) first(line string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Index(d.lines, line)
}

// count is how often a line is there.
func (d *diary) count(line string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.lines {
		if l == line {
			n++
		}
	}
	return n
}

// last is where a line is for the last time, -1 if nowhere.
func (d *diary) last(line string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := len(d.lines) - 1; i >= 0; i-- {
		if d.lines[i] == line {
			return i
		}
	}
	return -1
}

// wireVoter is a voter at the end of a wire.
type wireVoter struct {
	id       string
	diary    *diary
	promises *Promises
	mu       *sync.Mutex
	delay    time.Duration // of answers to renewals
	isDead   bool
	releases []Renewal
}

func (w *wireVoter) name() string { return w.id }

func (w *wireVoter) renew(ctx context.Context, r Renewal) (RenewalAnswer, error) {
	w.diary.add("renew %d", r.Epoch)
	w.mu.Lock()
	a, delay := w.promises.Renew(bubbleNow(), r), w.delay
	w.mu.Unlock()
	// Timers of a bubble that are due at once, in several goroutines, share one state of the race
	// detector, which crashes on it (Go 1.26).
	if delay == 0 {
		return a, nil
	}
	select {
	case <-time.After(delay):
		return a, nil
	case <-ctx.Done():
		return RenewalAnswer{}, ctx.Err()
	}
}

func (w *wireVoter) release(_ context.Context, r Renewal) (RenewalAnswer, error) {
	w.diary.add("release %d", r.Epoch)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.releases = append(w.releases, r)
	if w.isDead {
		return RenewalAnswer{}, errors.New("no route")
	}
	return w.promises.Release(bubbleNow(), r), nil
}

// slowGate drains for a while.
type slowGate struct {
	diary *diary
	takes time.Duration
}

func (g *slowGate) Drain(ctx context.Context, epoch uint64) {
	g.diary.add("drain %d", epoch)
	if g.takes == 0 {
		g.diary.add("drained %d", epoch)
		return
	}
	select {
	case <-time.After(g.takes):
		g.diary.add("drained %d", epoch)
	case <-ctx.Done():
		g.diary.add("drain ended %d", epoch)
	}
}

func (g *slowGate) Cut(epoch uint64) { g.diary.add("cut %d", epoch) }

// lesseeTest is a lessee with three voters and a state that the test sets.
type lesseeTest struct {
	*lessee
	*diary
	fsm    *fsm
	gate   *slowGate
	voters []*wireVoter
	mu     sync.Mutex
}

// inBubble runs a lessee in time of its own.
func inBubble(t *testing.T, f func(t *testing.T, l *lesseeTest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		tm, err := TimingOf(ProfileLAN)
		if err != nil {
			t.Fatal(err)
		}
		l := &lesseeTest{diary: &diary{}, fsm: newFSM()}
		l.gate = &slowGate{diary: l.diary}
		var clients []voterClient
		for i := range 3 {
			v := &wireVoter{
				id: fmt.Sprint(i), diary: l.diary, mu: &l.mu,
				promises: NewPromises(tm, bubbleNow(), 0, true),
			}
			l.voters, clients = append(l.voters, v), append(clients, v)
		}
		l.lessee = newLessee("p", tm, 5*time.Second, clients, l.fsm, l.gate, zap.NewNop(),
			bubbleNow)
		f(t, l)
	})
}

// start runs the lessee until the test ends.
func (l *lesseeTest) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	synctest.Wait()
}

func (l *lesseeTest) set(s *State) {
	l.fsm.mu.Lock()
	l.fsm.publishLocked(s, l.fsm.index+1)
	l.fsm.mu.Unlock()
	synctest.Wait()
}

func locked(epoch uint64) *State {
	return &State{V: Version, LastEpoch: epoch, Lock: &Lock{Epoch: epoch, Holder: "a"}}
}

func intended(lock, epoch uint64, kind IntentKind) *State {
	s := locked(lock)
	s.LastEpoch = epoch
	s.Intent = &Intent{Epoch: epoch, Kind: kind, FromEpoch: lock}
	return s
}

// pass lets time go by and whatever became due at its end be done: a timer of the test and one of
// the lessee that end at the same moment have no order.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (l *lesseeTest) holds() bool { return bubbleNow() < l.view.Until() }

func TestLesseeKeepsItsLease(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		l.start(t)
		l.set(locked(1))
		for range 40 {
			pass(l.timing.Interval)
			if !l.holds() || l.view.Epoch() != 1 {
				t.Fatal("the lease was lost although all voters answer")
			}
		}
		// Without answers doubt comes first, then the end; with them it goes on.
		l.mu.Lock()
		for _, v := range l.voters {
			v.delay = time.Hour
		}
		l.mu.Unlock()
		pass(l.timing.Doubt + l.timing.Interval)
		if bubbleNow() < l.view.Doubt() || !l.holds() {
			t.Error("no doubt before the end")
		}
		if pass(l.timing.Lease - l.timing.Doubt); l.holds() {
			t.Error("a lease without answers")
		}
		l.mu.Lock()
		for _, v := range l.voters {
			v.delay = 0
		}
		l.mu.Unlock()
		if pass(l.timing.Interval); !l.holds() {
			t.Error("the lease does not come back")
		}
		if l.first("cut 1") >= 0 {
			t.Error("the gate was cut because a lease ran out")
		}
	})
}

// TestLesseeCutsThenReleases, and never comes back to what it gave up.
func TestLesseeCutsThenReleases(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		l.start(t)
		l.set(locked(1))
		l.set(intended(1, 2, IntentFailover))
		if l.holds() {
			t.Error("the lease outlives the release")
		}
		cut, release := l.first("cut 1"), l.first("release 1")
		if cut < 0 || release < cut || l.last("renew 1") > cut || l.first("drain 1") >= 0 {
			t.Errorf("order: %v", l.lines)
		}
		renewals := l.last("renew 1")
		pass(time.Minute)
		l.set(intended(1, 3, IntentFailover)) // the intent is replaced
		pass(time.Minute)
		if l.last("renew 1") != renewals {
			t.Error("an epoch that was given up is renewed")
		}
		l.set(locked(3))
		if !l.holds() || l.view.Epoch() != 3 {
			t.Errorf("no lease of the new epoch: %v", l.lines)
		}
	})
}

func TestLesseeIgnoresAnswersAfterItsRelease(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		for _, v := range l.voters {
			v.delay = time.Second
		}
		l.start(t)
		l.set(locked(1))
		l.set(intended(1, 2, IntentFailover)) // the renewals are still under way
		for range 50 {
			pass(100 * time.Millisecond)
			if l.view.Until() != 0 || l.granted != 0 {
				t.Fatal("a late answer brought the lease back")
			}
		}
	})
}

// TestLesseeThatStartsUnderAnIntent has nothing to use, and says so to the voters.
func TestLesseeThatStartsUnderAnIntent(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		l.set(intended(4, 5, IntentSwitchover))
		l.start(t)
		pass(time.Minute)
		if l.view.Until() != 0 || l.first("cut 4") < 0 || l.first("release 4") < 0 {
			t.Errorf("until %d: %v", l.view.Until(), l.lines)
		}
		l.set(locked(5))
		if !l.holds() || l.first("cut 5") >= 0 {
			t.Errorf("no lease of the new epoch: %v", l.lines)
		}
	})
}

// TestLesseeThatMissedAChange cuts what it had although it never saw the intent.
func TestLesseeThatMissedAChange(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		l.start(t)
		l.set(locked(1))
		l.set(locked(7))
		if cut := l.first("cut 6"); cut < 0 || l.first("renew 7") < cut || l.view.Epoch() != 7 {
			t.Errorf("order: %v", l.lines)
		}
	})
}

// TestLesseeDrainsUnderItsLease: what is open may finish, and the lease holds meanwhile.
func TestLesseeDrainsUnderItsLease(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		l.gate.takes = 4*time.Second + time.Millisecond // longer than a lease; no renewal is due then
		l.start(t)
		l.set(locked(1))
		l.set(intended(1, 2, IntentSwitchover))
		for range 7 {
			if pass(500 * time.Millisecond); !l.holds() {
				t.Fatal("the lease was lost while draining")
			}
		}
		if l.first("cut 1") >= 0 || l.first("release 1") >= 0 {
			t.Fatalf("cut before it was drained: %v", l.lines)
		}
		pass(time.Second)
		drained, cut, release := l.first("drained 1"), l.first("cut 1"), l.first("release 1")
		if drained < 0 || cut < drained || release < cut || l.holds() {
			t.Errorf("order: %v", l.lines)
		}
		if l.last("renew 1") > drained {
			t.Errorf("a renewal is begun that nobody waits for: %v", l.lines)
		}
	})
}

func TestLesseeDrainIsBounded(t *testing.T) {
	for name, end := range map[string]func(*lesseeTest){
		"by its time":     func(l *lesseeTest) { pass(l.drain + time.Second) },
		"by a failover":   func(l *lesseeTest) { l.set(intended(1, 3, IntentFailover)) },
		"by the new lock": func(l *lesseeTest) { l.set(locked(2)) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, l *lesseeTest) {
				l.gate.takes = time.Hour
				l.start(t)
				l.set(locked(1))
				l.set(intended(1, 2, IntentSwitchover))
				pass(time.Second)
				if l.first("cut 1") >= 0 {
					t.Fatal("not drained at all")
				}
				end(l)
				synctest.Wait()
				ended, cut := l.first("drain ended 1"), l.first("cut 1")
				if ended < 0 || cut < ended || l.first("release 1") < cut {
					t.Errorf("order: %v", l.lines)
				}
			})
		})
	}
}

// TestDrainForACutIsShort: where the primary is cut off the drain takes a second, for proxies and
// voters; one that an operator asks for has its time.
func TestDrainForACutIsShort(t *testing.T) {
	const drain = 10 * time.Second
	cut := Intent{Kind: IntentSwitchover, Auto: true}
	for _, c := range []struct {
		it    Intent
		drain time.Duration
		want  time.Duration
	}{
		{cut, drain, time.Second}, {cut, time.Second / 2, time.Second / 2},
		{Intent{Kind: IntentSwitchover}, drain, drain},
		{Intent{Kind: IntentRestart, StopsHolder: true}, drain, drain},
		{Intent{Kind: IntentRestart}, drain, 0}, {Intent{Kind: IntentFailover}, drain, 0},
	} {
		if got := c.it.drainTime(c.drain); got != c.want {
			t.Errorf("%+v is drained for %s of %s, want %s", c.it, got, c.drain, c.want)
		}
	}
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		l.gate.takes = time.Hour
		l.start(t)
		l.set(locked(1))
		s := intended(1, 2, IntentSwitchover)
		s.Intent.Auto = true
		l.set(s)
		pass(time.Second - time.Millisecond)
		if l.first("cut 1") >= 0 {
			t.Error("not drained")
		}
		pass(time.Millisecond)
		if l.first("cut 1") < 0 {
			t.Errorf("still drained: %v", l.lines)
		}
	})
	timing, err := TimingOf(ProfileCloud)
	if err != nil {
		t.Fatal(err)
	}
	v := &voter{timing: timing, drain: drain, now: func() int64 { return 0 }}
	v.closeBelow(&Intent{Epoch: 2, Kind: IntentSwitchover, Auto: true})
	if want := int64(time.Second + timing.Interval); v.closeAt != want {
		t.Errorf("a voter lets go after %s", time.Duration(v.closeAt))
	}
}

// TestLesseeRepeatsItsRelease until the voter has heard, or its promise has run out anyway.
func TestLesseeRepeatsItsRelease(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		l.voters[0].isDead = true
		l.start(t)
		l.set(locked(1))
		l.set(intended(1, 2, IntentFailover))
		pass(time.Minute)
		l.mu.Lock()
		defer l.mu.Unlock()
		dead, alive := l.voters[0].releases, l.voters[1].releases
		if len(alive) != 1 || len(dead) < 10 || len(dead) > 50 {
			t.Errorf("%d releases to one that hears, %d to one that does not", len(alive),
				len(dead))
		}
		for _, r := range dead {
			if r != alive[0] {
				t.Fatalf("a repeated release differs: %+v, %+v", r, alive[0])
			}
		}
	})
}

// TestLesseeIncarnationsDiffer shows rule 2 of DESIGN 10: nobody releases for a former self.
func TestLesseeIncarnationsDiffer(t *testing.T) {
	seen := make(map[uint64]bool)
	for range 100 {
		l := newLessee("p", Timing{}, 0, nil, newFSM(), nil, zap.NewNop(), bubbleNow)
		if seen[l.incarnation] || l.incarnation == 0 {
			t.Fatalf("incarnation %d twice, or none", l.incarnation)
		}
		seen[l.incarnation] = true
	}
}

// TestLeaseViewNeverMixesEpochs: who reads the epoch before and after a deadline, as proxies do,
// never takes the deadline of one epoch for that of another.
func TestLeaseViewNeverMixesEpochs(t *testing.T) {
	tm, _ := TimingOf(ProfileLAN)
	var clock int64
	l := newLessee("p", tm, 0, []voterClient{grantAll{}}, newFSM(), nil, zap.NewNop(),
		func() int64 { return clock })
	stop := make(chan struct{})
	var readers sync.WaitGroup
	readers.Add(1)
	go func() {
		defer readers.Done()
		for {
			select {
			case <-stop:
				return
			default:
			}
			before := l.view.Epoch()
			doubt, until := l.view.Doubt(), l.view.Until()
			if l.view.Epoch() != before {
				continue
			}
			// The clock of epoch e stands at e hours.
			hour := uint64(time.Hour)
			if until != 0 && uint64(until)/hour != before ||
				doubt != 0 && uint64(doubt)/hour != before {
				t.Errorf("epoch %d has deadlines %d and %d", before, doubt, until)
				return
			}
		}
	}()
	for e := range uint64(20000) {
		clock = int64(e+1) * int64(time.Hour)
		l.renewAll(t.Context(), e+1, false)
		l.work.Wait()
		if l.view.Until() == 0 {
			t.Fatal("not granted")
		}
	}
	close(stop)
	readers.Wait()
}

// grantAll is a voter that grants everything.
type grantAll struct{}

func (grantAll) name() string { return "v" }

func (grantAll) renew(_ context.Context, r Renewal) (RenewalAnswer, error) {
	return RenewalAnswer{V: Version, Seq: r.Seq, Granted: true}, nil
}

func (grantAll) release(context.Context, Renewal) (RenewalAnswer, error) {
	return RenewalAnswer{}, nil
}
