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
	KindWrite  // INSERT, UPDATE, DELETE, MERGE; WITH in front of one, or with one in its list
	KindCopy
	KindCall
	KindDo
	KindExplain
	KindLock
	KindLoad
	KindUtility // everything else that has a first word
)

// Statement is one statement of a string.
type Statement struct {
	Kind       Kind
	Start, End int // its text, without the semicolon
	// Name is the setting, prepared statement, channel, cursor, savepoint or gid, as PostgreSQL
	// folds and truncates it; DISCARD has what is discarded. One that is written with escapes
	// (E'', U&) is left as it is written.
	Name string
	All  bool // DEALLOCATE ALL, RESET ALL, UNLISTEN *
	// Local is SET LOCAL; Chain is AND CHAIN.
	Local, Chain bool
	// CreatesTemp, WithHold and HasAdvisoryLock mark state that only its backend has.
	CreatesTemp, WithHold, HasAdvisoryLock bool
	// HasSetConfig marks a call of set_config, or an UPDATE of pg_settings, which does the same.
	HasSetConfig bool
	// SetConfigNames are the settings that calls of set_config name by a constant;
	// SetConfigOther tells that one names its setting in another way.
	SetConfigNames []string
	SetConfigOther bool
	// harmless marks a SELECT that can call nothing.
	harmless bool
	// fires marks SET CONSTRAINTS, which runs deferred triggers.
	fires bool
}

// MayWrite tells whether the statement may change data or anything else that outlives its
// session. It is conservative: false only for what surely cannot (I12). A SELECT may, by a
// function, a view or an operator, unless it has none of them.
func (s *Statement) MayWrite() bool {
	switch s.Kind {
	case KindSetTransaction:
		return s.fires
	case KindEmpty, KindBegin, KindRollback, KindSavepoint, KindRollbackTo, KindRelease,
		KindReset, KindShow, KindPrepare, KindDeallocate, KindDiscard,
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
	tok  token
	s    Statement
	seen seen
}

// wordsMax is how many leading tokens decide the kind.
const wordsMax = 12

// statement reads up to a semicolon that ends a statement.
func (p *classifier) statement() (Statement, bool) {
	p.s, p.seen = Statement{}, seen{}
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
