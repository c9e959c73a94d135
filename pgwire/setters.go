package pgwire

import "slices"

// Setters is what the body of a function may set in its session. A body is read as text: rather
// too much is found than too little.
type Setters struct {
	Names []string // custom settings, as of AppendSettingNames
	// Sets tells of something that outlives the transaction, Local of something that does not.
	Sets, Local bool
	// Passes tells of set_config with an argument of the function for a name, which its caller
	// gives; Computes of a name that is made in another way.
	Passes, Computes bool
}

// ParseSetters reads a body in SQL or PL/pgSQL for SET, RESET, set_config and UPDATE pg_settings,
// in constants too, for what EXECUTE makes of them. args are the names of its arguments.
func ParseSetters(body []byte, conforming bool, args []string) Setters {
	s := setterReader{args: args, left: setterTokensMax}
	s.Names = AppendSettingNames(nil, body, conforming)
	s.read(body, conforming, constantDepth, true)
	if s.variable {
		// A variable has its value from a constant of the body, if not from elsewhere.
		before := len(s.Names)
		s.Names = AppendNameConstants(s.Names, body, conforming, before+setterNamesMax)
		s.Computes = s.Computes || len(s.Names) == before
	}
	return s.Setters
}

// setterNamesMax bounds the constants of a body that are taken for names, setterTokensMax how much
// of it is looked at more than once.
const (
	setterNamesMax  = 64
	setterTokensMax = 20000
)

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

// IsSettingName tells that a custom setting may have that name.
func IsSettingName(name string) bool { return len(addSettingName(nil, lower(name))) > 0 }

// Given is what a text gives to the functions that it calls.
type Given struct {
	Names []string // constants that may be names of custom settings
	// Params tells of a call without such a constant and with a parameter ($1, or an argument of
	// the function), Other of one with neither, or of a name that is not followed by arguments.
	Params, Other bool
}

// ParseGiven reads the arguments of the functions that isGiver knows, by their names in lower
// case. args are the names of the arguments of the function of which the text is the body.
func ParseGiven(text []byte, conforming bool, args []string, isGiver func(name string) bool,
) (g Given) {
	p := setterParser{classifier{lexer: lexer{sql: text, conforming: conforming}}}
	left := setterTokensMax
	for {
		t := p.next()
		switch t.kind {
		case tokEOF, tokUnfinished:
			return g
		case tokString:
			// What EXECUTE makes of it: not looked into, so that it gives what is not known.
			g.Other = g.Other || mentions(p.text(t), isGiver)
		case tokWord, tokQuoted:
			if isGiver(lower(p.name(t))) {
				g.call(p, args, &left)
			}
		}
	}
}

// mentions tells that a constant has a word that is known.
func mentions(text []byte, isKnown func(string) bool) bool {
	for i := 0; i < len(text); i++ {
		if !isIdentStart(text[i]) {
			continue
		}
		start := i
		for i < len(text) && isIdent(text[i]) {
			i++
		}
		if isKnown(lower(text[start:i])) {
			return true
		}
	}
	return false
}

// call reads the arguments of one call.
func (g *Given) call(p setterParser, args []string, left *int) {
	if t := p.next(); t.kind != tokOpen {
		g.Other = true
		return
	}
	found, param, alone := false, false, true
	for depth := 0; depth >= 0; *left-- {
		t := p.next()
		switch {
		case t.kind == tokEOF || t.kind == tokUnfinished || *left <= 0:
			g.Other = true
			return
		case t.kind == tokOpen:
			depth++
		case t.kind == tokClose:
			depth--
		case t.kind == tokNumber && p.sql[t.start] == '$':
			param = true
		case depth > 0 || !alone:
		case t.kind == tokWord || t.kind == tokQuoted:
			param = param || p.endsArgument() && slices.Contains(args, lower(p.name(t)))
		case t.kind == tokString && p.sql[t.start] == '\'' && p.endsArgument():
			if name := lower(p.name(t)); IsSettingName(name) {
				g.Names, found = addSettingName(g.Names, name), true
			}
		}
		alone = t.kind == tokComma || p.isOperator(t, '>') // n => 'a.b'
	}
	switch {
	case found:
	case param:
		g.Params = true
	default:
		g.Other = true
	}
}

