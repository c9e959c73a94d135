package proxy

import (
	"maps"
	"strings"

	"holdfast/pgwire"
)

// A statement may have been prepared under a role or a search_path that the session does not have
// where it is restored: within a transaction that had set them for itself, or before it has set
// others. What could not be prepared again for that reason is away until the client uses it: then
// it is prepared right before that, under the role and the path of its use, which is where a
// server that had it would look at it again. If that fails, it is the answer to the use.

// isAway tells that the backend does not have that named statement. If nothing under way prepares
// it, s.missing is its name. The caller holds s.mu.
func (s *session) isAway(name []byte) bool {
	if !s.track.hasAway || len(name) == 0 {
		return false
	}
	key := serverName(name)
	p := s.track.statements[key]
	if p == nil || !p.away || p.sql == "" || p.bySQL || s.flow.skipping ||
		!p.meansTheSame(s.conf, &s.params) {
		return false
	}
	isUnderWay := false
	for i := s.flow.head; i < len(s.flow.ops); i++ {
		o := &s.flow.ops[i]
		switch {
		case o.internal && o.stmt == p:
			isUnderWay = true
		case o.mayMean(key):
			return false // what the name means is the client's doing
		case o.endsBatch():
			isUnderWay = false // it may have been skipped, and does no harm twice
		}
	}
	if isUnderWay {
		return false
	}
	s.missing = key
	return true
}

// prepared notes which statements a backend could prepare, nil among them is something else; it
// returns the last error.
func (t *tracker) prepared(made []*prepared, errs []*pgwire.Error) (last *pgwire.Error) {
	for i, p := range made {
		if p == nil {
			continue
		}
		if p.away = errs[i] != nil; p.away {
			t.hasAway, last = true, errs[i]
		}
	}
	return last
}

// mayMean tells that it may change what the name of a prepared statement means.
func (o *op) mayMean(name string) bool {
	return o.renames && ((o.kind != opParse && o.kind != opClose) || o.name == name ||
		o.cls.has(clsOpaque))
}

// meansTheSame tells that its text is read as it was, under those settings.
func (p *prepared) meansTheSame(conf bool, params *paramSet) bool {
	return (p.conf == conf || !strings.Contains(p.sql, `\`)) &&
		(p.encoding == "" || p.encoding == params.value("client_encoding"))
}

// believeAnswered takes what the client was told by appendEnd of the statements of a batch: one
// that is prepared is away until it is used, one that is closed is closed on the restored backend
// too.
func (s *session) believeAnswered(b *backend, l *loss, p *pending) error {
	s.mu.Lock()
	out, n, committed, changed := s.out[:0], 0, false, false
	for i := range p.batch.ops {
		o := &p.batch.ops[i]
		if committed && o.isStatement() {
			break // an error was told for it
		}
		committed = committed || o.isStatement() && !o.internal
		switch {
		case o.internal || o.name == "":
		case o.kind == opParse:
			o.stmt.away, s.track.hasAway = true, true
			s.track.prepare(o.name, o.stmt)
			changed = true
		case o.kind == opClose:
			s.track.forget(o.name)
			changed = true
			out = pgwire.AppendSync(pgwire.AppendClose(out, 'S', o.name))
			n++
		}
	}
	if changed {
		l.redo.names = maps.Clone(s.track.statements)
	}
	s.mu.Unlock()
	if n == 0 {
		return nil
	}
	if _, _, err := b.exchange(out, n, b.note); err != nil {
		return errBackendLost
	}
	return nil
}

// prepareAway prepares what the message at the head of the inbox needs. The owner calls it.
func (s *session) prepareAway(b *backend, wait bool) error {
	s.mu.Lock()
	p := s.track.statements[s.missing]
	switch {
	case s.flow.isSafePoint() && s.proxy.isDraining(b.primary.Epoch):
		s.mu.Unlock()
		return nil // it has begun since the gate looked: the message is inspected once more
	case s.flow.stale:
		return s.closeStale(b, wait)
	case p == nil || !p.away:
		s.mu.Unlock()
		return nil // looked at before it changed
	}
	before := s.flow
	s.pushed = 0
	at := s.unit.end()
	s.out = pgwire.AppendClose(s.out[:0], 'S', s.missing)
	s.out = pgwire.AppendParse(s.out, s.missing, p.sql, p.oids)
	s.push(op{kind: opClose, internal: true, leads: true, start: at})
	s.push(op{kind: opParse, internal: true, stmt: p, leads: true, start: at})
	s.mu.Unlock()
	_, err := s.sendOwn(b, s.out, before, wait)
	return err
}
