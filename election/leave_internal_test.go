package election

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// runUntil runs the lessee until the returned function has ended it, in order or as a kill would.
func (l *lesseeTest) runUntil(t *testing.T) (end func(inOrder bool)) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.run(ctx)
	}()
	synctest.Wait()
	return func(inOrder bool) {
		l.leaves.Store(inOrder)
		cancel()
		<-done
	}
}

// promised is how long a voter's promises keep it from endorsing another epoch.
func (l *lesseeTest) promised(voter int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.voters[voter].promises.MayEndorse(bubbleNow(), 2)
}

// TestLesseeGivesItsLeaseBackAtItsEnd: the gate is cut, then every voter is told, and no failover
// waits for a process that has ended in order. One that was killed tells nobody.
func TestLesseeGivesItsLeaseBackAtItsEnd(t *testing.T) {
	for _, inOrder := range []bool{true, false} {
		inBubble(t, func(t *testing.T, l *lesseeTest) {
			end := l.runUntil(t)
			l.set(locked(1))
			pass(2 * l.timing.Interval)
			if !l.holds() || l.promised(0) == 0 {
				t.Fatal("it has no lease")
			}
			end(inOrder)
			for i := range l.voters {
				if wait := l.promised(i); (wait == 0) != inOrder {
					t.Errorf("in order %t: voter %d waits %v", inOrder, i, wait)
				}
			}
			if inOrder && (l.holds() || l.first("cut 1") < 0 || l.first("cut 1") > l.first("release 1") ||
				l.last("renew 1") > l.first("release 1")) {
				t.Errorf("the lease was given back before it was given up: %q", l.lines)
			}
		})
	}
}

// TestBorrowerGivesItsLoanBackAtItsEnd: the relay then releases as soon as it is asked to.
func TestBorrowerGivesItsLoanBackAtItsEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		l.start(t)
		b := &lesseeTest{diary: &diary{}, fsm: newFSM()}
		b.gate = &slowGate{diary: b.diary}
		b.lessee = newLessee("side", l.timing, 5*time.Second,
			[]voterClient{relayOf{l.voters[0], l.lessee}}, b.fsm, b.gate, l.log, bubbleNow)
		b.borrow()
		end := b.runUntil(t)
		l.set(locked(1))
		b.set(locked(1))
		pass(2 * l.timing.Interval)
		if left, _ := l.outstanding(1); !b.holds() || left == 0 {
			t.Fatal("nothing was borrowed")
		}
		end(true)
		if left, _ := l.outstanding(1); left > 0 {
			t.Errorf("the relay waits %v for a borrower that has ended", left)
		}
		begin := bubbleNow()
		l.set(intended(1, 2, IntentFailover))
		for l.first("release 1") < 0 && bubbleNow()-begin < int64(time.Minute) {
			pass(time.Millisecond)
		}
		if took := time.Duration(bubbleNow() - begin); took > l.timing.Interval {
			t.Errorf("the relay released after %v", took)
		}
	})
}

// TestRelayThatEndsKeepsWhatItLent: its borrowers use what they have, so the voters must not
// hear that it is over.
func TestRelayThatEndsKeepsWhatItLent(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		end := l.runUntil(t)
		b := withBorrower(t, l, 0)
		l.set(locked(1))
		b.set(locked(1))
		pass(2 * l.timing.Interval)
		if !b.holds() {
			t.Fatal("nothing was borrowed")
		}
		end(true)
		for i := range l.voters {
			if l.promised(i) == 0 && b.holds() {
				t.Errorf("voter %d would endorse another epoch, and a borrower has this one", i)
			}
		}
		if l.first("cut 1") < 0 || l.holds() {
			t.Error("the relay uses the lease itself")
		}
	})
}

// TestEndDoesNotWaitForTheDead: a voter that cannot be reached costs a quarter of a lease at most.
func TestEndDoesNotWaitForTheDead(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lesseeTest) {
		end := l.runUntil(t)
		l.set(locked(1))
		pass(2 * l.timing.Interval)
		l.mu.Lock()
		l.voters[1].isDead = true
		l.mu.Unlock()
		begin := bubbleNow()
		end(true)
		if took := time.Duration(bubbleNow() - begin); took > l.timing.Lease/4 {
			t.Errorf("the end took %v", took)
		}
		if l.promised(0) > 0 || l.promised(2) > 0 {
			t.Error("those that can be reached were not told")
		}
	})
}
