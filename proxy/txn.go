package proxy

import (
	"fmt"
	"sync"

	"holdfast/pgwire"
)

// opKind is a message to the server that it answers, or a Sync.
type opKind uint8

const (
	opQuery opKind = iota
	opParse
	opBind
	opDescribe
	opExecute
	opClose
	opSync
	opFunctionCall
	opCopyEnd // CopyDone or CopyFail sent ahead of CopyInResponse; has no answer of its own
)

// op is one expected answer. Ops of a batch are those up to and including its opSync; opQuery and
// opFunctionCall are batches of their own.
type op struct {
	kind     opKind
	internal bool // sent by us: the answers are not the client's
	showEnd  bool // internal, but its ReadyForQuery is the client's
	showErr  bool // internal, but its ErrorResponse is the client's
	cls      class
	effects  []effect  // to remember once the statement succeeded
	name     string    // opParse, opClose: the prepared statement
	stmt     *prepared // opParse of a named statement
	commits  bool      // what s.inDoubt is about
	asQuery  bool      // a part of a Query that is sent in the extended protocol (guard_implicit.go)
	snapshot bool      // internal: the question for the session's state
	start    int       // journal offset of the message
	ended    bool      // opQuery: the end of its data was sent before it asked for any
	renames  bool      // it may change which text the name of a prepared statement has
	ofEnd    bool      // opDescribe: of the end of a transaction, which has no rows
	unnamed  bool      // opClose: of the unnamed statement
	ahead    bool      // internal: the question for the xid ahead of a COMMIT (guard_ahead.go)
	behind   bool      // opQuery, opFunctionCall: of a batch that has no Sync
	leads    bool      // internal: it goes in front of the client's next message, in its batch
	stmts    uint32    // opQuery in a block of ours (guard_string.go): how many statements it has
}

// isStatement tells that the op executes something.
func (o *op) isStatement() bool {
	return o.kind == opQuery || o.kind == opExecute || o.kind == opFunctionCall
}

// isUnnamedParse tells that it makes the client's unnamed statement.
func (o *op) isUnnamedParse() bool {
	return o.kind == opParse && o.name == "" && !o.internal
}

// endsBatch tells that the server answers it with ReadyForQuery.
func (o *op) endsBatch() bool {
	return o.kind == opSync || o.kind == opQuery || o.kind == opFunctionCall
}

// mayRename tells that it makes or removes a named prepared statement.
func (o *op) mayRename() bool {
	if (o.kind == opParse || o.kind == opClose) && o.name != "" || o.cls.has(clsOpaque) {
		return true
	}
	for i := range o.effects {
		switch o.effects[i].kind {
		case pgwire.KindPrepare, pgwire.KindDeallocate, pgwire.KindDiscard:
			return true
		}
	}
	return false
}

// flow is the pure record of what a session sent to its backend and what was answered: it knows
// whose answer each message of the server is, the transaction status, and whether the session is
// at a safe point. It does no I/O; the session's lock guards it.
type flow struct {
	ops  []op
	head int
	box  *opBox // where ops begin

	status   byte  // of the last ReadyForQuery
	errored  bool  // the current batch has had its ErrorResponse
	skipping bool  // the server skips what comes up to the next Sync, which is not sent yet
	live     byte  // transaction status behind what has completed of the current batch
	finished int   // statements of the current Query that have completed
	answered class // what the current batch has done since its last COMMIT or ROLLBACK

	renaming  int  // outstanding ops that may change what a prepared statement's name means
	setting   int  // outstanding ops that may change settings
	chaining  int  // outstanding ops with AND CHAIN
	lostParse bool // a Parse of the unnamed statement was skipped by the server
	unnamed   unnamedMark
	stale     bool // the server has an unnamed statement that a Query would have dropped

	all     class // what the unit of work has done so far
	done    class // what the unit of work has done so far, as far as it may have committed
	ahead   byte  // transaction status behind all that was sent, if it succeeds
	unsent  class // what the batch that has no Sync yet does
	asQuery bool  // the current batch is a Query that is sent in the extended protocol
	wrapped bool  // a Query runs in a block of ours that has not ended (guard_string.go)
	canGoOn bool  // there is a savepoint, so that the block may go on after an error
	copying bool  // the current statement takes data, the end of which was not sent
	endSent bool  // the end of such data was sent before the statement was known to take any

	known knownXID  // of the open block
	chain flowChain // of COMMIT AND CHAIN

	rolledBack bool // the transaction that ends with the next ReadyForQuery 'I' was undone
	copyIn     bool // the server is in extended copy-in mode and ignores Sync
	unsynced   int  // ops of the batch that has no Sync yet
	led        int  // the same, if all of them are ours and lead the client's first (op.leads)
}

