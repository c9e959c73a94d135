package proxy

import (
	"context"

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
		var sent bool
		if sent, err = s.sendAsExtended(b, n); err == nil && !sent {
			return nil // a drain has begun since gate looked: the gate comes once more
		}
	} else {
		err = s.askImplicit(b)
	}
	if err != nil {
		return err
	}
	if err := s.awaitAnswers(ctx); err != nil {
		return err
	}
	if err := s.awaitCancels(ctx); err != nil {
		return err
	}
	if err := s.gate(ctx); err != nil {
		return err
	}
	return s.forwardSync(b, n, isQuery)
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

// sendAsExtended sends the Query at the head of the inbox, n bytes, in the extended protocol, and
// asks for the transaction id behind it; false if it may not begin now.
func (s *session) sendAsExtended(b *backend, n int) (sent bool, err error) {
	msg := s.in.bytes()[:n]
	sql, err := pgwire.ParseQuery(msg[pgwire.HeaderLen:])
	if err != nil {
		return false, fatalProtocol(err)
	}
	s.mu.Lock()
	if s.flow.isSafePoint() {
		if s.proxy.isDraining(b.primary.Epoch) {
			s.mu.Unlock()
			return false, nil
		}
		s.beginUnit()
	}
	before := s.flow
	s.pushed = 0
	at := s.unit.end()
	out := pgwire.AppendParse(s.out[:0], "", string(sql), nil)
	out = pgwire.AppendBind(out, "", "")
	out = pgwire.AppendDescribe(out, 'P', "")
	out = pgwire.AppendExecute(out, "", 0)
	out = pgwire.AppendClose(out, 'S', "")
	out = appendInner(out, xidSQL)
	out = pgwire.AppendFlush(out)
	for _, k := range []opKind{opParse, opBind, opDescribe} {
		s.push(op{kind: k, asQuery: true, start: at})
	}
	s.push(op{
		kind: opExecute, asQuery: true, cls: s.guarded.cls, effects: s.guarded.effects,
		start: at,
	})
	s.push(op{kind: opClose, asQuery: true, start: at})
	s.pushInner(at)
	s.flow.asQuery = true
	s.rows, s.rowsCut, s.inner, s.xid = nil, false, nil, 0
	s.out = out
	s.mu.Unlock()
	done, err := b.conn.Write(out)
	if err != nil && done == 0 {
		s.mu.Lock()
		s.flow.unpush(s.pushed, before)
		s.mu.Unlock()
	} else {
		s.keep(msg)
		s.in.take(n)
	}
	if err != nil {
		s.lose(b, false)
		return true, errBackendLost
	}
	return true, nil
}

// pushInner records what appendInner sends.
func (s *session) pushInner(at int) {
	for _, k := range []opKind{opClose, opParse, opBind, opExecute, opClose} {
		s.push(op{kind: k, internal: true, start: at})
	}
}

// askImplicit asks for the transaction id of the batch whose Sync is at the head of the inbox.
func (s *session) askImplicit(b *backend) error {
	s.mu.Lock()
	before := s.flow
	s.pushed = 0
	s.rows, s.rowsCut, s.inner, s.xid = nil, false, nil, 0
	out := pgwire.AppendFlush(appendInner(s.out[:0], xidSQL))
	s.pushInner(s.unit.end())
	s.out = out
	s.mu.Unlock()
	return s.sendInner(b, out, before)
}

// awaitAnswers waits until everything was answered, or nothing more will be, and takes the
// transaction id.
func (s *session) awaitAnswers(ctx context.Context) error {
	err := s.awaitBackend(ctx, func() bool {
		return s.flow.head == len(s.flow.ops) || s.flow.skipping
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.takeXID()
	return nil
}

// forwardSync sends the Sync that commits: that of the client, which is at the head of the inbox,
// or one of ours behind what was a Query. It is marked as in doubt before the first byte leaves.
func (s *session) forwardSync(b *backend, n int, isQuery bool) error {
	s.mu.Lock()
	if s.isDifferent() {
		s.mu.Unlock()
		s.lose(b, false)
		return errBackendLost
	}
	before := s.flow
	s.pushed = 0
	s.inDoubt = !s.flow.skipping
	s.push(op{kind: opSync, commits: true, start: s.unit.end()})
	s.mu.Unlock()
	if isQuery {
		return s.sendInner(b, pgwire.AppendSync(s.out[:0]), before)
	}
	return s.send(b, 0, n, before)
}
