package election_test

import (
	"context"
	"time"

	"holdfast/election"
)

// simLink is the way from a lessee to a voter.
type simLink struct {
	n, to *simNode
	life  int
}

// Name implements election.SimLink.
func (k *simLink) Name() string { return k.to.name }

// Renew implements election.SimLink.
func (k *simLink) Renew(ctx context.Context, r election.Renewal) (election.RenewalAnswer, error) {
	d := k.dice(r.Seq, 1)
	sent := time.Now()
	if err := d.begin(ctx); err != nil {
		return election.RenewalAnswer{}, err
	}
	if k.n == k.to {
		return k.take(ctx, r, sent, &d), nil
	}
	if !k.n.waitAwake(ctx, &d) || !k.n.w.carry(k.n, k.to, &d) {
		return k.lost(ctx)
	}
	if d.chance(0.05) && k.n.w.isLossy() { // it comes a second time, perhaps much later
		again := simDice{d.next(), d.class + 2}
		k.n.w.late.Go(func() {
			again.sleep(time.Duration(again.upto(4e9)))
			k.take(context.Background(), r, sent, &again)
		})
	}
	a := k.take(ctx, r, sent, &d)
	if !k.n.w.carry(k.to, k.n, &d) || !k.n.waitAwake(ctx, &d) {
		return k.lost(ctx)
	}
	k.noteAnswer(a, r)
	return a, nil
}

// lost is a message that nobody answers.
func (k *simLink) lost(ctx context.Context) (election.RenewalAnswer, error) {
	<-ctx.Done()
	return election.RenewalAnswer{}, ctx.Err()
}

// take is what a voter does with a renewal, mistakes included.
func (k *simLink) take(
	ctx context.Context, r election.Renewal, sent time.Time, d *simDice,
) election.RenewalAnswer {
	if !k.to.waitAwake(ctx, d) {
		return election.RenewalAnswer{Seq: r.Seq}
	}
	w := k.n.w
	w.mu.Lock()
	l := &k.to.lease
	if !k.to.isAwakeLocked() {
		w.mu.Unlock()
		return election.RenewalAnswer{Seq: r.Seq}
	}
	voter := l.voter
	l.newest[r.Lessee] = max(l.newest[r.Lessee], r.Seq)
	if w.bug == bugSimFromSend {
		// It believes the lessee, whose clock is another one.
		l.shift.Store(k.to.lesseeNow() - k.n.lease.clock.at(sent.UnixNano()))
	}
	w.mu.Unlock()
	a := voter.Renew(r)
	l.shift.Store(0)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noteLocked(k.to.name, "renewal of "+r.Lessee, r.Seq, r.Epoch, oneIf(a.Granted))
	return a
}

// noteAnswer is bugSimFromAnswer: the lease lasts T_L from when a majority's answer came.
func (k *simLink) noteAnswer(a election.RenewalAnswer, r election.Renewal) {
	w := k.n.w
	if w.bug != bugSimFromAnswer || !a.Granted {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	l := &k.n.lease
	if l.granted == nil || len(l.granted) > 100 {
		l.granted = map[uint64]int{}
	}
	if l.granted[r.Seq]++; l.granted[r.Seq] == 1 { // with its own voter's it is a majority
		l.cheat, l.cheatEpoch = k.n.lesseeNow()+int64(simTiming().Lease), r.Epoch
	}
}

// Release implements election.SimLink.
func (k *simLink) Release(
	ctx context.Context, r election.Renewal,
) (election.RenewalAnswer, error) {
	w := k.n.w
	d := k.dice(r.Seq^uint64(time.Now().UnixNano()), 2)
	if err := d.begin(ctx); err != nil {
		return election.RenewalAnswer{}, err
	}
	if k.n != k.to && !w.carry(k.n, k.to, &d) {
		return k.lost(ctx)
	}
	if k.n != k.to && d.chance(0.3) && w.isLossy() { // as renewals do
		again := simDice{d.next(), d.class + 2}
		w.late.Go(func() {
			again.sleep(time.Duration(again.upto(4e9)))
			k.takeRelease(context.Background(), r, &again)
		})
	}
	a, ok := k.takeRelease(ctx, r, &d)
	if !ok || k.n != k.to && !w.carry(k.to, k.n, &d) {
		return k.lost(ctx)
	}
	return a, nil
}

// takeRelease is what a voter does with a release, mistakes included.
func (k *simLink) takeRelease(
	ctx context.Context, r election.Renewal, d *simDice,
) (a election.RenewalAnswer, ok bool) {
	w := k.n.w
	if !k.to.waitAwake(ctx, d) {
		return a, false
	}
	w.mu.Lock()
	l := &k.to.lease
	if !k.to.isAwakeLocked() {
		w.mu.Unlock()
		return a, false
	}
	voter := l.voter
	if w.bug == bugSimRelease {
		r.Seq = max(r.Seq, l.newest[r.Lessee])
	}
	w.mu.Unlock()
	a = voter.Release(r)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noteLocked(k.to.name, "release of "+r.Lessee, r.Seq, r.Epoch)
	return a, true
}

// carry takes a message from a to b, late; false if it is lost.
func (w *simWorld) carry(a, b *simNode, d *simDice) bool {
	w.mu.Lock()
	lossy, isThere := w.lossy, w.reachLocked(a.name, b.name)
	w.mu.Unlock()
	late := 500*time.Microsecond + time.Duration(d.upto(5e6))
	if lossy > 0 && d.chance(0.3) {
		late += time.Duration(d.upto(700e6))
	}
	if !isThere || d.chance(lossy/2) {
		return false
	}
	d.sleep(late)
	w.mu.Lock()
	defer w.mu.Unlock()
	return b.isUp && b.lease.isRunning && w.reachLocked(a.name, b.name)
}

// simDice are the chances of one message: a function of the seed and of which message it is, so
// that a schedule does not depend on which goroutine of a moment runs first.
type simDice struct {
	state uint64
	class int
}

func (w *simWorld) diceOf(node string, number, what uint64) simDice {
	d := simDice{state: w.seed*0x9e3779b97f4a7c15 ^ what<<56 ^ uint64(node[len(node)-1])<<40 ^ number}
	d.next()
	return d
}

func (k *simLink) dice(seq, what uint64) simDice {
	d := k.n.w.diceOf(k.n.name, seq, what)
	d.state ^= uint64(k.to.index)<<32 ^ uint64(k.life)<<16
	d.next()
	d.class = classLink + 30*(4*k.n.index+k.to.index) + 10*int(what-1) + d.block()
	return d
}

// next is splitmix64.
func (d *simDice) next() uint64 {
	d.state += 0x9e3779b97f4a7c15
	z := d.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (d *simDice) upto(n uint64) uint64 { return d.next() % n }

func (d *simDice) float() float64 { return float64(d.next()>>11) / (1 << 53) }

func (d *simDice) chance(p float64) bool { return d.float() < p }

func oneIf(is bool) uint64 {
	if is {
		return 1
	}
	return 0
}