// newFlow is the flow of a backend that has just said ReadyForQuery.
func newFlow(status byte) flow { return flow{status: status, live: status, ahead: status} }

// idle tells that every message was answered and no batch is open.
func (f *flow) idle() bool {
	return f.head == len(f.ops) && !f.skipping && !f.copyIn && f.unsynced == 0
}

// isSafePoint tells that nothing is outstanding and no transaction is open: a backend can be
// replaced without the client noticing (DESIGN.md I1).
func (f *flow) isSafePoint() bool { return f.idle() && f.status == pgwire.TxIdle }

// isFull tells that nothing more is to be sent until the server has answered some of it, since as
// many messages wait for their answers as may (Config.OutstandingMax).
func (f *flow) isFull(most int) bool { return len(f.ops)-f.head >= most }

// push records a message that is about to be sent; false if the server answers nothing to it.
func (f *flow) push(o op) bool {
	if o.kind == opSync {
		if f.copyIn || f.copying && f.isQueryNow() {
			return false // the server ignores it (protocol-flow, COPY Operations)
		}
		f.skipping = false
		f.unsynced, f.unsent = 0, 0
	} else if f.skipping {
		f.lostParse = f.lostParse || o.isUnnamedParse()
		return false
	}
	if o.isUnnamedParse() {
		f.lostParse = false
	}
	if f.ops == nil {
		f.box = opBoxes.Get().(*opBox)
		f.ops = f.box[:0]
	}
	f.compact()
	if f.idle() {
		f.ahead, f.endSent = f.status, false
	}
	f.stale = f.stale && !o.dropsStale()
	o.renames = !o.internal && o.mayRename()
	o.behind = o.kind != opSync && o.endsBatch() && f.unsynced > 0
	f.ops = append(f.ops, o)
	f.count(&f.ops[len(f.ops)-1], 1)
	switch {
	case o.endsBatch():
		f.unsynced, f.unsent = 0, 0
	case o.kind == opCopyEnd: // alone it opens no batch
	default:
		f.unsynced++
		f.unsent |= o.cls
	}
	if o.isStatement() {
		f.ahead = o.cls.ahead(f.ahead)
	}
	if o.leads {
		f.led++
	} else if !o.internal || o.endsBatch() {
		f.led = 0
	}
	f.known.sent(&f.ops[len(f.ops)-1], f.ahead)
	return true
}

// isOnlyLed tells that nothing of the client is in the batch that has no Sync yet, but what goes in
// front of its first message: that is not sent yet, so that it loses nothing with its backend.
func (f *flow) isOnlyLed() bool { return f.led > 0 && f.unsynced == f.led && !f.skipping }

// opBox has room for the operations of a usual unit of work. A session has one only while it is at
// work.
type opBox [16]op

var opBoxes = sync.Pool{New: func() any { return new(opBox) }}

// rest gives back what an idle flow does not need.
func (f *flow) rest() {
	if f.box != nil {
		clear(f.box[:])
		opBoxes.Put(f.box)
	}
	f.ops, f.head, f.box = nil, 0, nil
}

// compact drops what was answered, also where something is always under way.
func (f *flow) compact() {
	switch n := len(f.ops) - f.head; {
	case n == 0:
		f.ops, f.head = f.ops[:0], 0
	case f.head > 64 && f.head > n:
		copy(f.ops, f.ops[f.head:])
		clear(f.ops[n:])
		f.ops, f.head = f.ops[:n], 0
	}
}

// count notes an op that comes, or goes.
func (f *flow) count(o *op, n int) {
	if o.renames {
		f.renaming += n
	}
	if o.cls.has(clsState | clsOpaque) {
		f.setting += n
	}
	if o.cls.has(clsChain) {
		f.chaining += n
	}
}

// awaitsChain tells that a COMMIT or ROLLBACK with AND CHAIN is not answered yet. Where it fails no
// block is open behind it, and a statement that is sent meanwhile commits by itself: it waits
// (DESIGN.md I36). In one batch the server skips it.
func (f *flow) awaitsChain() bool { return f.chaining > 0 && f.unsynced == 0 }

