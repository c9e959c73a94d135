package proxy

import "holdfast/pgwire"

// batch is a part of a flow that ends with one ReadyForQuery, or would. What of it was answered is
// not in ops any more.
type batch struct {
	ops    []op
	cls    class // of ops
	before class // of what was answered, since the last COMMIT or ROLLBACK
	live   byte  // transaction status behind what was answered; 0 if nothing was
	synced bool  // the client has sent its Sync, or it is a Query or FunctionCall
	sent   bool  // so was its end to the server: a Query may go in the extended protocol
	simple bool
	stmts  int // statements left
	start  int // journal offset
	end    int // journal offset behind it; -1 when it is the last one

	errored  bool // its ErrorResponse was delivered
	finished int  // statements of its Query that completed
	copying  bool // its current statement takes data, the end of which was not sent
	wrapped  bool // it runs in a block of ours
	// behind tells that others before it are lost too: the status in which it began is what
	// those are answered with, not what the server had.
	behind bool
}

// isDone tells that nothing is left but ReadyForQuery, and what changes nothing any more.
func (b *batch) isDone() bool {
	if b.simple {
		return b.finished > 0 && !b.cls.has(clsMulti|clsOpaque)
	}
	for i := range b.ops {
		o := &b.ops[i]
		if o.kind != opSync && (o.kind != opClose || o.name != "") {
			return false
		}
	}
	return b.sent
}

// opens tells that a transaction block may be open behind the batch that was not before.
func (b *batch) opens() bool { return b.cls.has(clsBegin | clsOpens | clsChain) }

// afterBreak is the status of a session that is told an error for the batch. A block that may be
// open is a failed one, lest what the client has sent behind it runs on its own; only an end that
// comes first surely leaves none.
func (b *batch) afterBreak(status byte) byte {
	switch {
	case b.opens():
		return pgwire.TxFailed
	case b.next().has(clsCommit | clsRollback):
		return pgwire.TxIdle
	}
	return afterError(status)
}

// commits tells that what was marked as in doubt is left of it.
func (b *batch) commits() bool {
	for i := range b.ops {
		if b.ops[i].commits {
			return true
		}
	}
	return false
}

// doubted is the class of what was marked as in doubt.
func (b *batch) doubted() class {
	for i := range b.ops {
		if b.ops[i].commits {
			return b.ops[i].cls
		}
	}
	return 0
}

// next is the class of the first statement that is left.
func (b *batch) next() class {
	for i := range b.ops {
		if o := &b.ops[i]; o.isStatement() && !o.internal {
			return o.cls
		}
	}
	return 0
}

// verdict is what is known of a batch whose backend was lost.
type verdict uint8

const (
	// verdictRolledBack tells that surely nothing of it is committed: it can be run again with
	// the unit of work that it belongs to, or is answered with 40001.
	verdictRolledBack verdict = iota
	// verdictFinish tells that it was done: the client gets the answers that are still due.
	verdictFinish
	// verdictUndo tells that it does nothing but end a transaction that is gone by itself.
	verdictUndo
	// verdictLookup has to look up what became of the commit (DESIGN.md I4).
	verdictLookup
	// verdictUnknown tells that it may have been committed, and nobody can know: 08007.
	verdictUnknown
)

// unansweredBatches splits what is outstanding. Internal batches are left out: nobody waits for
// them. The result aliases f.
func (f *flow) unansweredBatches() []batch {
	var out []batch
	first := true
	for i := f.head; i < len(f.ops); {
		if f.ops[i].kind == opCopyEnd {
			i++ // of what was before it, or of nothing
			continue
		}
		j := i
		b := batch{start: f.ops[i].start, end: -1, behind: !first}
		internal := f.ops[i].internal
		for ; j < len(f.ops); j++ {
			o := &f.ops[j]
			b.cls |= o.cls
			if o.isStatement() && !o.internal {
				b.stmts++
			}
			if o.endsBatch() {
				b.synced, b.simple = true, o.kind != opSync
				j++
				break
			}
		}
		b.ops = f.ops[i:j]
		if j < len(f.ops) {
			b.end = f.ops[j].start
		}
		b.sent = b.synced
		if first {
			f.fillCurrent(&b)
			first = false
		}
		last := &b.ops[len(b.ops)-1]
		if !internal || !last.internal || last.showEnd || !b.sent && !f.isOnlyLed() {
			out = append(out, b) // what has no end is a batch of the client's, of which we ask
		}
		i = j
	}
	if first && (f.skipping || f.unsynced > 0 && !f.isOnlyLed() || f.asQuery) {
		b := batch{end: -1}
		f.fillCurrent(&b)
		out = append(out, b)
	}
	if len(out) == 0 && f.wrapped { // the end of its block is due, and was not sent
		b := batch{end: -1}
		f.fillCurrent(&b)
		b.errored = b.errored || f.status == pgwire.TxFailed
		out = append(out, b)
	}
	return out
}

// fillCurrent fills in what is known of the batch that is being answered.
func (f *flow) fillCurrent(b *batch) {
	b.errored, b.finished = f.errored, f.finished
	b.before, b.live = f.answered, f.live
	b.copying = f.copying
	b.wrapped = f.wrapped
	b.synced = b.synced || f.asQuery || f.wrapped
}

