package pgwire

import "strings"

// SetConfigCalls are the calls of a SELECT that does nothing but call set_config, with names and
// lifetimes that are constants.
type SetConfigCalls struct {
	// Local tells that all of it ends with the transaction.
	Local bool
	// Text does the same again; empty if a value is not in the statement but a parameter of it.
	Text string
}

// ParseSetConfig reads a statement of the form SELECT set_config('a', 'b', false), with any number
// of such calls, and labels; nil is any other one. A function of that name which is not
// PostgreSQL's own is taken for it: it would have to be in front of pg_catalog in a search_path.
func ParseSetConfig(sql []byte, conforming bool) *SetConfigCalls {
	p := advisoryParser{classifier{lexer: lexer{sql: sql, conforming: conforming}}}
	p.tok = p.next()
	if !p.word("select") {
		return nil
	}
	c := SetConfigCalls{Local: true}
	var text strings.Builder
	isWhole := true
	for n := 0; ; n++ {
		name, value, isLocal, ok := p.setConfigCall()
		if !ok {
			return nil
		}
		c.Local = c.Local && isLocal
		isWhole = isWhole && value.kind == tokString
		if !isLocal {
			if text.Len() == 0 {
				text.WriteString("SELECT ")
			} else {
				text.WriteString(", ")
			}
			text.WriteString("pg_catalog.set_config(")
			text.Write(p.text(name))
			text.WriteString(", ")
			text.Write(p.text(value))
			text.WriteString(", false)")
		}
		if p.word("as") && p.tok.kind != tokWord && p.tok.kind != tokQuoted {
			return nil
		}
		if (p.tok.kind == tokWord || p.tok.kind == tokQuoted) && !p.isClause() {
			p.tok = p.next()
		}
		if p.tok.kind == tokEOF {
			break
		}
		if p.tok.kind != tokComma {
			return nil
		}
		p.tok = p.next()
	}
	if isWhole {
		c.Text = text.String()
	}
	return &c
}

// setConfigCall reads one call, up to what follows it.
func (p *advisoryParser) setConfigCall() (name, value token, isLocal, ok bool) {
	if p.word("pg_catalog") && !p.takes(tokDot) {
		return
	}
	if !p.word("set_config") || !p.takes(tokOpen) {
		return
	}
	if name = p.tok; !p.isPlainString(name) {
		return
	}
	p.tok = p.next()
	if !p.takes(tokComma) {
		return
	}
	if value = p.tok; !p.isPlainString(value) &&
		(value.kind != tokNumber || p.sql[value.start] != '$') {
		return
	}
	p.tok = p.next()
	if !p.takes(tokComma) {
		return
	}
	isLocal = p.word("true")
	if !isLocal && !p.word("false") {
		return
	}
	return name, value, isLocal, p.takes(tokClose)
}

// isPlainString tells of a constant without a prefix and without escapes.
func (p *advisoryParser) isPlainString(t token) bool {
	if t.kind != tokString || p.sql[t.start] != '\'' {
		return false
	}
	return p.conforming || !strings.Contains(string(p.text(t)), `\`)
}

// takes takes a token if it is of that kind.
func (p *advisoryParser) takes(kind tokenKind) bool {
	if p.tok.kind != kind {
		return false
	}
	p.tok = p.next()
	return true
}
