package proxy

import (
	"context"
	"errors"
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

// The same functions by object id, for FunctionCall: the server neither parses nor plans it, and
// what it keeps of the client's statements stays as it is. These ids are assigned by hand and the
// same in every release that has the functions, the first of which is 13 (pg_proc.dat).
const (
	xidOID    = 5060
	newXIDOID = 5059
)

// asking is what waits until the server has told the xid.
type asking uint8

const (
	askingNothing asking = iota
	askingCommit         // the COMMIT at the head of the inbox
	askingSync           // the Sync there
	askingQuery          // a Sync of ours, behind what was a Query
	askingString         // the end of a block of ours, behind a string of several statements
	askingEnd            // what comes behind that
)

// isAsking tells that a question for the xid, or what was sent by us behind its answer, is to be
// gone on with before the inbox is looked at.
func (s *session) isAsking() bool {
	return s.work != nil && (s.asking != askingNothing || len(s.ours) > 0)
}

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

// guardOn goes on where something waits for the answer to our question: from here on what becomes
// of it can be looked up.
func (s *session) guardOn(ctx context.Context, b *backend) error {
	if err := s.sendOurs(b, true); err != nil || s.asking == askingNothing {
		return err
	}
	if err := s.awaitBackend(ctx, s.isAnswered); err != nil || s.stringEnded() {
		return err
	}
	if err := s.awaitCancels(ctx); err != nil {
		return err
	}
	if err := s.gate(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	return s.forwardGuarded(b, true)
}

// guardBytesMax bounds what is read again on the loop each time that the server answers something
// that comes before it.
const guardBytesMax = 4 << 10

// guardHere is guard on the loop, where nothing has to be waited for but the server's answers.
func (s *session) guardHere(b *backend) step {
	s.mu.Lock()
	f, cls := &s.flow, s.guarded.cls
	isQuery := s.in.bytes()[0] == pgwire.CliQuery
	switch {
	case s.endHeld || s.again != nil || s.cancels > 0 || f.skipping || cls.has(twoPhase),
		!f.isSettled() && len(s.in.bytes()) > guardBytesMax:
		s.mu.Unlock()
		return stepRare
	case !f.isSettled():
		s.serverFull.Store(true) // the server's next answers go on with it
		s.mu.Unlock()
		return stepWait
	case cls.has(clsCommit) && f.reached() == pgwire.TxInBlock:
		return s.asked(s.askForCommit(b, false))
	case cls.has(clsCommit) || f.status != pgwire.TxIdle,
		f.isSafePoint() && s.proxy.isDraining(b.primary.Epoch):
		s.mu.Unlock()
		return stepRare
	case isQuery && cls.has(clsString):
		return s.asked(s.sendAsBlock(b, false))
	case isQuery:
		return s.asked(s.sendAsExtended(b, false))
	}
	return s.asked(s.askForSync(b, false))
}

// guardOnHere is guardOn on the loop.
func (s *session) guardOnHere(b *backend) step {
	if err := s.sendOurs(b, false); err != nil || s.asking == askingNothing {
		return s.asked(err)
	}
	s.mu.Lock()
	switch {
	case !s.isAnswered():
		s.serverFull.Store(true)
		s.mu.Unlock()
		return stepWait
	case s.isStringOver():
		s.asking = askingNothing
		s.mu.Unlock()
		return stepNext
	case s.cancels > 0 || s.asking == askingCommit && s.inner != nil:
		s.mu.Unlock()
		return stepRare
	}
	s.noCancel = true
	return s.sent(s.forwardGuarded(b, false))
}

// asked tells what comes after something of ours was sent.
func (s *session) asked(err error) step {
	switch {
	case err != nil && !errors.Is(err, errAgain):
		return stepRare
	case err == nil && s.asking == askingNothing:
		return stepNext
	}
	s.serverFull.Store(true) // the server's answer goes on with it, or the room for the rest
	return stepWait
}

// isAnswered tells that everything was answered, or that nothing more will be. The caller holds
// s.mu.
func (s *session) isAnswered() bool { return s.flow.head == len(s.flow.ops) || s.flow.skipping }

// awaitCancels lets no cancel request through any more, and waits for those on their way.
func (s *session) awaitCancels(ctx context.Context) error {
	s.mu.Lock()
	s.noCancel = true
	s.mu.Unlock()
	return s.awaitBackend(ctx, func() bool { return s.cancels == 0 })
}

// guardCommit learns the xid of the open transaction and then forwards the COMMIT that is at the
// head of the inbox. It costs a round trip.
func (s *session) guardCommit(ctx context.Context, b *backend) error {
	if err := s.awaitCancels(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	isKnown := s.knowsXID()
	if !isKnown && s.flow.reached() == pgwire.TxInBlock && !s.flow.skipping {
		if err := s.askForCommit(b, true); err != nil {
			return err
		}
		return s.guardOn(ctx, b)
	}
	s.xid, s.inner = 0, nil
	if isKnown {
		s.xid = s.flow.known.xid
	}
	s.mu.Unlock()
	if err := s.gate(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	return s.forwardCommit(b, isKnown)
}

// askForCommit asks for the xid on the session's own backend, inside the client's transaction. The
// caller holds s.mu, which is released.
func (s *session) askForCommit(b *backend, wait bool) error {
	s.noCancel = true
	s.rows, s.rowsCut, s.inner, s.xid = nil, false, nil, 0
	before := s.flow
	s.pushed = 0
	at := s.unit.end()
	sql, oid := xidSQL, uint32(xidOID)
	if s.guarded.cls.has(clsPrepares) {
		sql, oid = newXIDSQL, newXIDOID
	}
	if s.in.bytes()[0] == pgwire.CliExecute {
		s.out = pgwire.AppendFlush(s.appendQuestion(b, s.out[:0], sql, at))
	} else {
		s.out = pgwire.AppendFunctionCall(s.out[:0], oid)
		s.push(op{kind: opFunctionCall, internal: true, showErr: true, start: at})
	}
	s.asking = askingCommit
	s.mu.Unlock()
	_, err := s.sendOwn(b, s.out, before, wait)
	return err
}

// forwardGuarded forwards what has waited for the xid. The caller holds s.mu, which is released.
func (s *session) forwardGuarded(b *backend, wait bool) error {
	s.takeXID()
	switch s.asking {
	case askingCommit:
		return s.forwardCommit(b, true)
	case askingString, askingEnd:
		return s.endString(b, wait)
	}
	return s.forwardSync(b, s.asking == askingQuery, wait)
}

// parseXID reads the answer to a FunctionCall for the xid; 0 is none. One that is no number must
// not count as none: what is surely not there is not looked for.
func parseXID(body []byte) (uint64, error) {
	value, err := pgwire.ParseFunctionCallResponse(body)
	if err != nil || value == nil {
		return 0, err
	}
	xid, err := strconv.ParseUint(string(value), 10, 64)
	if err != nil {
		return 0, pgwire.NewError(pgwire.CodeProtocolViolation,
			"server sent a transaction id that is none")
	}
	return xid, nil
}

// takeXID takes the answer to xidSQL, if it came as a row; the caller holds s.mu.
func (s *session) takeXID() {
	if len(s.rows) == 1 {
		if xid, err := strconv.ParseUint(s.rows[0][0], 10, 64); err == nil {
			s.xid = xid
		}
	}
	s.rows = nil
}

// appendInner asks with our own statement and portal, and leaves none of them behind for the client
// to see.
func appendInner(out []byte, sql string) []byte {
	out = pgwire.AppendParse(out, innerName, sql, nil)
	out = pgwire.AppendBind(out, innerName, innerName)
	out = pgwire.AppendExecute(out, innerName, 0)
	out = pgwire.AppendClose(out, 'P', innerName)
	return pgwire.AppendClose(out, 'S', innerName)
}

// appendQuestion appends a question of our own to b, and records it; at is where the unit of work
// is by then. One that failed half-way has left its statement behind. The caller holds s.mu.
func (s *session) appendQuestion(b *backend, out []byte, sql string, at int) []byte {
	if b.innerFailed {
		out = pgwire.AppendClose(out, 'S', innerName)
		s.push(op{kind: opClose, internal: true, start: at})
	}
	for _, k := range []opKind{opParse, opBind, opExecute, opClose, opClose} {
		s.push(op{kind: k, internal: true, start: at})
	}
	return appendInner(out, sql)
}

// forwardCommit sends the message that commits, marked as in doubt before the first byte
// leaves. The caller holds s.mu, which is released.
func (s *session) forwardCommit(b *backend, asked bool) error {
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
	if s.flow.reached() != pgwire.TxFailed && s.isDifferent() {
		s.mu.Unlock()
		s.lose(b, false)
		return errBackendLost
	}
	before := s.flow
	s.pushed = 0
	s.asking = askingNothing
	s.inDoubt = asked && !s.flow.skipping
	if s.flow.isSafePoint() {
		s.beginUnit()
	}
	o := op{
		kind: opExecute, commits: true, cls: commitClass(s.guarded.cls), start: s.unit.end(),
	}
	if data[0] == pgwire.CliQuery {
		o.kind = opQuery
	}
	s.push(o)
	s.askBehind(n)
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
	s.inner, s.asking = nil, askingNothing
	s.flow.rolledBack = true
	before := s.flow
	s.pushed = 0
	s.push(op{kind: opQuery, internal: true, showEnd: true})
	s.pushed = 0 // what the client waits for is due though nothing is sent
	s.mu.Unlock()
	s.keep(s.in.bytes()[:n]) // not sent, and done with all the same, also of a unit that is run again
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
