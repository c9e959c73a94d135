package pgwire

// ReadOnlyIf reads a single statement in depth, and tells whether it surely writes nothing that
// another execution would write again, if all that it refers to is harmless. What it refers to is
// added to dst; whoever has the catalogue judges it. False is "may write"; dst is then of no use.
//
// The session's own objects are not in a catalogue that anybody else reads: a caller whose session
// may have temporary ones must not ask. What EXECUTE runs is not in its text, so that it may
// write. What FETCH and MOVE run is judged where the cursor is declared, and what COMMIT makes
// last by the statements before it; one of LISTEN, NOTIFY or WITH HOLD makes COMMIT write, and is
// never called harmless. UNLISTEN is: it changes what its own server process listens to, and pools
// send it between two users. conforming is standard_conforming_strings. Bytes beyond ASCII are
// understood in constants and comments, if no character of the encoding ends in a quote or a
// backslash.
func ReadOnlyIf(dst Needs, sql []byte, conforming bool) (Needs, bool) {
	p := classifier{lexer: lexer{sql: sql, conforming: conforming}}
	st, more := p.statement()
	for more {
		var next Statement
		if next, more = p.statement(); next.Kind == KindEmpty {
			continue
		}
		if st.Kind != KindEmpty {
			return dst, false // several
		}
		st = next
	}
	s := needsScan{needs: dst}
	s.lexer = lexer{sql: sql[:st.End], pos: st.Start, conforming: conforming}
	ok := s.reads(&st)
	return s.needs, ok && !s.bad
}

// reads tells whether the statement only reads, by its kind and its words.
func (s *needsScan) reads(st *Statement) bool {
	switch st.Kind {
	case KindListen:
		return false
	case KindCommit, KindFetch:
		return true
	case KindLock:
		s.needs.LocksRows = true
		return true
	case KindSelect:
		return s.query()
	case KindDeclare:
		return s.query()
	case KindExplain:
		return s.explain()
	case KindCopy:
		return s.copyOut()
	}
	return !st.MayWrite()
}

// query reads to the end of a SELECT, of whatever form, or of a DECLARE.
func (s *needsScan) query() bool {
	for s.step() {
		if s.tok.kind == tokWord && s.last[0].kind != tokDot && !s.queryWord() {
			return false
		}
	}
	return !s.bad && s.tok.kind == tokEOF && s.depth == 0
}

// queryWord looks for the words by which a query writes. Nothing else can begin a statement
// inside a query; a column of that name may be taken for it.
func (s *needsScan) queryWord() bool {
	w := s.text(s.tok)
	switch {
	case fold(w, "update"):
		// FOR UPDATE, FOR NO KEY UPDATE. KEY alone is not enough: SEARCH ... SET key UPDATE.
		if !s.isWord(s.last[0], "for") && !(s.isWord(s.last[0], "key") &&
			s.isWord(s.last[1], "no") && s.isWord(s.last[2], "for")) {
			return false
		}
		s.needs.LocksRows = true
	case fold(w, "share"):
		s.needs.LocksRows = true
	case fold(w, "hold"):
		return !s.isWord(s.last[0], "with")
	case fold(w, "insert"), fold(w, "delete"), fold(w, "merge"), fold(w, "into"):
		return false
	}
	return true
}

// explain reads EXPLAIN of a query, and without ANALYZE of a write too: it is planned, not run.
// What it plans is judged the same, since planning calls functions to learn their values.
func (s *needsScan) explain() bool {
	s.step() // EXPLAIN
	analyzes := false
	for s.step() {
		w := s.tok
		switch {
		case s.depth > 0, w.kind == tokClose:
			// The name of an option may be quoted.
			analyzes = analyzes || fold(s.bare(w), "analyze") || fold(s.bare(w), "analyse")
			if s.isWord(w, "select") || s.isWord(w, "with") || s.isWord(w, "values") ||
				s.isWord(w, "table") {
				return s.query() // EXPLAIN (SELECT ...)
			}
		case s.isWord(w, "analyze"), s.isWord(w, "analyse"):
			analyzes = true
		case s.isWord(w, "verbose"), w.kind == tokOpen:
		case s.isWord(w, "select"), s.isWord(w, "values"), s.isWord(w, "table"),
			s.isWord(w, "with"):
			return s.query()
		case s.isWord(w, "insert"), s.isWord(w, "update"), s.isWord(w, "delete"),
			s.isWord(w, "merge"):
			return !analyzes && s.rest()
		default:
			return false
		}
	}
	return false
}

// rest reads to the end.
func (s *needsScan) rest() bool {
	for s.step() {
		if s.isWord(s.tok, "for") {
			s.needs.LocksRows = true // a subquery may say so
		}
	}
	return !s.bad && s.tok.kind == tokEOF
}

// copyOut reads COPY ... TO STDOUT: the first TO outside parentheses says where to, and no FROM
// may be there.
func (s *needsScan) copyOut() bool {
	isOut := false
	for s.step() {
		if s.depth == 0 && !isOut && s.isWord(s.last[0], "to") {
			if isOut = s.isWord(s.tok, "stdout"); !isOut {
				return false
			}
		}
		if s.tok.kind != tokWord || s.last[0].kind == tokDot {
			continue
		}
		if !s.queryWord() || s.depth == 0 && s.isWord(s.tok, "from") {
			return false
		}
	}
	return !s.bad && isOut && s.tok.kind == tokEOF && s.depth == 0
}

// NamesIn adds to dst all that a text may refer to, whatever its statements are: the body of a
// function of SQL or PL/pgSQL. False means that something may be run that is not in the text
// (EXECUTE), or that the text is not understood.
func NamesIn(dst Needs, text []byte, conforming bool) (Needs, bool) {
	s := needsScan{needs: dst}
	s.lexer = lexer{sql: text, conforming: conforming}
	for s.step() || s.tok.kind == tokSemicolon {
		if s.isWord(s.tok, "execute") {
			return s.needs, false
		}
	}
	return s.needs, !s.bad
}
