package proxy

import (
	"context"
	"errors"
	"net"
	"time"

	"holdfast/pgwire"
)

// loginMessageMax bounds a message of a client that has not logged in yet.
const loginMessageMax = 10000

// admit takes a client from its first byte to the question for its password. It owns conn. True
// tells that a session was made of it, which will call clientDone.
func (p *Proxy) admit(ctx context.Context, conn *sock, until time.Time) bool {
	_ = conn.SetDeadline(until)
	r := pgwire.NewReader(conn, loginMessageMax)
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
	s.loop = conn.loop
	_ = conn.SetDeadline(time.Time{})
	s.in.attach(conn, r.Buffered())
	if err := s.greet(ctx, until); err != nil {
		s.dismiss(err)
	}
	return true
}

// startupBytesMax is PostgreSQL's MAX_STARTUP_PACKET_LENGTH.
const startupBytesMax = 10000

// admitNow does on the loop what admit does, if nothing of it has to wait: the usual login, without
// encryption, of a role whose secret is known. Else it is false, and nothing was read.
func (p *Proxy) admitNow(conn *sock, until time.Time) bool {
	bp := bufferPool.Get().(*[]byte)
	defer bufferPool.Put(bp)
	buf := (*bp)[:startupBytesMax]
	buf = buf[:conn.peek(buf)]
	// An error is a part of it, more than it, or another kind of request.
	st, err := pgwire.ParseStartup(buf)
	if err != nil || st.Negotiate != nil || p.secrets != Secrets(p.cache) {
		return false
	}
	user, _ := st.Get("user")
	e, ok := p.cache.fresh(user)
	if !ok {
		return false
	}
	if n, err := conn.tryRead(buf); err != nil || n != len(buf) {
		p.turnAway(conn, errClientGone)
		p.clientDone()
		return true
	}
	s, err := p.newSession(conn, &st)
	if err != nil {
		go func() {
			p.turnAway(conn, err)
			p.clientDone()
		}()
		return true
	}
	s.loop = conn.loop
	s.in.attach(conn, nil)
	if err := s.challenge(e.secret, e.ok, until); err != nil {
		go s.dismiss(err)
	}
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
		proxy: p, client: conn, account: newAccount(st.Params), conf: true,
		wake: make(chan struct{}, 1), track: newTracker(user, p.cfg.PreparedBytesMax),
	}
	return s, p.add(s)
}
