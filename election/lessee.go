package election

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// LeaseView is this process's lease, for readers in any goroutine.
type LeaseView struct {
	epoch, doubt, until atomic.Int64
}

// Epoch is the epoch that the deadlines are for.
func (v *LeaseView) Epoch() uint64 { return uint64(v.epoch.Load()) }

// Doubt is when the lease comes into doubt, in nanoseconds of CLOCK_BOOTTIME.
func (v *LeaseView) Doubt() int64 { return v.doubt.Load() }

// Until is when the lease ends, in nanoseconds of CLOCK_BOOTTIME.
func (v *LeaseView) Until() int64 { return v.until.Load() }

// voterClient is how a lessee reaches one voter.
type voterClient interface {
	name() string
	renew(ctx context.Context, r Renewal) (RenewalAnswer, error)
	release(ctx context.Context, r Renewal) (RenewalAnswer, error)
}

// lessee keeps this process's lease: it renews the epoch of the committed lock with all voters at
// once, or borrows from one relay at a time, and gives it up when the state shows that it is to
// end. It lends to others what is left of its lease. It owns its goroutines.
type lessee struct {
	name        string
	incarnation uint64
	timing      Timing
	drain       time.Duration
	source      StateSource
	gate        Gate // nil if nothing has to be closed
	log         *zap.Logger
	now         func() int64
	view        LeaseView
	// locks is the local proxy's, nil if there is none; lockBarrier is Config.LockBarrier.
	locks       LockBook
	lockBarrier time.Duration
	poked       chan struct{} // capacity 1: run is to look
	// onBarrier is told how a barrier ended that somebody waited at; nil tells nobody.
	onBarrier func(end string)
	// sight is what a sidecar sees; nil on a voter.
	sight *sidecarWatch
	// clients are whom to ask in a state, with the version of the voter set; nil keeps to voters.
	clients func(*State) (set uint64, voters []voterClient)

	mu      sync.Mutex
	voters  []voterClient
	set     uint64
	tally   *Tally
	relay   *Relay                 // what this lessee lent
	fleet   *fleet                 // and what those say to whom it lends
	free    chan struct{}          // closed when something that was lent is released
	asks    int                    // of a borrower: which of voters it asks now
	asked   map[string]voterClient // and whom it asked since it last gave up
	asking  bool                   // of a borrower: a request is under way
	given   uint64                 // epochs up to this one are given up for good
	granted uint64                 // newest epoch that a majority granted
	changed chan struct{}          // closed when granted changes
	// gateOfLocks is the barrier of the epoch that is asked for.
	gateOfLocks lockGate
	flying      map[string]int // renewals that are not answered yet, by voter
	// leaves is set before the end of a process that goes in order.
	leaves atomic.Bool
	ended  atomic.Bool // run has returned

	work sync.WaitGroup
}

func newLessee(name string, t Timing, drain time.Duration, voters []voterClient,
	source StateSource, gate Gate, log *zap.Logger, now func() int64,
) *lessee {
	return &lessee{
		name: name, incarnation: rand.Uint64(), timing: t, drain: drain, voters: voters,
		source: source, gate: gate, log: log, now: now,
		tally: NewTally(t, len(voters)), changed: make(chan struct{}),
		relay: NewRelay(t), fleet: newFleet(t), free: make(chan struct{}), poked: make(chan struct{}, 1),
		gateOfLocks: newLockGate(0), flying: make(map[string]int),
	}
}

// borrow makes the lessee ask the relays that run beside the voters, one at a time, beginning
// with any: the voters' load then does not grow with the number of such lessees.
func (l *lessee) borrow() {
	l.tally, l.asked = NewBorrowerTally(l.timing), make(map[string]voterClient)
	l.asks = rand.IntN(len(l.voters))
}

