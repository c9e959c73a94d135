package proxy

import (
	"context"
	"time"
)

// drainPoll is the pause between two looks at the sessions while a drain runs.
const drainPoll = 2 * time.Millisecond

// isCut tells that an epoch is closed for good.
func (p *Proxy) isCut(epoch uint64) bool { return epoch <= p.cutEpoch.Load() }

// isDraining tells that no new unit of work may start under an epoch.
func (p *Proxy) isDraining(epoch uint64) bool { return epoch <= p.drainEpoch.Load() }

// Drain starts no new unit of work under the epoch and returns when none is open any more and
// sessions with temporary tables have taken these along, or when ctx ends. The clients of idle
// sessions notice nothing but time.
func (p *Proxy) Drain(ctx context.Context, epoch uint64) {
	raise(&p.drainEpoch, epoch)
	p.pool.cut(epoch)
	for {
		open := 0
		for _, s := range p.all() {
			if s.awaitsDrain(epoch) {
				open++
			}
		}
		if open == 0 || sleep(ctx, drainPoll) != nil {
			return
		}
	}
}

// Cut closes every connection to the primaries of epochs up to this one, in such a way that
// nothing on its way can still arrive there, and lets nothing of them reach a client. It returns
// when that is done; it never waits for a client (DESIGN.md I3).
func (p *Proxy) Cut(epoch uint64) {
	raise(&p.cutEpoch, epoch)
	raise(&p.drainEpoch, epoch)
	for _, s := range p.all() {
		s.mu.Lock()
		b := s.backend
		old := b != nil && b.primary.Epoch <= epoch
		polite := old && s.flow.isSafePoint() && !b.streams
		opening, hasLocks := s.opening, s.hasLocks
		s.mu.Unlock()
		if opening != nil && opening.primary.Epoch <= epoch {
			opening.close(false)
		}
		if old && hasLocks {
			s.loseKeepingLocks(b)
		} else if old {
			s.lose(b, polite)
		}
	}
	p.pool.cut(epoch)
	p.prewarm.cut(epoch)
	p.secretsAt.cut(epoch)
	p.outcomesAt.cut(epoch)
	p.catalogues.cut(epoch)
}

// raise sets v to at least to.
func raise(v interface {
	Load() uint64
	CompareAndSwap(old, new uint64) bool
}, to uint64,
) {
	for {
		old := v.Load()
		if old >= to || v.CompareAndSwap(old, to) {
			return
		}
	}
}
