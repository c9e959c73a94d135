package proxy

import "holdfast/pgwire"

// redo is what is needed to run the unit of work of a loss again on another backend.
type redo struct {
	messages []byte // of the client, from the start of the unit; nil if they are not all there
	from     int    // offset of messages[0]
	seen     digest // what the client was shown of the unit
	done     class  // what of it may have been committed by itself
	all      class  // what of it was answered
	// begun tells that something of what was outstanding was answered: what is left begins a unit.
	begun bool
	// blockFrom is where the transaction begins that is open where what is left begins, or before
	// that.
	blockFrom int
	// canGoOn tells of a savepoint: the unit may go on although its block has failed.
	canGoOn bool
	// isOff tells that it came out differently, or too often not at all, or that the client was
	// told an error.
	isOff   bool
	isBegun bool          // it was run again at least in part
	why     *pgwire.Error // what it ends with if it is not run again; nil is 40001
	// isRewound tells that the session was made what it was at the start of the unit.
	isRewound bool

	// locks are the session advisory locks as they were known when the backend was lost;
	// locksVague tells that those of the start of the unit were taken again, and not known which
	// else there were.
	locks      lockTable
	locksVague bool

	// chain opens the block in which what is run again begins; empty: it begins outside of one. block
	// opens one like that which was open; empty: it is not known. next is chain behind what is
	// answered now. isChained tells that only the end of a COMMIT AND CHAIN is due.
	chain, block, next string
	isChained          bool

	// What the client believes that its prepared statements are.
	names   map[string]*prepared
	renamed map[string]*prepared // what the unit has changed of them, as it was before
	unnamed unnamedStatement
	// before is the unnamed statement that there was when the unit began, if it was not begun.
	before unnamedStatement
	conf   bool // standard_conforming_strings
}

// again is a unit of work that is run again: the client's messages go through the relay as if they
// came once more, and of the answers the client gets what it has not had, if the rest is what it
// was shown (DESIGN.md I17). The session's lock guards it, but for left and rest, the owner's own.
type again struct {
	loss     *loss
	want     digest
	left     int  // bytes of the messages that were not sent again yet
	rest     int  // bytes that their last one has beyond them, which are the client's to send
	verified bool // the answers are what they were, as far as the client had them
	failed   bool // they are not
	canceled bool // a cancel request came
}

// isOpen tells that it is not known yet whether the answers are what they were.
func (a *again) isOpen() bool { return a != nil && !a.verified }

// cameShort tells that all of a unit of work was sent again and answered, with less than the client
// was shown: what it waits for never comes. The caller holds s.mu and is the owner.
func (s *session) cameShort() bool {
	return s.again.isOpen() && s.again.left <= 0 && s.flow.awaitsClient()
}

// mayRedo tells that surely nothing of it is committed, and that running it again can lead the
// session to where it was.
func (p *pending) mayRedo() bool {
	switch p.verdict {
	case verdictRolledBack, verdictUndo:
		return true
	case verdictFinish:
		return p.next != pgwire.TxIdle &&
			!(p.batch.cls | p.batch.before).has(clsCommit|clsEnds|clsOpaque)
	}
	return false
}

// plan tells whether all that is left of a loss can be run again, from which offset on, and what
// the client was shown of that.
func (l *loss) plan() (from int, want digest, ok bool) {
	r := &l.redo
	if r.messages == nil || r.isOff {
		return 0, want, false
	}
	for i := range l.pending {
		if !l.pending[i].mayRedo() {
			return 0, want, false
		}
	}
	if r.begun {
		from = r.from + len(r.messages)
		switch {
		case len(l.pending) > 0:
			from = l.pending[0].batch.start
		case r.chain == "":
			return 0, want, false
		}
		if l.status != pgwire.TxIdle && r.chain == "" {
			return 0, want, false
		}
		return from, want, r.knowsUnnamed(from)
	}
	switch {
	case r.done != 0:
		return 0, want, false
	case len(l.pending) > 0 && l.pending[0].verdict == verdictUndo:
		return 0, want, false // nothing of it is needed
	case len(l.pending) == 0 && l.status == pgwire.TxIdle:
		return 0, want, false
	case len(l.pending) == 0 && l.status == pgwire.TxFailed && !r.canGoOn:
		return 0, want, false // it stays a failed block
	}
	return r.from, r.seen, r.knowsUnnamed(r.from)
}

// isHarmless tells that nothing of the unit, as far as these, can have had an effect, committed or
// not.
func (l *loss) isHarmless(lost []pending) bool {
	all := l.redo.all
	for i := range lost {
		for j := range lost[i].batch.ops {
			if o := &lost[i].batch.ops[j]; !o.commits || o.cls.has(twoPhase) {
				all |= o.cls
			}
		}
	}
	return !all.has(clsMayWrite|clsSelfCommit|clsEnds|clsOpaque|clsMulti|clsTemp|clsHold) &&
		!l.redo.begun
}

// answered takes the first of what was outstanding as dealt with.
func (l *loss) answered() {
	r, b := &l.redo, &l.pending[0].batch
	switch {
	case !r.begun:
		r.blockFrom = r.from
	case l.status == pgwire.TxIdle:
		r.blockFrom = b.start
	}
	r.all |= b.cls | b.before
	if l.status = l.pending[0].next; l.status == pgwire.TxIdle {
		r.all = 0 // what comes is a transaction of its own
	}
	l.pending = l.pending[1:]
	l.redo.begun = true
	l.redo.chain, l.redo.next, l.redo.block, l.redo.isChained = l.redo.next, "", "", false
}