// copyEnd records CopyDone or CopyFail of the client; true if as an op, which takes no answer.
func (f *flow) copyEnd(at int) bool {
	isAhead := !f.copying
	f.endSent = f.endSent || isAhead
	f.copying = false
	if f.copyIn {
		f.copyIn = false
		return false
	}
	if f.current() == nil {
		return false
	}
	switch last := &f.ops[len(f.ops)-1]; last.kind {
	case opQuery:
		last.ended = last.ended || isAhead
		return false // it takes data itself
	case opCopyEnd:
		return false // a second end in a row is like the first
	}
	return f.push(op{kind: opCopyEnd, start: at})
}

// expected is the transaction status behind all that was sent, if it succeeds.
func (f *flow) expected() byte {
	if f.idle() {
		return f.status
	}
	return f.ahead
}

// current is the op that the server answers now, or nil.
func (f *flow) current() *op {
	for f.head < len(f.ops) && f.ops[f.head].kind == opCopyEnd {
		f.head++ // there was no copy-in to end
	}
	if f.head == len(f.ops) {
		return nil
	}
	return &f.ops[f.head]
}

// awaitsClient tells that the server has answered all that it was sent, or takes data of COPY.
func (f *flow) awaitsClient() bool { return f.current() == nil || f.copying }

// isSettled tells that every finished batch was answered: the transaction status is that of the
// client's present.
func (f *flow) isSettled() bool {
	for i := f.head; i < len(f.ops); i++ {
		if f.ops[i].endsBatch() {
			return false
		}
	}
	return true
}

// unpush takes back the last n ops, of which no byte was sent.
func (f *flow) unpush(n int, before flow) {
	keep := max(f.head, len(f.ops)-n)
	for i := keep; i < len(f.ops); i++ {
		f.count(&f.ops[i], -1)
	}
	f.ops = f.ops[:keep]
	f.skipping, f.copyIn, f.unsynced = before.skipping, before.copyIn, before.unsynced
	f.ahead, f.unsent, f.asQuery = before.ahead, before.unsent, before.asQuery
	f.led = before.led
	f.wrapped, f.stale = before.wrapped, before.stale
	f.copying, f.endSent, f.known = before.copying, before.endSent, before.known
}

func (f *flow) pop() *op {
	o := &f.ops[f.head]
	f.answered |= o.cls.inStatus(f.live)
	f.all |= o.cls
	f.done |= o.cls.lasting(f.live)
	f.canGoOn = f.canGoOn || o.cls.has(clsSavepoint|clsOpaque)
	f.count(o, -1)
	f.head++
	return o
}

// answer is what a message of the server means.
type answer struct {
	hide bool // not for the client
	done *op  // the op that is thereby answered, valid until the next push
	stmt *op  // the op of which one statement completed (CommandComplete and its kin)
	end  bool // ReadyForQuery
	keep bool // to be kept back until the unit of work has ended
	give bool // it has: what was kept back comes before what is behind this
	// chains tells of a ReadyForQuery behind COMMIT AND CHAIN: a unit may begin there.
	chains bool
}

// errNonsense is a message of the server that answers nothing that was asked.
func errNonsense(typ byte, f *flow) error {
	what := "nothing"
	if o := f.current(); o != nil {
		what = fmt.Sprintf("operation %d", o.kind)
	}
	return pgwire.NewError(pgwire.CodeProtocolViolation,
		fmt.Sprintf("server sent message %q while %s was expected", typ, what))
}

