package pgwire

import "unicode/utf8"

// seen is what was met anywhere in a statement.
type seen struct {
	temp       bool // INTO or CREATE with TEMP behind it
	into       bool
	pgTemp     bool // a name in the schema of temporary objects
	pgSettings bool // the view whose UPDATE is a set_config
	withHold   bool // CURSOR WITH HOLD
}

// bodyScan looks at every token of a statement: for calls that matter, and for statements inside
// it, whose semicolons end nothing: the body of an SQL function, the actions of a rule (I11).
type bodyScan struct {
	p           *classifier
	last, last2 token
	count       int
	parts       int  // parentheses that are open
	isCreate    bool // CREATE [OR REPLACE] ...
	isRoutine   bool // ... FUNCTION or PROCEDURE
	isRule      bool // ... RULE
	body        bool // inside BEGIN ATOMIC ... END
	bodyAt      int  // where ATOMIC was; 0 if there was none
	isTempNext  bool // the words since INTO or CREATE were LOCAL, GLOBAL, OR, REPLACE
	isLabelNext bool // AS was behind a constant
	isNameNext  bool // set_config( was met
	named       bool // ... and a constant behind it
}

// inBody tells that a semicolon ends nothing here.
func (b *bodyScan) inBody() bool { return b.body || b.isRule && b.parts > 0 }

func (b *bodyScan) token() {
	p, t := b.p, b.p.tok
	b.settingName(t)
	switch t.kind {
	case tokOpen:
		b.parts++
		if b.last.kind == tokWord || b.last.kind == tokQuoted {
			had := p.s.HasSetConfig
			p.s.HasSetConfig = false
			p.call(b.last)
			b.isNameNext = p.s.HasSetConfig
			p.s.HasSetConfig = had || p.s.HasSetConfig
			if fold(p.bare(b.last), "set_limit") { // pg_trgm
				p.s.HasSetConfig = true
				p.s.SetConfigNames = append(p.s.SetConfigNames, "pg_trgm.similarity_threshold")
			}
		}
	case tokClose:
		b.parts = max(0, b.parts-1)
	case tokDot:
		if w := p.bare(b.last); len(w) >= 7 && fold(w[:7], "pg_temp") {
			p.seen.pgTemp = true
		}
	case tokWord:
		b.object(p.text(t))
		b.body = b.insideBody(p.text(t))
		b.word(p.text(t))
	}
	if fold(p.bare(t), "pg_settings") {
		p.seen.pgSettings = true
	}
	b.mark(t)
	b.last2, b.last = b.last, t
	b.count++
}

// settingName reads the first argument of set_config.
func (b *bodyScan) settingName(t token) {
	s := &b.p.s
	switch {
	case b.named:
		b.named = false
		if t.kind != tokComma { // 'app.' || x, or a cast
			s.SetConfigNames = s.SetConfigNames[:len(s.SetConfigNames)-1]
			s.SetConfigOther = true
		}
	case b.isNameNext:
		b.isNameNext = false
		if t.kind == tokString && b.p.sql[t.start] == '\'' {
			s.SetConfigNames = append(s.SetConfigNames, lower(b.p.name(t)))
			b.named = true
			return
		}
		s.SetConfigOther = true
	}
}

// object finds what a CREATE makes.
func (b *bodyScan) object(w []byte) {
	switch {
	case b.count == 0:
		b.isCreate = fold(w, "create")
	case b.isCreate && (b.count == 1 || b.count == 3 && fold(b.p.text(b.last), "replace")):
		b.isRoutine = fold(w, "function") || fold(w, "procedure")
		b.isRule = fold(w, "rule")
	}
}

// insideBody tells whether the body of an SQL function is open behind this word. There is one
// body, outside parentheses; all its statements end with a semicolon, and none but the body's
// own end begins with END (gram.y, routine_body_stmt_list and TransactionStmtLegacy).
func (b *bodyScan) insideBody(w []byte) bool {
	switch {
	case b.body:
		isFirst := b.last.kind == tokSemicolon || b.count == b.bodyAt+1
		return !isFirst || !fold(w, "end")
	case b.isRoutine && b.bodyAt == 0 && b.parts == 0 && fold(w, "atomic") &&
		b.last.kind == tokWord && fold(b.p.text(b.last), "begin"):
		b.bodyAt = b.count
		return true
	}
	return false
}

