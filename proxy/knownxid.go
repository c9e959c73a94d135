package proxy

import "holdfast/pgwire"

// knownXID is what is known of the transaction id of the open block before its COMMIT.
type knownXID struct {
	xid   uint64 // 0: it is not known, or there is none yet
	wrote bool   // something was sent that writes by its text, and nothing was asked behind it
}

// mayEndBlock is what may leave another transaction behind it than there was before, or which may
// hide that.
const mayEndBlock = unguarded &^ clsCopy

// sent takes an op that is about to be sent; ahead is the transaction status behind it, if it
// succeeds. What comes after ROLLBACK TO has to write anew: a statement that failed may not have
// taken the snapshot that ours must not be the first to take.
func (k *knownXID) sent(o *op, ahead byte) {
	switch {
	case o.ahead:
		k.wrote = false
	case o.cls.has(mayEndBlock), o.internal && o.kind == opQuery:
		*k = knownXID{}
	case o.cls.has(clsRollbackTo):
		k.wrote = false
	case o.cls.has(clsDML) && !o.internal:
		k.wrote = k.wrote || ahead == pgwire.TxInBlock
	}
}

// aheadMax bounds the outstanding messages that are looked through before a question; behind more
// of them none goes ahead.
const aheadMax = 32

// wantsXID tells that the server, once it gets there, is in a block that has written, outside of
// any batch and of a COPY.
func (f *flow) wantsXID() bool {
	if !f.known.wrote || f.known.xid != 0 || f.unsynced > 0 || f.skipping || f.copyIn ||
		f.copying || f.expected() != pgwire.TxInBlock || len(f.ops)-f.head > aheadMax {
		return false
	}
	for i := f.head; i < len(f.ops); i++ {
		o := &f.ops[i]
		if o.ahead || o.kind == opCopyEnd || o.cls.has(unguarded&^clsBegin) {
			return false
		}
	}
	return true
}

// told takes the answer to a question that went ahead, which the server gives now. It is worth
// nothing where the block was not opened after all, or may be over by the time that the server has
// dealt with what was sent meanwhile.
func (f *flow) told(xid uint64) {
	if f.status != pgwire.TxInBlock {
		return
	}
	for i := f.head + 1; i < len(f.ops); i++ {
		if f.ops[i].cls.has(mayEndBlock) {
			return
		}
	}
	f.known.xid = xid
}

// isAhead tells that the server works on a question that went ahead.
func (f *flow) isAhead() bool {
	o := f.current()
	return o != nil && o.ahead
}

// asksOutside tells that it does so outside of a block, since that was not opened: what the client
// sends now begins a unit of work, and waits.
func (f *flow) asksOutside() bool { return f.isAhead() && f.status == pgwire.TxIdle }

// isServed tells that the server is done with all that the client has sent, and only a question of
// ours has no answer.
func (f *flow) isServed() bool {
	for i := f.head; i < len(f.ops); i++ {
		if o := &f.ops[i]; !o.ahead && !o.snapshot {
			return false
		}
	}
	return f.head < len(f.ops) && f.unsynced == 0
}

// isCommitting tells that a message that commits is outstanding.
func (f *flow) isCommitting() bool {
	for i := f.head; i < len(f.ops); i++ {
		if f.ops[i].commits {
			return true
		}
	}
	return false
}

// reached is the transaction status behind what is outstanding, if that succeeds, for a flow that
// is settled. Unlike expected it does not go by what was hoped for when that was sent: a statement
// before it may have failed since, and left a failed block.
func (f *flow) reached() byte {
	status := f.live
	for i := f.head; i < len(f.ops); i++ {
		if o := &f.ops[i]; o.isStatement() {
			status = o.cls.ahead(status)
		}
	}
	return status
}
