package proxy

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

const whyUnknown = "It had been sent, and no answer came back."

// recover puts the session on a new backend after the loss of the old one, whose deliverer has
// ended. When it returns nil a backend is attached.
func (s *session) recover(ctx context.Context) error {
	l := s.takeLoss()
	s.proxy.metrics.losses.WithLabelValues(l.kind()).Inc()
	if l.cutMessage {
		return errCutMessage()
	}
	if l.fatal != nil && !isShutdown(l.fatal) {
		return l.fatal
	}
	s.mu.Lock()
	why := s.track.unmovable
	s.mu.Unlock()
	if why != 0 {
		return s.leave(ctx, l, errUnmovable(why.String()))
	}
	for {
		b, err := s.hold(ctx, l, false)
		if err != nil {
			return s.leave(ctx, l, err)
		}
		err = s.settle(ctx, b, l)
		if err == nil {
			err = s.tellMissed()
		}
		if err == nil {
			err = s.attach(b)
		}
		if err == nil {
			s.proxy.metrics.restored.Inc()
			return nil
		}
		b.close(false)
		if !errors.Is(err, errBackendLost) {
			return s.leave(ctx, l, err)
		}
	}
}

// kind labels the loss for metrics.
func (l *loss) kind() string {
	switch {
	case l.planned:
		return "planned"
	case len(l.pending) > 0:
		return "in_flight"
	case l.status != pgwire.TxIdle:
		return "in_transaction"
	}
	return "idle"
}

// isShutdown tells that a FATAL may mean the whole server rather than this session.
func isShutdown(e *pgwire.Error) bool {
	switch e.Code {
	case pgwire.CodeAdminShutdown, "57P02", pgwire.CodeCannotConnectNow:
		return true
	}
	return false
}

// takeLoss gathers what was outstanding, and clears it.
func (s *session) takeLoss() *loss {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &loss{
		epoch: s.lostEpoch, pid: s.lostPID, started: s.lostStarted,
		status: s.flow.status, xid: s.xid, endHeld: s.endHeld, fatal: s.fatal,
		planned: s.planned, cutMessage: s.lostMid, since: s.heldFrom,
	}
	s.heldFrom = time.Time{}
	s.discard = s.passing > 0
	if s.lostTx && l.status == pgwire.TxIdle {
		l.status = pgwire.TxInBlock
	}
	l.pending = s.judgeAll(l.status)
	rolledBack := s.flow.rolledBack
	s.flow = newFlow(l.status)
	s.fatal, s.endHeld, s.inDoubt, s.lostTx = nil, false, false, false
	s.noCancel = false
	if len(l.pending) > 0 {
		first := &l.pending[0]
		if first.verdict == verdictFinish && !first.batch.errored {
			// Done, but for its ReadyForQuery: what it set stays set.
			s.track.batchEnded(first.next, rolledBack)
		}
	}
	s.track.rolledBack()
	s.track.unmovable |= s.track.locks.reason()
	s.journaled = false
	return l
}

// judgeAll gives each unanswered batch its verdict; the caller holds s.mu.
func (s *session) judgeAll(status byte) []pending {
	var out []pending
	inDoubt := s.inDoubt
	for _, b := range s.flow.unansweredBatches() {
		p := pending{batch: b}
		p.batch.ops = slices.Clone(b.ops)
		end := b.end
		if end < 0 {
			end = len(s.journal)
		}
		whole := s.journaled && s.passing == 0 && b.start <= end && end <= len(s.journal)
		p.verdict, p.next = judge(b, status, inDoubt, whole)
		if p.verdict == verdictResend {
			p.bytes = slices.Clone(s.journal[b.start:end])
		}
		if p.verdict == verdictLookup {
			// What the transaction set is kept if it turns out to be committed.
			p.overlay, p.unmovable = s.track.txOverlay, s.track.txUnmovable
			p.unknown = s.track.txUnknown
		}
		inDoubt = false
		out = append(out, p)
		status = p.next
	}
	doubtWhatMayCommit(out)
	return out
}

// settle answers what was outstanding, in order, with the help of the new backend, which is
// restored and not attached. An error of errBackendLost leaves the rest in l.
func (s *session) settle(ctx context.Context, b *backend, l *loss) error {
	if l.endHeld {
		l.endHeld = false
		if err := s.writeClient(pgwire.AppendReadyForQuery(nil, pgwire.TxIdle)); err != nil {
			return err
		}
	}
	for len(l.pending) > 0 {
		p := &l.pending[0]
		if p.verdict == verdictResend {
			if err := s.resend(b, l, p); err != nil {
				return err
			}
			continue
		}
		e, err := s.answerOf(ctx, b, l, p)
		if err != nil && !errors.Is(err, errNotCarried) {
			return err
		}
		if err := s.writeClient(appendEnd(nil, p, e)); err != nil {
			return err
		}
		l.status = p.next
		synced := p.batch.synced
		l.pending = l.pending[1:]
		if err != nil {
			return err // the session ends, but what is known of its COMMIT is said first
		}
		if err := s.align(b, l.status); err != nil {
			return err
		}
		if !synced && (e != nil || p.batch.errored) {
			if err := s.dropUntilSync(ctx); err != nil {
				return err
			}
		}
	}
	return s.settled(b, l)
}

