package proxy

import (
	"slices"
	"time"

	"holdfast/pgwire"
)

// Which statements count as ones that set something since they lead to functions that do
// (DESIGN.md I23). The caller of the session's methods holds its lock.

// calledBy is what a prepared statement sets by functions, as far as those were known.
type calledBy struct {
	known   *setters
	effects []effect
	cls     class
}

// askSetters has the database's functions asked for, if a statement may call one, or may make
// another one.
func (s *session) askSetters(cls class, sql []byte) *setters {
	if !cls.has(clsMayWrite) {
		return nil
	}
	if s.setters.isDue(time.Now()) {
		s.setters = s.proxy.settersOf(s.database())
	}
	known := s.setters.known()
	if cls.has(clsSelfCommit) && mentionsRoutine(sql) {
		s.remakes, s.isBlind, s.blindOf = true, true, known
	}
	return known
}

// remade has the functions asked for anew, now that a unit of work that may have made some has
// ended. The caller holds s.mu.
func (s *session) remade() {
	s.remakes = false
	if s.setters != nil {
		s.setters.stale.Store(true)
	}
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
	to := known.leadsTo(lower)
	if to == 0 {
		return
	}
	if p.cls.has(clsOpaque) {
		p.noteCalls(known, sql, to, s.conf, 0) // its statements are not known
		return
	}
	at := 0
	for i := range s.scratch {
		st := &s.scratch[i]
		if st.Kind == pgwire.KindEmpty {
			continue
		}
		p.noteCalls(known, sql[st.Start:st.End], known.leadsTo(lower[st.Start:st.End]), s.conf, at)
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
		c.noteCalls(known, sql, known.leadsTo(lowered(sql)), ps.conf, 0)
		ps.called = &calledBy{known: known, effects: c.effects, cls: c.cls}
	}
	if len(ps.called.effects) > 0 {
		p.cls |= ps.called.cls
		p.effects = append(slices.Clip(p.effects), ps.called.effects...)
	}
	return p
}

// noteBlindness lets what may call any function, while those that set something are not known, be
// one behind which the server is asked; if that is lost before, nothing is known to be set. The
// custom settings are asked for as soon as they are known.
func (s *session) noteBlindness(p *parsed) {
	known := s.setters.known()
	if s.isBlind && !s.remakes && known != nil && known != s.blindOf {
		s.isBlind, s.blindOf = false, nil
		for _, name := range known.settings {
			s.track.learn(name)
			s.track.dirty = true
		}
	}
	if !s.isBlind && known != nil && !known.isAll || !p.cls.has(clsMayWrite) || p.isSetConfig() {
		return
	}
	e := effect{kind: pgwire.KindSelect, cls: clsState, isKnown: true, looks: true}
	if known != nil {
		e.names = known.settings
	} else {
		s.isBlind = true
	}
	p.effects = append(slices.Clip(p.effects), e)
}

// noteCalls adds the effects of one of the statements of a string that leads to something.
func (p *parsed) noteCalls(known *setters, sql []byte, to reaches, conforming bool, at int) {
	if to&reachMakes != 0 {
		// What it sets is known to be nothing, what it makes is asked for.
		p.cls |= clsState
		p.effects = append(p.effects, effect{
			kind: pgwire.KindExecute, cls: clsState, isKnown: true, makes: true, at: at,
			text: shortText(sql),
		})
	}
	if e, ok := known.calls(sql, to, conforming); ok {
		e.at = at
		if !e.isKnown || e.other {
			p.cls |= clsState
		}
		if e.other {
			e.text = shortText(sql) // to be blamed
		}
		p.effects = append(p.effects, e)
	}
}

// isSetConfig tells of a single statement that it does nothing but call set_config.
func (p *parsed) isSetConfig() bool {
	return len(p.effects) == 1 && p.effects[0].kind == pgwire.KindSelect && !p.effects[0].looks &&
		(p.effects[0].isKnown || p.effects[0].calls != nil)
}

// calledIn tells that a text may call one of the setters, and notes in e what they set, and what
// the functions that it names may make.
func (at *settersAt) calledIn(sql string, conforming bool, e *effect) bool {
	known := at.known()
	if known == nil || known.isEmpty() {
		return false
	}
	to := known.leadsTo(lowered([]byte(sql)))
	e.makes = to&reachMakes != 0
	c, called := known.calls([]byte(sql), to, conforming)
	if !called {
		return false
	}
	e.names, e.other = c.names, c.other
	return !c.isKnown
}

// calls is the effect of a statement that leads to functions which set something. False is that of
// none.
func (s *setters) calls(sql []byte, to reaches, conforming bool) (e effect, ok bool) {
	if to&(reachSets|reachLocal) == 0 {
		return e, false
	}
	e = effect{
		kind: pgwire.KindSelect, cls: clsState, names: s.settings, isKnown: to&reachSets == 0,
		other: to&reachComputes != 0,
	}
	if to&reachPasses == 0 {
		return e, true
	}
	g := pgwire.ParseGiven(sql, conforming, nil, func(name string) bool {
		return reaches(s.names.of(name))&reachPasses != 0
	})
	e.names = append(slices.Clip(s.settings), g.Names...)
	e.isGiven = g.Params && !g.Other && !e.other
	e.other = e.other || g.Params || g.Other
	return e, true
}
