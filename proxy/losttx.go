package proxy

import (
	"context"

	"holdfast/pgwire"
)

// hasLostTx tells that the client believes in a transaction that is gone.
func (s *session) hasLostTx() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lostTx
}

// answerLost answers the first statement after a transaction was lost with 40001, unless it ends
// the transaction anyway. The backend has a failed block, so whatever follows is answered by
// PostgreSQL. Our own messages go behind what the backend has sent (tell).
func (s *session) answerLost(ctx context.Context) error {
	typ, err := s.nextMessage(ctx, 0)
	if err != nil {
		return err
	}
	switch typ {
	case pgwire.CliTerminate:
		return errClientGone
	case pgwire.CliCopyData, pgwire.CliCopyDone, pgwire.CliCopyFail:
		return s.dropMessage(ctx)
	case pgwire.CliSync, pgwire.CliFlush:
		if typ == pgwire.CliSync {
			if err := s.tell(pgwire.AppendReadyForQuery(nil, s.lostStatus)); err != nil {
				return err
			}
		}
		return s.dropMessage(ctx)
	}
	cls, err := s.peekClass(ctx, typ)
	if err != nil {
		return err
	}
	dropsUnnamed := typ == pgwire.CliQuery
	if typ == pgwire.CliParse {
		if dropsUnnamed, err = s.makesUnnamed(ctx); err != nil {
			return err
		}
	}
	if cls.has(clsRollback) && !cls.has(clsMulti) {
		s.foundTx()
		return nil // the failed block is ended by it like the lost one
	}
	s.proxy.metrics.outcomes.WithLabelValues("rolled_back").Inc()
	end := byte(pgwire.TxFailed)
	if cls.has(clsCommit) {
		end = pgwire.TxIdle
		if err := s.endBlock(ctx); err != nil {
			return err
		}
	}
	// All that is due goes at once, and before the message is dropped: a backend that is lost in
	// between leaves a client that was told all, or one that is told by the next.
	out := pgwire.AppendError(nil, errLostTransaction())
	isBatch := typ != pgwire.CliQuery && typ != pgwire.CliFunctionCall
	if !isBatch {
		out = pgwire.AppendReadyForQuery(out, end)
	}
	if err := s.tell(out); err != nil {
		return err
	}
	s.foundTx()
	if dropsUnnamed { // as a server does before it finds that there is an error
		s.mu.Lock()
		s.believeUnnamed(&unnamedStatement{})
		s.mu.Unlock()
	}
	if isBatch {
		return s.dropUntilSync(ctx) // the server answers the Sync
	}
	return s.dropMessage(ctx)
}

// foundTx notes that the client knows of the loss of its transaction.
func (s *session) foundTx() {
	s.mu.Lock()
	s.lostTx = false
	s.mu.Unlock()
}

// peekClass classifies the message at the head of the inbox without taking it.
func (s *session) peekClass(ctx context.Context, typ byte) (class, error) {
	for {
		data := s.in.bytes()
		_, n, err := pgwire.Header(data)
		if err != nil {
			return 0, fatalProtocol(err)
		}
		n += pgwire.HeaderLen
		if n > s.proxy.cfg.InspectBytesMax {
			return clsOpaque, nil
		}
		if len(data) >= n {
			return s.classOfMessage(typ, data[pgwire.HeaderLen:n]), nil
		}
		s.in.want = n
		if err := s.fillClient(); err != nil && err != errWake {
			return 0, err
		}
		if ctx.Err() != nil {
			return 0, errClosing
		}
	}
}

func (s *session) classOfMessage(typ byte, body []byte) class {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch typ {
	case pgwire.CliQuery:
		if sql, err := pgwire.ParseQuery(body); err == nil {
			return s.classify(sql).cls
		}
	case pgwire.CliParse:
		if _, sql, _, err := pgwire.ParseParse(body); err == nil {
			return s.classify(sql).cls
		}
	case pgwire.CliBind:
		if _, stmt, err := pgwire.ParseBindNames(body); err == nil {
			if len(stmt) == 0 {
				return s.unnamed.cls
			}
			return s.statementNamed(string(stmt)).cls
		}
	}
	return clsOpaque
}

// endBlock ends the backend's failed block without the client seeing it.
func (s *session) endBlock(ctx context.Context) error {
	s.mu.Lock()
	b := s.backend
	before := s.flow
	s.pushed = 0
	s.push(op{kind: opQuery, internal: true})
	s.mu.Unlock()
	if err := s.sendInner(b, pgwire.AppendQuery(s.out[:0], "ROLLBACK"), before); err != nil {
		return err
	}
	return s.awaitBackend(ctx, func() bool { return s.flow.idle() })
}
