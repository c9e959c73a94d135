package pgwire

// Kind is the kind of an SQL statement, as far as a lost backend makes it matter.
type Kind uint8

// The kinds of statements.
const (
	KindEmpty Kind = iota
	KindUnknown
	KindBegin
	KindCommit   // COMMIT, END
	KindRollback // ROLLBACK, ABORT
	KindSavepoint
	KindRollbackTo
	KindRelease
	KindPrepareTransaction
	KindCommitPrepared
	KindRollbackPrepared
	KindSetTransaction
	KindSet
	KindSetRole
	KindSetSessionAuthorization
	KindReset
	KindShow
	KindPrepare
	KindExecute
	KindDeallocate
	KindDiscard
	KindListen
	KindUnlisten
	KindNotify
	KindDeclare
	KindFetch // FETCH, MOVE
	KindCloseCursor
	KindSelect // SELECT, VALUES, TABLE, WITH
	KindWrite  // INSERT, UPDATE, DELETE, MERGE
	KindCopy
	KindCall
	KindDo
	KindExplain
	KindLock
	KindUtility // everything else that has a first word
)

// Statement is one statement of a string.
type Statement struct {
	Kind       Kind
	Start, End int // its text, without the semicolon
	// Name is the setting, prepared statement, channel, cursor, savepoint or gid, as PostgreSQL
	// folds it; DISCARD has what is discarded.
	Name string
	All  bool // DEALLOCATE ALL, RESET ALL, UNLISTEN *
	// Local is SET LOCAL; Chain is AND CHAIN.
	Local, Chain bool
	// CreatesTemp, WithHold and HasAdvisoryLock mark state that only its backend has.
	CreatesTemp, WithHold, HasAdvisoryLock bool
	// HasSetConfig marks a call of set_config.
	HasSetConfig bool
	// harmless marks a SELECT that can call nothing.
	harmless bool
}

// MayWrite tells whether the statement may change data or anything else that outlives its
// session. It is conservative: false only for what surely cannot. A SELECT may, by a function, a
// view or an operator, unless it has none of them.
func (s *Statement) MayWrite() bool {
	switch s.Kind {
	case KindEmpty, KindBegin, KindRollback, KindSavepoint, KindRollbackTo, KindRelease,
		KindSetTransaction, KindReset, KindShow, KindPrepare, KindDeallocate, KindDiscard,
		KindListen, KindUnlisten, KindCloseCursor:
		return false
	case KindSet, KindSetRole, KindSetSessionAuthorization:
		return false
	case KindSelect:
		return !s.harmless
	}
	return true
}

// Classify appends the statements of an SQL string to dst. It never fails: what it cannot read
// is of KindUnknown. conforming is standard_conforming_strings.
func Classify(dst []Statement, sql []byte, conforming bool) []Statement {
	p := classifier{lexer: lexer{sql: sql, conforming: conforming}}
	for {
		s, more := p.statement()
		if s.Kind != KindEmpty {
			dst = append(dst, s)
		}
		if !more {
			return dst
		}
	}
}

// classifier reads statements off a lexer.
type classifier struct {
	lexer
	tok token
	s   Statement
	// intoTemp marks INTO TEMP, which in a SELECT makes a temporary table.
	intoTemp bool
}

// wordsMax is how many leading words decide the kind.
const wordsMax = 8

// statement reads up to a semicolon that ends a statement.
func (p *classifier) statement() (Statement, bool) {
	p.s, p.intoTemp = Statement{}, false
	p.tok = p.next()
	if p.tok.kind == tokEOF {
		return Statement{}, false
	}
	if p.tok.kind == tokSemicolon {
		return Statement{}, true
	}
	var head [wordsMax]token
	n := 0
	p.s.Start, p.s.harmless = p.tok.start, true
	scan := bodyScan{p: p}
	for p.tok.kind != tokEOF && (p.tok.kind != tokSemicolon || scan.inBody()) {
		if p.tok.kind == tokUnfinished {
			p.s.Kind, p.s.End = KindUnknown, len(p.sql)
			return p.s, false
		}
		if n < wordsMax {
			head[n] = p.tok
			n++
		}
		scan.token()
		p.s.End = p.tok.end
		p.tok = p.next()
	}
	p.decide(head[:n])
	return p.s, p.tok.kind == tokSemicolon
}