// lender is which of the nodes lends to this lessee now; -1 if none does.
func (l *lessee) lender() int {
	if l.now() >= l.view.Doubt() {
		return -1
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asks % len(l.voters)
}

// follow turns to the voters of the state. What was granted stands until it ends, so that no
// lease is lost: what the voters before promised is over before the new ones endorse anything.
func (l *lessee) follow(s *State) {
	if l.clients == nil {
		return
	}
	set, voters := l.clients(s)
	if len(voters) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set, l.voters = set, voters
	l.tally.Resize(len(voters))
}

// state returns the newest epoch that was granted, and a channel that is closed at the next.
func (l *lessee) state() (uint64, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.granted, l.changed
}

// run renews until ctx ends, and waits for its goroutines.
func (l *lessee) run(ctx context.Context) {
	defer l.ended.Store(true)
	defer l.work.Wait()
	t := time.NewTicker(l.timing.Interval)
	defer t.Stop()
	looks := false
	for {
		select {
		case <-t.C: // a tick that came while it gave up is answered by this pass
			looks = false
		default:
		}
		s, newer := l.source.State()
		l.follow(s)
		if end := l.mustEnd(s); end > 0 {
			l.giveUp(ctx, s, end)
		}
		if e := lockEpoch(s); e > 0 && e > l.given && intentFrom(s) != e {
			l.renewAll(ctx, e, looks)
		}
		looks = false
		select {
		case <-ctx.Done():
			l.leave()
			return
		case <-newer:
		case <-t.C:
		case <-l.poked:
			looks = true
		case <-l.tendLocks():
			looks = true
		}
	}
}

// intentFrom is the epoch that the current intent ends; 0 if there is none.
func intentFrom(s *State) uint64 {
	if s.Intent == nil {
		return 0
	}
	return s.Intent.FromEpoch
}

// mustEnd is the highest epoch that the state says is to be given up and was not yet; 0 if none.
func (l *lessee) mustEnd(s *State) uint64 {
	end := intentFrom(s)
	if e := lockEpoch(s); end == 0 && e > 0 {
		end = e - 1 // every older epoch is over
	}
	if end <= l.given {
		return 0
	}
	return end
}

// giveUp closes the gate and releases: first what is open may finish if the change is planned,
// then nothing of the epoch passes any more, and only then the voters are told.
func (l *lessee) giveUp(ctx context.Context, s *State, epoch uint64) {
	if l.gate != nil && s.Intent != nil && s.Intent.drains() {
		dctx, cancel := context.WithTimeout(ctx, s.Intent.drainTime(l.drain))
		l.drainGate(dctx, s.Intent.Epoch, epoch)
		cancel()
	}
	r := l.end(epoch)
	l.work.Add(1)
	go l.runReleases(ctx, r)
}

// lenders are those who may have promised something to this lessee: all voters, or the nodes that
// a borrower has asked.
func (l *lessee) lenders() []voterClient {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.tally.isBorrower {
		return l.voters
	}
	var out []voterClient
	for _, v := range l.asked {
		out = append(out, v)
	}
	clear(l.asked)
	return out
}

// drainGate lets open units finish, goes on renewing the lease meanwhile, and stops early when
// the intent is replaced.
func (l *lessee) drainGate(ctx context.Context, intent, epoch uint64) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	l.work.Add(1)
	go func() {
		defer l.work.Done()
		defer close(done)
		l.gate.Drain(ctx, epoch)
	}()
	t := time.NewTicker(l.timing.Interval)
	defer t.Stop()
	for isDone := false; ; {
		s, newer := l.source.State()
		if intentEpoch(s) == intent {
			// Only then: an epoch must not be renewed with a voter set that came after its end
			// (DESIGN.md I62).
			l.follow(s)
		} else {
			cancel()
		}
		if isDone && l.isAllBack(ctx, epoch) {
			return // the release follows: a renewal now would be called off while it is sent
		}
		l.renewAll(ctx, epoch, false)
		if !isDone {
			select {
			case <-done:
				isDone = true
			case <-newer:
			case <-t.C:
			}
			continue
		}
		// Those that this lessee lends to drain at the same time, and need the lease for it.
		if l.awaitReturns(ctx, epoch, newer, t.C) {
			return
		}
	}
}

