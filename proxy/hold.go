package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// pending is a batch that was sent to a backend that is lost, and what is to be done about it.
type pending struct {
	batch   batch
	verdict verdict
	next    byte // transaction status behind it
	// stands is how the server stands behind it if it has executed it; goesOn tells that a transaction
	// of it may be committed by what is lost behind it.
	stands standing
	goesOn bool
	// wasAsked tells that the catalogue has said of its transaction what it can.
	wasAsked bool

	// What a transaction in doubt would leave behind, for verdictLookup.
	overlay   []string
	unknown   bool
	unmovable reason

	// unnamed is the unnamed statement that it leaves if it succeeds; nil is the one of before.
	unnamed *unnamedStatement
}

// loss is what is known when a backend was lost.
type loss struct {
	epoch   uint64
	pid     uint32
	started string
	status  byte // transaction status that the client was last told
	xid     uint64
	pending []pending
	// endHeld tells that a ReadyForQuery 'I' was kept back for a snapshot.
	endHeld bool
	fatal   *pgwire.Error
	planned bool
	redo    redo
	// since is when the client began to wait; zero if it does not.
	since time.Time
	// told is set once the client knows that its transaction is gone.
	told bool
	// cutMessage tells that the client got a part of a message.
	cutMessage bool
	// kept is the CommandComplete that was kept back of a Query whose commit was guarded.
	kept []byte
}

// waiting tells that the client waits for an answer of what it sent before.
func (l *loss) waiting() bool { return len(l.pending) > 0 || l.endHeld }

// looksUp tells that a COMMIT is in doubt whose outcome can be looked up.
func (l *loss) looksUp() bool {
	return slices.ContainsFunc(l.pending, func(p pending) bool { return p.verdict == verdictLookup })
}

// hold waits for a primary, connects and restores the session there. The client's connection
// stays open; what it waits for is answered with an error when the budget is spent, and the
// session is kept (DESIGN.md I8).
func (s *session) hold(ctx context.Context, l *loss, login bool) (*backend, error) {
	h := holding{s: s, loss: l, login: login}
	defer h.end()
	attempt := 0
	if s.last != nil {
		attempt = s.last.restless
	}
	if attempt > 1 {
		// What takes the login and then ends is not asked again at once.
		select {
		case <-s.news():
		default:
		}
		if err := h.wait(ctx, nil, attempt); err != nil {
			return nil, err
		}
	}
	for {
		pr, changed := s.proxy.topo.Current()
		if s.isUsable(pr) {
			b, err := s.open(ctx, pr, l, login)
			if err == nil {
				if err = h.passBarrier(ctx, b); err == nil {
					return b, nil
				}
				b.close(false)
				if !errors.Is(err, errOvertaken) {
					return nil, err
				}
			}
			if h.isAnswer(err) {
				return nil, asRefusal(err)
			}
			s.log().Debug("primary cannot be used yet", zap.Error(err))
			attempt++
			h.full = isServerFull(err)
		}
		if err := h.wait(ctx, changed, attempt); err != nil {
			return nil, err
		}
	}
}

// isFinal tells that no other attempt can help: what ended the session is our own decision or the
// client's, whatever code it carries.
func isFinal(err error) bool {
	return errors.Is(err, errOrdered) || errors.Is(err, errNotCarried) ||
		errors.Is(err, errClientGone)
}

// isUsable tells whether new work may start on that primary now.
func (s *session) isUsable(pr *Primary) bool {
	return pr != nil && !s.proxy.isCut(pr.Epoch) && !s.proxy.isDraining(pr.Epoch) &&
		bootNow() < pr.Lease.Doubt()
}

// holding is one hold of a session: its clocks and what the client was told.
type holding struct {
	s       *session
	loss    *loss
	login   bool
	counted bool
	from    time.Time // since when the client waits for something
	noticed bool

	refusedFrom time.Time // since when the server refuses this host, or is full
	full        bool      // it was full at the last attempt
}

