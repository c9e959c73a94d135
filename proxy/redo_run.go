package proxy

import (
	"context"
	"maps"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// lostAgain takes the loss of a backend on which a unit was run again, before it came to where it
// had been: it can be begun once more, unless it came out differently. The caller holds s.mu.
func (s *session) lostAgain(a *again) *loss {
	l := a.loss
	last := s.losing()
	l.epoch, l.pid, l.started = last.epoch, last.pid, last.started
	l.fatal, l.planned, l.since = last.fatal, s.planned, last.heldFrom
	last.heldFrom = time.Time{}
	if a.left > 0 {
		// The last message is not on its way again, but its rest is still to come (I33).
		s.in.take(min(a.left, len(s.in.bytes())))
		s.passing = a.rest
	}
	s.track.rolledBack()
	s.track.rewindNames()
	switch {
	case a.failed:
		s.endRedo(l, "different")
	case a.canceled:
		l.redo.why = errHeldCanceled()
		s.endRedo(l, "canceled")
	case s.tries >= s.proxy.cfg.ReplayAttemptsMax:
		s.endRedo(l, "given_up")
	}
	s.afterLoss(l)
	return l
}

// endRedo gives up running a unit again. What the client believes of its prepared statements holds
// again: no rollback undoes them. The caller holds s.mu.
func (s *session) endRedo(l *loss, why string) {
	if l.redo.isOff {
		return
	}
	l.redo.isOff = true
	if l.redo.isBegun {
		s.proxy.metrics.replays.WithLabelValues(why).Inc()
	}
	if l.redo.isRewound {
		s.track.believe(maps.Clone(l.redo.names))
		s.track.locks = l.redo.locks
	}
}

// rewind gives the session what it had when the unit of work began that is run again: prepared
// statements and advisory locks.
func (s *session) rewind(b *backend, l *loss) error {
	s.mu.Lock()
	l.redo.isRewound = true
	out := s.out[:0]
	var made []*prepared
	if !l.redo.begun { // else nothing was answered of it, so that it has changed nothing
		out, made = s.rewindStatements(out)
	}
	s.believeUnnamed(l.redo.unnamedAtStart())
	s.track.renamed = nil
	s.flow = newFlow(pgwire.TxIdle)
	s.mu.Unlock()
	if len(made) > 0 {
		errs, _, err := b.exchangeAll(out, len(made), b.note)
		if err != nil {
			return errBackendLost
		}
		s.mu.Lock()
		s.track.prepared(made, errs)
		s.mu.Unlock()
	}
	if err := s.rewindLocks(b, l); err != nil {
		return err
	}
	return s.align(b, pgwire.TxIdle, nil)
}

// rewindStatements makes the prepared statements those of the start of the unit, and appends what
// makes a backend follow: made has for each ReadyForQuery what is prepared, if anything is. The
// caller holds s.mu.
func (s *session) rewindStatements(out []byte) (_ []byte, made []*prepared) {
	for name, was := range s.track.rewindNames() {
		out = pgwire.AppendClose(out, 'S', name)
		out = pgwire.AppendSync(out)
		made = append(made, nil)
		if was != nil && was.sql != "" {
			out = appendPrepare(out, name, was)
			made = append(made, was)
		}
	}
	return out, made
}

// runAgain begins to run a unit again on the backend that is being attached. The caller holds s.mu.
func (s *session) runAgain(l *loss, from int, want digest) {
	messages := l.redo.messages[from-l.redo.from:]
	l.redo.isBegun = true
	s.proxy.metrics.replays.WithLabelValues("begun").Inc()
	s.tries++
	if want.n == 0 {
		s.proxy.metrics.replays.WithLabelValues("same").Inc()
	}
	s.again = &again{
		loss: l, want: want, left: len(messages), rest: s.passing, verified: want.n == 0,
	}
	s.passing, s.discard, s.mid = 0, false, false
	if l.redo.chain != "" {
		s.flow = newFlow(pgwire.TxInBlock)
		s.beginUnit()
		s.chain = &chain{isSought: true, sql: l.redo.chain}
	}
	s.in.prepend(messages)
}

// onlyRead tells whether all of the unit of work up to and with these batches, the first of what is
// outstanding, surely has only read, so that it can be run again whatever became of it. The
// catalogue of the new primary is asked. Where the unit was answered in part, it is all of the
// transaction that they are in: a COMMIT writes what was written before it.
func (s *session) onlyRead(ctx context.Context, b *backend, l *loss, lost []pending,
) (bool, error) {
	if l.isHarmless(lost) {
		return true, nil
	}
	r := &l.redo
	from := r.from
	isBlock := r.begun && l.status != pgwire.TxIdle
	switch {
	case isBlock && len(r.renamed) > 0:
		return false, nil // which names its first statements found is not known any more
	case isBlock:
		from = r.blockFrom
	case r.begun:
		from = lost[0].batch.start
	}
	all := r.all
	for i := range lost {
		all |= lost[i].batch.cls | lost[i].batch.before
	}
	if r.messages == nil || r.isOff || all.has(clsEnds|clsOpaque|clsSelfCommit|clsTemp|clsHold) {
		return false, nil
	}
	to := len(r.messages)
	if end := lost[len(lost)-1].batch.end; end >= 0 {
		to = end - r.from
	}
	goesOn := r.canGoOn || all.has(clsSavepoint|clsRollbackTo)
	sqls, ok := r.textsOf(r.messages[from-r.from:to], r.conf, !isBlock, goesOn)
	if !ok {
		return false, nil
	}
	reads, err := s.proxy.onlyReads(ctx, b.primary, s.database(), sqls)
	if err != nil {
		s.log().Info("the catalogue could not be asked yet", zap.Error(err))
		return false, errBackendLost
	}
	return reads, nil
}
