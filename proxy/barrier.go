package proxy

import (
	"context"
	"errors"
	"time"
)

// barrierWait bounds one wait for the sessions that hold locks, so that the hold looks after its
// client.
const barrierWait = time.Second

// isBarrierOpen tells that units of work may start on the primary, as far as session advisory
// locks go.
func (pr *Primary) isBarrierOpen() bool {
	if pr.Barrier == nil {
		return true
	}
	select {
	case <-pr.Barrier:
		return true
	default:
		return false
	}
}

// yieldToHolders lets the sessions that have locks to take log in first.
func (s *session) yieldToHolders(ctx context.Context, pr *Primary) error {
	s.mu.Lock()
	has := s.hasLocks
	s.mu.Unlock()
	if has || pr.isBarrierOpen() {
		return nil
	}
	t := time.NewTimer(barrierWait)
	defer t.Stop()
	for {
		behind, changed := s.proxy.lockBook.behind(pr.Epoch)
		if !behind {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pr.Barrier:
			return nil
		case <-t.C:
			return errors.New("sessions with advisory locks log in first")
		case <-changed:
		}
	}
}

// passBarrier waits, with a backend that is restored and not attached, until the proxies have
// their sessions' advisory locks again, or the barrier's time is over. An error of errOvertaken
// tells that the backend is of no use any more; the caller closes it on any error.
func (h *holding) passBarrier(ctx context.Context, b *backend) error {
	pr := b.primary
	for attempt := 1; !pr.isBarrierOpen(); attempt++ {
		if now, _ := h.s.proxy.topo.Current(); now == nil || now.Epoch != pr.Epoch ||
			h.s.proxy.isCut(pr.Epoch) || b.isClosed.Load() {
			return errOvertaken
		}
		if err := h.wait(ctx, pr.Barrier, attempt); err != nil {
			return err
		}
	}
	return nil
}
