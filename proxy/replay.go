package proxy

import "holdfast/pgwire"

// batch is a part of a flow that ends with one ReadyForQuery, or would.
type batch struct {
	ops    []op
	cls    class
	synced bool // the Sync was sent, or it is a Query or FunctionCall
	simple bool
	stmts  int // Query or Execute operations left
	start  int // journal offset
	end    int // journal offset behind it; -1 when it is the last one

	errored   bool // its ErrorResponse was delivered
	responded bool // any answer was delivered
	finished  int  // statements that completed
	ended     bool // a single COMMIT or ROLLBACK of it completed
}

// onlyEnd tells that nothing but ReadyForQuery is due.
func (b *batch) onlyEnd() bool {
	if b.simple {
		return b.finished > 0 && !b.cls.has(clsMulti|clsOpaque)
	}
	return b.synced && len(b.ops) == 1
}

// verdict is what is to be done about a batch whose backend was lost.
type verdict uint8

const (
	// verdictResend sends the batch to the new backend as it was.
	verdictResend verdict = iota
	// verdictFinish gives the client the answers that are still due: the batch was done.
	verdictFinish
	// verdictRolledBack answers 40001: surely not executed, or rolled back.
	verdictRolledBack
	// verdictLookup looks up what became of the commit (DESIGN.md I4).
	verdictLookup
	// verdictUnknown answers 08007: nobody can know.
	verdictUnknown
)

// unansweredBatches splits what is outstanding. Internal batches are left out: nobody waits for
// them. The result aliases f.
func (f *flow) unansweredBatches() []batch {
	var out []batch
	first := true
	for i := f.head; i < len(f.ops); {
		j := i
		b := batch{start: f.ops[i].start, end: -1}
		internal := f.ops[i].internal
		for ; j < len(f.ops); j++ {
			o := &f.ops[j]
			b.cls |= o.cls
			if o.kind == opQuery || o.kind == opExecute || o.kind == opFunctionCall {
				b.stmts++
			}
			if o.kind == opSync || o.kind == opQuery || o.kind == opFunctionCall {
				b.synced, b.simple = true, o.kind != opSync
				j++
				break
			}
		}
		b.ops = f.ops[i:j]
		if j < len(f.ops) {
			b.end = f.ops[j].start
		}
		if first {
			b.errored, b.responded, b.finished = f.errored, f.responded, f.finished
			b.cls |= f.answered
			b.ended = f.ended
			b.stmts += f.finished
			first = false
		}
		if !internal || !b.ops[len(b.ops)-1].internal {
			out = append(out, b)
		}
		i = j
	}
	if first && (f.skipping || f.unsynced > 0) {
		out = append(out, batch{errored: f.errored, responded: f.responded,
			finished: f.finished, stmts: f.finished, cls: f.answered, end: -1})
	}
	return out
}

// judge says what is to be done about a batch that was sent, in whole or in part, to a backend
// that is lost, and the transaction status in which that leaves the session. The status is the
// one in which the batch began. journaled tells that its bytes are still there.
func judge(b batch, status byte, inDoubt, journaled bool) (verdict, byte) {
	switch {
	case b.errored && !(b.simple && b.cls.has(clsMulti)):
		// It failed on the server and rolled back, or failed the block; only the end is due.
		return verdictFinish, afterError(status)
	case b.ended:
		// The server ends the transaction before it sends CommandComplete.
		return verdictFinish, afterSingle(b.cls, status)
	case inDoubt:
		return verdictLookup, pgwire.TxIdle
	case b.onlyEnd() && (b.simple || !b.cls.has(clsMayWrite|clsEnds)):
		return verdictFinish, afterSingle(b.cls, status)
	}
	switch status {
	case pgwire.TxFailed:
		return judgeFailedBlock(b, journaled)
	case pgwire.TxInBlock:
		return judgeBlock(b, journaled)
	}
	return judgeImplicit(b, journaled)
}

func afterError(status byte) byte {
	if status == pgwire.TxIdle {
		return pgwire.TxIdle
	}
	return pgwire.TxFailed
}

// afterSingle is the status after a single statement that succeeded.
func afterSingle(c class, status byte) byte {
	switch {
	case c.has(clsBegin):
		return pgwire.TxInBlock
	case c.has(clsChain):
		return pgwire.TxInBlock
	case c.has(clsCommit | clsRollback):
		return pgwire.TxIdle
	case c.has(clsRollbackTo):
		return pgwire.TxInBlock
	}
	return status
}

// judgeFailedBlock: nothing takes effect in a failed block but its end.
func judgeFailedBlock(b batch, journaled bool) (verdict, byte) {
	single := b.cls.has(clsCommit | clsRollback)
	if single && !b.responded && journaled && b.synced {
		return verdictResend, pgwire.TxIdle
	}
	if b.cls.has(clsEnds | clsOpaque) {
		return verdictUnknown, pgwire.TxIdle
	}
	if single {
		return verdictRolledBack, pgwire.TxIdle
	}
	return verdictRolledBack, pgwire.TxFailed
}

// judgeBlock: an explicit transaction without its COMMIT is surely rolled back.
func judgeBlock(b batch, journaled bool) (verdict, byte) {
	if b.cls.has(clsRollback) && b.stmts == 1 {
		if !b.responded && journaled && b.synced {
			return verdictResend, pgwire.TxIdle // the new backend has a failed block to end
		}
		return verdictRolledBack, pgwire.TxIdle
	}
	if b.cls.has(clsCommit | clsEnds | clsOpaque) {
		return verdictUnknown, pgwire.TxIdle
	}
	return verdictRolledBack, pgwire.TxFailed
}

// judgeImplicit: outside a block each batch is a transaction of its own.
func judgeImplicit(b batch, journaled bool) (verdict, byte) {
	open := !b.synced && !b.cls.has(clsSelfCommit|clsEnds|clsCommit|clsOpaque)
	harmless := b.cls.mayResend() && !b.cls.has(clsCommit)
	switch {
	case (open || harmless) && !b.responded && journaled:
		next := byte(pgwire.TxIdle)
		if b.cls.has(clsBegin) {
			next = pgwire.TxInBlock
		}
		return verdictResend, next
	case (open || harmless) && b.cls.has(clsBegin):
		return verdictRolledBack, pgwire.TxFailed
	case open || harmless:
		return verdictRolledBack, pgwire.TxIdle
	}
	return verdictUnknown, pgwire.TxIdle
}

// fate is what an epoch boundary says about a transaction id.
type fate uint8

const (
	fateAsk     fate = iota // the server knows
	fateAborted             // it never arrived
	fateUnknown             // in between: nobody can tell
)

// fateOf tells what the boundaries of the epochs begun after the transaction's own say about its
// id (DESIGN.md I5): at or past the next id of any of them, it never arrived.
func fateOf(xid, epoch uint64, boundaries []Boundary) fate {
	f := fateAsk
	for _, b := range boundaries {
		if b.Epoch <= epoch {
			continue
		}
		switch {
		case xid >= b.Hi:
			return fateAborted
		case xid >= b.Lo:
			f = fateUnknown
		}
	}
	return f
}
