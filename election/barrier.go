package election

import (
	"fmt"
	"time"

	"go.uber.org/zap"
)

// This file is the barrier of session advisory locks (DESIGN 10.10): after a change of the lock no
// proxy lets a unit of work run before the sessions of all proxies have their locks again. It
// lives in the messages of the lease, in memory: a lessee that releases tells the voters whether
// its sessions had locks, and with each renewal of the next epoch whether they lack them still; a
// voter answers a renewal with what it knows of the others. Whoever had a lease had a majority's
// promises, and whoever goes on without waiting has a majority's word: one voter knows of both.
//
//	proxy A           voters                        proxy B
//	release 1, retakes -->|                            |
//	                      |<-------------- renew 2     |
//	renew 2, retakes ---->|  granted, shut ----------->| lease, but waits; asks again soon
//	  takes its locks     |                            |
//	renew 2 ------------->|<-------------- renew 2     |
//	                      |  granted ----------------->| open

// barrier is a voter's memory of the newest epoch that was asked for, as far as locks go.
type barrier struct {
	epoch  uint64 // the newest that was granted to anybody
	since  int64  // when it was for the first time
	isOpen bool   // nobody has to be waited for under epoch any more
}

// begin notes that an epoch was granted. Who was not heard of for a whole promise of the epoch
// before is not waited for under any later one.
func (p *Promises) begin(now int64, epoch uint64) {
	if epoch <= p.barrier.epoch {
		return
	}
	for k, pr := range p.byLessee {
		if pr.retakes && p.isMissing(now, pr) {
			pr.retakes = false
			p.byLessee[k] = pr
		}
	}
	p.barrier = barrier{epoch: epoch, since: now}
}

// isMissing tells of a lessee that has not come under the newest epoch for a whole promise.
func (p *Promises) isMissing(now int64, pr promise) bool {
	return pr.epoch < p.barrier.epoch && now >= p.barrier.since+int64(p.timing.Promise)
}

// isShut tells that under this epoch a lessee has to be waited for. It is asked for the newest
// epoch; once it is open it remains so.
func (p *Promises) isShut(now int64, epoch uint64) bool {
	if epoch != p.barrier.epoch {
		return epoch < p.barrier.epoch // its end was decided, so that nothing may be begun in it
	}
	if !p.barrier.isOpen {
		p.barrier.isOpen = !p.retakes(now, epoch)
	}
	return !p.barrier.isOpen
}

// retakes tells that there is a lessee whose sessions lack locks that they had before the epoch,
// or may. One whose promise has run out is cut off, or gone with its clients.
func (p *Promises) retakes(now int64, epoch uint64) bool {
	for _, pr := range p.byLessee {
		switch {
		case p.isMissing(now, pr):
		case pr.epoch >= epoch: // it takes them now
			if pr.retakes && now < pr.until {
				return true
			}
		case pr.released >= pr.seq: // it has told, and is to come
			if pr.retakes {
				return true
			}
		case now < pr.until && (pr.holds || p.endorsed < epoch):
			// It has not told: it may yet, unless its promise was waived (DESIGN.md I70).
			return true
		}
	}
	return false
}

// open looks whether one renewal has a majority that knows of nobody to be waited for.
func (t *Tally) open(r *round) {
	n := 0
	for _, isOpen := range r.granted {
		if isOpen {
			n++
		}
	}
	t.isOpen = t.isOpen || n >= r.majority
}

// IsOpen tells that units of work may begin under the epoch, as far as locks of other lessees go.
func (t *Tally) IsOpen() bool { return t.isOpen }

// note takes what a lessee says of its locks, of a renewal that is not granted.
func (p *Promises) note(r Renewal) {
	key := lesseeKey{r.Lessee, r.Incarnation}
	if pr, known := p.byLessee[key]; known && r.Seq > max(pr.seq, pr.released) {
		pr.retakes = r.Retakes
		p.byLessee[key] = pr
	}
}

// Note takes what a borrower says of its locks, of a request that is refused.
func (r *Relay) Note(req Renewal) { r.lent.note(req) }

// Begin turns to another epoch of the lessee that lends.
func (r *Relay) Begin(now int64, epoch uint64) { r.lent.begin(now, epoch) }

// Retakes tells that a borrower's sessions lack locks that they had before the epoch, or may.
func (r *Relay) Retakes(now int64, epoch uint64) bool { return r.lent.retakes(now, epoch) }

