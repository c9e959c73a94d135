package proxy

import (
	"slices"

	"holdfast/pgwire"
)

// Which statements count as ones that set something since they lead to functions that do
// (DESIGN.md I23). The caller of the session's methods holds its lock.

// calledBy is what a prepared statement sets by functions, as far as those were known.
type calledBy struct {
	known   *setters
	effects []effect
}

// askSetters has the database's functions asked for, if a statement may call one, or may have made
// another one.
func (s *session) askSetters(cls class, sql []byte) *setters {
	if !cls.has(clsMayWrite) {
		return nil
	}
	if s.setters == nil || s.setters.stale.Load() {
		s.setters = s.proxy.settersOf(s.database())
	}
	if cls.has(clsSelfCommit) && s.setters != nil && mentionsRoutine(sql) {
		s.setters.stale.Store(true) // it is asked for when the next statement comes
	}
	return s.setters.known()
}

// noteSetters lets a text that calls a function that sets settings count as one that does. It is
// the one that was classified last.
func (s *session) noteSetters(p *parsed, sql []byte) {
	known := s.askSetters(p.cls, sql)
	if known == nil || known.isEmpty() {
		return // as nearly always
	}
	if isAlone(s.scratch) && p.isSetConfig() {
		return // it calls nothing else
	}
	lower := lowered(sql)
	if !known.isNamedIn(lower) {
		return
	}
	at := 0
	for i := range s.scratch {
		st := &s.scratch[i]
		if st.Kind == pgwire.KindEmpty {
			continue
		}
		p.noteCalls(known, sql[st.Start:st.End], lower[st.Start:st.End], s.conf, at)
		at++
	}
	if len(p.effects) > effectsMax {
		*p = opaque
	}
}

// parsedOf is what a prepared statement does by what is known now of the database's functions,
// which may have been made, or learnt, after it was prepared.
func (s *session) parsedOf(ps *prepared) parsed {
	p := ps.parsed
	if ps.bySQL || ps.sql == "" || p.cls.has(clsMulti) {
		return p
	}
	known := s.askSetters(p.cls, nil)
	if known == nil || known.isEmpty() || p.isSetConfig() {
		return p
	}
	if ps.called == nil || ps.called.known != known {
		sql := []byte(ps.sql)
		var c parsed
		c.noteCalls(known, sql, lowered(sql), ps.conf, 0)
		ps.called = &calledBy{known: known, effects: c.effects}
	}
	if len(ps.called.effects) > 0 {
		p.cls |= clsState
		p.effects = append(slices.Clip(p.effects), ps.called.effects...)
	}
	return p
}

// noteBlindness lets what may call any function, while those that set something are not known, be
// one behind which the server is asked; if that is lost before, nothing is known to be set. The
// names of custom settings are asked for as soon as they are known.
func (s *session) noteBlindness(p *parsed) {
	known := s.setters.known()
	isBlind := known == nil || known.isAll
	if s.isBlind && !isBlind {
		s.isBlind = false
		if len(known.settings) > 0 {
			p.effects = append(slices.Clip(p.effects), looks(known.settings))
		}
	}
	if !isBlind || !p.cls.has(clsMayWrite) || p.isSetConfig() {
		return
	}
	e := looks(nil)
	if known != nil {
		e.names = known.settings
	}
	p.effects = append(slices.Clip(p.effects), e)
	s.isBlind = known == nil
}

// looks is the effect of what nobody knows of whether it sets something.
func looks(names []string) effect {
	return effect{kind: pgwire.KindSelect, cls: clsState, isKnown: true, looks: true, names: names}
}

// isNamedIn tells that a text, in lower case, has one of the names in it.
func (s *setters) isNamedIn(lower []byte) bool {
	return s.makers.in(lower) || s.functions.in(lower) || s.locals.in(lower)
}

// noteCalls adds the effects of one of the statements of a string; lower is the same in lower case.
func (p *parsed) noteCalls(known *setters, sql, lower []byte, conforming bool, at int) {
	if known.makers.in(lower) {
		// What it sets is known to be nothing, what it makes is asked for.
		p.cls |= clsState
		p.effects = append(p.effects, effect{
			kind: pgwire.KindExecute, cls: clsState, isKnown: true, makes: true, at: at,
			text: shortText(sql),
		})
	}
	if e, ok := known.calls(sql, lower, conforming); ok {
		e.at = at
		p.cls |= clsState
		p.effects = append(p.effects, e)
	}
}

// isSetConfig tells of a single statement that it does nothing but call set_config.
func (p *parsed) isSetConfig() bool {
	return len(p.effects) == 1 && (p.effects[0].isKnown || p.effects[0].calls != nil)
}

// calledIn tells that a text names one of the setters, and notes in e what they set, and what the
// functions that it names may make.
func (at *settersAt) calledIn(sql string, conforming bool, e *effect) bool {
	known := at.known()
	if known == nil || known.isEmpty() {
		return false
	}
	lower := lowered([]byte(sql))
	e.makes = known.makers.in(lower)
	c, called := known.calls([]byte(sql), lower, conforming)
	if !called {
		return false
	}
	e.names, e.other, e.isGiven = c.names, c.other, c.isGiven
	return !c.isKnown
}

// calls is the effect of a statement that leads to functions which set something; lower is the same
// in lower case. False is that of none.
func (s *setters) calls(sql, lower []byte, conforming bool) (e effect, ok bool) {
	sets := s.functions.in(lower)
	if !sets && !s.locals.in(lower) {
		return e, false
	}
	e = effect{kind: pgwire.KindSelect, cls: clsState, names: s.settings, isKnown: !sets}
	switch {
	case s.computers.in(lower):
		e.other = true
	case s.givers.in(lower):
		own := slices.Clip(s.settings)
		e.names = pgwire.AppendNameConstants(own, sql, conforming, len(own)+givenMax)
		e.isGiven = len(e.names) == len(own) || len(e.names) == len(own)+givenMax
		e.other = e.isGiven
	}
	return e, true
}

// givenMax bounds the constants of a statement that are taken for names of settings.
const givenMax = 64
