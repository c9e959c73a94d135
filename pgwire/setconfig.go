package pgwire

import (
	"math"
	"strconv"
	"strings"
)

// SetConfigCall is a call of set_config. Its name and its value are constants, as they stand in
// the text, with their quotes, or parameters of the statement, by their number.
type SetConfigCall struct {
	Name, Value           string
	NameParam, ValueParam int
	Local                 bool // what it sets ends with the transaction
}

// SetConfigCalls are the calls of a SELECT that does nothing but call set_config.
type SetConfigCalls []SetConfigCall

// ParseSetConfig reads a statement of the form SELECT set_config('a', 'b', false), with any number
// of such calls, labels, and casts to text; nil is any other one. A function of that name which is
// not PostgreSQL's own is taken for it: it would have to be before pg_catalog in a search_path.
func ParseSetConfig(sql []byte, conforming bool) SetConfigCalls {
	p := advisoryParser{classifier{lexer: lexer{sql: sql, conforming: conforming}}}
	p.tok = p.next()
	if !p.word("select") {
		return nil
	}
	var calls SetConfigCalls
	for {
		c, ok := p.setConfigCall()
		if !ok {
			return nil
		}
		calls = append(calls, c)
		if p.word("as") && p.tok.kind != tokWord && p.tok.kind != tokQuoted {
			return nil
		}
		if (p.tok.kind == tokWord || p.tok.kind == tokQuoted) && !p.isClause() {
			p.tok = p.next()
		}
		if p.tok.kind == tokEOF {
			return calls
		}
		if !p.takes(tokComma) {
			return nil
		}
	}
}

// Again is a statement that sets the same for the session; empty if there is nothing of that kind.
// quoted gives parameters as constants; nil stands for a statement without any. False tells that
// one is not known.
func (c SetConfigCalls) Again(quoted func(param int) (string, bool)) (string, bool) {
	var out strings.Builder
	for i := range c {
		if c[i].Local {
			continue
		}
		name, value, ok := c[i].Name, c[i].Value, true
		if n := c[i].NameParam; n > 0 {
			if quoted == nil {
				return "", false
			}
			if name, ok = quoted(n); !ok {
				return "", false
			}
		}
		if n := c[i].ValueParam; n > 0 {
			if quoted == nil {
				return "", false
			}
			if value, ok = quoted(n); !ok {
				return "", false
			}
		}
		if out.Len() == 0 {
			out.WriteString("SELECT ")
		} else {
			out.WriteString(", ")
		}
		out.WriteString("pg_catalog.set_config(" + name + ", " + value + ", false)")
	}
	return out.String(), true
}

// setConfigCall reads one call, up to what follows it.
func (p *advisoryParser) setConfigCall() (c SetConfigCall, ok bool) {
	if p.word("pg_catalog") && !p.takes(tokDot) {
		return c, false
	}
	if !p.word("set_config") || !p.takes(tokOpen) {
		return c, false
	}
	if c.Name, c.NameParam, ok = p.textArgument(); !ok {
		return c, false
	}
	if c.Value, c.ValueParam, ok = p.textArgument(); !ok {
		return c, false
	}
	c.Local = p.word("true")
	if !c.Local && !p.word("false") {
		return c, false
	}
	return c, p.takes(tokClose)
}

// textArgument reads a constant or a parameter, and the comma behind it.
func (p *advisoryParser) textArgument() (constant string, param int, ok bool) {
	switch t := p.tok; {
	case p.isPlainString(t):
		constant = string(p.text(t))
	case t.kind == tokNumber && p.sql[t.start] == '$':
		n, err := strconv.ParseUint(string(p.sql[t.start+1:t.end]), 10, 16)
		if err != nil || n == 0 {
			return "", 0, false
		}
		param = int(n)
	default:
		return "", 0, false
	}
	p.tok = p.next()
	if p.isOperator(p.tok, ':') {
		if p.tok = p.next(); !p.isOperator(p.tok, ':') {
			return "", 0, false
		}
		if p.tok = p.next(); !p.word("text") {
			return "", 0, false
		}
	}
	return constant, param, p.takes(tokComma)
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

// ParseBindParam reads one of the parameters of a Bind, which are counted from 1, and its format.
// The value aliases b; nil is NULL. False is a message without that parameter.
func ParseBindParam(b []byte, param int) (value []byte, format int, ok bool) {
	r := body{b: b}
	r.cstring()
	r.cstring()
	count := r.u16()
	formats := r.bytes(2 * count)
	n := r.u16()
	if r.bad || param < 1 || param > n {
		return nil, 0, false
	}
	for i := 0; i < param; i++ {
		size := r.u32()
		if value = nil; size != math.MaxUint32 {
			value = r.bytes(int(int32(size)))
		}
	}
	if r.bad {
		return nil, 0, false
	}
	f := body{b: formats}
	if count > 1 {
		f.bytes(2 * (param - 1)) // else one format is that of all, and none is text
	}
	return value, f.u16(), true
}
