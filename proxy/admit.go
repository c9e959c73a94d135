package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// loginMessageMax bounds a message of a client that has not logged in yet.
const loginMessageMax = 10000

// admit takes a client from its first byte to its first ReadyForQuery. It owns nc. True tells that
// a session was made of it, which will call clientDone.
func (p *Proxy) admit(ctx context.Context, nc net.Conn) bool {
	pgwire.SetKeepAlive(nc, p.cfg.KeepAlive)
	on := p.anyLoop()
	conn, err := newSock(on, nc)
	if err != nil {
		p.log.Warn("client cannot be served", zap.Error(err))
		return false
	}
	_ = conn.SetDeadline(time.Now().Add(p.cfg.StartupTimeout))
	late := &lateWriter{Conn: conn}
	r := pgwire.NewReader(late, loginMessageMax)
	st, err := p.startup(ctx, conn, r)
	if err != nil || st == nil {
		p.turnAway(conn, err)
		return false
	}
	s, err := p.newSession(conn, st)
	if err != nil {
		p.turnAway(conn, err)
		return false
	}
	s.loop = on
	authCtx, cancel := context.WithTimeout(ctx, p.cfg.StartupTimeout)
	cred, err := p.authenticate(authCtx, late, r, s.track.loginUser)
	cancel()
	if err == nil {
		s.cred = cred
		_ = conn.SetDeadline(time.Time{})
		s.in.attach(conn, r.Buffered())
		err = s.begin(ctx, late.out)
	}
	if err != nil {
		s.sayGoodbye(err)
		s.finish()
		return true
	}
	conn.handle((*clientSide)(s))
	s.serve(ctx)
	return true
}

// startup reads up to the StartupMessage. nil without an error is a connection that is done.
func (p *Proxy) startup(ctx context.Context, conn net.Conn, r *pgwire.Reader,
) (*pgwire.Startup, error) {
	for range 3 {
		st, err := pgwire.ReadStartup(r)
		if err != nil {
			return nil, err
		}
		switch st.Kind {
		case pgwire.StartupSSL, pgwire.StartupGSS:
			if _, err := conn.Write([]byte{'N'}); err != nil {
				return nil, errClientGone
			}
		case pgwire.StartupCancel:
			p.cancelRequest(ctx, st.CancelPID, st.CancelKey)
			return nil, nil
		default:
			return &st, nil
		}
	}
	return nil, fatal(pgwire.NewError(pgwire.CodeProtocolViolation,
		"too many encryption requests"))
}

// turnAway ends a connection that never became a session.
func (p *Proxy) turnAway(conn net.Conn, err error) {
	var pe *pgwire.Error
	if errors.As(err, &pe) {
		p.metrics.sessionErrors.WithLabelValues(pe.Code).Inc()
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = conn.Write(pgwire.AppendError(nil, fatal(pe)))
	}
	_ = conn.Close()
}

// newSession registers a session within the limits.
func (p *Proxy) newSession(conn link, st *pgwire.Startup) (*session, error) {
	user, _ := st.Get("user")
	if repl, ok := st.Get("replication"); ok && repl != "false" && repl != "off" && repl != "0" {
		return nil, pgwire.NewError(pgwire.CodeFeatureNotSupported,
			"replication connections are not relayed")
	}
	if st.Negotiate != nil {
		if _, err := conn.Write(st.Negotiate); err != nil {
			return nil, errClientGone
		}
	}
	s := &session{
		proxy: p, client: conn, login: st.Params, conf: true,
		wake: make(chan struct{}, 1), track: newTracker(user, p.cfg.PreparedBytesMax),
	}
	return s, p.add(s)
}

// authenticate checks the client with SCRAM-SHA-256 against the secret that PostgreSQL itself
// has, and keeps the ClientKey of the proof: with it the proxy can log in as this user.
func (p *Proxy) authenticate(ctx context.Context, conn net.Conn, r *pgwire.Reader, user string,
) (pgwire.Credentials, error) {
	var cred pgwire.Credentials
	stored, ok, err := p.secrets.UserSecret(ctx, user)
	if err != nil {
		p.log.Info("secret could not be looked up", zap.Error(err))
		return cred, errNoPrimaryLogin()
	}
	var secret pgwire.ScramSecret
	if ok {
		secret, err = pgwire.ParseScramSecret(stored)
		if err != nil {
			p.log.Warn("role has no scram-sha-256 secret", zap.String("user", user))
			ok = false
		}
	}
	sc := pgwire.NewScramServer(user, secret, ok)
	cred, err = scramExchange(conn, r, sc)
	if err != nil {
		var pe *pgwire.Error
		if errors.As(err, &pe) || errors.Is(err, errClientGone) {
			return cred, err
		}
		p.log.Debug("authentication failed", zap.String("user", user), zap.Error(err))
		return cred, fatal(pgwire.NewError(pgwire.CodeInvalidPassword,
			fmt.Sprintf("password authentication failed for user %q", user)))
	}
	cred.ServerKey = secret.ServerKey
	return cred, nil
}

func scramExchange(conn net.Conn, r *pgwire.Reader, sc *pgwire.ScramServer,
) (pgwire.Credentials, error) {
	var cred pgwire.Credentials
	out := pgwire.AppendAuthSASL(nil, "SCRAM-SHA-256")
	if _, err := conn.Write(out); err != nil {
		return cred, errClientGone
	}
	body, err := readPassword(r)
	if err != nil {
		return cred, err
	}
	mech, first, err := pgwire.ParseSASLInitial(body)
	if err != nil {
		return cred, err
	}
	if mech != "SCRAM-SHA-256" {
		return cred, fatal(pgwire.NewError(pgwire.CodeProtocolViolation,
			"client selected an invalid SASL authentication mechanism"))
	}
	reply, err := sc.First(first)
	if err != nil {
		return cred, err
	}
	if _, err := conn.Write(pgwire.AppendAuthSASLContinue(nil, reply)); err != nil {
		return cred, errClientGone
	}
	if body, err = readPassword(r); err != nil {
		return cred, err
	}
	reply, key, err := sc.Final(body)
	if err != nil {
		return cred, err
	}
	cred.ClientKey = key
	if _, err := conn.Write(pgwire.AppendAuthSASLFinal(nil, reply)); err != nil {
		return cred, errClientGone
	}
	return cred, nil
}

func readPassword(r *pgwire.Reader) ([]byte, error) {
	typ, body, err := r.ReadMessage()
	if err != nil {
		var pe *pgwire.Error
		if errors.As(err, &pe) {
			return nil, fatal(pe)
		}
		return nil, errClientGone
	}
	if typ != pgwire.CliPassword {
		return nil, fatal(pgwire.NewError(pgwire.CodeProtocolViolation,
			fmt.Sprintf("expected a password message, got message type %q", typ)))
	}
	return body, nil
}

// begin gives an authenticated client its first backend, behind said, which is what it was not
// told yet.
func (s *session) begin(ctx context.Context, said []byte) error {
	b, err := s.first(ctx, said)
	if err != nil {
		var pe *pgwire.Error
		if errors.As(err, &pe) && pe.Code == pgwire.CodeInvalidPassword {
			s.proxy.cache.forget(s.track.loginUser) // changed since it was looked up
		}
		return err
	}
	s.mu.Lock()
	s.flow = newFlow(b.status)
	s.mu.Unlock()
	if err := s.attach(b); errors.Is(err, errBackendLost) {
		return nil // serve goes on from there
	} else if err != nil {
		return err
	}
	return nil
}
