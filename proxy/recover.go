package proxy

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

const whyUnknown = "It had been sent, and no answer came back."

// recover puts the session on a new backend after the loss of the old one, whose delivery was
// stopped. When it returns nil a backend is attached.
func (s *session) recover(ctx context.Context) error {
	l := s.takeLoss()
	s.noteHeard()
	s.proxy.metrics.losses.WithLabelValues(l.kind()).Inc()
	if l.isOurIdling() {
		l.fatal = nil
	}
	if l.fatal != nil && !isShutdown(l.fatal) {
		return s.leave(ctx, l, l.fatal)
	}
	s.mu.Lock()
	why := s.track.unmovable
	if s.carry.packed() {
		why &^= reasonTemp
	}
	s.mu.Unlock()
	switch {
	case why == 0:
	case l.fatal != nil && l.fatal.Code == pgwire.CodeAdminShutdown:
		// An order to this session or to the whole server: it ends either way, in its own words.
		s.log().Info("session cannot be carried to another server", zap.Stringer("why", why))
		return s.leave(ctx, l, asOrder(l.fatal))
	default:
		return s.leave(ctx, l, errUnmovable(s.carry.explain(why)))
	}
	last := s.last
	if time.Since(last.restoredAt) < restlessTime {
		last.restless++
	} else {
		last.restless = 0
	}
	for ; ; last.restless++ {
		b, err := s.hold(ctx, l, false)
		if err != nil {
			return s.leave(ctx, l, err)
		}
		if err = s.goOn(ctx, b, l); err == nil {
			s.proxy.metrics.restored.Inc()
			s.carriedOver()
			last.restoredAt = time.Now()
			return nil
		}
		b.close(false)
		if !errors.Is(err, errBackendLost) {
			return s.leave(ctx, l, err)
		}
	}
}

// restlessTime is how long a backend has to last for its loss to count as the first one.
const restlessTime = time.Second