// settled makes the session's flow that of the new backend.
func (s *session) settled(b *backend, l *loss) error {
	if err := s.align(b, l.status); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !l.open {
		s.flow = newFlow(b.status)
	}
	// The client believes in a transaction that is gone; its next statement tells it. One that
	// is open on the new backend was begun there.
	s.lostStatus = l.status
	s.lostTx = b.status == pgwire.TxFailed && (l.status == pgwire.TxInBlock ||
		l.status == pgwire.TxFailed && !l.told)
	s.journaled = false
	return nil
}

// answerOf decides what a batch is answered with; nil is success.
func (s *session) answerOf(ctx context.Context, b *backend, l *loss, p *pending,
) (*pgwire.Error, error) {
	m := s.proxy.metrics
	switch p.verdict {
	case verdictFinish:
		return nil, nil
	case verdictRolledBack:
		l.told = true
		if l.status == pgwire.TxIdle {
			m.outcomes.WithLabelValues("not_executed").Inc()
			return errNotExecuted(), nil
		}
		m.outcomes.WithLabelValues("rolled_back").Inc()
		return errLostTransaction(), nil
	case verdictLookup:
		return s.lookUp(ctx, b, l, p)
	}
	m.outcomes.WithLabelValues("unknown").Inc()
	return errOutcomeUnknown(whyUnknown), nil
}

// lookUp finds out what became of a COMMIT.
func (s *session) lookUp(ctx context.Context, b *backend, l *loss, p *pending,
) (*pgwire.Error, error) {
	o, why, err := s.proxy.outcome(ctx, b.primary, l)
	if err != nil {
		s.log().Info("outcome could not be looked up yet", zap.Error(err))
		return nil, errBackendLost
	}
	s.proxy.metrics.outcomes.WithLabelValues(o.String()).Inc()
	s.log().Info("outcome of a commit was looked up", zap.String("outcome", o.String()),
		zap.Uint64("epoch", l.epoch))
	switch o {
	case outcomeCommitted:
		if p.batch.cls.has(clsChain) {
			p.next = pgwire.TxInBlock // the next transaction has begun, and is lost
		}
		return nil, s.committedLate(b, p)
	case outcomeAborted:
		return errCommitAborted(), nil
	}
	return errOutcomeUnknown(why), nil
}

// resend sends a batch again and relays its answers.
func (s *session) resend(b *backend, l *loss, p *pending) error {
	defer func() {
		s.mu.Lock()
		s.resent = nil
		s.mu.Unlock()
	}()
	s.mu.Lock()
	s.resent = b
	s.flow = newFlow(b.status)
	for _, o := range p.batch.ops {
		o.start -= p.batch.start
		s.flow.push(o)
	}
	s.mu.Unlock()
	if bootNow() >= b.primary.Lease.Doubt() {
		return errBackendLost
	}
	b.relayFromHere()
	out := p.bytes
	if !p.batch.synced {
		out = pgwire.AppendFlush(slices.Clip(out)) // else the server would keep its answers
	}
	if _, err := b.conn.Write(out); err != nil {
		return errBackendLost
	}
	err := b.deliver(s, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.flow.head == len(s.flow.ops)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	b.status = s.flow.status
	if err != nil {
		if errors.Is(err, errClientGone) {
			return err
		}
		// It may be answered in part: judge it anew, as lost on this backend.
		s.journal, s.box, s.journaled = p.bytes, nil, true
		l.epoch, l.pid, l.started = b.primary.Epoch, b.pid, b.started
		l.pending = append(s.judgeAll(l.status), l.pending[1:]...)
		return errBackendLost
	}
	l.status = b.status
	l.open = !p.batch.synced
	l.pending = l.pending[1:]
	return nil
}

// appendEnd gives the client what is still due of a batch: the error, or the answers of what was
// done, and ReadyForQuery if the Sync was sent. What follows a COMMIT that was looked up has an
// outcome of its own, which nobody knows.
func appendEnd(out []byte, p *pending, e *pgwire.Error) []byte {
	b := &p.batch
	if e != nil && !b.errored {
		out = pgwire.AppendError(out, e)
	}
	if e == nil && !b.errored {
		committed := false
		for i := range b.ops {
			o := &b.ops[i]
			if committed && o.isStatement() {
				out = pgwire.AppendError(out, errOutcomeUnknown(whyUnknown))
				break
			}
			out = appendSuccess(out, o, b)
			committed = committed || o.isStatement() && !o.internal
		}
	}
	if b.synced {
		out = pgwire.AppendReadyForQuery(out, p.next)
	}
	return out
}

// appendSuccess is the answer to an operation of a batch that ends with a COMMIT that was
// committed, or that was done already.
func appendSuccess(out []byte, o *op, b *batch) []byte {
	if o.internal {
		return out
	}
	switch o.kind {
	case opQuery:
		if b.finished == 0 {
			return pgwire.AppendCommandComplete(out, "COMMIT")
		}
	case opExecute:
		return pgwire.AppendCommandComplete(out, "COMMIT")
	case opParse:
		return pgwire.AppendMessage(out, pgwire.SrvParseComplete, nil)
	case opBind:
		return pgwire.AppendMessage(out, pgwire.SrvBindComplete, nil)
	case opClose:
		return pgwire.AppendMessage(out, pgwire.SrvCloseComplete, nil)
	case opDescribe:
		return pgwire.AppendMessage(out, pgwire.SrvNoData, nil)
	}
	return out
}
