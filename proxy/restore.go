package proxy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// failBlockSQL makes a failed transaction block: a real one, so that everything that a client
// may do in it is answered by PostgreSQL itself. The name says in the server's log why.
const failBlockSQL = `ROLLBACK TO SAVEPOINT "transaction lost by a change of primary"`

// open connects to the primary and makes the new backend what the session was. The caller owns
// the result; it is not attached yet.
func (s *session) open(ctx context.Context, pr *Primary, l *loss, login bool) (*backend, error) {
	ctx, end := s.proxy.while(ctx, pr)
	defer end()
	if err := s.yieldToHolders(ctx, pr); err != nil {
		return nil, err
	}
	if err := s.enterRamp(ctx, l, login); err != nil {
		return nil, err
	}
	defer s.proxy.ramp.leave()
	if !s.isUsable(pr) {
		return nil, errOvertaken
	}
	if b := s.takePrewarmed(pr, login); b != nil {
		err := s.makeReady(ctx, b, pr, l)
		switch {
		case err == nil:
			s.proxy.prewarm.count("used")
			return b, nil
		case !b.unproved:
			s.proxy.prewarm.count("used")
			return nil, err
		case isFinal(err) || errors.Is(err, errOvertaken):
			s.proxy.prewarm.count("closed")
			return nil, err
		}
		s.proxy.prewarm.count("stale")
		s.log().Debug("a connection that was made ahead is of no use", zap.Error(err))
	}
	b, err := s.proxy.connect(ctx, s.loop, pr, s.login, s.cred)
	if err == nil {
		err = s.makeReady(ctx, b, pr, l)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// takePrewarmed is a connection that was made ahead of the change, or nil.
func (s *session) takePrewarmed(pr *Primary, login bool) *backend {
	if login || s.isApart {
		return nil
	}
	return s.proxy.prewarm.take(s.poolKey(), pr)
}

// makeReady makes a new backend what the session was; it closes one for which that fails.
func (s *session) makeReady(ctx context.Context, b *backend, pr *Primary, l *loss) error {
	if !s.isOpening(b) {
		b.close(false)
		return errOvertaken
	}
	if l.fatal != nil && pr.Epoch == l.epoch {
		// The server lives, so the order to end was meant for this session.
		b.close(true)
		return asOrder(l.fatal)
	}
	_ = b.conn.SetDeadline(time.Now().Add(s.proxy.cfg.DialTimeout))
	err := s.retakeLocks(ctx, b, l)
	if err == nil {
		err = s.checkAcknowledged(b)
	}
	if err == nil {
		err = s.restore(b)
	}
	if err == nil && b.started == "" { // it was hidden, on a standby
		err = b.noteStart(nil)
	}
	if err == nil && l.epoch == pr.Epoch && l.pid != 0 {
		err = s.proxy.endBackend(ctx, pr, l)
	}
	_ = b.conn.SetDeadline(time.Time{})
	if err == nil {
		err = s.tellParams(b)
	}
	if err != nil {
		b.close(false)
	}
	return err
}

// while ends the returned context when pr is not the primary any more: whoever dials a host that
// is gone must not keep its place from those who go to the next one. The function waits.
func (p *Proxy) while(ctx context.Context, pr *Primary) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	now, changed := p.topo.Current()
	if now != pr {
		cancel()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for now == pr { // the same one is told again with the target of a switchover
			select {
			case <-changed:
				now, changed = p.topo.Current()
			case <-ctx.Done():
				return
			}
		}
		cancel()
	}()
	return ctx, func() { cancel(); <-done }
}

// restore rebuilds the session's state on a fresh backend (DESIGN.md I9).
func (s *session) restore(b *backend) error {
	s.mu.Lock()
	cmds := s.track.restoreSQL(b.role)
	unknown := s.track.unknown
	out, n := s.out[:0], len(cmds)
	for _, c := range cmds {
		out = pgwire.AppendQuery(out, c)
	}
	s.mu.Unlock()
	if unknown {
		return notCarried(errUnmovable(
			"a setting was changed by a function just before the change"))
	}
	report := func(name, value string) { b.note(name, value) }
	if n > 0 || b.unproved {
		errs, _, err := b.exchange(out, n, report)
		if err != nil {
			return err
		}
		if len(errs) > 0 {
			return notCarried(fatal(restoreError(errs[0])))
		}
	}
	if err := s.unpack(b); err != nil {
		return err
	}
	return s.restoreStatements(b)
}

// tellMissed tells a client that listens what it cannot know: one that has a part of a message,
// behind the rest of it.
func (s *session) tellMissed() error {
	s.mu.Lock()
	listens := s.track.listens()
	s.missed = listens && s.mid
	s.mu.Unlock()
	if !listens || s.mid {
		return nil
	}
	return s.writeClient(appendMissed(nil))
}

// appendMissed is what such a client is told.
func appendMissed(out []byte) []byte {
	notice := pgwire.NewError("00000",
		"notifications may have been missed because the primary changed")
	notice.Severity = "NOTICE"
	return pgwire.AppendNotice(out, notice)
}

// notCarried marks an end that is our own decision, not the server's word about itself.
func notCarried(e *pgwire.Error) error { return fmt.Errorf("%w: %w", errNotCarried, e) }

func restoreError(cause *pgwire.Error) *pgwire.Error {
	e := pgwire.NewError(pgwire.CodeAdminShutdown,
		"terminating connection because the primary changed")
	e.Detail = fmt.Sprintf("The session's state could not be restored: %s (SQLSTATE %s).",
		cause.Message, cause.Code)
	return e
}

// restoreStatements prepares again what was prepared. One that fails is away until it is used.
func (s *session) restoreStatements(b *backend) error {
	s.mu.Lock()
	out := s.out[:0]
	var all []*prepared
	for name, p := range s.track.statements {
		if p.sql == "" {
			continue
		}
		if !p.meansTheSame(s.conf, &s.params) {
			s.mu.Unlock()
			return notCarried(errUnmovable("prepared statement \"" + name +
				"\" was parsed under another client_encoding or standard_conforming_strings"))
		}
		out = appendPrepare(out, name, p)
		all = append(all, p)
	}
	s.mu.Unlock()
	if len(all) == 0 {
		return nil
	}
	errs, _, err := b.exchangeAll(out, len(all), b.note)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.track.hasAway = false
	if failed := s.track.prepared(all, errs); failed != nil {
		s.log().Info("a prepared statement could not be restored yet",
			zap.String("sqlstate", failed.Code))
	}
	return nil
}

// restoreUnnamed prepares the unnamed statement again. It comes last: any Query destroys it, ours
// as well (protocol-flow, Extended Query). In a failed block there can be none.
func (s *session) restoreUnnamed(b *backend) error {
	if len(s.unnamedQ) == 0 || b.status != pgwire.TxIdle {
		return nil
	}
	out := pgwire.AppendMessage(s.out[:0], pgwire.CliParse, s.unnamedQ)
	if _, _, err := b.exchange(pgwire.AppendSync(out), 1, b.note); err != nil {
		return errBackendLost // an error of the statement itself: its use is answered by the server
	}
	return nil
}

// appendPrepare makes a prepared statement as the client did, up to a ReadyForQuery.
func appendPrepare(out []byte, name string, p *prepared) []byte {
	if p.bySQL {
		return pgwire.AppendQuery(out, p.sql)
	}
	return pgwire.AppendSync(pgwire.AppendParse(out, name, p.sql, p.oids))
}

// note takes a ParameterStatus that comes while the session is restored.
func (b *backend) note(name, value string) {
	for i := range b.params {
		if b.params[i].Name == name {
			b.params[i].Value = value
			return
		}
	}
	b.params = append(b.params, pgwire.Param{Name: name, Value: value})
}

// tellParams reports to the client what differs on the new server.
func (s *session) tellParams(b *backend) error {
	if s.mid {
		b.params = nil // nothing can be said in the middle of a message
		return nil
	}
	var out []byte
	s.mu.Lock()
	for _, p := range b.params {
		if p.Name == "in_hot_standby" {
			continue
		}
		if old, ok := s.params.get(p.Name); !ok || old != p.Value {
			out = pgwire.AppendParameterStatus(out, p.Name, p.Value)
			s.reported(p.Name, p.Value)
		}
	}
	if len(out) > 0 {
		s.proxy.params.share(&s.params)
	}
	b.params = nil
	s.mu.Unlock()
	return s.writeClient(out)
}

// align brings an idle, unattached backend into the transaction status that the client believes
// in: for an open or failed block that is lost, a failed one, which is opened like that one.
func (s *session) align(b *backend, want byte, opener []string) error {
	var out []byte
	n := 0
	switch {
	case want == pgwire.TxIdle && b.status != pgwire.TxIdle:
		out, n = pgwire.AppendQuery(s.out[:0], "ROLLBACK"), 1
	case want != pgwire.TxIdle && b.status == pgwire.TxIdle:
		out = s.out[:0]
		for _, sql := range append(opener, failBlockSQL) {
			out = pgwire.AppendQuery(out, sql)
			n++
		}
	case want == pgwire.TxFailed && b.status == pgwire.TxInBlock:
		out, n = pgwire.AppendQuery(s.out[:0], failBlockSQL), 1
	default:
		return nil
	}
	_, st, err := b.exchange(out, n, b.note)
	if err != nil {
		s.log().Debug("backend lost while it was prepared", zap.Error(err))
		return errBackendLost
	}
	b.status = st
	if (want == pgwire.TxIdle) != (st == pgwire.TxIdle) {
		return errBackendLost
	}
	return nil
}

// committedLate finishes a transaction that was found committed: what it set is part of the
// session now.
func (s *session) committedLate(b *backend, p *pending) error {
	s.mu.Lock()
	s.track.layDone(p.overlay)
	s.track.unknown = s.track.unknown || p.unknown
	s.track.unmovable |= p.unmovable
	why := s.track.unmovable
	unknown := s.track.unknown
	s.mu.Unlock()
	switch {
	case why != 0:
		return notCarried(errUnmovable(why.String()))
	case unknown:
		return notCarried(errUnmovable("a setting was changed by a function in the transaction"))
	case len(p.overlay) == 0:
		return nil
	}
	if err := s.align(b, pgwire.TxIdle, nil); err != nil {
		return err
	}
	var out []byte
	for _, c := range p.overlay {
		out = pgwire.AppendQuery(out, c)
	}
	errs, _, err := b.exchange(out, len(p.overlay), b.note)
	switch {
	case err != nil:
		return errBackendLost
	case len(errs) > 0:
		return notCarried(fatal(restoreError(errs[0])))
	}
	return s.tellParams(b)
}

// isOpening makes a backend known to Cut before it is attached; false if its epoch is over.
func (s *session) isOpening(b *backend) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opening = b
	return !s.proxy.isCut(b.primary.Epoch) && s.proxy.ctx.Err() == nil
}
