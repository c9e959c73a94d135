package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// greeting is the login of a client behind its startup packet. It runs on the loop: thousands of
// logins per second that each wake a goroutine three times cost more than what they do.
type greeting struct {
	scram     *pgwire.ScramServer
	serverKey []byte
	from      netip.Addr
	begun     bool // the client's first message was taken
	err       error
	judged    secretEntry
	until     time.Time
	late      *time.Timer // ends the connection then
}

// challenge asks the client to prove who it is and leaves the rest to the loop. e has the secret
// that PostgreSQL itself has, and is not ok if there is no such role; of the proof the
// ClientKey is kept, with which the proxy can log in as this user. The caller is the owner no more,
// unless there is an error.
func (s *session) challenge(e secretEntry, from netip.Addr, until time.Time) error {
	p, user, ok := s.proxy, s.track.loginUser, e.ok
	var secret pgwire.ScramSecret
	if ok {
		var err error
		if secret, err = pgwire.ParseScramSecret(e.secret); err != nil {
			p.log.Warn("role has no scram-sha-256 secret", zap.String("user", user))
			ok = false
		}
	}
	if !ok {
		secret = p.mock.Secret(user)
	}
	if _, err := s.client.tryWrite(pgwire.AppendAuthSASL(nil, "SCRAM-SHA-256")); err != nil {
		return errClientGone
	}
	g := &greeting{
		scram: pgwire.NewScramServer(secret, ok), serverKey: secret.ServerKey, from: from,
		judged: e, until: until,
	}
	g.late = time.AfterFunc(time.Until(until), func() {
		s.proxy.metrics.limit(limitStartup)
		s.client.reset()
		s.notify()
	})
	s.greeting = g
	s.client.handle((*clientSide)(s))
	s.park()
	return nil
}

// hear reads on the loop.
func (g *greeting) hear(s *session) {
	if err := s.in.fillNow(s.client); err != nil && !errors.Is(err, errAgain) {
		g.err = errClientGone
	}
}

// answer takes the client's messages, on the loop.
func (g *greeting) answer(s *session) {
	s.mu.Lock()
	closing := s.closing
	s.mu.Unlock()
	if closing {
		g.err = errClosing
	}
	for g.err == nil {
		body, n := g.message(s.in.bytes())
		if n == 0 {
			break
		}
		if s.proxy.guesses.isSpent(g.from) { // many may have begun at the same time
			s.proxy.metrics.refused.WithLabelValues("auth_failures").Inc()
			g.err = errTooManyFailures()
			break
		}
		var out []byte
		var key []byte
		if !g.begun {
			out = g.first(body)
		} else {
			out, key = g.final(body)
			clear(body) // with what is stored it gives the key away
		}
		s.in.take(n)
		switch {
		case g.err != nil:
		case key != nil:
			cred := pgwire.Credentials{ClientKey: key, ServerKey: g.serverKey}
			s.prove(cred)
			if g.err = s.claim(); g.err != nil {
				break
			}
			g.end(s)
			s.enter(out)
			return
		default:
			if _, err := s.client.tryWrite(out); err != nil {
				g.err = errClientGone // nothing was sent before that could take the room
			}
		}
	}
	if g.err != nil {
		g.end(s)
		if g.isGuess() { // counts before another client has its turn
			s.proxy.metrics.authFailures.WithLabelValues(methodScram).Inc()
			s.proxy.guesses.failed(g.from)
			s.proxy.cache.doubt(s.track.loginUser)
		}
		s.handOver(func() { s.dismiss(g.reason(s)) })
	}
}

// message is the body of the password message at the start of p, and its length with the header; 0
// if more bytes are needed, or there is an error.
func (g *greeting) message(p []byte) (body []byte, n int) {
	if len(p) < pgwire.HeaderLen {
		return nil, 0
	}
	typ, size, err := pgwire.Header(p)
	switch {
	case err != nil:
		g.err = fatalProtocol(err)
	case typ != pgwire.CliPassword:
		g.err = fatal(pgwire.NewError(pgwire.CodeProtocolViolation,
			fmt.Sprintf("expected a password message, got message type %q", typ)))
	case size > loginMessageMax:
		g.err = fatal(pgwire.NewError(pgwire.CodeProtocolViolation, fmt.Sprintf(
			"message of %d bytes is over the limit of %d", size, loginMessageMax)))
	case pgwire.HeaderLen+size <= len(p):
		return p[pgwire.HeaderLen : pgwire.HeaderLen+size], pgwire.HeaderLen + size
	}
	return nil, 0
}

// first takes the SASLInitialResponse.
func (g *greeting) first(body []byte) []byte {
	mech, data, err := pgwire.ParseSASLInitial(body)
	if err == nil {
		err = g.scram.Choose(mech)
	}
	var reply []byte
	if err == nil {
		reply, err = g.scram.First(data)
	}
	g.err, g.begun = err, true
	return pgwire.AppendAuthSASLContinue(nil, reply)
}

// final takes the proof; key is the ClientKey if it is one.
func (g *greeting) final(body []byte) (out, key []byte) {
	reply, key, err := g.scram.Final(body)
	g.err = err
	out = make([]byte, 0, 512) // room for what follows at once
	return pgwire.AppendAuthSASLFinal(out, reply), key
}

// end takes the greeting off the session.
func (g *greeting) end(s *session) {
	g.late.Stop()
	s.greeting = nil
}

