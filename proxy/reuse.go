package proxy

import (
	"strings"

	"holdfast/pgwire"
)

// soils tells that an operation may leave something in the server process that a reset does not
// undo: settings that only their name makes (they stay, empty), libraries that were loaded, or what
// cannot be known. DISCARD ALL undoes the rest, temporary tables among it.
func (o *op) soils() bool {
	if o.cls.has(clsOpaque) || o.kind == opFunctionCall && !o.internal {
		return true
	}
	// Utility statements: any of them may be LOAD. Only what makes a temporary object is known.
	if o.cls.has(clsSelfCommit) && (o.cls.has(clsMulti) || !o.cls.has(clsTemp)) {
		return true
	}
	for i := range o.effects {
		e := &o.effects[i]
		switch {
		case e.other:
			return true
		case isCustom(e.name) && (e.kind == pgwire.KindSet || e.kind == pgwire.KindReset):
			return true
		case e.kind == pgwire.KindDo || e.kind == pgwire.KindCall || e.kind == pgwire.KindExecute:
			return true
		}
		for _, name := range e.names {
			if isCustom(name) {
				return true
			}
		}
	}
	return false
}

// isCustom tells that a setting exists because somebody has set it; an escape may hide the dot.
func isCustom(name string) bool { return strings.ContainsAny(name, `.\`) }

// poolKey is what a connection must have to be as good as a new one for this session.
func (s *session) poolKey() poolKey {
	return poolKey{loop: s.loop, login: s.account.key, secret: string(s.cred.ServerKey)}
}

// leaveBehind gives the connection of a session whose client has left to the pool, if it is at a
// safe point and can be made as new. The owner calls it; it tries once, and false leaves the
// connection attached.
func (s *session) leaveBehind() bool {
	p := s.proxy
	if !p.cfg.Reuse || s.left {
		return false
	}
	s.left = true
	s.mu.Lock()
	b := s.backend
	s.mu.Unlock()
	if b == nil {
		return false
	}
	b.mu.Lock() // before s.mu, as the loop does
	defer b.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isApart || s.backend != b || s.lost || s.closing || !b.isQuiet() || !s.isSpotless() {
		p.metrics.reuse.WithLabelValues("unfit").Inc()
		return false
	}
	// The pool gets a backend of its own: whoever still has this one finds it closed.
	next := &backend{
		proxy: s.proxy, primary: b.primary, conn: b.conn, pid: b.pid, key: b.key, started: b.started,
		role: b.role, status: pgwire.TxIdle, born: b.born, syncCommit: b.syncCommit,
	}
	params := paramSet{list: s.params.list, shared: true}
	// Under s.mu, so that Cut finds the connection here or there.
	if !p.pool.put(s.poolKey(), s.owner, next, params) {
		return false
	}
	b.isClosed.Store(true)
	b.stopped = true
	s.backend = nil
	return true
}

// isQuiet tells that all bytes of the server were dealt with. The caller holds b.mu.
func (b *backend) isQuiet() bool {
	return !b.stopped && !b.parked && !b.filled && len(b.out) == 0 && b.passing == 0 &&
		len(b.in.bytes()) == 0 && !b.isClosed.Load()
}

// isSpotless tells that nothing is outstanding at the server, and that nothing the session did
// would outlive a reset. The caller holds s.mu and is the owner.
func (s *session) isSpotless() bool {
	ends := s.last != nil && s.last.fatal != nil
	return s.flow.isSafePoint() && !s.endHeld && !s.lostTx && !s.inDoubt && !ends &&
		s.unsent == 0 && s.passing == 0 && s.cancels == 0 && !s.soiled && !s.track.unknown &&
		s.again == nil && len(s.track.custom) == 0
}

// reuse takes a connection that another session has left behind; nil if there is none that is as
// good as a new one. Cut knows it from here on.
func (s *session) reuse() *backend {
	p := s.proxy
	pr, _ := p.topo.Current()
	if !p.cfg.Reuse || s.isApart || !s.isUsable(pr) || !pr.isBarrierOpen() {
		return nil
	}
	b, params := p.pool.take(s.poolKey(), pr)
	if b == nil {
		return nil
	}
	if !s.isOpening(b) {
		b.close(false)
		return nil
	}
	p.params.share(&params)
	s.mu.Lock()
	s.params = params
	s.conf = params.value("standard_conforming_strings") != "off"
	s.mu.Unlock()
	return b
}

// welcome appends what a client is told of its first backend, up to ReadyForQuery.
func (s *session) welcome(out []byte, b *backend, params []pgwire.Param) []byte {
	for _, p := range params {
		out = pgwire.AppendParameterStatus(out, p.Name, p.Value)
	}
	out = s.appendKey(out, b)
	return pgwire.AppendReadyForQuery(out, pgwire.TxIdle)
}