// endsArgument tells that nothing but a cast follows in the argument.
func (p setterParser) endsArgument() bool {
	next := p.peek()
	return next == ',' || next == ')' || next == ':'
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

// setterReader is ParseSetters at work.
type setterReader struct {
	Setters
	args     []string
	variable bool // a variable names a setting
	left     int
}

// read reads a text; begins tells that a statement may begin with it.
func (s *setterReader) read(body []byte, conforming bool, depth int, begins bool) {
	p := setterParser{classifier{lexer: lexer{sql: body, conforming: conforming}}}
	var last token
	for {
		t := p.next()
		word := t.kind == tokWord
		switch {
		case t.kind == tokEOF || t.kind == tokUnfinished:
			return
		case t.kind == tokString && depth > 0:
			in := constantText(p.text(t))
			// What goes on behind a blank is the SET of an UPDATE that is put together.
			goesOn := p.isOperator(last, '|') && len(in) > 0 && isSpace(in[0])
			s.read(undoubled(p.text(t), in), conforming, depth-1, !goesOn)
		case word && begins && fold(p.text(t), "set"):
			if isCommand(p, t, depth) {
				s.set(p)
			}
		case word && begins && fold(p.text(t), "reset"):
			s.Sets = s.Sets || isCommand(p, t, depth)
		case p.is(t, "pg_settings") && p.is(last, "update"):
			s.Sets = true // a rule of that view calls set_config, for the session
		case p.is(t, "set_config"):
			s.call(p)
		}
		if p.is(t, "pg_catalog") || t.kind == tokDot || p.is(t, "only") {
			continue // UPDATE ONLY pg_catalog.pg_settings
		}
		begins, last = p.isBeginning(t), t
	}
}

// undoubled is what a constant in single quotes stands for, as far as its quotes go.
func undoubled(constant, in []byte) []byte {
	if constant[0] == '$' || !slices.Contains(in, '\'') {
		return in
	}
	out := make([]byte, 0, len(in))
	for i := 0; i < len(in); i++ {
		out = append(out, in[i])
		if in[i] == '\'' && i+1 < len(in) && in[i+1] == '\'' {
			i++
		}
	}
	return out
}

// setterParser looks ahead by value: what it reads is read again.
type setterParser struct{ classifier }

// is tells that a token is that word, quoted or not.
func (p *setterParser) is(t token, word string) bool {
	return (t.kind == tokWord || t.kind == tokQuoted) && fold(p.bare(t), word)
}

// isAny tells that a token is one of the words.
func (p *setterParser) isAny(t token, words ...string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return p.is(t, w) })
}

// isBeginning tells that a statement may begin behind a token: not the SET of an UPDATE, which
// stands behind a relation, an alias, a parenthesis or the word UPDATE.
func (p *setterParser) isBeginning(t token) bool {
	switch t.kind {
	case tokSemicolon:
		return true
	case tokWord:
		return p.isAny(t, "begin", "then", "else", "loop", "atomic")
	case tokOperator: // the end of a label, <<a>>
		return p.isOperator(t, '>')
	}
	return false
}

// isCommand tells that SET or RESET at the beginning of a constant is no word of a message: a name
// and what a name is set by follow, or nothing but a blank, for what is put behind it.
func isCommand(p setterParser, verb token, depth int) bool {
	if depth == constantDepth {
		return true // not in a constant
	}
	t := p.next()
	if p.isAny(t, "local", "session") {
		t = p.next()
	}
	switch {
	case t.kind == tokEOF:
		return verb.end < len(p.sql)
	case p.isOperator(t, '%'):
		return true
	case t.kind != tokWord && t.kind != tokQuoted:
		return false
	case p.isAny(t, "role", "authorization", "time", "schema", "names", "characteristics", "xml",
		"seed"):
		return true
	}
	t = p.next()
	if p.is(verb, "reset") {
		return t.kind == tokEOF || t.kind == tokSemicolon || t.kind == tokDot
	}
	return t.kind == tokEOF || t.kind == tokDot || p.isOperator(t, '=') || p.is(t, "to")
}

// set reads what follows SET.
func (s *setterReader) set(p setterParser) {
	t := p.next()
	isLocal := p.is(t, "local")
	if isLocal || p.is(t, "session") {
		t = p.next()
	}
	switch {
	case p.isAny(t, "transaction", "constraints"):
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

// call reads the arguments of set_config.
func (s *setterReader) call(p setterParser) {
	if t := p.next(); t.kind != tokOpen {
		return
	}
	var first, arg []token // all of the first argument, and of the last one
	for depth, n := 0, 0; depth >= 0; s.left-- {
		t := p.next()
		switch {
		case t.kind == tokEOF || t.kind == tokUnfinished || s.left <= 0:
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
	n := len(arg)
	isLocal := n > 0 && p.is(arg[n-1], "true") && (n == 1 || n <= 4 && p.is(arg[0], "is_local"))
	s.Local = s.Local || isLocal
	s.Sets = s.Sets || !isLocal
}

// name takes the argument that names the setting. A cast to text changes nothing.
func (s *setterReader) name(p setterParser, arg []token) {
	if n := len(arg); n > 3 && p.isOperator(arg[n-2], ':') && p.isOperator(arg[n-3], ':') {
		arg = arg[:n-3]
	}
	switch {
	case len(arg) != 1:
		s.Computes = true
	case arg[0].kind == tokString && p.sql[arg[0].start] == '\'':
		s.Names = addSettingName(s.Names, lower(p.name(arg[0])))
	case arg[0].kind == tokNumber && p.sql[arg[0].start] == '$':
		s.Passes = true
	case arg[0].kind != tokWord && arg[0].kind != tokQuoted:
		s.Computes = true
	case slices.Contains(s.args, lower(p.name(arg[0]))):
		s.Passes = true
	default:
		s.variable = true
	}
}