// runRelease tells one voter until it has heard, or its promise has run out anyway.
func (l *lessee) runRelease(ctx context.Context, v voterClient, r Renewal) {
	defer l.work.Done()
	ctx, cancel := context.WithTimeout(ctx, l.timing.Promise)
	defer cancel()
	for {
		one, done := context.WithTimeout(ctx, l.timing.Lease/4)
		_, err := v.release(one, r)
		done()
		if err == nil {
			return
		}
		t := time.NewTimer(l.timing.Interval / 4)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// renewAll sends one renewal to every voter, or to the relay; it does not wait for the answers.
// One that only looks whether the barrier is open spares those that still have to answer.
func (l *lessee) renewAll(ctx context.Context, epoch uint64, looks bool) {
	holds, behind := l.locksBehind(epoch+1), l.locksBehind(epoch)
	sight := l.sight.load()
	if sight.epoch != epoch {
		sight = sidecarView{} // it is of another primary
	}
	l.mu.Lock()
	if l.tally.epoch != epoch {
		l.tally.Begin(epoch)
		l.relay.Begin(l.now(), epoch)
		l.gateOfLocks = newLockGate(epoch)
		l.view.until.Store(0)
		l.view.doubt.Store(0)
		l.view.epoch.Store(int64(epoch))
	}
	voters := l.voters
	if looks && !l.tally.isBorrower {
		if voters = l.idleLocked(); len(voters) < l.tally.majority {
			l.mu.Unlock()
			return
		}
	}
	seq, _ := l.tally.Send(l.now())
	r := Renewal{
		V: Version, Lessee: l.name, Incarnation: l.incarnation, Seq: seq, Epoch: epoch, Set: l.set,
		Holds: holds, Retakes: behind || l.relay.Retakes(l.now(), epoch),
		BlindFor: sight.blindFor, Reaches: reachText(sight.reaches),
	}
	l.mu.Unlock()
	if l.tally.isBorrower {
		l.mu.Lock()
		i := l.asks % len(voters)
		l.asked[voters[i].name()] = voters[i]
		isBusy := l.asking
		l.asking = true
		l.mu.Unlock()
		// A node that is slow under load gets no second request, and is not left for another
		// at once: with thousands of sidecars either would make it slower still.
		if isBusy {
			return
		}
		voters = voters[i : i+1]
	}
	l.mu.Lock()
	for _, v := range voters {
		l.flying[v.name()]++
	}
	l.mu.Unlock()
	for _, v := range voters {
		l.work.Add(1)
		go l.runRenew(ctx, v, r)
	}
}

// runRenew asks one voter. The answer is of no use once the lease would have ended, and a
// borrower looks for another relay well before.
func (l *lessee) runRenew(ctx context.Context, v voterClient, r Renewal) {
	defer l.work.Done()
	limit := l.timing.Lease
	if l.tally.isBorrower {
		limit = l.timing.Doubt
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a, err := v.renew(ctx, r)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asking = false
	if l.flying[v.name()]--; l.flying[v.name()] <= 0 {
		delete(l.flying, v.name())
	}
	if i := l.asks % len(l.voters); (err != nil || !a.Granted) && l.tally.isBorrower &&
		l.voters[i] == v {
		l.asks++
	}
	if err != nil {
		return
	}
	l.tally.Answer(v.name(), a)
	if l.tally.epoch != r.Epoch {
		return
	}
	doubt, until := l.tally.Deadlines()
	if until == 0 {
		return
	}
	l.view.doubt.Store(doubt)
	l.view.until.Store(until)
	l.noteLocksLocked(r.Epoch)
	if l.granted != r.Epoch {
		l.granted = r.Epoch
		close(l.changed)
		l.changed = make(chan struct{})
		l.log.Info("lease granted", zap.Uint64("epoch", r.Epoch))
	}
}
