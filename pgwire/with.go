package pgwire

// withScan reads a statement that begins with WITH up to where it is known whether it writes.
type withScan struct {
	lexer
	tok token
}

// withDepthMax bounds lists within lists.
const withDepthMax = 8

// withWrites tells that a statement which begins with WITH is an INSERT, UPDATE, DELETE or MERGE,
// or has one in its list (gram.y, common_table_expr). Those are unreserved words: what decides is
// that one begins a statement. False is also what is not read: SEARCH and CYCLE, names in U&"".
func withWrites(sql []byte, conforming bool) bool {
	w := withScan{lexer: lexer{sql: sql, conforming: conforming}}
	w.step()
	writes, _ := w.list(0)
	return writes
}

func (w *withScan) step() { w.tok = w.next() }

func (w *withScan) is(word string) bool {
	return w.tok.kind == tokWord && fold(w.sql[w.tok.start:w.tok.end], word)
}

func (w *withScan) isName() bool { return w.tok.kind == tokWord || w.tok.kind == tokQuoted }

func (w *withScan) isWrite() bool {
	return w.is("insert") || w.is("update") || w.is("delete") || w.is("merge")
}

// list reads a WITH, at which it is, up to the first word of the main statement. ok is false where
// it is not understood.
func (w *withScan) list(depth int) (writes, ok bool) {
	if w.step(); w.is("recursive") {
		ahead := *w
		if ahead.step(); ahead.isName() && !ahead.is("as") {
			*w = ahead // else it is the name of the first one itself
		}
	}
	for {
		if !w.query() {
			return false, false
		}
		if w.isWrite() {
			return true, true
		}
		if w.is("with") {
			if depth == withDepthMax {
				return false, false
			}
			if writes, ok = w.list(depth + 1); writes || !ok {
				return writes, ok
			}
		}
		if !w.close() {
			return false, false
		}
		if w.step(); w.tok.kind != tokComma {
			return w.isWrite(), true
		}
		w.step()
	}
}

// query reads one of the list, at the name of which it is, up to the first word of its query; false
// is something else.
func (w *withScan) query() bool {
	if !w.isName() {
		return false
	}
	if w.step(); w.tok.kind == tokOpen {
		if w.step(); !w.close() {
			return false
		}
		w.step()
	}
	if !w.is("as") {
		return false
	}
	if w.step(); w.is("not") {
		w.step()
	}
	if w.is("materialized") {
		w.step()
	}
	if w.tok.kind != tokOpen {
		return false
	}
	w.step()
	return true
}

// close reads up to the parenthesis that closes the one before; false is the end of the text.
func (w *withScan) close() bool {
	for depth := 1; ; w.step() {
		switch w.tok.kind {
		case tokOpen:
			depth++
		case tokClose:
			if depth--; depth == 0 {
				return true
			}
		case tokEOF, tokUnfinished:
			return false
		}
	}
}
