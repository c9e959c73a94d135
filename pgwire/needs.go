package pgwire

// Name is the name of a function, relation or type as PostgreSQL folds and cuts it. Schema is
// empty where the statement does not name one: the server then looks along its search_path.
type Name struct {
	Schema, Name string
}

// Needs is what a statement refers to, which only the catalogue of its database can judge. It
// errs on one side: everything that the statement may refer to is listed, and also what only
// looks like it (a column, an alias, a keyword).
type Needs struct {
	// Functions are what may be called: a name in front of a parenthesis, and one behind a dot,
	// since t.f calls f(t) where t has no column f.
	Functions []Name
	// Objects are what may be a relation or a type.
	Objects []Name
	// Operators are the operators that are written. Others are used without being written (IN,
	// LIKE, ORDER BY, JOIN USING): ImpliedOperators.
	Operators []string
	// LocksRows tells of FOR UPDATE, FOR SHARE and LOCK. They take a transaction id, and nothing
	// is left of them when the transaction ends, so that they are harmless to repeat.
	LocksRows bool
}

// needsMax bounds the names of a Needs; with more nothing is said.
const needsMax = 512

// impliedOperators are used by PostgreSQL's grammar or parse analysis where none is written.
var impliedOperators = [...]string{
	"=", "<>", "<", ">", "<=", ">=", "~", "!~", "~*", "!~*", "~~", "!~~", "~~*", "!~~*",
}

// ImpliedOperators are the operators that a statement may use without writing them. They have to
// be judged with every Needs.
func ImpliedOperators() []string { return impliedOperators[:] }

// Len is how many names there are.
func (n *Needs) Len() int { return len(n.Functions) + len(n.Objects) + len(n.Operators) }

func addName(dst []Name, schema, name string) []Name {
	for i := range dst {
		if dst[i].Name == name && dst[i].Schema == schema {
			return dst
		}
	}
	return append(dst, Name{schema, name})
}

// addOperator keeps the operator's text only if it is a new one.
func addOperator(dst []string, op []byte) []string {
	for _, o := range dst {
		if o == string(op) {
			return dst
		}
	}
	return append(dst, string(op))
}

// chainMax bounds the parts of a name with dots.
const chainMax = 8

// needsScan collects what a text refers to.
type needsScan struct {
	classifier
	needs Needs
	last  [3]token // the tokens before tok, the newest first
	chain [chainMax]token
	parts int  // of the chain
	deref bool // the chain is behind a dot that follows no name: (x).f
	depth int  // parentheses that are open
	bad   bool // something that is not understood
}

// step reads the next token and notes what it means for the names; false at the end.
func (s *needsScan) step() bool {
	s.last[2], s.last[1], s.last[0] = s.last[1], s.last[0], s.tok
	s.tok = s.next()
	t := s.tok
	isName := t.kind == tokWord || t.kind == tokQuoted
	isChained := s.parts > 0 && (t.kind == tokDot && s.last[0].kind != tokDot ||
		isName && s.last[0].kind == tokDot)
	if s.parts > 0 && !isChained {
		s.endChain(t.kind == tokOpen)
	}
	switch t.kind {
	case tokEOF, tokSemicolon:
		return false
	case tokUnfinished:
		s.bad = true
		return false
	case tokWord, tokQuoted:
		s.link(t)
	case tokNumber:
		s.bad = s.bad || s.isOddNumber(t)
	case tokOperator:
		s.operator(t)
	case tokOpen:
		s.depth++
	case tokClose:
		s.depth--
	}
	return !s.bad
}

// link adds a part to the chain. Bytes beyond ASCII are folded and encoded in ways that are not
// known here, and so are escapes.
func (s *needsScan) link(t token) {
	w := s.text(t)
	for _, c := range w {
		if c >= 0x80 {
			s.bad = true
			return
		}
	}
	if s.parts == chainMax || t.kind == tokQuoted && w[0] != '"' {
		s.bad = true
		return
	}
	if s.parts == 0 {
		s.deref = s.last[0].kind == tokDot
	}
	s.chain[s.parts] = t
	s.parts++
}

// endChain lists what a name, with all its parts, may refer to.
func (s *needsScan) endChain(isCall bool) {
	n := s.parts
	s.parts = 0
	if n == 1 && !s.deref && s.chain[0].kind == tokWord && isReserved(s.text(s.chain[0])) {
		return
	}
	var schema string
	for i, t := range s.chain[:n] {
		name := s.name(t)
		isLast := i == n-1
		switch {
		case isLast && isCall:
			// TREAT(x AS f) calls a function f of pg_catalog, whatever it is.
			s.bad = s.bad || n == 1 && t.kind == tokWord && name == "treat"
			s.needs.Functions = addName(s.needs.Functions, schema, name)
			s.needs.Objects = addName(s.needs.Objects, schema, name)
		case i > 0 || s.deref:
			s.needs.Functions = addName(s.needs.Functions, "", name)
			if i > 0 {
				s.needs.Objects = addName(s.needs.Objects, schema, name)
			}
		default:
			s.needs.Objects = addName(s.needs.Objects, "", name)
		}
		if len(name) >= 7 && name[:7] == "pg_temp" && !isLast {
			s.bad = true // only the session that is gone knows what is in there
		}
		schema = name
	}
	s.bad = s.bad || s.needs.Len() > needsMax
}