// word finds words in a row that matter wherever they are.
func (b *bodyScan) word(w []byte) {
	p := b.p
	isInto := fold(w, "into")
	switch {
	case b.isTempNext && (fold(w, "temp") || fold(w, "temporary")):
		p.seen.temp = true
	case fold(w, "hold") && b.last.kind == tokWord && fold(p.text(b.last), "with") &&
		b.last2.kind == tokWord && fold(p.text(b.last2), "cursor"):
		p.seen.withHold = true
	}
	p.seen.into = p.seen.into || isInto
	b.isTempNext = isInto || fold(w, "create") || b.isTempNext && (fold(w, "local") ||
		fold(w, "global") || fold(w, "or") || fold(w, "replace"))
}

// mark takes away "harmless" from a SELECT that has more than constants, their labels and commas
// (I12).
func (b *bodyScan) mark(t token) {
	p := b.p
	isLabel := b.isLabelNext
	b.isLabelNext = false
	switch t.kind {
	case tokString, tokNumber, tokComma:
		return
	case tokWord:
		if w := p.text(t); b.count == 0 || isLabel || p.isConstantWord(w) {
			return
		} else if fold(w, "as") && p.isConstant(b.last) {
			b.isLabelNext = true
			return
		}
	case tokQuoted:
		if isLabel {
			return
		}
	}
	p.s.harmless = false
}

func (p *classifier) isConstant(t token) bool {
	return t.kind == tokString || t.kind == tokNumber ||
		t.kind == tokWord && p.isConstantWord(p.text(t))
}

func (p *classifier) isConstantWord(w []byte) bool {
	return fold(w, "null") || fold(w, "true") || fold(w, "false")
}

// call looks at a name in front of a parenthesis.
func (p *classifier) call(name token) {
	w := p.bare(name)
	switch {
	case len(w) > 2 && w[1] == '&' && name.kind == tokQuoted:
		// U&"...": it may be any name.
		p.s.HasSetConfig, p.s.HasAdvisoryLock = true, true
	case fold(w, "set_config"):
		p.s.HasSetConfig = true
	case fold(w, "pg_advisory_lock"), fold(w, "pg_advisory_lock_shared"),
		fold(w, "pg_try_advisory_lock"), fold(w, "pg_try_advisory_lock_shared"),
		fold(w, "pg_advisory_unlock"), fold(w, "pg_advisory_unlock_shared"),
		fold(w, "pg_advisory_unlock_all"):
		p.s.HasAdvisoryLock = true
	}
}

// bare is an identifier without its quotes; nil for another token.
func (p *classifier) bare(t token) []byte {
	w := p.text(t)
	switch {
	case t.kind == tokQuoted && w[0] == '"':
		return w[1 : len(w)-1]
	case t.kind == tokWord, t.kind == tokQuoted:
		return w
	}
	return nil
}

// identMax is NAMEDATALEN - 1: PostgreSQL cuts longer identifiers.
const identMax = 63

// name gives an identifier as PostgreSQL folds and cuts it, and a string constant without its
// quotes.
func (p *classifier) name(t token) string {
	w := p.text(t)
	switch {
	case t.kind == tokWord:
		return truncate(lower(w))
	case t.kind == tokQuoted && w[0] == '"':
		return truncate(unquote(w))
	case t.kind == tokString && w[0] == '\'':
		for _, c := range w {
			if c == '\\' && !p.conforming {
				return string(w)
			}
		}
		return unquote(w)
	}
	return string(w)
}

func lower[T string | []byte](w T) string {
	out := []byte(w)
	for i, c := range out {
		if c >= 'A' && c <= 'Z' {
			out[i] = c | 0x20
		}
	}
	return string(out)
}

func truncate(s string) string {
	if len(s) <= identMax {
		return s
	}
	end := identMax
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// unquote takes the quotes off "x" and 'x'; doubled quotes become one, and the parts of a
// constant that goes on behind a line break are joined.
func unquote(w []byte) string {
	q := w[0]
	out := make([]byte, 0, len(w)-2)
	for i := 1; i < len(w)-1; i++ {
		if w[i] == q && w[i+1] != q {
			l := lexer{sql: w, pos: i + 1}
			if !l.continues() {
				break
			}
			i = l.pos - 1
			continue
		}
		if w[i] == q {
			i++
		}
		out = append(out, w[i])
	}
	return string(out)
}
