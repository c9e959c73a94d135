package election

import (
	"context"
	"errors"
	"testing"
	"time"
)

// relayOf reaches a lessee as a borrower does.
type relayOf struct {
	*wireVoter
	l *lessee
}

func (r relayOf) renew(ctx context.Context, m Renewal) (RenewalAnswer, error) {
	return r.l.lendSoon(ctx, m), nil
}

func (r relayOf) release(_ context.Context, m Renewal) (RenewalAnswer, error) {
	return r.l.takeBack(m), nil
}

// withBorrower runs a borrower of l beside it; silent relays come before.
func withBorrower(t *testing.T, l *lesseeTest, silent int) *lesseeTest {
	b := &lesseeTest{diary: &diary{}, fsm: newFSM()}
	b.gate = &slowGate{diary: b.diary}
	var relays []voterClient
	for range silent {
		relays = append(relays, relayOf{l.voters[1], newLessee("silent", l.timing, time.Second,
			nil, l.fsm, nil, l.log, bubbleNow)})
	}
	relays = append(relays, relayOf{l.voters[0], l.lessee})
	b.lessee = newLessee("side", l.timing, 5*time.Second, relays, b.fsm, b.gate, l.log,
		bubbleNow)
	b.borrow()
	b.asks = 0
	b.start(t)
	return b
}

// TestBorrowerFindsARelay: one that lends nothing is left for the next.
func TestBorrowerFindsARelay(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		l.start(t)
		b := withBorrower(t, l, 2)
		l.set(locked(1))
		b.set(locked(1))
		for range 40 {
			pass(l.timing.Interval)
		}
		if !b.holds() || b.view.Epoch() != 1 {
			t.Fatal("the borrower has no lease")
		}
		if b.view.Until() > l.view.Until() {
			t.Error("the loan is longer than the lease")
		}
	})
}

// TestRelayReleasesAfterItsBorrowers (I8a): and what it lent is drained first.
func TestRelayReleasesAfterItsBorrowers(t *testing.T) {
	for _, kind := range []IntentKind{IntentFailover, IntentSwitchover} {
		inBubble(t, func(t *testing.T, l *lesseeTest) {
			l.start(t)
			b := withBorrower(t, l, 0)
			l.set(locked(1))
			b.set(locked(1))
			pass(2 * l.timing.Interval)
			if !b.holds() {
				t.Fatal("the borrower has no lease")
			}
			// The borrower is slow: it sees the intent late, and drains for longer than any
			// lease lasts.
			b.gate.takes = 2 * l.timing.Lease
			begin := bubbleNow()
			l.set(intended(1, 2, kind))
			pass(l.timing.Lease / 4)
			if l.first("release 1") >= 0 {
				t.Errorf("%s: released while the borrower knew nothing of it", kind)
			}
			b.set(intended(1, 2, kind))
			var released, returned time.Duration
			for released == 0 && bubbleNow()-begin < int64(time.Minute) {
				pass(10 * time.Millisecond)
				if b.view.Until() == 0 && returned == 0 {
					returned = time.Duration(bubbleNow() - begin)
				}
				if kind == IntentSwitchover && returned == 0 && !b.holds() {
					t.Fatal("the lease ran out while the borrower drained")
				}
				if l.first("release 1") >= 0 {
					released = time.Duration(bubbleNow() - begin)
				}
			}
			if returned == 0 || released < returned {
				t.Errorf("%s: released after %v, returned after %v", kind, released, returned)
			}
			if kind == IntentSwitchover && released < 2*l.timing.Lease {
				t.Errorf("%s: released after %v, before the borrower had drained", kind, released)
			}
			t.Logf("%s: returned after %v, released after %v", kind, returned, released)
		})
	}
}