// LockBook knows the session advisory locks of the local proxy's sessions.
type LockBook interface {
	// LocksBehind tells that sessions had locks in an epoch before this one and do not have them
	// in it. It is asked often, by any goroutine.
	LocksBehind(epoch uint64) bool
}

// lockGate is a lessee's side of the barrier of one epoch; the lessee's lock guards it.
type lockGate struct {
	epoch  uint64
	opened chan struct{}
	isOpen bool
	// end is when it opens whatever the voters say; 0 as long as there is no lease.
	end int64
	// wasLate tells that it was opened by its end.
	wasLate bool
}

func newLockGate(epoch uint64) lockGate {
	return lockGate{epoch: epoch, opened: make(chan struct{})}
}

func (g *lockGate) open() {
	if !g.isOpen {
		g.isOpen = true
		close(g.opened)
	}
}

// lockGateLook is how often a lessee asks while its barrier is shut: so many times an interval, and
// no voter that has not answered yet.
const lockGateLook = 10

// idleLocked are the voters that owe no answer.
func (l *lessee) idleLocked() []voterClient {
	var out []voterClient
	for _, v := range l.voters {
		if l.flying[v.name()] == 0 {
			out = append(out, v)
		}
	}
	return out
}

// locksBehind asks the local proxy.
func (l *lessee) locksBehind(epoch uint64) bool {
	return l.locks != nil && l.locks.LocksBehind(epoch)
}

// withRetakes fills in what a release says of this lessee's sessions and of its borrowers'.
func (l *lessee) withRetakes(r Renewal) Renewal {
	behind := l.locksBehind(r.Epoch + 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Retakes = behind || l.relay.Retakes(l.now(), r.Epoch+1)
	return r
}

// isShutLocked tells that units of work must not begin under the epoch yet.
func (l *lessee) isShutLocked(epoch uint64) bool {
	return epoch == l.gateOfLocks.epoch && !l.gateOfLocks.isOpen
}

// tendLocks opens the barrier if its time is over, and returns when to ask again; nil is at the
// next renewal.
func (l *lessee) tendLocks() <-chan time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := &l.gateOfLocks
	if g.isOpen || g.end == 0 {
		return nil
	}
	if l.now() >= g.end {
		g.wasLate = true
		g.open()
		l.tellBarrier("timeout")
		l.log.Warn("advisory locks of other proxies' sessions were not waited for any longer",
			zap.Uint64("epoch", g.epoch), zap.Duration("waited", l.lockBarrier))
		return nil
	}
	return time.After(l.timing.Interval / lockGateLook)
}

// noteLocksLocked takes what the voters have answered under the epoch.
func (l *lessee) noteLocksLocked(epoch uint64) {
	g := &l.gateOfLocks
	if g.epoch != epoch || g.isOpen {
		return
	}
	switch {
	case l.tally.IsOpen() || l.lockBarrier <= 0:
		if g.end != 0 {
			l.tellBarrier("retaken")
		}
		g.open()
	case g.end == 0:
		g.end = l.now() + int64(l.lockBarrier)
		l.poke() // run looks after it from now on
	}
}

func (l *lessee) tellBarrier(end string) {
	if l.onBarrier != nil {
		l.onBarrier(end)
	}
}

// poke makes run look.
func (l *lessee) poke() {
	select {
	case l.poked <- struct{}{}:
	default:
	}
}

// barrierOf returns a channel that is closed once units of work may begin under the epoch, as far
// as advisory locks go.
func (l *lessee) barrierOf(epoch uint64) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if epoch == l.gateOfLocks.epoch {
		return l.gateOfLocks.opened
	}
	return nil
}

// LockBarrier returns a channel that is closed once units of work may begin under an epoch that
// was granted here, as far as advisory locks go; nil if the epoch is not the newest one.
func (n *Node) LockBarrier(epoch uint64) <-chan struct{} { return n.lessee.barrierOf(epoch) }

// lateLocks tells that the barrier of the present epoch was opened by its end; "" if it was not.
func (l *lessee) lateLocks() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.gateOfLocks.wasLate {
		return ""
	}
	return fmt.Sprintf("after the change to epoch %d session advisory locks of other proxies were "+
		"waited for no longer than %s (proxy.lock_barrier_timeout): somebody else may have taken one",
		l.gateOfLocks.epoch, l.lockBarrier)
}
