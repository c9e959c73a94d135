package pgwire

import "bytes"

// HasParameter tells that a text refers to a parameter ($1), which has a value in the extended
// protocol only.
func HasParameter(sql []byte, conforming bool) bool {
	if bytes.IndexByte(sql, '$') < 0 {
		return false
	}
	l := lexer{sql: sql, conforming: conforming}
	for {
		switch t := l.next(); t.kind {
		case tokEOF, tokUnfinished:
			return false
		case tokNumber:
			if sql[t.start] == '$' {
				return true
			}
		}
	}
}
