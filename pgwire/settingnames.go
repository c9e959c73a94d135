package pgwire

// AppendSettingNames appends the names of custom settings (those with a dot, which no server
// lists) that a text may set: SET a.b, in any statement, and set_config('a.b', ...). Constants are
// read too, for what EXECUTE makes of them. A name that is put together at run time is not found.
// There may be more than are set: UPDATE t SET a.b = 1 looks the same. Names are in lower case,
// each once; those that no setting can have are left out.
func AppendSettingNames(dst []string, text []byte, conforming bool) []string {
	return appendSettingNames(dst, text, conforming, constantDepth)
}

// constantDepth bounds how deep constants are read inside constants.
const constantDepth = 3

func appendSettingNames(dst []string, text []byte, conforming bool, depth int) []string {
	p := classifier{lexer: lexer{sql: text, conforming: conforming}}
	var last [3]token
	for {
		t := p.next()
		switch t.kind {
		case tokEOF, tokUnfinished:
			return dst
		case tokString:
			isArgument := last[0].kind == tokOpen && fold(p.bare(last[1]), "set_config")
			if isArgument && text[t.start] == '\'' {
				dst = addSettingName(dst, lower(p.name(t)))
			} else if depth > 0 {
				dst = appendSettingNames(dst, constantText(p.text(t)), conforming, depth-1)
			}
		case tokWord, tokQuoted:
			if !p.isBehindSet(last) {
				break
			}
			// The name goes on behind each dot; what follows is looked at next.
			name := p.name(t)
			for p.peek() == '.' {
				p.next()
				part := p.next()
				if part.kind != tokWord && part.kind != tokQuoted {
					break
				}
				name, t = name+"."+p.name(part), part
			}
			dst = addSettingName(dst, lower(name))
		}
		last[2], last[1], last[0] = last[1], last[0], t
	}
}

// isBehindSet tells that SET, SET LOCAL or SET SESSION comes before.
func (p *classifier) isBehindSet(last [3]token) bool {
	i := 0
	if last[0].kind == tokWord &&
		(fold(p.text(last[0]), "local") || fold(p.text(last[0]), "session")) {
		i = 1
	}
	return last[i].kind == tokWord && fold(p.text(last[i]), "set")
}

// peek is the next character that is no white space or comment, 0 at the end.
func (p *classifier) peek() byte {
	if !p.skipSpace() {
		return 0
	}
	return p.at(p.pos)
}

// addSettingName keeps a name that a custom setting may have (guc.c, valid_custom_variable_name).
func addSettingName(dst []string, name string) []string {
	dots, isStart := 0, true
	for i := range len(name) {
		switch c := name[i]; {
		case c == '.':
			if isStart {
				return dst
			}
			dots++
			isStart = true
		case isStart && !isIdentStart(c) || !isIdent(c):
			return dst
		default:
			isStart = false
		}
	}
	if dots == 0 || isStart {
		return dst
	}
	for _, n := range dst {
		if n == name {
			return dst
		}
	}
	return append(dst, name)
}

// constantText is what is between the quotes of a constant, with doubled quotes and escapes as
// they are: names have none.
func constantText(w []byte) []byte {
	if w[0] == '$' {
		for i := 1; i < len(w); i++ {
			if w[i] == '$' {
				return w[i+1 : max(i+1, len(w)-i-1)]
			}
		}
	}
	for i, c := range w {
		if c == '\'' {
			return w[i+1 : max(i+1, len(w)-1)]
		}
	}
	return nil
}
