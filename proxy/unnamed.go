package proxy

import (
	"bytes"
	"slices"

	"holdfast/pgwire"
)

// The unnamed statement is made by a Parse without a name and dropped by a Query, by a Close and by
// a Parse that fails; what the server skips leaves it. A client may use it across any number of
// batches, and pipeline them: where a unit of work begins, it need neither be the one of the last
// safe point nor the one that was inspected last. So the answers say which one there is, by the
// offset of its Parse in the journal (unnamedMark), and what it was when the unit began is kept.

// unnamedStatement is the unnamed prepared statement: the body of its Parse, and what it can do. No
// body is none.
type unnamedStatement struct {
	parsed parsed
	body   []byte
	unread bool // parsed is not filled in: it comes from the journal
	unsure bool // which one there is, is not known
}

// unsureUnnamed stands for one that is not known.
var unsureUnnamed = unnamedStatement{parsed: opaque, unsure: true}

// unnamedMark tells what has become of the unnamed statement since the last safe point, as far as
// the server has answered. Zero is that it is as it was.
type unnamedMark struct {
	is markKind
	at int // of unnamedMade: journal offset of the Parse
}

type markKind uint8

const (
	unnamedSame markKind = iota
	unnamedMade
	unnamedGone
)

// changesUnnamed tells that the op makes or drops the unnamed statement.
func (o *op) changesUnnamed() bool {
	return o.isUnnamedParse() || o.kind == opQuery || o.kind == opClose && o.unnamed
}

// changedUnnamed takes an op that the server has done.
func (f *flow) changedUnnamed(o *op) {
	switch {
	case !o.changesUnnamed():
	case o.isUnnamedParse() && !o.asQuery:
		f.unnamed = unnamedMark{unnamedMade, o.start}
	default:
		f.unnamed = unnamedMark{is: unnamedGone}
	}
}

// parseAt is the body of the Parse of the unnamed statement at an offset; false if it is not there.
func (u *unit) parseAt(at int) ([]byte, bool) {
	if !u.whole || at < u.base || at > u.end()-pgwire.HeaderLen {
		return nil, false
	}
	p := u.bytes[at-u.base:]
	typ, n, err := pgwire.Header(p)
	if err != nil || typ != pgwire.CliParse || len(p) < pgwire.HeaderLen+n {
		return nil, false
	}
	return p[pgwire.HeaderLen : pgwire.HeaderLen+n], true
}

// startAt moves the start of the unit to an offset, where the unnamed statement is what m says.
func (u *unit) startAt(from int, m unnamedMark) {
	if from <= u.base {
		return
	}
	body, ok := u.parseAt(m.at)
	switch {
	case m.is == unnamedMade && ok:
		body = append(u.before.body[:0], body...)
		u.before, u.changes = unnamedStatement{body: body, unread: true}, u.changes+1
	case m.is == unnamedMade && u.whole && m.at >= u.base:
		u.before, u.changes = unsureUnnamed, u.changes+1
	case m.is == unnamedGone:
		u.before, u.changes = unnamedStatement{body: u.before.body[:0]}, u.changes+1
	}
	u.trim(from)
}

// followUnit forgets what was before the start of the unit, if that has moved, and returns that.
// The caller holds s.mu and is the owner.
func (s *session) followUnit() (from int) {
	from = int(s.unitFrom.Load())
	if c := s.chain; c != nil {
		if c.isNext {
			from = s.unit.end()
		}
		c.seek(&s.unit, from)
	}
	s.unit.startAt(from, s.unitUnnamed)
	return from
}

// replaceUnnamed notes that a message at that offset, which is about to be sent, makes or drops
// the unnamed statement. The one of the start of the unit is kept: its buffer and that of the one
// of the unit before change places.
func (s *session) replaceUnnamed(at int) {
	if u := &s.unit; u.changes == 0 {
		spare := u.before.body[:0]
		u.before = unnamedStatement{parsed: s.unnamed, body: s.unnamedQ}
		s.unnamedQ = spare
	}
	s.unit.changes++
	s.unnamedQ, s.unnamedAt = s.unnamedQ[:0], at
}

// settleUnnamed makes the unnamed statement that the session knows the one that the server has, at
// a safe point. The caller holds s.mu and is the owner.
func (s *session) settleUnnamed() {
	u, m := &s.unit, s.flow.unnamed
	isNewest := m.is == unnamedMade && m.at == s.unnamedAt
	if !u.whole { // offsets tell nothing, but all was answered
		isNewest = !s.flow.lostParse
	}
	switch {
	case m.is == unnamedGone: // by a Query, perhaps, that was inspected before its unit began
		s.unnamedQ = nil
	case isNewest, u.changes == 0:
	default:
		is := s.unnamedOf(m)
		s.unnamed, s.unnamedQ = is.parsed, slices.Clone(is.body)
	}
	u.changes, s.flow.unnamed, s.flow.lostParse = 0, unnamedMark{}, false
}

