package proxy

import (
	"context"
	"math"

	"holdfast/pgwire"
)

// A statement outside a transaction block commits with the Sync behind it. To be able to look up
// what became of it, the Sync is held back until the transaction id is known, which costs a round
// trip. The Query message commits by itself; so a single INSERT, UPDATE, DELETE, MERGE or EXECUTE
// is sent as Parse, Bind, Describe, Execute and Close of the unnamed statement, which a Query would
// destroy as well, and its client sees what a Query would have shown it: no ParseComplete and the
// like, and CommandComplete only once it is committed.

// guardImplicit forwards the Sync, or the Query, at the head of the inbox.
func (s *session) guardImplicit(ctx context.Context, b *backend) error {
	data := s.in.bytes()
	_, n, err := pgwire.Header(data)
	if err != nil {
		return fatalProtocol(err)
	}
	n += pgwire.HeaderLen
	isQuery := data[0] == pgwire.CliQuery
	s.mu.Lock()
	outside := s.flow.status == pgwire.TxIdle && !s.flow.skipping
	s.mu.Unlock()
	if !outside {
		return s.forwardUnguarded(b, n, isQuery) // the block's COMMIT will be guarded
	}
	if isQuery {
		if err := s.gate(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	switch {
	case isQuery && s.flow.isSafePoint() && s.proxy.isDraining(b.primary.Epoch):
		s.mu.Unlock()
		return nil // a drain has begun since gate looked: the gate comes once more
	case isQuery && s.guarded.cls.has(clsString):
		err = s.sendAsBlock(b, true)
	case isQuery:
		err = s.sendAsExtended(b, true)
	default:
		err = s.askForSync(b, true)
	}
	if err != nil {
		return err
	}
	return s.guardOn(ctx, b)
}

// forwardUnguarded sends the message as it is.
func (s *session) forwardUnguarded(b *backend, n int, isQuery bool) error {
	s.mu.Lock()
	before := s.flow
	s.pushed = 0
	o := op{kind: opSync, start: s.unit.end()}
	if isQuery {
		o.kind, o.cls, o.effects = opQuery, s.guarded.cls, s.guarded.effects
	}
	s.push(o)
	s.mu.Unlock()
	return s.send(b, 0, n, before)
}

// sendAsExtended sends the Query at the head of the inbox in the extended protocol, and asks for
// the transaction id behind it. The caller holds s.mu, which is released, and has looked that no
// drain keeps a unit of work from beginning.
func (s *session) sendAsExtended(b *backend, wait bool) error {
	sql, n, err := s.headQuery()
	if err != nil {
		s.mu.Unlock()
		return fatalProtocol(err)
	}
	if s.flow.isSafePoint() {
		s.beginUnit()
	}
	before := s.flow
	s.pushed = 0
	at := s.unit.end()
	out := pgwire.AppendParse(s.out[:0], "", sql, nil)
	out = pgwire.AppendBind(out, "", "")
	out = pgwire.AppendDescribe(out, 'P', "")
	out = pgwire.AppendExecute(out, "", 0)
	out = pgwire.AppendClose(out, 'S', "")
	for _, k := range []opKind{opParse, opBind, opDescribe} {
		s.push(op{kind: k, asQuery: true, start: at})
	}
	s.push(op{
		kind: opExecute, asQuery: true, cls: s.guarded.cls, effects: s.guarded.effects,
		start: at,
	})
	s.push(op{kind: opClose, asQuery: true, start: at})
	out = pgwire.AppendFlush(s.appendQuestion(b, out, xidSQL, at))
	s.flow.asQuery = true
	return s.sendAround(b, out, n, before, askingQuery, wait)
}

// sendAround sends what stands for the Query of n bytes at the head of the inbox, with a question
// of ours. The caller holds s.mu, which is released.
func (s *session) sendAround(b *backend, out []byte, n int, before flow, asking asking, wait bool,
) error {
	s.rows, s.rowsCut, s.inner, s.xid = nil, false, nil, 0
	s.out, s.asking = out, asking
	s.mu.Unlock()
	sent, err := s.sendOwn(b, out, before, wait)
	if sent > 0 {
		s.keep(s.in.bytes()[:n])
		s.in.take(n)
	}
	return err
}

// headQuery is the text of the Query at the head of the inbox, whose message has n bytes.
func (s *session) headQuery() (sql string, n int, err error) {
	data := s.in.bytes()
	if _, n, err = pgwire.Header(data); err != nil {
		return "", 0, err
	}
	n += pgwire.HeaderLen
	text, err := pgwire.ParseQuery(data[pgwire.HeaderLen:n])
	return string(text), n, err
}

// askForSync asks for the transaction id of the batch whose Sync is at the head of the inbox. The
// caller holds s.mu, which is released.
func (s *session) askForSync(b *backend, wait bool) error {
	before := s.flow
	s.pushed = 0
	s.rows, s.rowsCut, s.inner, s.xid = nil, false, nil, 0
	s.out = pgwire.AppendFlush(s.appendQuestion(b, s.out[:0], xidSQL, s.unit.end()))
	s.asking = askingSync
	s.mu.Unlock()
	_, err := s.sendOwn(b, s.out, before, wait)
	return err
}

// forwardSync sends the Sync that commits: that of the client, which is at the head of the inbox,
// or one of ours behind what was a Query. It is marked as in doubt before the first byte leaves.
// The caller holds s.mu, which is released.
func (s *session) forwardSync(b *backend, isOurs, wait bool) error {
	n := 0
	if !isOurs {
		_, body, err := pgwire.Header(s.in.bytes())
		if err != nil {
			s.mu.Unlock()
			return fatalProtocol(err)
		}
		n = pgwire.HeaderLen + body
	}
	if s.isDifferent() {
		s.mu.Unlock()
		s.lose(b, false)
		return errBackendLost
	}
	before := s.flow
	s.pushed = 0
	s.asking = askingNothing
	if s.flow.wrapped {
		s.asking = askingEnd // an error behind BEGIN has left its block, which is to be rolled back
	}
	s.inDoubt = !s.flow.skipping
	s.push(op{kind: opSync, commits: true, start: s.unit.end()})
	if isOurs {
		s.out = s.appendState(pgwire.AppendSync(s.out[:0]), 0, math.MaxInt)
		s.mu.Unlock()
		_, err := s.sendOwn(b, s.out, before, wait)
		return err
	}
	s.askBehind(n)
	s.mu.Unlock()
	return s.send(b, 0, n, before)
}

// A Query that was sent so and failed has left its statement at the server, which has skipped the
// Close. A Query would have dropped the unnamed statement, and a Bind that comes now must not run
// it again. It is closed in front of the next message of the extended protocol, which nearly never
// comes: what comes next is another Query.

// isExtended tells of messages that find an unnamed statement, or begin a batch that may.
func isExtended(typ byte) bool {
	switch typ {
	case pgwire.CliParse, pgwire.CliBind, pgwire.CliDescribe, pgwire.CliExecute, pgwire.CliClose:
		return true
	}
	return false
}

// dropsStale tells that the server will surely have no unnamed statement behind it, or another one.
// A Query is waited for: one in a block of ours is skipped where that cannot be opened.
func (o *op) dropsStale() bool {
	return o.kind == opParse && o.asQuery || o.kind == opClose && o.internal && o.unnamed
}

// closeStale closes it. The caller holds s.mu, which is released, and is the owner.
func (s *session) closeStale(b *backend, wait bool) error {
	before := s.flow
	s.pushed = 0
	s.out = pgwire.AppendClose(s.out[:0], 'S', "")
	s.push(op{kind: opClose, internal: true, unnamed: true, leads: true, start: s.unit.end()})
	s.mu.Unlock()
	_, err := s.sendOwn(b, s.out, before, wait)
	return err
}

// isProtocolOnly tells of answers that a Query of the simple protocol does not have.
func isProtocolOnly(typ byte) bool {
	switch typ {
	case pgwire.SrvParseComplete, pgwire.SrvBindComplete, pgwire.SrvCloseComplete,
		pgwire.SrvNoData:
		return true
	}
	return false
}
