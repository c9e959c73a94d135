package election

import (
	"context"
	"time"
)

// lend answers a borrower.
func (l *lessee) lend(r Renewal) RenewalAnswer {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fleet.note(l.now(), r)
	isShut := l.isShutLocked(r.Epoch)
	if isShut && !r.Retakes {
		// Its sessions may run units of work as soon as it has a lease.
		l.relay.Note(r)
		return RenewalAnswer{V: Version, Seq: r.Seq, Reason: "advisory locks are waited for"}
	}
	doubt, until := l.tally.Deadlines()
	a := l.relay.Renew(l.now(), r, l.tally.epoch, doubt, until)
	a.Shut = a.Granted && isShut
	return a
}

// isShut tells that units of work must not begin under the epoch yet, and returns a channel that is
// closed when they may.
func (l *lessee) isShut(epoch uint64) (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isShutLocked(epoch), l.gateOfLocks.opened
}

// lendSoon is lend, but waits for the lease of an epoch that is new, and for its barrier.
// Borrowers hear of the lock at the same moment as this lessee; if they were refused until a
// majority has answered it, thousands would turn to the next node at once. What they get counts
// from when they asked all the same.
func (l *lessee) lendSoon(ctx context.Context, r Renewal) RenewalAnswer {
	var late <-chan time.Time
	for {
		granted, changed := l.state()
		isShut, opened := l.isShut(r.Epoch)
		a := l.lend(r)
		switch {
		case a.Granted:
			return a
		case r.Epoch <= granted && !isShut:
			return a
		case r.Epoch <= granted: // it has an end
			// Another epoch may replace this barrier, and then nobody opens it.
			select {
			case <-ctx.Done():
				return a
			case <-opened:
			case <-time.After(l.timing.Interval):
			}
			continue
		}
		if late == nil {
			t := time.NewTimer(l.timing.Interval)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-ctx.Done():
			return a
		case <-late:
			return a
		case <-changed:
		}
	}
}

// takeBack notes that a borrower has released.
func (l *lessee) takeBack(r Renewal) RenewalAnswer {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.relay.Release(l.now(), r)
	l.fleet.forget(r.Lessee)
	close(l.free)
	l.free = make(chan struct{})
	return a
}

// borrowers is what this node's sidecars see of the primary; nil if there are none.
func (l *lessee) borrowers(s *State, after time.Duration) *BorrowerView {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fleet.view(l.now(), s, after)
}

// outstanding is how long something lent of the epoch may still be in use, and a channel that is
// closed when something is released.
func (l *lessee) outstanding(epoch uint64) (time.Duration, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.relay.Outstanding(l.now(), epoch), l.free
}

// isAllBack tells that nothing that was lent of the epoch is waited for any more.
func (l *lessee) isAllBack(ctx context.Context, epoch uint64) bool {
	wait, _ := l.outstanding(epoch)
	return wait == 0 || ctx.Err() != nil
}

// returnsTogether is how long a return waits for others to be looked at with it: to go through all
// that was lent for each of thousands would take longer than they do.
const returnsTogether = 2 * time.Millisecond

// awaitReturns waits until all that was lent of the epoch is back or ctx ends, which is true, or
// until the lease is to be renewed or the state is newer, which is false. A return is no reason to
// renew: with thousands of borrowers the voters would drown in it.
func (l *lessee) awaitReturns(ctx context.Context, epoch uint64, newer <-chan struct{},
	tick <-chan time.Time,
) bool {
	for {
		wait, free := l.outstanding(epoch)
		if wait == 0 || ctx.Err() != nil {
			return true
		}
		select {
		case <-ctx.Done():
		case <-free:
			pauseFor(ctx, returnsTogether)
		case <-newer:
			return false
		case <-tick:
			return false
		}
	}
}

// runReleases tells the voters once what was lent is back or has run out.
func (l *lessee) runReleases(ctx context.Context, r Renewal) {
	defer l.work.Done()
	for {
		wait, free := l.outstanding(r.Epoch)
		if wait == 0 {
			break
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-free:
			pauseFor(ctx, returnsTogether)
		case <-t.C:
		}
		t.Stop()
	}
	r = l.withRetakes(r)
	for _, v := range l.lenders() {
		l.work.Add(1)
		go l.runRelease(ctx, v, r)
	}
}