// isOddNumber finds what versions of PostgreSQL read in different ways: a number with a letter
// behind it, one with an underscore, one in hexadecimal, octal or binary digits.
func (s *needsScan) isOddNumber(t token) bool {
	w := s.text(t)
	for i, c := range w {
		isExponent := c|0x20 == 'e' && i > 0
		if !isDigit(c) && c != '.' && !isExponent && c != '+' && c != '-' &&
			!(c == '$' && i == 0) {
			return true
		}
	}
	c := s.at(t.end)
	return isIdentStart(c) || c == '$'
}

func isOpChar(c byte) bool {
	switch c {
	case '~', '!', '@', '#', '^', '&', '|', '`', '?', '+', '-', '*', '/', '%', '<', '>', '=':
		return true
	}
	return false
}

// operator reads the operator whose first character is t, after the rules of scan.l: it ends
// where a comment begins, and has a + or - at its end only with certain characters before.
func (s *needsScan) operator(t token) {
	switch c := s.sql[t.start]; {
	case c == '[', c == ']', c == ':':
		return
	case !isOpChar(c):
		s.bad = true
		return
	}
	end := t.start + 1
	allowsSign := isSignFriend(s.sql[t.start])
	for end < len(s.sql) && isOpChar(s.sql[end]) {
		c, n := s.sql[end], s.at(end+1)
		if c == '-' && n == '-' || c == '/' && n == '*' {
			break
		}
		allowsSign = allowsSign || isSignFriend(c)
		if end++; end-t.start > operatorMax {
			s.bad = true
			return
		}
	}
	for end > t.start+1 && !allowsSign && (s.sql[end-1] == '+' || s.sql[end-1] == '-') {
		end--
	}
	s.pos, s.tok.end = end, end
	op := s.sql[t.start:end]
	if string(op) == "!=" {
		op = []byte("<>")
	}
	s.needs.Operators = addOperator(s.needs.Operators, op)
	s.bad = s.bad || s.needs.Len() > needsMax
}

// operatorMax bounds operators in a row. One operator has at most 63 characters.
const operatorMax = 100

func isSignFriend(c byte) bool {
	switch c {
	case '~', '!', '@', '#', '^', '&', '|', '`', '?', '%':
		return true
	}
	return false
}

// isWord tells whether the token is that keyword, and not a part of a name with dots.
func (s *needsScan) isWord(t token, w string) bool {
	return t.kind == tokWord && fold(s.text(t), w)
}

// isReserved tells of the words that are no name in any version from 13 to 18 unless they are
// quoted or behind a dot (PostgreSQL's appendix "SQL Key Words").
func isReserved(w []byte) bool {
	if len(w) < 2 || len(w) > 17 {
		return false
	}
	for _, r := range reservedWords[((w[0]|0x20)-'a')&31] {
		if fold(w, r) {
			return true
		}
	}
	return false
}

// reservedWords by their first letter. SYSTEM_USER is one since 16 only, so that it is a name here.
var reservedWords = [32][]string{
	0:         {"all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric"},
	'b' - 'a': {"both"},
	'c' - 'a': {"case", "cast", "check", "collate", "column", "constraint", "create",
		"current_catalog", "current_date", "current_role", "current_time", "current_timestamp",
		"current_user"},
	'd' - 'a': {"default", "deferrable", "desc", "distinct", "do"},
	'e' - 'a': {"else", "end", "except"},
	'f' - 'a': {"false", "fetch", "for", "foreign", "from"},
	'g' - 'a': {"grant", "group"},
	'h' - 'a': {"having"},
	'i' - 'a': {"in", "initially", "intersect", "into"},
	'l' - 'a': {"lateral", "leading", "limit", "localtime", "localtimestamp"},
	'n' - 'a': {"not", "null"},
	'o' - 'a': {"offset", "on", "only", "or", "order"},
	'p' - 'a': {"placing", "primary"},
	'r' - 'a': {"references", "returning"},
	's' - 'a': {"select", "session_user", "some", "symmetric"},
	't' - 'a': {"table", "then", "to", "trailing", "true"},
	'u' - 'a': {"union", "unique", "user", "using"},
	'v' - 'a': {"variadic"},
	'w' - 'a': {"when", "where", "window", "with"},
}