// judge says what is known of a batch that was sent, in whole or in part, to a backend that is
// lost, and the transaction status of a session that is told so. The status is the one in which
// the batch began. inDoubt tells that its commit was forwarded with the transaction id known. What
// has committed itself before, as CALL may, makes no batch one that was rolled back: a BEGIN behind
// it opens a block in the same batch.
func judge(b batch, status byte, inDoubt bool) (verdict, byte) {
	v, next := judgeLeft(b, status, inDoubt)
	if v == verdictRolledBack && b.before.has(clsSelfCommit) {
		v = verdictUnknown
	}
	return v, next
}

// judgeLeft is judge for what was not answered.
func judgeLeft(b batch, status byte, inDoubt bool) (verdict, byte) {
	if b.live != 0 {
		status = b.live
	}
	switch {
	case b.wrapped:
		return judgeWrapped(b, inDoubt), pgwire.TxIdle
	case len(b.ops) == 1 && b.ops[0].showEnd:
		return verdictFinish, pgwire.TxIdle // our ROLLBACK behind a COMMIT that failed
	case b.errored && b.simple && b.cls.has(clsMulti|clsOpaque):
		// The server went no further, and the client was told; what it had committed before in
		// the same string was answered.
		return verdictFinish, b.afterBreak(status)
	case b.errored:
		// It failed on the server and rolled back, or failed the block; only the end is due.
		return verdictFinish, afterError(status)
	case inDoubt && b.commits():
		return verdictLookup, b.walk(status)
	case b.isDone() && (b.simple || status != pgwire.TxIdle || !b.before.mayCommit() ||
		b.before.isSecondPhase()):
		return verdictFinish, status
	case b.copying && !b.cls.has(clsEnds|clsOpaque) &&
		(status != pgwire.TxIdle || !b.before.has(clsSelfCommit|clsEnds|clsOpaque)):
		return verdictRolledBack, b.afterBreak(status) // it takes data yet, and did not end
	}
	switch status {
	case pgwire.TxFailed:
		return judgeFailedBlock(b)
	case pgwire.TxInBlock:
		return judgeBlock(b)
	}
	return judgeImplicit(b)
}

// walk is the status behind all that is left, if it succeeds.
func (b *batch) walk(status byte) byte {
	for i := range b.ops {
		if o := &b.ops[i]; o.isStatement() {
			status = o.cls.after(status)
		}
	}
	return status
}

func afterError(status byte) byte {
	if status == pgwire.TxIdle {
		return pgwire.TxIdle
	}
	return pgwire.TxFailed
}

// onlyRollsBack tells that what is left does nothing but end a block.
func (b *batch) onlyRollsBack() bool {
	return b.synced && b.stmts == 1 && b.cls.has(clsRollback) && !b.cls.has(clsChain|clsMulti)
}

// judgeFailedBlock: nothing takes effect in a failed block but its end, and what follows that.
func judgeFailedBlock(b batch) (verdict, byte) {
	single := b.cls.has(clsCommit|clsRollback) && b.stmts == 1
	switch {
	case b.cls.has(clsEnds | clsOpaque):
		return verdictUnknown, b.afterBreak(pgwire.TxFailed)
	case b.cls.has(clsCommit) && (b.behind || !single):
		// It may have been a good block on the server, or have become one by ROLLBACK TO.
		return verdictUnknown, b.afterBreak(pgwire.TxFailed)
	case single && b.synced && !b.cls.has(clsChain|clsMulti):
		return verdictUndo, pgwire.TxIdle // COMMIT does the same there
	case b.cls.has(clsRollback) && !single && b.cls.mayCommit():
		return verdictUnknown, b.afterBreak(pgwire.TxFailed)
	case b.cls.has(clsCommit | clsRollback):
		return verdictRolledBack, b.afterBreak(pgwire.TxFailed)
	}
	return verdictRolledBack, pgwire.TxFailed
}

// judgeBlock: an explicit transaction without its COMMIT is surely rolled back.
func judgeBlock(b batch) (verdict, byte) {
	single := b.cls.has(clsRollback) && b.stmts == 1
	switch {
	case b.cls.has(clsCommit | clsEnds | clsOpaque):
		return verdictUnknown, b.afterBreak(pgwire.TxInBlock)
	case b.onlyRollsBack():
		return verdictUndo, pgwire.TxIdle
	case b.cls.has(clsRollback) && !single && b.cls.mayCommit():
		return verdictUnknown, b.afterBreak(pgwire.TxInBlock) // what follows it commits
	case b.cls.has(clsRollback):
		return verdictRolledBack, b.afterBreak(pgwire.TxInBlock)
	}
	return verdictRolledBack, pgwire.TxFailed
}

// judgeImplicit: outside a block each batch is a transaction of its own, which commits with its
// Sync, unless it opens a block.
func judgeImplicit(b batch) (verdict, byte) {
	all := b.cls | b.before
	ends := all.has(clsSelfCommit | clsEnds | clsCommit | clsOpaque)
	harmless := all.isHarmless() && !ends
	isOpen := (!b.sent || b.opens() && !all.has(clsRollback)) && !ends
	next := b.afterBreak(pgwire.TxIdle)
	if harmless || isOpen {
		return verdictRolledBack, next
	}
	return verdictUnknown, next
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
