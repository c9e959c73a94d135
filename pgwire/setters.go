package pgwire

import "slices"

// Setters is what a function's body may set in its session. A body is read as text, whatever its
// language: rather too much is found than too little.
type Setters struct {
	Names []string // custom settings, as of AppendSettingNames
	// Sets tells of something that outlives the transaction, Local of something that does not.
	Sets, Local bool
	// Passes tells of set_config with a name that is a parameter or a variable, and so mostly one
	// that the caller gave; Computes of a name that is put together.
	Passes, Computes bool
}

// ParseSetters reads a body for SET, RESET, set_config and UPDATE pg_settings, in constants too,
// for what EXECUTE makes of them.
func ParseSetters(body []byte, conforming bool) Setters {
	s := Setters{Names: AppendSettingNames(nil, body, conforming)}
	s.read(body, conforming, reachDepth)
	return s
}

// AppendNameConstants appends the constants of a text that may be names of custom settings, as
// AppendSettingNames does, up to max of them in dst.
func AppendNameConstants(dst []string, text []byte, conforming bool, max int) []string {
	p := classifier{lexer: lexer{sql: text, conforming: conforming}}
	for len(dst) < max {
		switch t := p.next(); t.kind {
		case tokEOF, tokUnfinished:
			return dst
		case tokString:
			if text[t.start] == '\'' {
				dst = addSettingName(dst, lower(p.name(t)))
			}
		}
	}
	return dst
}

// AppendSettingName appends a name, in lower case, that a custom setting may have, unless it is
// there.
func AppendSettingName(dst []string, name string) []string {
	return addSettingName(dst, lower(name))
}

// Add takes what another reading of a body has found.
func (s *Setters) Add(o Setters) {
	for _, name := range o.Names {
		if !slices.Contains(s.Names, name) {
			s.Names = append(s.Names, name)
		}
	}
	s.Sets, s.Local = s.Sets || o.Sets, s.Local || o.Local
	s.Passes, s.Computes = s.Passes || o.Passes, s.Computes || o.Computes
}

func (s *Setters) read(body []byte, conforming bool, depth int) {
	p := setterParser{classifier: classifier{lexer: lexer{sql: body, conforming: conforming}}}
	begins := true // a statement may begin here
	var last token
	for {
		t := p.next()
		word := t.kind == tokWord
		switch {
		case t.kind == tokEOF || t.kind == tokUnfinished:
			return
		case t.kind == tokString && depth > 0:
			s.read(constantText(p.text(t)), conforming, depth-1)
		case word && begins && fold(p.text(t), "set"):
			if isCommand(p, t, depth) {
				s.set(p)
			}
		case word && begins && fold(p.text(t), "reset"):
			s.Sets = s.Sets || isCommand(p, t, depth)
		case p.is(t, "pg_settings") && p.is(last, "update"):
			// A rule of that view calls set_config, for the session.
			s.Sets, last = true, t
		case p.is(t, "set_config"):
			s.call(p)
		}
		if p.is(t, "pg_catalog") || t.kind == tokDot || p.is(t, "only") {
			continue // UPDATE ONLY pg_catalog.pg_settings
		}
		begins, last = p.isBeginning(t), t
	}
}

// setterParser looks ahead by value: what it reads is read again.
type setterParser struct{ classifier }

// is tells that a token is that word, quoted or not.
func (p *setterParser) is(t token, word string) bool {
	return (t.kind == tokWord || t.kind == tokQuoted) && fold(p.bare(t), word)
}

// isBeginning tells that a statement may begin behind a token: not the SET of an UPDATE, which
// stands behind a relation, an alias, a parenthesis or the word UPDATE.
func (p *setterParser) isBeginning(t token) bool {
	switch t.kind {
	case tokSemicolon:
		return true
	case tokWord:
		for _, w := range [...]string{"begin", "then", "else", "loop", "atomic"} {
			if fold(p.text(t), w) {
				return true
			}
		}
	case tokOperator: // the end of a label, <<a>>
		return p.isOperator(t, '>')
	}
	return false
}

// isCommand tells that SET or RESET at the beginning of a constant is no word of a message: a name
// and what a name is set by follow, or nothing but a blank, for what is put behind it.
func isCommand(p setterParser, verb token, depth int) bool {
	if depth == reachDepth {
		return true // not in a constant
	}
	t := p.next()
	if p.is(t, "local") || p.is(t, "session") {
		t = p.next()
	}
	switch {
	case t.kind == tokEOF:
		return verb.end < len(p.sql)
	case p.is(verb, "reset"):
		return p.next().kind == tokEOF
	case p.is(t, "role"), p.is(t, "authorization"), p.is(t, "time"), p.isOperator(t, '%'):
		return true
	case t.kind != tokWord && t.kind != tokQuoted:
		return false
	}
	t = p.next()
	return t.kind == tokEOF || t.kind == tokDot || p.isOperator(t, '=') || p.is(t, "to")
}

// set reads what follows SET.
func (s *Setters) set(p setterParser) {
	t := p.next()
	isLocal := t.kind == tokWord && fold(p.text(t), "local")
	if isLocal || t.kind == tokWord && fold(p.text(t), "session") {
		t = p.next()
	}
	switch {
	case p.is(t, "transaction"), p.is(t, "constraints"):
		return
	case t.kind != tokWord && t.kind != tokQuoted: // 'SET ' || name, 'SET %I TO %L'
		s.Computes = true
	default:
		for p.peek() == '.' { // 'SET app.' || name, 'SET app.%I TO %L'
			p.next()
			if part := p.next(); part.kind != tokWord && part.kind != tokQuoted {
				s.Computes = true
			}
		}
	}
	s.Local = s.Local || isLocal
	s.Sets = s.Sets || !isLocal
}

// callTokensMax bounds how far the end of a call is looked for.
const callTokensMax = 1000

// call reads the arguments of set_config.
func (s *Setters) call(p setterParser) {
	if t := p.next(); t.kind != tokOpen {
		return
	}
	var first, arg []token // all of the first argument, and of the last one
	for depth, n, left := 0, 0, callTokensMax; depth >= 0; left-- {
		t := p.next()
		switch {
		case t.kind == tokEOF || t.kind == tokUnfinished || left == 0:
			s.Sets, s.Computes = true, true
			return
		case t.kind == tokOpen:
			depth++
		case t.kind == tokClose:
			depth--
		}
		if depth < 0 || depth == 0 && t.kind == tokComma {
			if n++; n == 1 {
				first = arg
			}
			if depth == 0 {
				arg = nil
			}
			continue
		}
		arg = append(arg, t)
	}
	s.name(p, first)
	isLocal := len(arg) > 0 && p.is(arg[len(arg)-1], "true") // also is_local => true
	s.Local = s.Local || isLocal
	s.Sets = s.Sets || !isLocal
}

// name takes the argument that names the setting. A cast to text changes nothing.
func (s *Setters) name(p setterParser, arg []token) {
	if n := len(arg); n > 3 && p.isOperator(arg[n-2], ':') && p.isOperator(arg[n-3], ':') {
		arg = arg[:n-3]
	}
	isName := func(t token) bool {
		return t.kind == tokWord || t.kind == tokQuoted ||
			t.kind == tokNumber && p.sql[t.start] == '$'
	}
	switch {
	case len(arg) == 1 && arg[0].kind == tokString && p.sql[arg[0].start] == '\'':
	case len(arg) == 1 && isName(arg[0]),
		len(arg) == 3 && isName(arg[0]) && arg[1].kind == tokDot && isName(arg[2]):
		s.Passes = true
	default:
		s.Computes = true
	}
}
