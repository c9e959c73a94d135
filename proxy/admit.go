package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"holdfast/pgwire"
)

// loginMessageMax bounds a message of a client that has not logged in yet.
const loginMessageMax = 10000

// admit takes a client from its first byte to its session. It owns conn; until bounds the login.
// True tells that a session was made of it, which will call clientDone.
func (p *Proxy) admit(ctx context.Context, conn *sock, until time.Time) bool {
	_ = conn.SetDeadline(until)
	stop := p.endWithDoors(conn)
	defer stop()
	d := newDoor(p, conn, conn.RemoteAddr())
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
	stop() // Close finds it among the sessions
	s.loop = conn.loop
	authCtx, cancel := context.WithDeadline(ctx, until)
	cred, err := d.authenticate(authCtx, loginOf(st, kind))
	cancel()
	if err != nil {
		s.dismiss(err)
		return true
	}
	s.prove(cred)
	if err := s.claim(); err != nil {
		s.dismiss(err)
		return true
	}
	_ = d.conn.SetDeadline(time.Time{})
	s.in.begin(d.r.Buffered())
	if kind != notReplication {
		s.passThrough(ctx, kind)
		return true
	}
	d.conn.handle((*clientSide)(s))
	s.enterWaiting(ctx)
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
	if err != nil || st.Negotiate != nil {
		return false
	}
	user, _ := st.Get("user")
	e, ok := p.secretNow(user)
	if !ok {
		return false
	}
	from, usual := p.isUsual(conn, &st, e)
	if !usual {
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
	s.in.begin(nil)
	if err := s.challenge(e, from, until); err != nil {
		go s.dismiss(err)
	}
	return true
}

// isUsual tells that a client without TLS is to log in by SCRAM-SHA-256 and has attempts left, and
// its address.
func (p *Proxy) isUsual(conn *sock, st *pgwire.Startup, e secretEntry) (netip.Addr, bool) {
	if kind, err := replicationOf(st); kind != notReplication || err != nil {
		return netip.Addr{}, false
	}
	d := door{proxy: p, peer: conn.RemoteAddr()}
	c := d.client(loginOf(st, notReplication))
	if p.cfg.TLS.Mode == TLSRequire && !c.local {
		return c.addr, false
	}
	if needsRoles(p.hba, c) {
		if e.at.IsZero() { // of a file, which knows no roles
			return c.addr, false
		}
		c.roles, c.knowRoles = e.roles, true
	}
	rule, ok := matchHBA(p.hba, c)
	ok = ok && rule.method == methodScram && rule.clientCert == ""
	return c.addr, ok && !p.guesses.isSpent(c.addr)
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
	who.user, who.database = nameOfLogin(who.user), nameOfLogin(who.database)
	return who
}

// nameOfLogin is what the server takes a name in a startup packet for: it cuts longer ones off
// (ProcessStartupPacket), and a rule about a name must not be passed by with a longer one.
func nameOfLogin(name string) string { return name[:min(len(name), secretNameMax)] }

// turnAway ends a connection that never became a session.
func (p *Proxy) turnAway(conn net.Conn, err error) {
	var pe *pgwire.Error
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && p.doors.Err() == nil:
		p.metrics.limit(limitStartup)
	case errors.Is(err, pgwire.ErrStartupLength):
		p.metrics.limit(limitPacket)
	case errors.As(err, &pe):
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
	if !p.hasShare(conn) {
		p.metrics.refused.WithLabelValues("connections_per_address").Inc()
		return nil, errTooManyOfAddress()
	}
	account := newAccount(st.Params)
	account.rule = ruleOf(p.sessionRules, account.owner)
	s := &session{
		proxy: p, client: conn, account: account, conf: true,
		track: newTracker(nameOfLogin(user), &p.cfg),
		key:   make([]byte, cancelKeyBytes(st.Protocol)),
	}
	s.attend()
	return s, p.add(s)
}