// doorTime is how long a server that refuses every host is asked again: the agent opens the door
// of a primary that it restarted just after the lock has been committed. A new login at a full
// server waits as long for a place, then it gets the server's answer.
const doorTime = time.Second

// isAnswer tells that a failed attempt is an answer about this session, which others would only
// repeat.
func (h *holding) isAnswer(err error) bool {
	if isFinal(err) {
		return true
	}
	var pe *pgwire.Error
	door := errors.As(err, &pe) && pe.Code == pgwire.CodeInvalidAuth
	full := h.login && isServerFull(err)
	if !door && !full {
		return !isServerAway(err)
	}
	if h.refusedFrom.IsZero() {
		h.refusedFrom = time.Now()
	}
	return time.Since(h.refusedFrom) >= doorTime
}

// asRefusal is an answer about a session in words for its client.
func asRefusal(err error) error {
	if !errors.Is(err, pgwire.ErrAuthMethod) {
		return err
	}
	e := fatal(pgwire.NewError(pgwire.CodeInvalidAuth, "the proxy could not log in to the primary"))
	e.Detail = err.Error()
	e.Hint = "The primary must let proxies in with scram-sha-256: see pg_hba.conf there."
	if errors.Is(err, pgwire.ErrNoCredentials) {
		e.Message = "the proxy has no credentials to log in to the primary with"
		e.Detail = "The primary asks for a password, and the method by which the client was" +
			" authenticated gives the proxy none."
		e.Hint = "Put the role into the file of proxy.server_users_file, or use scram-sha-256."
	}
	return fmt.Errorf("%w: %w", errNotCarried, e)
}

// retryPause is the pause before the next attempt. Each one at a full server costs it a process:
// there it doubles, up to about a second, and differs from session to session.
func retryPause(attempt int, full bool) time.Duration {
	const longest = 100 * time.Millisecond
	switch {
	case full:
		d := min(time.Second, 50*time.Millisecond<<min(attempt, 10))
		return d/2 + rand.N(d)
	case attempt > 0:
		return min(longest, time.Duration(attempt)*5*time.Millisecond)
	}
	return longest
}

// end accounts for the hold.
func (h *holding) end() {
	if h.counted {
		h.s.proxy.held.Add(-1)
		h.s.proxy.metrics.holdSeconds.Observe(time.Since(h.from).Seconds())
		h.counted = false
	}
}

// wait passes a moment and looks after the client: is it gone, does it want to cancel, has it
// waited too long.
func (h *holding) wait(ctx context.Context, changed <-chan struct{}, attempt int) error {
	s := h.s
	t := time.NewTimer(retryPause(attempt, h.full))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return errClosing
	case <-changed:
	case <-s.news():
	case <-t.C:
	}
	s.mu.Lock()
	closing, canceled := s.closing, s.canceled
	s.canceled = false
	s.mu.Unlock()
	if closing {
		return errClosing
	}
	peer := s.client.probe()
	if peer == peerGone && len(s.in.bytes()) == 0 {
		return errClientGone
	}
	if !h.login && !h.loss.waiting() && len(s.in.bytes()) == 0 && peer == peerQuiet {
		return nil // nothing waits
	}
	return h.budget(ctx, canceled)
}

