package pgwire

import (
	"math"
	"strconv"
)

// AdvisoryOp is what a function does to the session-level advisory locks.
type AdvisoryOp uint8

// The operations.
const (
	AdvisoryLock AdvisoryOp = iota + 1
	AdvisoryTryLock
	AdvisoryUnlock
	AdvisoryUnlockAll
)

// AdvisoryKey is the key of an advisory lock as pg_locks shows it, with its mode: a key of one
// bigint has Sub 1 and its halves in Class and Obj, one of two integers has Sub 2.
type AdvisoryKey struct {
	Class, Obj uint32
	Sub        uint8
	Shared     bool
}

// AdvisoryArg is an argument of an AdvisoryCall.
type AdvisoryArg struct {
	// Param is the number of the parameter that it is; 0 for none.
	Param int
	Value int64
	// Known tells that Value is the argument; it is some other expression else.
	Known bool
}

// AdvisoryCall is the one call of a statement that does nothing else: it is made once for each
// row that the statement returns, and the row is its result.
type AdvisoryCall struct {
	Op     AdvisoryOp
	Shared bool
	// Pair tells of a key of two integers, in Args; one of a bigint is in the first.
	Pair bool
	Args [2]AdvisoryArg
}

// Key is the lock that the call is about, if its arguments are known.
func (c *AdvisoryCall) Key() (AdvisoryKey, bool) {
	a, b := c.Args[0], c.Args[1]
	if c.Pair {
		ok := a.Known && b.Known && isInt32(a.Value) && isInt32(b.Value)
		return AdvisoryKey{uint32(a.Value), uint32(b.Value), 2, c.Shared}, ok
	}
	return AdvisoryKey{uint32(a.Value >> 32), uint32(a.Value), 1, c.Shared}, a.Known
}

func isInt32(v int64) bool { return v >= math.MinInt32 && v <= math.MaxInt32 }

// advisoryFunctions are the functions that change session-level locks.
var advisoryFunctions = map[string]AdvisoryCall{
	"pg_advisory_lock":            {Op: AdvisoryLock},
	"pg_advisory_lock_shared":     {Op: AdvisoryLock, Shared: true},
	"pg_try_advisory_lock":        {Op: AdvisoryTryLock},
	"pg_try_advisory_lock_shared": {Op: AdvisoryTryLock, Shared: true},
	"pg_advisory_unlock":          {Op: AdvisoryUnlock},
	"pg_advisory_unlock_shared":   {Op: AdvisoryUnlock, Shared: true},
	"pg_advisory_unlock_all":      {Op: AdvisoryUnlockAll},
}

// ParseAdvisory reads a statement of the form SELECT f(...), or SELECT * FROM f(...), with an
// optional label; nil is any other one. Arguments that are neither an integer nor a parameter are
// not known, but the call is.
func ParseAdvisory(sql []byte, conforming bool) *AdvisoryCall {
	p := advisoryParser{classifier{lexer: lexer{sql: sql, conforming: conforming}}}
	p.tok = p.next()
	if !p.word("select") {
		return nil
	}
	if p.tok.kind == tokOperator && string(p.text(p.tok)) == "*" {
		p.tok = p.next()
		if !p.word("from") {
			return nil
		}
	}
	if p.word("pg_catalog") {
		if p.tok.kind != tokDot {
			return nil
		}
		p.tok = p.next()
	}
	if p.tok.kind != tokWord {
		return nil
	}
	c, ok := advisoryFunctions[lower(p.text(p.tok))]
	p.tok = p.next()
	if !ok || p.tok.kind != tokOpen || !p.arguments(&c) {
		return nil
	}
	if p.word("as") && p.tok.kind != tokWord && p.tok.kind != tokQuoted {
		return nil
	}
	if (p.tok.kind == tokWord || p.tok.kind == tokQuoted) && !p.isClause() {
		p.tok = p.next()
	}
	if p.tok.kind != tokEOF {
		return nil
	}
	return &c
}

// advisoryParser reads what ParseAdvisory looks for.
type advisoryParser struct{ classifier }