// TestRelayDoesNotWaitForTheDead: a borrower that is gone costs what it had left.
func TestRelayDoesNotWaitForTheDead(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		l.start(t)
		l.set(locked(1))
		pass(2 * l.timing.Interval)
		if a := l.lend(Renewal{Lessee: "dead", Incarnation: 1, Seq: 1, Epoch: 1}); !a.Granted {
			t.Fatalf("nothing lent: %+v", a)
		}
		begin := bubbleNow()
		l.set(intended(1, 2, IntentFailover))
		if a := l.lend(Renewal{Lessee: "late", Incarnation: 2, Seq: 1, Epoch: 1}); a.Granted {
			t.Errorf("lent after the epoch was given up: %+v", a)
		}
		for l.first("release 1") < 0 && bubbleNow()-begin < int64(time.Minute) {
			pass(10 * time.Millisecond)
		}
		if d := time.Duration(bubbleNow() - begin); d < l.timing.Lease-2*l.timing.Interval ||
			d > l.timing.Promise+50*time.Millisecond {
			t.Errorf("released after %v", d)
		}
	})
}

// TestRelayWaitsForItsOwnLease: who asks for a new epoch before the voters have answered the relay
// is not sent away.
func TestRelayWaitsForItsOwnLease(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		ask := func(epoch uint64) (RenewalAnswer, time.Duration) {
			begin := bubbleNow()
			a := l.lendSoon(t.Context(), Renewal{Lessee: "s", Incarnation: 1, Epoch: epoch,
				Seq: uint64(begin)})
			return a, time.Duration(bubbleNow() - begin)
		}
		const delay = 40 * time.Millisecond
		for _, v := range l.voters {
			v.delay = delay
		}
		l.start(t)
		l.set(locked(1))
		if a, took := ask(1); !a.Granted || took != delay {
			t.Errorf("asked too early: %+v after %v", a, took)
		}
		if a, took := ask(2); a.Granted || took != l.timing.Interval {
			t.Errorf("asked for an epoch that never came: %+v after %v", a, took)
		}
		l.set(intended(1, 2, IntentFailover))
		pass(time.Millisecond)
		if a, took := ask(1); a.Granted || took != 0 {
			t.Errorf("asked for what was given up: %+v after %v", a, took)
		}
	})
}

// TestRelayRenewsAtIntervalsWhileItIsPaidBack: the voters do not notice how many borrowers there
// are, not in a drain either.
func TestRelayRenewsAtIntervalsWhileItIsPaidBack(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		l.start(t)
		l.set(locked(1))
		pass(l.timing.Interval / 2)
		const borrowers = 500
		of := func(i int) Renewal {
			return Renewal{Lessee: "s", Incarnation: uint64(i + 1), Seq: 1, Epoch: 1}
		}
		for i := range borrowers {
			if a := l.lend(of(i)); !a.Granted {
				t.Fatalf("nothing lent: %+v", a)
			}
		}
		before := l.count("renew 1")
		l.set(intended(1, 2, IntentSwitchover))
		for i := range borrowers {
			pass(l.timing.Interval / borrowers)
			l.takeBack(of(i))
		}
		pass(2 * returnsTogether)
		if l.first("release 1") < 0 {
			t.Error("not released though all is back")
		}
		// One round for the news of the intent, one for the end of the own drain, and the interval's.
		if n := l.count("renew 1") - before; n > 3*len(l.voters) {
			t.Errorf("%d renewals while %d borrowers returned their loans", n, borrowers)
		}
	})
}

func TestStateAnswersAreSharedAndFresh(t *testing.T) {
	var a stateAnswers
	for i, s := range []*State{{LastEpoch: 1}, {LastEpoch: 2}} {
		b, err := a.of(s, uint64(i))
		again, _ := a.of(s, uint64(i))
		var got stateAnswer
		if err := errors.Join(err, readAnswer(b, &got)); err != nil {
			t.Fatal(err)
		}
		if got.Index != uint64(i) || got.State.LastEpoch != s.LastEpoch || &b[0] != &again[0] {
			t.Errorf("%s", b)
		}
	}
}