// serverMessage takes the next message of the server; body is looked at for ReadyForQuery only.
func (f *flow) serverMessage(typ byte, body []byte) (answer, error) {
	switch typ {
	case pgwire.SrvNotice, pgwire.SrvParameterStatus, pgwire.SrvNotification:
		return answer{}, nil
	}
	o := f.current()
	if o == nil {
		if typ == pgwire.SrvError {
			return answer{}, nil // a FATAL error needs no question
		}
		return answer{}, errNonsense(typ, f)
	}
	hide := o.internal || o.asQuery && isProtocolOnly(typ)
	a := answer{hide: hide}
	switch typ {
	case pgwire.SrvReadyForQuery:
		return f.ready(o, body)
	case pgwire.SrvError:
		return f.failed(o)
	case pgwire.SrvCommandComplete, pgwire.SrvEmptyQuery, pgwire.SrvPortalSuspended:
		a.stmt = o
		if o.kind == opExecute {
			a.keep = o.asQuery
			a.done = f.pop()
		} else if o.kind != opQuery {
			return a, errNonsense(typ, f)
		}
		if !hide {
			f.chain.completed(o, typ, f.live)
		}
		if !hide && typ == pgwire.SrvCommandComplete {
			f.completed(o)
		}
		a.give = o.isOurCommit()
		if o.kind == opQuery && (!hide || a.give) {
			f.finished++
			a.keep = o.stmts > 0 && f.finished == int(o.stmts)
		}
	case pgwire.SrvCopyInResponse:
		f.copying = !f.endSent
		if o.kind == opExecute {
			f.enterCopyIn()
		} else {
			f.dropSyncs()
		}
	case pgwire.SrvDataRow, pgwire.SrvCopyOutResponse, pgwire.SrvCopyBothResponse,
		pgwire.SrvCopyData, pgwire.SrvCopyDone, pgwire.SrvParameterDescription:
	case pgwire.SrvFunctionCallResponse:
		f.chain.passed(o)
	case pgwire.SrvRowDescription, pgwire.SrvNoData:
		if o.kind == opDescribe {
			f.chain.passed(o)
			a.keep = o.asQuery && !hide // a Query that fails with RETURNING has none
			a.done = f.pop()
		}
	default:
		if !answers(typ, o.kind) {
			return a, errNonsense(typ, f)
		}
		f.changedUnnamed(o)
		f.chain.passed(o)
		a.done = f.pop()
	}
	return a, nil
}

// completed follows the transaction status through the batch. A string of several statements is
// followed as a whole, by judge.
func (f *flow) completed(o *op) {
	if o.cls.has(clsMulti | clsOpaque) {
		return
	}
	f.live = o.cls.after(f.live)
	if o.cls.has(clsCommit | clsRollback) {
		f.answered = 0
	}
}

// answers tells whether the message is the completion of that kind of op.
func answers(typ byte, k opKind) bool {
	switch typ {
	case pgwire.SrvParseComplete:
		return k == opParse
	case pgwire.SrvBindComplete:
		return k == opBind
	case pgwire.SrvCloseComplete:
		return k == opClose
	}
	return false
}

// ready takes ReadyForQuery.
func (f *flow) ready(o *op, body []byte) (answer, error) {
	if !o.endsBatch() {
		return answer{}, errNonsense(pgwire.SrvReadyForQuery, f)
	}
	st, err := pgwire.ParseReadyForQuery(body)
	if err != nil {
		return answer{}, err
	}
	hide := o.internal && !o.showEnd || f.wrapped && st != pgwire.TxIdle
	f.changedUnnamed(o)
	f.stale = f.stale && o.kind != opQuery
	f.pop()
	f.current() // what was no end of a copy is answered, too
	f.status, f.live = st, st
	f.errored, f.finished = false, 0
	f.answered, f.asQuery, f.copying = 0, false, false
	if st == pgwire.TxIdle {
		f.wrapped = false
		f.all, f.done, f.canGoOn, f.known = 0, 0, false, knownXID{}
	}
	return answer{hide: hide, done: o, end: true, chains: f.chain.ended(st) && !hide}, nil
}

// failed takes ErrorResponse: in the extended protocol the server skips all up to the Sync
// (protocol-flow, Extended Query).
func (f *flow) failed(o *op) (answer, error) {
	f.errored, f.copying = true, false
	hide := o.internal
	f.rolledBack = f.rolledBack || !hide || o.commits
	f.live = afterError(f.live)
	if o.cls.has(clsCommit) {
		f.live = pgwire.TxIdle // a COMMIT that fails has ended the transaction
	}
	if o.kind == opQuery || o.kind == opFunctionCall {
		return answer{hide: hide && (!o.showErr || f.status == pgwire.TxFailed)}, nil
	}
	f.copyIn = false
	f.stale = f.stale || o.asQuery && o.kind != opParse
	if o.isUnnamedParse() {
		f.unnamed = unnamedMark{is: unnamedGone} // the server drops what there was first
	}
	for o := f.current(); o != nil; o = f.current() {
		if o.kind == opSync {
			hide = hide && o.internal
			f.rolledBack = f.rolledBack || !hide
			return answer{hide: hide}, nil
		}
		f.lostParse = f.lostParse || o.isUnnamedParse()
		f.pop()
	}
	f.skipping, f.rolledBack = true, true
	return answer{}, nil
}
