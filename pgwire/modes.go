package pgwire

import "slices"

// isWholeTransaction tells that a statement that begins with BEGIN, START, COMMIT, END, ROLLBACK or
// ABORT is one as gram.y has it (TransactionStmt), and nothing behind it: with a syntax error it
// neither opens a block nor ends one.
func isWholeTransaction(sql []byte, conforming bool) bool {
	w := withScan{lexer: lexer{sql: sql, conforming: conforming}}
	w.step()
	opens := w.is("begin") || w.is("start")
	if w.step(); w.is("work") || w.is("transaction") {
		w.step()
	}
	switch {
	case opens:
		return w.modes()
	case w.is("and"):
		if w.step(); w.is("no") {
			w.step()
		}
		if !w.is("chain") {
			return false
		}
		w.step()
	}
	return w.isOver()
}

func (w *withScan) isOver() bool { return w.tok.kind == tokEOF || w.tok.kind == tokSemicolon }

// modes reads transaction_mode_list_or_empty.
func (w *withScan) modes() bool {
	for first := true; !w.isOver(); first = false {
		if w.tok.kind == tokComma && !first {
			w.step()
		}
		if !w.mode() {
			return false
		}
	}
	return true
}

// mode reads a transaction_mode_item.
func (w *withScan) mode() bool {
	var next []string
	switch {
	case w.is("isolation"):
		if w.step(); !w.is("level") {
			return false
		}
		switch w.step(); {
		case w.is("read"):
			next = []string{"committed", "uncommitted"}
		case w.is("repeatable"):
			next = []string{"read"}
		case !w.is("serializable"):
			return false
		}
	case w.is("read"):
		next = []string{"only", "write"}
	case w.is("not"):
		next = []string{"deferrable"}
	case !w.is("deferrable"):
		return false
	}
	w.step()
	if next == nil {
		return true
	}
	if !slices.ContainsFunc(next, w.is) {
		return false
	}
	w.step()
	return true
}
