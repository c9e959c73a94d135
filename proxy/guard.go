package proxy

import (
	"context"
	"strconv"

	"holdfast/pgwire"
)

// Names of our own statement and portal on a backend; never the unnamed ones, which are the
// client's (DESIGN.md I7).
const (
	innerName = "_holdfast"
	xidSQL    = "SELECT pg_catalog.pg_current_xact_id_if_assigned()"
	// newXIDSQL is for PREPARE TRANSACTION, which takes a transaction id if there is none yet.
	newXIDSQL = "SELECT pg_catalog.pg_current_xact_id()"
)

// guard forwards the message at the head of the inbox, which may commit, once everything before it
// was answered and what becomes of it can be looked up.
func (s *session) guard(ctx context.Context, b *backend) error {
	for s.unsent > 0 {
		if err := s.gate(ctx); err != nil {
			return err
		}
		if err := s.sendRest(b, true); err != nil {
			return err
		}
	}
	if err := s.awaitBackend(ctx, func() bool { return s.flow.isSettled() }); err != nil {
		return err
	}
	s.mu.Lock()
	held := s.endHeld
	s.mu.Unlock()
	switch {
	case held:
		return nil // the end of what was before waits for a snapshot, which comes first
	case s.guarded.cls.has(clsCommitPrepared | clsRollbackPrepared):
		return s.guardPrepared(ctx, b)
	case s.guarded.cls.has(clsCommit):
		return s.guardCommit(ctx, b)
	}
	return s.guardImplicit(ctx, b)
}

// awaitCancels lets no cancel request through any more, and waits for those on their way.
func (s *session) awaitCancels(ctx context.Context) error {
	s.mu.Lock()
	s.noCancel = true
	s.mu.Unlock()
	return s.awaitBackend(ctx, func() bool { return s.cancels == 0 })
}

