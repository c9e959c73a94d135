package election

import (
	"context"
	"sync"

	"go.uber.org/zap"
)

// end closes the gate of an epoch for good and returns the release that tells so: from here on
// this process uses, renews and lends nothing of it.
func (l *lessee) end(epoch uint64) Renewal {
	if l.gate != nil {
		l.gate.Cut(epoch)
	}
	l.mu.Lock()
	l.given = epoch
	l.relay.Close(epoch)
	seq := l.tally.Release()
	l.view.until.Store(0)
	l.view.doubt.Store(0)
	l.mu.Unlock()
	l.log.Info("lease given up", zap.Uint64("epoch", epoch))
	return Renewal{
		V: Version, Lessee: l.name, Incarnation: l.incarnation, Seq: seq, Epoch: epoch,
	}
}

// leave gives the lease back when the process ends in order, so that no failover waits for it to
// run out. Each lender is told once, within a quarter of a lease: one that cannot be reached must
// not hold up the end. What this lessee lent may still be in use; then its own promises run out as
// if it had been killed (DESIGN.md I8a).
func (l *lessee) leave() {
	l.mu.Lock()
	epoch := l.tally.epoch
	isOver := !l.leaves.Load() || epoch <= l.given
	l.mu.Unlock()
	if isOver {
		return
	}
	r := l.end(epoch)
	if left, _ := l.outstanding(epoch); left > 0 {
		l.log.Info("lease runs out: sidecars have borrowed of it", zap.Duration("within", left))
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), l.timing.Lease/4)
	defer cancel()
	var told sync.WaitGroup
	for _, v := range l.lenders() {
		told.Go(func() { _, _ = v.release(ctx, r) }) // else the promise runs out
	}
	told.Wait()
}
