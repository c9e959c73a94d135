package proxy

import "holdfast/pgwire"

// A string of several statements is one transaction for the server, an implicit block, which it
// commits before it answers the last of them; inside of it there is no place to ask for the
// transaction id. So one that writes is sent between a BEGIN and a COMMIT of ours, unchanged, with
// the question behind it: one write of BEGIN, string and question, and one of COMMIT. Its client
// sees what it would have seen: ReadyForQuery says 'I', and the last CommandComplete, in whose
// place comes the error of a commit that fails, is kept back until COMMIT is answered.
//
// BEGIN goes by the extended protocol and without a Sync: the server skips the string, and the
// question, where it fails. A string that ran without its block would commit by itself.

// sameInBlock are the classes that a string may have that is sent in a block of ours. What it sets
// or makes for its session is left to the server as it is.
const sameInBlock = clsMayWrite | clsMulti | clsString

// wantsStringGuard tells whether a Query is such a string, and comes outside of a block.
func (s *session) wantsStringGuard(c class) bool {
	f := &s.flow
	return s.proxy.cfg.CommitGuard == GuardAll && c.has(clsString) &&
		!c.has(^(sameInBlock | clsDML)) && f.expected() == pgwire.TxIdle &&
		!f.skipping && f.unsynced == 0
}

// sendAsBlock sends the string at the head of the inbox in a block of ours, and asks for the
// transaction id behind it. The caller holds s.mu, which is released, and has looked that no drain
// keeps a unit of work from beginning.
func (s *session) sendAsBlock(b *backend, wait bool) error {
	data := s.in.bytes()
	_, n, err := pgwire.Header(data)
	if err != nil {
		s.mu.Unlock()
		return fatalProtocol(err)
	}
	n += pgwire.HeaderLen
	if s.flow.isSafePoint() {
		s.beginUnit()
	}
	before := s.flow
	s.pushed = 0
	at := s.unit.end()
	out := s.appendQuestion(b, s.out[:0], "BEGIN", at)
	out = append(append(out, data[:n]...), xidQuestion...)
	s.push(op{
		kind: opQuery, cls: s.guarded.cls, effects: s.guarded.effects, stmts: s.guarded.stmts,
		start: at,
	})
	s.push(op{kind: opFunctionCall, internal: true, showErr: true, start: at})
	s.flow.wrapped = true
	return s.sendAround(b, out, n, before, askingString, wait)
}

// endString ends the block of ours as the answers tell. What the client sends next waits for the
// end: a COMMIT that fails may leave the block. The caller holds s.mu, which is released.
func (s *session) endString(b *backend, wait bool) error {
	f := &s.flow
	o := op{kind: opQuery, internal: true, showEnd: true, start: s.unit.end()}
	sql := "COMMIT"
	switch {
	case f.skipping:
		return s.forwardSync(b, true, wait) // BEGIN has failed, and the client was told
	case f.status != pgwire.TxInBlock:
		sql, f.rolledBack = "ROLLBACK", true
	case s.isDifferent():
		s.mu.Unlock()
		s.lose(b, false)
		return errBackendLost
	default:
		o.showErr, o.commits, o.cls = true, true, commitClass(clsCommit)
	}
	before := s.flow
	s.pushed = 0
	s.inDoubt = o.commits
	s.push(o)
	s.asking = askingEnd
	s.out = pgwire.AppendQuery(s.out[:0], sql)
	s.mu.Unlock()
	_, err := s.sendOwn(b, s.out, before, wait)
	return err
}

// isStringOver tells that the block of ours has ended. The caller holds s.mu and is the owner.
func (s *session) isStringOver() bool {
	return s.work != nil && (s.asking == askingString || s.asking == askingEnd) &&
		!s.flow.wrapped && len(s.ours) == 0 && s.isAnswered()
}

// stringEnded is isStringOver for an owner that then waits for nothing of it any more.
func (s *session) stringEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isStringOver() {
		return false
	}
	s.asking = askingNothing
	return true
}

// isOurCommit tells that it commits a block of ours.
func (o *op) isOurCommit() bool { return o.internal && o.commits }

// believed is the transaction status that the client believes in.
func (f *flow) believed() byte {
	if f.wrapped {
		return pgwire.TxIdle
	}
	return f.status
}

// codeIdleInTransaction is of idle_in_transaction_session_timeout.
const codeIdleInTransaction = "25P03"

// isOurIdling tells that the server has ended the backend because a block of ours waited for its
// COMMIT. Its client has opened none, and is not told of it.
func (l *loss) isOurIdling() bool {
	return l.fatal != nil && l.fatal.Code == codeIdleInTransaction && len(l.pending) > 0 &&
		l.pending[0].batch.wrapped
}

// judgeWrapped is judge for a Query in a block of ours: nothing of it is committed before our
// COMMIT, and behind that its outcome can be looked up.
func judgeWrapped(b batch, inDoubt bool) verdict {
	isEnd := len(b.ops) == 1 && b.ops[0].showEnd
	switch {
	case b.errored:
		return verdictFinish // the client was told, and the block is gone
	case isEnd && (b.finished > 0 || !b.commits()):
		return verdictFinish
	case isEnd && inDoubt:
		return verdictLookup
	}
	return verdictRolledBack
}