// budget answers what waits if it has waited long enough.
func (h *holding) budget(ctx context.Context, canceled bool) error {
	s := h.s
	if !h.counted {
		if h.loss.since.IsZero() {
			h.loss.since = time.Now()
		}
		h.counted, h.from = true, h.loss.since
		if int(s.proxy.held.Add(1)) > s.proxy.cfg.HoldSessionsMax && !h.login {
			return h.giveUp(ctx, errTooManyHeld(), "sessions")
		}
	}
	waited, notice, limit := time.Since(h.from), s.holdNoticeAfter(), s.holdTimeout()
	if h.loss.looksUp() {
		limit = max(limit, lookupLeast) // what can be known is not told as unknown
	}
	switch {
	case canceled && !h.login:
		return h.giveUp(ctx, errHeldCanceled(), "canceled")
	case waited >= limit && h.login:
		s.countHoldOver()
		return errNoPrimaryLogin()
	case waited >= limit:
		s.countHoldOver()
		return h.giveUp(ctx, errHoldExpired(), "timeout")
	case !h.login && !h.noticed && notice > 0 && waited >= notice:
		h.noticed = true
		if s.mid {
			return nil
		}
		n := pgwire.NewError("00000", "waiting for a primary")
		n.Severity = "NOTICE"
		return s.writeClient(pgwire.AppendNotice(nil, n))
	}
	return nil
}

// giveUp answers all that waits; the session stays, and what comes next waits anew.
func (h *holding) giveUp(ctx context.Context, why *pgwire.Error, reason string) error {
	s, l := h.s, h.loss
	h.end()
	h.noticed, l.since = false, time.Time{}
	s.mu.Lock()
	s.endRedo(l, reason)
	s.mu.Unlock()
	s.proxy.metrics.evictions.WithLabelValues(reason).Inc()
	if l.waiting() {
		return s.failPending(ctx, l, why)
	}
	return s.refuseNext(ctx, l, why)
}

// failPending answers what was sent, as far as can be told without a server.
func (s *session) failPending(ctx context.Context, l *loss, why *pgwire.Error) error {
	var out []byte
	if l.endHeld {
		out = l.appendHeldEnd(out)
	}
	for i := range l.pending {
		p := &l.pending[i]
		out = s.appendUnasked(out, l, p, why)
		l.told = l.told || p.verdict == verdictRolledBack
		if !p.batch.synced {
			refused := p.batch.errored || p.verdict != verdictFinish
			l.pending = nil
			if err := s.writeClient(out); err != nil || !refused {
				return err
			}
			return s.dropUntilSync(ctx)
		}
	}
	l.pending = nil
	return s.writeClient(out)
}

// appendUnasked answers a batch as far as can be told without a server: why, if it surely was not
// executed. What nobody can tell now counts as unknown.
func (s *session) appendUnasked(out []byte, l *loss, p *pending, why *pgwire.Error) []byte {
	if p.verdict == verdictLookup || p.verdict == verdictUnknown {
		s.proxy.metrics.outcomes.WithLabelValues("unknown").Inc()
	}
	e := why
	switch p.verdict {
	case verdictFinish:
		e = nil
	case verdictLookup:
		e = errOutcomeUnknown("No primary could be asked in time.")
	case verdictUnknown:
		e = errOutcomeUnknown(whyUnknown)
	case verdictUndo:
		e = nil
	}
	l.status = p.next
	l.redo.toldUnnamed(p, e)
	return appendEnd(out, p, e, l.kept)
}

// refuseNext answers the client's next batch with an error, without a backend.
func (s *session) refuseNext(ctx context.Context, l *loss, why *pgwire.Error) error {
	typ, err := s.nextMessage(ctx, 0)
	if err != nil {
		return err
	}
	switch typ {
	case pgwire.CliTerminate:
		return errClientGone
	case pgwire.CliCopyData, pgwire.CliCopyDone, pgwire.CliCopyFail:
		// The rest of a COPY that was answered with an error: the server ignores it too.
		return s.dropMessage(ctx)
	case pgwire.CliParse:
		if err := s.refuseUnnamed(ctx, l); err != nil {
			return err
		}
	case pgwire.CliQuery, pgwire.CliFunctionCall:
		if typ == pgwire.CliQuery {
			l.redo.unnamed = unnamedStatement{}
		}
		if err := s.dropMessage(ctx); err != nil {
			return err
		}
	case pgwire.CliSync:
		why = nil
	}
	var out []byte
	if why != nil {
		l.status = afterError(l.status)
		out = pgwire.AppendError(out, why)
	}
	if typ == pgwire.CliQuery || typ == pgwire.CliFunctionCall {
		return s.writeClient(pgwire.AppendReadyForQuery(out, l.status))
	}
	if err := s.writeClient(out); err != nil {
		return err
	}
	if err := s.dropUntilSync(ctx); err != nil {
		return err
	}
	if err := s.dropMessage(ctx); err != nil {
		return err
	}
	return s.writeClient(pgwire.AppendReadyForQuery(nil, l.status))
}

