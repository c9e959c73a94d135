package proxy

import (
	"context"
	"errors"
	"time"

	"holdfast/pgwire"
)

// goodbyeTime bounds what a session that ends still writes to its client.
const goodbyeTime = time.Second

// leave answers what is in flight of a session that ends, as truthfully as it can be: a client
// takes 57P01 for "not executed" and repeats, so it never stands for a COMMIT whose outcome is
// not known (DESIGN.md I6). It returns cause, or why the client cannot be told.
func (s *session) leave(ctx context.Context, l *loss, cause error) error {
	if errors.Is(cause, errClientGone) || l.cutMessage || !l.waiting() {
		return cause
	}
	if !errors.Is(cause, errClosing) {
		if err := s.settleUnattached(ctx, l); err != nil && !errors.Is(err, errClosing) {
			return err
		}
	}
	_ = s.client.SetWriteDeadline(time.Now().Add(goodbyeTime))
	var out []byte
	if l.endHeld {
		out = l.appendHeldEnd(out)
	}
	// What comes after the last one in doubt was not executed: the goodbye is its answer. If that is
	// the server's own order, it is the server's answer to the transaction that it was working on.
	last := len(l.pending) - 1
	for last >= 0 && (!l.pending[last].verdict.mayHaveHappened() ||
		l.isOrdered(cause) && l.pending[last].isGivenUp()) {
		last--
	}
	for i := range l.pending[:last+1] {
		out = s.appendUnasked(out, l, &l.pending[i], errNotExecuted())
	}
	l.pending = nil
	if err := s.writeClient(out); err != nil {
		return err
	}
	return cause
}

// awaitAnswers tells of a client that has violated the protocol. A server comes to that when it has
// answered what was sent before; so that is waited for, or lost, unless the client has left: nobody
// is to be told then, and neither session nor backend is kept. It returns err, or that.
func (s *session) awaitAnswers(ctx context.Context, err error) (bool, error) {
	var pe *pgwire.Error
	s.mu.Lock()
	isAttached := s.backend != nil
	s.mu.Unlock()
	if !isAttached || !errors.As(err, &pe) {
		return false, err
	}
	isOver := func() bool { return s.gone || s.flow.isSettled() || s.flow.awaitsClient() }
	for {
		tick, cancel := context.WithTimeout(ctx, waitTick)
		waited := s.awaitBackend(tick, isOver)
		cancel()
		s.mu.Lock()
		gone := s.gone
		s.mu.Unlock()
		switch {
		case gone:
			return false, errClientGone
		case !errors.Is(waited, errClosing) || ctx.Err() != nil:
			return true, err
		case s.client.probe() == peerGone:
			return false, errClientGone
		}
	}
}

// isOrdered tells that the backend itself has said, in the place of an answer, that it was told to
// end, or ends for a reason of its own, and is why the session ends. It has then given up its
// transaction: behind a commit it says so only after the answer (ProcessInterrupts; a wait for
// standbys ends without the message), and without a proxy the client would have been told the same.
func (l *loss) isOrdered(cause error) bool {
	if l.fatal == nil || !errors.Is(cause, l.fatal) {
		return false
	}
	return !errors.Is(cause, errOrdered) || l.fatal.Code == pgwire.CodeAdminShutdown
}

// isGivenUp tells that the end of its backend leaves nothing of it to be told: it would have rolled
// back, or is one transaction, which is given up as a whole. Not so CALL, what commits by itself in
// several parts, and strings with a COMMIT.
func (p *pending) isGivenUp() bool {
	cls := p.batch.cls | p.batch.before
	return p.verdict == verdictUndo ||
		p.verdict == verdictUnknown && !cls.has(clsSelfCommit|clsEnds|clsOpaque)
}

// mayHaveHappened tells that the batch was, or may have been, executed.
func (v verdict) mayHaveHappened() bool {
	return v != verdictRolledBack
}

// settleUnattached looks a COMMIT in flight up for a session that gets no backend any more. It
// waits for a primary as long as the hold's budget lasts.
func (s *session) settleUnattached(ctx context.Context, l *loss) error {
	h := holding{s: s, loss: l}
	defer h.end()
	for attempt := 0; len(l.pending) > 0 && l.pending[0].verdict == verdictLookup; attempt++ {
		pr, changed := s.proxy.topo.Current()
		if s.isUsable(pr) {
			if err := s.lookUpUnattached(ctx, pr, l); err == nil {
				return nil
			} else if errors.Is(err, errClientGone) {
				return err
			}
		}
		if err := h.wait(ctx, changed, attempt); err != nil {
			return err
		}
	}
	return nil
}

// lookUpUnattached answers the first batch of l, whose COMMIT is in doubt.
func (s *session) lookUpUnattached(ctx context.Context, pr *Primary, l *loss) error {
	if l.epoch == pr.Epoch && l.pid != 0 {
		if err := s.proxy.endBackend(ctx, pr, l); err != nil {
			return err
		}
	}
	p := &l.pending[0]
	_, e, err := s.lookUpOutcome(ctx, pr, l, p.batch.doubted())
	if err != nil {
		return err
	}
	l.status = p.next
	out := appendEnd(nil, p, e, l.kept)
	l.pending = l.pending[1:]
	return s.writeClient(out)
}
