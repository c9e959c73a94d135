package proxy

import (
	"maps"

	"holdfast/pgwire"
)

// textsOf are the statements that the client's messages of a unit of work have run, or may have,
// for the catalogue to tell whether they only read. False tells that a text is not known.
// knowsUnnamed tells that the unnamed statement where they begin is the one of before, goesOn that
// a server may have gone on behind an error.
func (r *redo) textsOf(messages []byte, conforming, knowsUnnamed, goesOn bool,
) (out []statement, ok bool) {
	t := texts{
		known:   r.namesAtStart(),
		own:     map[string]*statement{},
		portals: map[string]*statement{},
		conf:    conforming,
		all:     goesOn,
	}
	if _, sql, oids, err := pgwire.ParseParse(r.unnamedAtStart().body); err == nil && knowsUnnamed {
		t.own[""] = &statement{text: string(sql), conforming: conforming, types: oids}
	}
	for len(messages) >= pgwire.HeaderLen {
		typ, n, err := pgwire.Header(messages)
		if err != nil || pgwire.HeaderLen+n > len(messages) {
			// A part of a message that goes on: only of COPY is its content of no interest.
			return t.out, err == nil && typ == pgwire.CliCopyData
		}
		if !t.message(typ, messages[pgwire.HeaderLen:pgwire.HeaderLen+n]) {
			return nil, false
		}
		messages = messages[pgwire.HeaderLen+n:]
	}
	return t.out, len(messages) == 0
}

// namesAtStart are the prepared statements that there were where the unit begins.
func (r *redo) namesAtStart() map[string]*prepared {
	if r.begun || len(r.renamed) == 0 {
		return r.names
	}
	names := maps.Clone(r.names)
	for name, was := range r.renamed {
		delete(names, name)
		if was != nil {
			names[name] = was
		}
	}
	return names
}

// texts follows which text a name stands for.
type texts struct {
	known   map[string]*prepared  // named statements as they were at the start
	own     map[string]*statement // made on the way; nil: not known, or none
	portals map[string]*statement
	conf    bool
	// all tells that the unit may have gone on behind an error, so that some messages were skipped,
	// and any text that a name has had may be the one that it stands for.
	all     bool
	out     []statement
	scratch []pgwire.Statement
}

// message takes the next message; false tells that what it runs is not known.
func (t *texts) message(typ byte, body []byte) bool {
	switch typ {
	case pgwire.CliQuery:
		sql, err := pgwire.ParseQuery(body)
		if err != nil {
			return false
		}
		delete(t.own, "")
		t.add(&statement{text: string(sql), conforming: t.conf})
	case pgwire.CliParse:
		name, sql, oids, err := pgwire.ParseParse(body)
		if err != nil {
			return false
		}
		st := &statement{text: string(sql), conforming: t.conf, types: oids}
		if t.own[serverName(name)] = st; t.all {
			t.add(st)
		}
	case pgwire.CliClose:
		if kind, name, err := pgwire.ParseTarget(body); err != nil {
			return false
		} else if kind == 'S' {
			t.own[serverName(name)] = nil
		}
	case pgwire.CliBind:
		portal, name, err := pgwire.ParseBindNames(body)
		if err != nil {
			return false
		}
		st := t.statement(serverName(name))
		if st == nil {
			return false
		}
		if was := t.before(serverName(name)); t.all && was != nil {
			t.add(was)
		}
		t.portals[serverName(portal)] = st
	case pgwire.CliExecute:
		portal, _, err := pgwire.ParseExecute(body)
		if err != nil {
			return false
		}
		st := t.portals[serverName(portal)]
		if st == nil {
			return false // a cursor of SQL, perhaps
		}
		t.add(st)
	case pgwire.CliFunctionCall:
		return false
	}
	return true
}

// add takes a text that is run. What cannot write by what it is, need not be asked about; nor the
// COMMIT of the unit itself.
func (t *texts) add(st *statement) {
	if hasUserType(st.types) {
		t.out = append(t.out, *st) // the input of a domain's value may call a function
		return
	}
	t.scratch = pgwire.Classify(t.scratch[:0], []byte(st.text), st.conforming)
	isAsked := false
	for i := range t.scratch {
		s := &t.scratch[i]
		t.renames(s)
		isAsked = isAsked || s.MayWrite() && s.Kind != pgwire.KindCommit
	}
	if isAsked {
		t.out = append(t.out, *st)
	}
}

// renames takes a statement of SQL that gives a name another text, or none: what it stands for
// from there on is not followed.
func (t *texts) renames(s *pgwire.Statement) {
	switch {
	case s.Kind == pgwire.KindPrepare, s.Kind == pgwire.KindDeallocate && !s.All:
		t.own[s.Name] = nil
	case s.Kind == pgwire.KindDeallocate, s.Kind == pgwire.KindDiscard:
		t.known = nil
		t.own = map[string]*statement{"": t.own[""]}
	}
}

func (t *texts) statement(name string) *statement {
	if st, made := t.own[name]; made {
		return st
	}
	return t.before(name)
}

// before is what a name stood for at the start.
func (t *texts) before(name string) *statement {
	p := t.known[name]
	if p == nil || p.lost || p.bySQL || p.sql == "" {
		return nil
	}
	return &statement{text: p.sql, conforming: p.conf, types: p.oids}
}