// goOn attaches a restored backend: what can be run again is, everything else was answered.
func (s *session) goOn(ctx context.Context, b *backend, l *loss) error {
	if err := s.settle(ctx, b, l); err != nil {
		return err
	}
	// What is asked here is answered at once; settle may have waited for a lookup.
	_ = b.conn.SetDeadline(time.Now().Add(s.proxy.cfg.DialTimeout))
	from, want, ok := l.plan()
	if ok {
		if err := s.rewind(b, l); err != nil {
			return err
		}
	} else if err := s.settled(b, l); err != nil {
		return err
	} else {
		s.believeUnnamed(&l.redo.unnamed)
	}
	if err := s.restoreUnnamed(b); err != nil {
		return err
	}
	if ok && l.redo.chain != "" {
		if err := s.openChained(b, l); err != nil {
			return err
		}
	}
	_ = b.conn.SetDeadline(time.Time{})
	if err := s.tellMissed(); err != nil {
		return err
	}
	return s.attach(b, func() {
		if ok {
			s.runAgain(l, from, want)
		}
	})
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

// isShutdown tells that a FATAL may mean the whole server rather than this session. A PANIC always
// does: the postmaster ends all of its sessions, and the server recovers as from a crash.
func isShutdown(e *pgwire.Error) bool {
	if e.Severity == "PANIC" {
		return true
	}
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
	if a := s.again; a != nil {
		s.again = nil
		if a.left > 0 && a.verified {
			a.left = 0 // what was not sent again comes from the inbox, behind what was
		}
		if !a.verified {
			return s.lostAgain(a)
		}
	}
	last := s.losing()
	l := &loss{
		epoch: last.epoch, pid: last.pid, started: last.started,
		status: s.flow.believed(), xid: s.xid, endHeld: s.endHeld, fatal: last.fatal,
		planned: s.planned, cutMessage: last.mid, since: last.heldFrom, kept: last.kept,
	}
	last.heldFrom, last.kept = time.Time{}, nil
	if s.lostTx && l.status == pgwire.TxIdle {
		l.status = pgwire.TxInBlock
	}
	from := s.followUnit()
	l.pending = s.judgeAll(l.status)
	l.redo = redo{
		messages: s.unit.since(from), from: from, seen: s.seen, done: s.flow.done,
		all:     s.flow.all,
		canGoOn: s.flow.canGoOn, names: maps.Clone(s.track.statements),
		renamed: maps.Clone(s.track.renamed),
		before:  s.unnamedOf(unnamedMark{}), unnamed: s.unnamedOf(s.flow.unnamed),
		conf:  s.conf,
		locks: s.track.locks,
	}
	s.noteOpener(&l.redo)
	if l.redo.messages != nil && s.flow.unsynced > 0 && !s.flow.isOnlyLed() && s.passing == 0 {
		// The server would keep its answers, which the client has had, until the Sync.
		l.redo.messages = pgwire.AppendFlush(l.redo.messages)
	}
	if s.lostTx || s.tries >= s.proxy.cfg.ReplayAttemptsMax {
		l.redo.messages = nil // its block was made by the proxy, or it ends each primary
	}
	rolledBack := s.flow.rolledBack
	if len(l.pending) > 0 {
		first := &l.pending[0]
		if first.verdict == verdictFinish && !first.batch.errored {
			// Done, but for its ReadyForQuery: what it set stays set.
			s.track.batchEnded(first.next, rolledBack)
		}
	}
	s.afterLoss(l)
	return l
}

// afterLoss clears what belonged to the lost backend; the caller holds s.mu.
func (s *session) afterLoss(l *loss) {
	s.flow, s.chain = newFlow(l.status), nil
	s.endHeld, s.inDoubt, s.lostTx = false, false, false
	s.losing().fatal = nil
	s.noCancel = false
	s.track.rolledBack()
	if !l.redo.isPossible() || s.proxy.cfg.AdvisoryLocks == LocksEnd {
		s.track.unmovable |= s.track.locks.reason()
	}
	s.proxy.journaled(-s.unit.grown)
	s.unit.drop()
	s.discard = s.passing > 0
	s.mid = l.cutMessage
}

// judgeAll gives each unanswered batch its verdict; the caller holds s.mu.
func (s *session) judgeAll(status byte) []pending {
	var out []pending
	inDoubt := s.inDoubt
	at := standingOf(status)
	for _, b := range s.flow.unansweredBatches() {
		if b.live != 0 {
			at = standingOf(b.live)
		}
		p := pending{batch: b}
		p.batch.ops = slices.Clone(b.ops)
		p.verdict, p.next = judgeAt(&p.batch, at, status, inDoubt)
		at = p.batch.standing(at)
		p.stands = at
		p.unnamed = s.leavesUnnamed(&p.batch)
		if p.verdict == verdictLookup {
			// What the transaction set is kept if it turns out to be committed.
			p.overlay, p.unmovable = s.track.laid(), s.track.txUnmovable
			p.unknown = s.track.txUnknown
		}
		inDoubt = false
		out = append(out, p)
		status = p.next
	}
	doubtWhatMayCommit(out)
	return out
}

// appendHeldEnd gives the client the ReadyForQuery that was kept back for a snapshot, and what was
// kept back before it.
func (l *loss) appendHeldEnd(out []byte) []byte {
	out = pgwire.AppendReadyForQuery(append(out, l.kept...), pgwire.TxIdle)
	l.kept, l.endHeld = nil, false
	return out
}

// settle answers what was outstanding, in order, with the help of the new backend, which is
// restored and not attached, up to what can be run again. An error of errBackendLost leaves the
// rest in l.
func (s *session) settle(ctx context.Context, b *backend, l *loss) error {
	if l.endHeld {
		if err := s.writeClient(l.appendHeldEnd(nil)); err != nil {
			return err
		}
	}
	for len(l.pending) > 0 {
		if err := s.askTogether(ctx, b, l); err != nil {
			return err
		}
		if _, _, ok := l.plan(); ok {
			return nil
		}
		p := &l.pending[0]
		e, err := s.answerOf(ctx, b, l, p)
		if err != nil && !errors.Is(err, errNotCarried) {
			return err
		}
		if _, _, ok := l.plan(); ok && err == nil {
			return nil // it was looked up: rolled back
		}
		if err := s.writeClient(appendEnd(nil, p, e, l.kept)); err != nil {
			return err
		}
		if e == nil && !p.batch.errored {
			if err := s.believeAnswered(b, l, p); err != nil {
				return err
			}
		}
		l.redo.toldUnnamed(p, e)
		l.redo.finished(p)
		synced := p.batch.synced
		l.answered()
		if err != nil {
			return err // the session ends, but what is known of its COMMIT is said first
		}
		if err := s.align(b, l.status, l.opener()); err != nil {
			return err
		}
		if !synced && (e != nil || p.batch.errored) {
			if err := s.dropUntilSync(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// settled makes the session's flow that of the new backend.
func (s *session) settled(b *backend, l *loss) error {
	if s.mid {
		return errCutMessage()
	}
	if l.redo.locksVague {
		return notCarried(errUnmovable(reasonAdvisory.String()))
	}
	if err := s.settleLocks(b, l); err != nil {
		return err
	}
	if err := s.align(b, l.status, l.opener()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flow = newFlow(b.status)
	// The client believes in a transaction that is gone; its next statement tells it. One that
	// is open on the new backend was begun there. A block that had failed without a savepoint can
	// do nothing but end, and the one that stands in for it is the same, if it is known which it
	// was: an end with AND CHAIN hands that on.
	s.lostStatus = l.status
	s.lostTx = b.status == pgwire.TxFailed && (l.status == pgwire.TxInBlock ||
		l.status == pgwire.TxFailed && !l.told && (l.redo.canGoOn || l.redo.begun || l.redo.block == ""))
	return nil
}

// answerOf decides what a batch is answered with; nil is success.
func (s *session) answerOf(ctx context.Context, b *backend, l *loss, p *pending,
) (*pgwire.Error, error) {
	m := s.proxy.metrics
	switch p.verdict {
	case verdictFinish, verdictUndo:
		return nil, nil
	case verdictRolledBack:
		l.told = true
		if l.redo.why != nil {
			return l.redo.why, nil
		}
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

// database is the one that the session is connected to.
func (s *session) database() string { return s.owner.database }

// lookUp finds out what became of a COMMIT.
func (s *session) lookUp(ctx context.Context, b *backend, l *loss, p *pending,
) (*pgwire.Error, error) {
	if l.xid == 0 {
		reads, err := s.onlyRead(ctx, b, l, l.pending[:1])
		if err != nil {
			return nil, err
		}
		if reads {
			p.verdict = verdictRolledBack // as good as: it has changed nothing
			return errCommitAborted(), nil
		}
	}
	o, e, err := s.lookUpOutcome(ctx, b.primary, l, p.batch.doubted())
	if err != nil {
		s.log().Info("outcome could not be looked up yet", zap.Error(err))
		return nil, errBackendLost
	}
	switch o {
	case outcomeCommitted:
		l.redo.chained(p)
		err := s.committedLate(b, p)
		if err == nil || errors.Is(err, errNotCarried) { // else the client is told nothing yet
			s.commitFound(l.xid, b.primary.Epoch, p.batch.doubted())
		}
		return nil, err
	case outcomeAborted:
		p.verdict = verdictRolledBack // it can be run again, if all of it is there
	}
	return e, nil
}

// lookUpOutcome asks pr what became of the COMMIT in doubt of l; e tells the client of one that
// was not committed, or may not have been. cls is the class of the statement that commits.
func (s *session) lookUpOutcome(ctx context.Context, pr *Primary, l *loss, cls class,
) (o outcome, e *pgwire.Error, err error) {
	o, why, err := s.proxy.outcome(ctx, pr, l, cls, s.holdTimeout())
	if err != nil {
		return o, nil, err
	}
	s.proxy.metrics.outcomes.WithLabelValues(o.String()).Inc()
	s.log().Info("outcome of a commit was looked up", zap.String("outcome", o.String()),
		zap.Uint64("epoch", l.epoch))
	switch o {
	case outcomeCommitted:
		return o, nil, nil
	case outcomeAborted:
		return o, errAborted(cls), nil
	}
	return o, errOutcomeUnknown(why), nil
}

// appendEnd gives the client what is still due of a batch: the error, or the answers of what was
// done, and ReadyForQuery if the Sync was sent. What follows a COMMIT that was looked up has an
// outcome of its own, which nobody knows.
func appendEnd(out []byte, p *pending, e *pgwire.Error, kept []byte) []byte {
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
	if e == nil && !b.errored && b.sent {
		out = append(out, kept...)
	}
	if b.synced {
		out = pgwire.AppendReadyForQuery(out, p.next)
	}
	return out
}

// endTag is the tag of the end of a transaction. A COMMIT, or PREPARE TRANSACTION, is one of a
// transaction that was committed, or of a failed one.
func endTag(b *batch, o *op) string {
	switch {
	case o.cls.has(clsCommitPrepared):
		return "COMMIT PREPARED"
	case o.cls.has(clsRollbackPrepared):
		return "ROLLBACK PREPARED"
	case o.cls.has(clsRollback) || b.live == pgwire.TxFailed:
		return "ROLLBACK"
	case o.cls.has(clsPrepares):
		return "PREPARE TRANSACTION"
	}
	return "COMMIT"
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
			return pgwire.AppendCommandComplete(out, endTag(b, o))
		}
	case opExecute:
		return pgwire.AppendCommandComplete(out, endTag(b, o))
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