// guardCommit learns the xid of the open transaction and then forwards the COMMIT that is at the
// head of the inbox: from here on what becomes of it can be looked up. It costs a round trip.
func (s *session) guardCommit(ctx context.Context, b *backend) error {
	if err := s.awaitCancels(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	s.xid, s.inner = 0, nil
	ask := s.flow.expected() == pgwire.TxInBlock && !s.flow.skipping
	extended := s.in.bytes()[0] == pgwire.CliExecute
	s.mu.Unlock()
	if ask {
		if err := s.askXID(ctx, b, extended); err != nil {
			return err
		}
	}
	if err := s.gate(ctx); err != nil {
		return err
	}
	return s.forwardCommit(b, ask)
}

// askXID asks on the session's own backend, inside the client's transaction.
func (s *session) askXID(ctx context.Context, b *backend, extended bool) error {
	s.mu.Lock()
	s.rows, s.rowsCut, s.inner = nil, false, nil
	out := s.out[:0]
	before := s.flow
	s.pushed = 0
	at := s.unit.end()
	sql := xidSQL
	if s.guarded.cls.has(clsPrepares) {
		sql = newXIDSQL
	}
	if extended {
		out = appendInner(out, sql)
		out = pgwire.AppendFlush(out)
		s.pushInner(at)
	} else {
		out = pgwire.AppendQuery(out, sql)
		s.push(op{kind: opQuery, internal: true, showErr: true, start: at})
	}
	s.out = out
	s.mu.Unlock()
	if err := s.sendInner(b, out, before); err != nil {
		return err
	}
	done := func() bool {
		return s.flow.head == len(s.flow.ops) || s.flow.skipping
	}
	if err := s.awaitBackend(ctx, done); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.takeXID()
	return nil
}

// takeXID takes the answer to xidSQL; the caller holds s.mu.
func (s *session) takeXID() {
	if len(s.rows) == 1 {
		if xid, err := strconv.ParseUint(s.rows[0][0], 10, 64); err == nil {
			s.xid = xid
		}
	}
	s.rows = nil
}

// appendInner asks with our own statement and portal, and leaves none of them behind.
func appendInner(out []byte, sql string) []byte {
	out = pgwire.AppendClose(out, 'S', innerName)
	out = pgwire.AppendParse(out, innerName, sql, nil)
	out = pgwire.AppendBind(out, innerName, innerName)
	out = pgwire.AppendExecute(out, innerName, 0)
	return pgwire.AppendClose(out, 'P', innerName)
}

// sendInner writes a query of our own.
func (s *session) sendInner(b *backend, out []byte, before flow) error {
	n, err := b.conn.Write(out)
	if err == nil {
		return nil
	}
	if n == 0 {
		s.mu.Lock()
		s.flow.unpush(s.pushed, before)
		s.mu.Unlock()
	}
	s.lose(b, false)
	return errBackendLost
}

// forwardCommit sends the message that commits, marked as in doubt before the first byte leaves.
func (s *session) forwardCommit(b *backend, asked bool) error {
	s.mu.Lock()
	return s.forwardCommitLocked(b, asked)
}

// forwardCommitLocked is forwardCommit for a caller that holds s.mu, which is released.
func (s *session) forwardCommitLocked(b *backend, asked bool) error {
	data := s.in.bytes()
	_, n, err := pgwire.Header(data)
	if err != nil {
		s.mu.Unlock()
		return fatalProtocol(err)
	}
	n += pgwire.HeaderLen
	if s.inner != nil && data[0] == pgwire.CliQuery {
		return s.commitFailed(b, n) // unlocks
	}
	if s.flow.status != pgwire.TxFailed && s.isDifferent() {
		s.mu.Unlock()
		s.lose(b, false)
		return errBackendLost
	}
	before := s.flow
	s.pushed = 0
	s.inDoubt = asked && !s.flow.skipping
	if s.flow.isSafePoint() {
		s.beginUnit()
	}
	o := op{kind: opExecute, commits: true}
	if o.cls = s.guarded.cls & (clsCommit | clsChain | clsEnds | twoPhase); o.cls.has(clsCommit) {
		o.cls |= clsMayWrite
	}
	o.start = s.unit.end()
	if data[0] == pgwire.CliQuery {
		o.kind = opQuery
	}
	s.push(o)
	s.mu.Unlock()
	if err := s.send(b, 0, n, before); err != nil {
		s.mu.Lock()
		s.inDoubt = s.inDoubt && s.flow.head < len(s.flow.ops)
		s.mu.Unlock()
		return err
	}
	return nil
}

// isDifferent tells that a unit that is run again has not come to where it had been, though all
// that it was asked was answered: it must not commit. The caller holds s.mu.
func (s *session) isDifferent() bool {
	if !s.again.isOpen() {
		return false
	}
	s.again.failed = true
	return true
}

// commitFailed ends a transaction that failed when its xid was asked for: the client has had the
// ErrorResponse as that of its COMMIT; ReadyForQuery comes from a ROLLBACK. The caller holds
// s.mu, which is released.
func (s *session) commitFailed(b *backend, n int) error {
	s.inner = nil
	before := s.flow
	s.pushed = 0
	s.push(op{kind: opQuery, internal: true, showEnd: true})
	s.mu.Unlock()
	s.in.take(n)
	return s.sendInner(b, pgwire.AppendQuery(s.out[:0], "ROLLBACK"), before)
}

// awaitBackend waits until the loop has made cond true; cond is called with s.mu held.
func (s *session) awaitBackend(ctx context.Context, cond func() bool) error {
	s.mu.Lock()
	s.watching = true
	defer func() {
		s.mu.Lock()
		s.watching = false
		s.mu.Unlock()
	}()
	for !cond() {
		lost := s.lost
		s.mu.Unlock()
		if lost {
			return errBackendLost
		}
		select {
		case <-s.news():
		case <-ctx.Done():
			return errClosing
		}
		s.mu.Lock()
	}
	s.mu.Unlock()
	return nil
}

// injectSnapshot asks the server for the session's state after something changed it, while the
// ReadyForQuery of that something waits.
func (s *session) injectSnapshot() error {
	s.mu.Lock()
	b := s.backend
	if !s.endHeld || !s.flow.isSafePoint() || b == nil || s.lost {
		s.mu.Unlock()
		return nil
	}
	before := s.flow
	s.pushed = 0
	s.rows, s.rowsCut, s.inner = nil, false, nil
	out := appendInner(s.out[:0], s.track.snapshotSQL())
	out = pgwire.AppendSync(out)
	s.pushInner(0)
	s.push(op{kind: opSync, internal: true, snapshot: true})
	s.out = out
	s.mu.Unlock()
	return s.sendInner(b, out, before)
}
