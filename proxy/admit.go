package proxy

import (
	"context"
	"errors"
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
	d := newDoor(p, conn, nc.RemoteAddr())
	st, kind, err := d.startup(ctx)
	if err != nil || st == nil {
		p.turnAway(d.conn, err)
		return false
	}
	s, err := p.newSession(d.conn, st)
	if err != nil {
		p.turnAway(d.conn, err)
		return false
	}
	s.loop = on
	authCtx, cancel := context.WithTimeout(ctx, p.cfg.StartupTimeout)
	cred, err := d.authenticate(authCtx, loginOf(st, kind))
	cancel()
	if err == nil {
		s.cred = cred
		_ = d.conn.SetDeadline(time.Time{})
		s.in.attach(d.conn, d.r.Buffered())
		if kind != notReplication {
			s.passThrough(ctx, kind)
			return true
		}
		err = s.begin(ctx)
	}
	if err != nil {
		s.sayGoodbye(err)
		s.finish()
		return true
	}
	d.conn.handle((*clientSide)(s))
	s.serve(ctx)
	return true
}

// cancelKeyBytes is the length of a cancel key; PostgreSQL's have 32 bytes from protocol 3.2 on.
func cancelKeyBytes(protocol uint32) int {
	if protocol >= pgwire.Protocol32 {
		return 32
	}
	return 4
}

// loginOf is who a client says it is; like in PostgreSQL the database is named as the user if the
// client names none.
func loginOf(st *pgwire.Startup, kind replication) login {
	who := login{replication: kind == physicalReplication}
	who.user, _ = st.Get("user")
	if who.database, _ = st.Get("database"); who.database == "" {
		who.database = who.user
	}
	return who
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
	if st.Negotiate != nil {
		if _, err := conn.Write(st.Negotiate); err != nil {
			return nil, errClientGone
		}
	}
	s := &session{
		proxy: p, client: conn, login: st.Params, conf: true,
		wake: make(chan struct{}, 1), track: newTracker(user, p.cfg.PreparedBytesMax),
		key: make([]byte, cancelKeyBytes(st.Protocol)),
	}
	s.track.locks.mode, s.track.locks.max = p.cfg.AdvisoryLocks, p.cfg.AdvisoryLocksMax
	return s, p.add(s)
}

// begin gives an authenticated client its first backend; it waits for a primary if there is
// none.
func (s *session) begin(ctx context.Context) error {
	if err := s.writeClient(pgwire.AppendAuthOK(nil)); err != nil {
		return err
	}
	l := &loss{status: pgwire.TxIdle}
	b, err := s.hold(ctx, l, true)
	if err != nil {
		var pe *pgwire.Error
		if errors.As(err, &pe) && pe.Code == pgwire.CodeInvalidPassword {
			s.proxy.cache.forget(s.track.loginUser) // changed since it was looked up
		}
		return err
	}
	out := pgwire.AppendBackendKeyData(nil, s.id, s.key)
	out = pgwire.AppendReadyForQuery(out, pgwire.TxIdle)
	if err := s.writeClient(out); err != nil {
		b.close(true)
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