// word takes a word if it is that one.
func (p *advisoryParser) word(lower string) bool {
	if p.tok.kind != tokWord || !fold(p.text(p.tok), lower) {
		return false
	}
	p.tok = p.next()
	return true
}

// isClause tells of a word that is no label although the statement may end with it, or behind the
// next one. Whatever else is mistaken for a label is not the end, and is refused for that.
func (p *advisoryParser) isClause() bool {
	w := p.text(p.tok)
	return fold(w, "from") || fold(w, "isnull") || fold(w, "notnull")
}

// arguments reads the list behind the name, with both parentheses.
func (p *advisoryParser) arguments(c *AdvisoryCall) bool {
	var arg []token
	n, depth := 0, 0
	for {
		last := p.tok
		p.tok = p.next()
		switch p.tok.kind {
		case tokEOF, tokUnfinished, tokSemicolon:
			return false
		case tokOpen:
			depth++
			if last.kind == tokWord || last.kind == tokQuoted {
				p.call(last)
			}
		case tokClose:
			depth--
		case tokWord:
			if fold(p.text(p.tok), "select") {
				return false
			}
		}
		isEnd := depth < 0
		if isEnd || depth == 0 && p.tok.kind == tokComma {
			if n == len(c.Args) {
				return false
			}
			if len(arg) > 0 {
				c.Args[n] = p.argument(arg)
				n++
			}
			arg = arg[:0]
			if isEnd {
				break
			}
			continue
		}
		arg = append(arg, p.tok)
	}
	p.tok = p.next()
	c.Pair = n == 2
	return !p.s.HasAdvisoryLock && (n == 0) == (c.Op == AdvisoryUnlockAll)
}

// argument reads an integer, in quotes or not, or a parameter, and a cast to an integer type
// behind it.
func (p *advisoryParser) argument(t []token) AdvisoryArg {
	var a AdvisoryArg
	if n := len(t); n >= 3 && p.isOperator(t[n-3], ':') && p.isOperator(t[n-2], ':') {
		if !isIntegerType(p.text(t[n-1])) {
			return a
		}
		t = t[:n-3]
	}
	sign := ""
	if len(t) == 2 && p.isOperator(t[0], '-') && t[1].kind == tokNumber {
		sign, t = "-", t[1:]
	}
	if len(t) != 1 {
		return a
	}
	w := string(p.text(t[0]))
	switch {
	case t[0].kind == tokString && w[0] == '\'':
		w = w[1 : len(w)-1]
	case t[0].kind != tokNumber:
		return a
	case w[0] == '$' && sign == "":
		n, err := strconv.Atoi(w[1:])
		if err == nil && n > 0 {
			a.Param = n
		}
		return a
	}
	v, err := strconv.ParseInt(sign+w, 10, 64)
	a.Value, a.Known = v, err == nil
	return a
}

func (p *advisoryParser) isOperator(t token, c byte) bool {
	return t.kind == tokOperator && p.sql[t.start] == c
}

func isIntegerType(w []byte) bool {
	for _, name := range []string{"bigint", "int8", "int", "integer", "int4", "smallint", "int2"} {
		if fold(w, name) {
			return true
		}
	}
	return false
}

// ParseBindInteger reads the value of a parameter, which begins with 1, of a Bind message as an
// integer. The parameter must be of an integer type.
func ParseBindInteger(b []byte, param int) (int64, bool) {
	v, format, ok := ParseBindParam(b, param)
	if !ok {
		return 0, false
	}
	return integerOf(v, format)
}

// integerOf reads a value of an integer type, as text (0) or in binary (1).
func integerOf(v []byte, format int) (int64, bool) {
	if format == 0 {
		i, err := strconv.ParseInt(string(v), 10, 64)
		return i, err == nil
	}
	r := body{b: v}
	switch {
	case format != 1:
	case len(v) == 2:
		return int64(int16(r.u16())), true
	case len(v) == 4:
		return int64(int32(r.u32())), true
	case len(v) == 8:
		hi, lo := r.u32(), r.u32()
		return int64(hi)<<32 | int64(lo), true
	}
	return 0, false
}
