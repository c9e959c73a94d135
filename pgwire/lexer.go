package pgwire

// tokenKind is the kind of an SQL token.
type tokenKind uint8

const (
	tokEOF        tokenKind = iota
	tokWord                 // keyword or unquoted identifier
	tokQuoted               // "identifier"
	tokString               // any string constant
	tokNumber               // also $1
	tokSemicolon            // ;
	tokOpen                 // (
	tokClose                // )
	tokComma                // ,
	tokDot                  // .
	tokOperator             // anything else
	tokUnfinished           // a string, identifier or comment without its end
)

// token is a token by its place in the text.
type token struct {
	kind       tokenKind
	start, end int
}

// lexer splits SQL text after PostgreSQL's rules (scan.l; manual, "Lexical Structure"). It needs
// no more than to know where constants, identifiers and comments begin and end.
type lexer struct {
	sql        []byte
	pos        int
	conforming bool // standard_conforming_strings
}

func isSpace(c byte) bool {
	return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v'
}

func isIdentStart(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c >= 0x80
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isIdent(c byte) bool { return isIdentStart(c) || isDigit(c) || c == '$' }

func (l *lexer) at(i int) byte {
	if i < len(l.sql) {
		return l.sql[i]
	}
	return 0
}

// skipSpace passes white space and comments; false is a comment without an end.
func (l *lexer) skipSpace() bool {
	for l.pos < len(l.sql) {
		c := l.sql[l.pos]
		switch {
		case isSpace(c):
			l.pos++
		case c == '-' && l.at(l.pos+1) == '-':
			for l.pos < len(l.sql) && l.sql[l.pos] != '\n' && l.sql[l.pos] != '\r' {
				l.pos++
			}
		case c == '/' && l.at(l.pos+1) == '*':
			if !l.skipComment() {
				return false
			}
		default:
			return true
		}
	}
	return true
}

// skipComment passes a comment, which may contain others.
func (l *lexer) skipComment() bool {
	depth := 0
	for l.pos < len(l.sql) {
		switch {
		case l.sql[l.pos] == '/' && l.at(l.pos+1) == '*':
			depth++
			l.pos += 2
		case l.sql[l.pos] == '*' && l.at(l.pos+1) == '/':
			depth--
			l.pos += 2
			if depth == 0 {
				return true
			}
		default:
			l.pos++
		}
	}
	l.pos = len(l.sql)
	return false
}

// next returns the next token.
func (l *lexer) next() token {
	if !l.skipSpace() {
		return token{tokUnfinished, len(l.sql), len(l.sql)}
	}
	start := l.pos
	if start >= len(l.sql) {
		return token{tokEOF, start, start}
	}
	c := l.sql[start]
	switch {
	case isIdentStart(c):
		return l.word(start)
	case isDigit(c), c == '.' && isDigit(l.at(start+1)):
		return l.number(start)
	case c == '\'':
		return l.quoted(start, start, '\'', !l.conforming, tokString)
	case c == '"':
		return l.quoted(start, start, '"', false, tokQuoted)
	case c == '$':
		return l.dollar(start)
	}
	l.pos++
	kind := tokOperator
	switch c {
	case ';':
		kind = tokSemicolon
	case '(':
		kind = tokOpen
	case ')':
		kind = tokClose
	case ',':
		kind = tokComma
	case '.':
		kind = tokDot
	}
	return token{kind, start, l.pos}
}

// word reads an identifier, or a constant or identifier with a prefix: E, B, X, N, U&.
func (l *lexer) word(start int) token {
	c, n := l.sql[start]|0x20, l.at(start+1)
	switch {
	case n == '\'' && c == 'e':
		return l.quoted(start, start+1, '\'', true, tokString)
	case n == '\'' && (c == 'b' || c == 'x'):
		return l.quoted(start, start+1, '\'', false, tokString)
	case n == '\'' && c == 'n':
		return l.quoted(start, start+1, '\'', !l.conforming, tokString)
	case c == 'u' && n == '&' && l.at(start+2) == '\'':
		return l.quoted(start, start+2, '\'', false, tokString)
	case c == 'u' && n == '&' && l.at(start+2) == '"':
		return l.quoted(start, start+2, '"', false, tokQuoted)
	}
	l.pos = start + 1
	for l.pos < len(l.sql) && isIdent(l.sql[l.pos]) {
		l.pos++
	}
	return token{tokWord, start, l.pos}
}

// number reads a number. A letter behind it begins a word, as PostgreSQL up to 14 has it; newer
// versions refuse that.
func (l *lexer) number(start int) token {
	if l.sql[start] == '0' && isHexDigit(l.at(start+2)) {
		if c := l.at(start+1) | 0x20; c == 'x' || c == 'o' || c == 'b' {
			l.pos += 2
			l.digits(isHexDigit)
			return token{tokNumber, start, l.pos}
		}
	}
	l.digits(isDigit)
	if l.at(l.pos) == '.' && l.at(l.pos+1) != '.' {
		l.pos++
		l.digits(isDigit)
	}
	if l.at(l.pos)|0x20 == 'e' {
		i := l.pos + 1
		if c := l.at(i); c == '+' || c == '-' {
			i++
		}
		if isDigit(l.at(i)) {
			l.pos = i
			l.digits(isDigit)
		}
	}
	return token{tokNumber, start, l.pos}
}

// digits passes digits, and underscores between them.
func (l *lexer) digits(is func(byte) bool) {
	for is(l.at(l.pos)) || l.at(l.pos) == '_' && is(l.at(l.pos+1)) {
		l.pos++
	}
}

func isHexDigit(c byte) bool {
	return isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'f'
}

// quoted reads up to the quote that closes the one at open; a doubled quote does not close.
func (l *lexer) quoted(start, open int, q byte, backslash bool, kind tokenKind) token {
	l.pos = open + 1
	for l.pos < len(l.sql) {
		c := l.sql[l.pos]
		l.pos++
		switch {
		case c == '\\' && backslash:
			l.pos++
		case c == q && l.at(l.pos) == q:
			l.pos++
		case c == q && (q == '"' || !l.continues()):
			return token{kind, start, l.pos}
		}
	}
	l.pos = len(l.sql)
	return token{tokUnfinished, start, l.pos}
}

// continues passes what is between two parts of a string constant: white space with a line break
// in it, and comments to the end of the line (quotecontinue in scan.l). The second part has the
// rules of the first, so that a backslash in it may escape.
func (l *lexer) continues() bool {
	broken := false
	for i := l.pos; i < len(l.sql); i++ {
		switch c := l.sql[i]; {
		case c == '\n' || c == '\r':
			broken = true
		case isSpace(c):
		case c == '-' && l.at(i+1) == '-':
			for l.at(i+1) != '\n' && l.at(i+1) != '\r' && i+1 < len(l.sql) {
				i++
			}
		case c == '\'' && broken:
			l.pos = i + 1
			return true
		default:
			return false
		}
	}
	return false
}

// dollar reads $1, or a dollar-quoted string.
func (l *lexer) dollar(start int) token {
	i := start + 1
	if isDigit(l.at(i)) {
		for isDigit(l.at(i)) {
			i++
		}
		l.pos = i
		return token{tokNumber, start, i}
	}
	if isIdentStart(l.at(i)) {
		for i < len(l.sql) && (isIdentStart(l.sql[i]) || isDigit(l.sql[i])) {
			i++
		}
	}
	if l.at(i) != '$' {
		l.pos = start + 1
		return token{tokOperator, start, l.pos}
	}
	tag := l.sql[start : i+1]
	for j := i + 1; j+len(tag) <= len(l.sql); j++ {
		if l.sql[j] == '$' && string(l.sql[j:j+len(tag)]) == string(tag) {
			l.pos = j + len(tag)
			return token{tokString, start, l.pos}
		}
	}
	l.pos = len(l.sql)
	return token{tokUnfinished, start, l.pos}
}