// refuseUnnamed forgets the unnamed statement if the client's next message, a Parse, is to make it:
// a server drops the old one before it finds that there is an error (exec_parse_message). A Bind
// that was pipelined behind it must not run the old one.
func (s *session) refuseUnnamed(ctx context.Context, l *loss) error {
	is, err := s.makesUnnamed(ctx)
	if is {
		l.redo.unnamed = unnamedStatement{}
	}
	return err
}

// makesUnnamed tells that the Parse at the head of the inbox is one of the unnamed statement.
func (s *session) makesUnnamed(ctx context.Context) (bool, error) {
	if _, n, err := pgwire.Header(s.in.bytes()); err != nil || n == 0 {
		return false, fatalOrNil(err)
	}
	if _, err := s.nextMessage(ctx, 1); err != nil {
		return false, err
	}
	return s.in.bytes()[pgwire.HeaderLen] == 0, nil
}

// nextMessage waits until the type and length of the client's next message are there, and the first
// more bytes of its body.
func (s *session) nextMessage(ctx context.Context, more int) (byte, error) {
	if err := s.dropPassing(ctx); err != nil {
		return 0, err
	}
	for len(s.in.bytes()) < pgwire.HeaderLen+more {
		s.in.want = pgwire.HeaderLen + more
		err := s.fillClient()
		if err != nil && !errors.Is(err, errWake) {
			return 0, err
		}
		s.mu.Lock()
		closing := s.closing
		s.mu.Unlock()
		if closing || ctx.Err() != nil {
			return 0, errClosing
		}
	}
	typ, _, err := pgwire.Header(s.in.bytes())
	return typ, fatalOrNil(err)
}

func fatalOrNil(err error) error {
	if err == nil {
		return nil
	}
	return fatalProtocol(err)
}

// dropMessage throws the client's next message away, however long it is.
func (s *session) dropMessage(ctx context.Context) error {
	if _, err := s.nextMessage(ctx, 0); err != nil {
		return err
	}
	_, n, err := pgwire.Header(s.in.bytes())
	if err != nil {
		return fatalProtocol(err)
	}
	s.passing = n + pgwire.HeaderLen
	return s.dropPassing(ctx)
}

// dropPassing throws away what is left of a message.
func (s *session) dropPassing(ctx context.Context) error {
	for s.passing > 0 {
		if len(s.in.bytes()) == 0 {
			err := s.fillClient()
			if err != nil && !errors.Is(err, errWake) {
				return err
			}
			if ctx.Err() != nil {
				return errClosing
			}
			continue
		}
		n := min(s.passing, len(s.in.bytes()))
		s.passing -= n
		s.in.take(n)
	}
	s.discard = false
	s.in.want = 0 // it was that of the message that is gone
	return nil
}

// dropUntilSync does what the server does after an error in the extended protocol: it skips
// messages until a Sync, which stays in the inbox.
func (s *session) dropUntilSync(ctx context.Context) error {
	if err := s.dropPassing(ctx); err != nil {
		return err
	}
	for {
		typ, err := s.nextMessage(ctx, 0)
		if err != nil {
			return err
		}
		switch typ {
		case pgwire.CliSync:
			return nil
		case pgwire.CliTerminate:
			return errClientGone
		}
		if err := s.dropMessage(ctx); err != nil {
			return err
		}
	}
}