// unnamedOf is the unnamed statement that m stands for. The caller holds s.mu and is the owner.
func (s *session) unnamedOf(m unnamedMark) unnamedStatement {
	u := &s.unit
	switch {
	case m.is == unnamedGone:
		return unnamedStatement{}
	case u.changes == 0, !u.whole && u.changes == 1 && m.is == unnamedMade,
		u.whole && m.is == unnamedMade && m.at == s.unnamedAt && len(s.unnamedQ) > 0:
		return unnamedStatement{parsed: s.unnamed, body: slices.Clone(s.unnamedQ)}
	case m.is == unnamedSame, u.whole && m.at < u.base:
		return s.readUnnamed(u.before)
	}
	body, ok := u.parseAt(m.at)
	if !ok {
		return unsureUnnamed
	}
	return s.readUnnamed(unnamedStatement{body: body, unread: true})
}

// readUnnamed reads a statement that comes from the journal, and copies it. Under which settings
// it was parsed is not known any more.
func (s *session) readUnnamed(st unnamedStatement) unnamedStatement {
	st.body = slices.Clone(st.body)
	if !st.unread {
		return st
	}
	st.parsed, st.unread = opaque, false
	_, sql, oids, err := pgwire.ParseParse(st.body)
	isLarge := pgwire.HeaderLen+len(st.body) > s.proxy.cfg.InspectBytesMax
	if err == nil && !isLarge && bytes.IndexByte(sql, '\\') < 0 && !hasHighByte(sql) {
		st.parsed = s.readParse("", sql, oids)
	}
	return st
}

// leavesUnnamed is what a batch makes of the unnamed statement if the client is told that it
// succeeded; nil if it leaves it. The caller holds s.mu.
func (s *session) leavesUnnamed(b *batch) *unnamedStatement {
	var made *unnamedStatement
	committed := false
	for i := range b.ops {
		o := &b.ops[i]
		if committed && o.isStatement() {
			break // an error is told for it (appendEnd)
		}
		committed = committed || o.isStatement() && !o.internal
		if !o.changesUnnamed() {
			continue
		}
		f := flow{}
		f.changedUnnamed(o)
		is := s.unnamedOf(f.unnamed)
		made = &is
	}
	return made
}

// toldUnnamed takes what the client was told of a batch; nil is success. Where an error came in the
// place of the answer of what makes it, or of something before that, nobody knows which one the
// client means next. A Query drops it before anything of it can fail.
func (r *redo) toldUnnamed(p *pending, e *pgwire.Error) {
	switch {
	case p.unnamed == nil || p.batch.errored && !p.batch.simple: // the rest of it was skipped
	case e == nil || p.batch.simple:
		r.unnamed = *p.unnamed
	default:
		r.unnamed = unsureUnnamed
	}
}

// unnamedAtStart is the unnamed statement where the unit begins that can be run again.
func (r *redo) unnamedAtStart() *unnamedStatement {
	if r.begun {
		return &r.unnamed
	}
	return &r.before
}

// needsUnnamed tells that messages use the unnamed statement before they make one.
func needsUnnamed(messages []byte) bool {
	for len(messages) >= pgwire.HeaderLen {
		typ, n, err := pgwire.Header(messages)
		if err != nil {
			return true
		}
		body := messages[pgwire.HeaderLen:min(pgwire.HeaderLen+n, len(messages))]
		switch typ {
		case pgwire.CliQuery:
			return false
		case pgwire.CliParse:
			if len(body) == 0 || body[0] == 0 {
				return false
			}
		case pgwire.CliBind:
			if _, stmt, err := pgwire.ParseBindNames(body); err != nil || len(stmt) == 0 {
				return true
			}
		case pgwire.CliDescribe, pgwire.CliClose:
			kind, name, err := pgwire.ParseTarget(body)
			if err != nil || kind == 'S' && len(name) == 0 {
				return typ == pgwire.CliDescribe
			}
		}
		messages = messages[min(pgwire.HeaderLen+n, len(messages)):]
	}
	return false
}

// believeUnnamed makes the unnamed statement that of a session that goes on from there.
func (s *session) believeUnnamed(st *unnamedStatement) {
	s.unnamed, s.unnamedQ = st.parsed, slices.Clone(st.body)
	s.unit.changes = 0
}

// knowsUnnamed tells that what the messages from an offset on use is known.
func (r *redo) knowsUnnamed(from int) bool {
	return !r.unnamedAtStart().unsure || !needsUnnamed(r.messages[from-r.from:])
}