// isGuess tells that the client did not prove who it is.
func (g *greeting) isGuess() bool {
	var pe *pgwire.Error
	return !errors.As(g.err, &pe) && !errors.Is(g.err, errClientGone) &&
		!errors.Is(g.err, errClosing)
}

// reason is what the client is told.
func (g *greeting) reason(s *session) error {
	var pe *pgwire.Error
	switch {
	case errors.As(g.err, &pe):
		return fatal(pe)
	case !g.isGuess():
		return g.err
	}
	user := s.track.loginUser
	s.proxy.log.Debug("authentication failed", zap.String("user", user), zap.Error(g.err))
	if err := s.proxy.stands(g.until, user, g.judged); err != nil {
		return err
	}
	return errAuthFailed(methodScram, user)
}

// handOver lets a goroutine do what may wait, as the owner; only the loop calls it.
func (s *session) handOver(do func()) {
	s.mu.Lock()
	s.attend()
	s.onLoop.Store(false)
	s.mu.Unlock()
	go do()
}

// dismiss ends a session that never began.
func (s *session) dismiss(err error) {
	s.sayGoodbye(err)
	s.finish()
}

// enter gives an authenticated client its first backend, behind said, which is what it was not told
// yet. On the loop, as the owner: if there is a connection to be reused, the session goes on at
// once.
func (s *session) enter(said []byte) {
	said = pgwire.AppendAuthOK(said)
	b := s.reuse()
	if b == nil {
		s.handOver(func() { s.enterNew(s.proxy.ctx, said) })
		return
	}
	_, err := s.client.tryWrite(s.welcome(said, b, s.params.list))
	if err != nil {
		b.close(true)
		err = errClientGone
	} else {
		err = s.begin(b)
	}
	switch {
	case err == nil:
		s.loop.post((*clientSide)(s)) // what came behind the proof
	case errors.Is(err, errBackendLost):
		s.unpark() // it is lost already; the session goes on with another one
	default:
		s.handOver(func() { s.dismiss(err) })
	}
}

// prove notes what the client has proved. Only what was proved by a secret of the server is shared
// with others, and so are connections that were made with it.
func (s *session) prove(cred pgwire.Credentials) {
	if len(cred.ServerKey) == 0 || len(cred.ClientKey) == 0 {
		s.account.cred, s.account.isApart = cred, true
		return
	}
	a := s.proxy.accounts.share(s.account, cred)
	if a != s.account {
		cred.Wipe() // the same keys are in a
	}
	s.mu.Lock()
	s.account = a // info looks at it
	s.mu.Unlock()
}

// enterWaiting is enter for a goroutine that is the owner, and serves the session.
func (s *session) enterWaiting(ctx context.Context) {
	said := pgwire.AppendAuthOK(nil)
	b := s.reuse()
	if b == nil {
		s.enterNew(ctx, said)
		return
	}
	if err := s.writeClient(s.welcome(said, b, s.params.list)); err != nil {
		b.close(true)
		s.dismiss(err)
		return
	}
	if err := s.begin(b); err != nil && !errors.Is(err, errBackendLost) {
		s.dismiss(err)
		return
	}
	s.serve(ctx)
}

// enterNew waits for a primary and a new connection to it. The caller is the owner.
func (s *session) enterNew(ctx context.Context, said []byte) {
	err := s.writeClient(said)
	if err == nil {
		err = s.first(ctx)
	}
	if err != nil {
		s.dismiss(err)
		return
	}
	s.serve(ctx)
}

// first gets a new connection.
func (s *session) first(ctx context.Context) error {
	s.mu.Lock()
	s.equip()
	s.mu.Unlock()
	b, err := s.hold(ctx, &loss{status: pgwire.TxIdle}, true)
	if err != nil {
		var pe *pgwire.Error
		if errors.As(err, &pe) && pe.Code == pgwire.CodeInvalidPassword {
			s.secretIsOld()
		}
		return err
	}
	if err := s.writeClient(s.welcome(nil, b, nil)); err != nil {
		b.close(true)
		return err
	}
	if err := s.begin(b); !errors.Is(err, errBackendLost) {
		return err
	}
	return nil // serve goes on from there
}

// secretIsOld is what the server says to a client that has proved that it knows the secret.
func (s *session) secretIsOld() {
	user := s.track.loginUser
	if _, ok := s.proxy.tls.get().secrets[user]; ok {
		s.log().Warn("server refuses what fits proxy.users_file: the file has another secret of "+
			"the role than the server", zap.String("user", user))
	}
	s.proxy.cache.forget(user) // changed since it was looked up
}

// begin attaches the first backend.
func (s *session) begin(b *backend) error {
	s.mu.Lock()
	s.flow = newFlow(b.status)
	s.mu.Unlock()
	return s.attach(b, func() {})
}

// departed ends a session whose client has left, on the loop, if its backend can be left behind;
// nothing waits then.
func (s *session) departed() bool {
	s.mu.Lock()
	gone := s.gone
	s.mu.Unlock()
	p := s.in.bytes()
	if !gone && (s.unsent > 0 || s.passing > 0 || len(p) == 0 || p[0] != pgwire.CliTerminate) {
		return false
	}
	if !s.leaveBehind() {
		return false
	}
	s.onLoop.Store(false)
	s.finish()
	return true
}