// bodyScan looks at every token of a statement: for calls that matter, and for the body of an
// SQL function (BEGIN ATOMIC ... END), whose semicolons end nothing.
type bodyScan struct {
	p     *classifier
	last  token
	parts int // parentheses that are open
	depth int // BEGIN ATOMIC and CASE that are open
	count int
	into  bool // the words since INTO were LOCAL or GLOBAL
}

func (b *bodyScan) inBody() bool { return b.depth > 0 || b.parts > 0 && b.p.isCreate() }

// isCreate tells that the statement is CREATE: CREATE RULE has statements in parentheses.
func (p *classifier) isCreate() bool {
	at := p.s.Start
	return at+6 <= len(p.sql) && fold(p.sql[at:at+6], "create")
}

func (b *bodyScan) token() {
	p, t := b.p, b.p.tok
	switch t.kind {
	case tokOpen:
		b.parts++
		if b.last.kind == tokWord || b.last.kind == tokQuoted {
			p.call(b.last)
		}
	case tokClose:
		b.parts = max(0, b.parts-1)
	case tokOperator, tokString, tokNumber, tokComma, tokDot, tokQuoted:
	case tokWord:
		w := p.text(t)
		switch {
		case fold(w, "atomic") && p.isCreate() && b.last.kind == tokWord && fold(p.text(b.last), "begin"):
			b.depth++
		case b.depth > 0 && fold(w, "case"):
			b.depth++
		case b.depth > 0 && fold(w, "end"):
			b.depth--
		case b.into && (fold(w, "temp") || fold(w, "temporary")):
			p.intoTemp = true
		}
		b.into = fold(w, "into") || b.into && (fold(w, "local") || fold(w, "global"))
	}
	p.mark(t, b.last, b.count)
	b.last = t
	b.count++
}

// mark takes away "harmless" from a SELECT that has more than constants and commas.
func (p *classifier) mark(t, last token, index int) {
	switch t.kind {
	case tokString, tokNumber, tokComma:
	case tokWord:
		w := p.text(t)
		if index == 0 || fold(w, "null") || fold(w, "true") || fold(w, "false") {
			return
		}
		if (last.kind == tokWord || last.kind == tokString || last.kind == tokNumber) &&
			fold(w, "as") {
			return
		}
		if last.kind == tokWord && fold(p.text(last), "as") {
			return
		}
		p.s.harmless = false
	case tokQuoted:
		if last.kind != tokWord || !fold(p.text(last), "as") {
			p.s.harmless = false
		}
	default:
		p.s.harmless = false
	}
}

// call looks at a name in front of a parenthesis.
func (p *classifier) call(name token) {
	w := p.text(name)
	if name.kind == tokQuoted && len(w) >= 2 {
		w = w[1 : len(w)-1]
	}
	switch {
	case fold(w, "set_config"):
		p.s.HasSetConfig = true
	case fold(w, "pg_advisory_lock"), fold(w, "pg_advisory_lock_shared"),
		fold(w, "pg_try_advisory_lock"), fold(w, "pg_try_advisory_lock_shared"):
		p.s.HasAdvisoryLock = true
	}
}

func (p *classifier) text(t token) []byte { return p.sql[t.start:t.end] }

// fold compares a word with a lower-case one, whatever its case.
func fold(w []byte, lower string) bool {
	if len(w) != len(lower) {
		return false
	}
	for i := range w {
		c := w[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// name gives an identifier as PostgreSQL folds it, and a string constant without its quotes.
func (p *classifier) name(t token) string {
	w := p.text(t)
	switch t.kind {
	case tokWord:
		out := make([]byte, len(w))
		for i, c := range w {
			if c >= 'A' && c <= 'Z' {
				c |= 0x20
			}
			out[i] = c
		}
		return string(out)
	case tokQuoted, tokString:
		return unquote(w)
	}
	return string(w)
}

// unquote takes the quotes off "x" and 'x'; doubled quotes become one.
func unquote(w []byte) string {
	if len(w) < 2 || w[0] != '"' && w[0] != '\'' {
		return string(w)
	}
	q := w[0]
	out := make([]byte, 0, len(w)-2)
	for i := 1; i < len(w)-1; i++ {
		out = append(out, w[i])
		if w[i] == q {
			i++
		}
	}
	return string(out)
}
