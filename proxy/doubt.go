package proxy

import (
	"context"
	"slices"

	"holdfast/pgwire"
)

// A block whose COMMIT is lost together with its statements may be committed, and then all of them
// have happened, BEGIN not less than the others: a client that is told 40001 for it runs the block
// again. So each is told what its COMMIT is told, unless a ROLLBACK or an error that lies between
// surely undid it (DESIGN.md I34).

// prospect tells whether what is outstanding may commit a transaction that is open before it: one
// that is good there, or one that has failed, which takes a ROLLBACK TO. What may commit a failed
// one may commit a good one.
type prospect struct{ good, failed bool }

// prospect is that before a statement, by what it is behind it. An error fails the block and skips
// the rest of its batch.
func (c class) prospect(behind prospect, skipped bool) prospect {
	switch {
	case c.has(clsEnds | clsOpaque):
		return prospect{good: true, failed: true}
	case c.has(clsCommit):
		return prospect{good: true}
	case c.has(clsRollback):
		return prospect{}
	case c.has(clsRollbackTo | clsMulti): // such a string may go back to a savepoint
		return prospect{good: behind.good || skipped, failed: behind.good || skipped}
	}
	return prospect{good: behind.good || skipped, failed: skipped}
}

// prospect is that before the batch, by what it is behind it.
func (b *batch) prospect(behind prospect) prospect {
	at := behind
	for i := len(b.ops) - 1; i >= 0; i-- {
		if o := &b.ops[i]; o.isStatement() && !o.internal {
			at = o.cls.prospect(at, behind.failed)
		}
	}
	if len(b.ops) > 1 { // a Parse or a Bind may fail, and skip its ROLLBACK
		at.good, at.failed = at.good || behind.failed, at.failed || behind.failed
	}
	return at
}

// doubtWhatMayCommit takes the certainty that a block was rolled back from what may have been
// committed by something else that is lost behind it.
func doubtWhatMayCommit(all []pending) {
	var behind prospect
	for i := len(all) - 1; i >= 0; i-- {
		p := &all[i]
		p.goesOn = p.stands&standsInBlock != 0 && behind.good ||
			p.stands&standsFailed != 0 && behind.failed
		if p.goesOn && (p.verdict == verdictRolledBack || p.verdict == verdictUndo) {
			p.verdict = verdictUnknown // of an end, too: it may have been skipped
		}
		behind = p.batch.prospect(behind)
	}
}

// standing is the set of transaction statuses in which a server may be that has executed all of
// what is outstanding up to some batch. What the client is told of a lost batch is one of them at
// most: behind one that ends its block among other things it is told 'E', and the server may be
// outside, where each statement commits by itself.
type standing uint8

const (
	standsIdle standing = 1 << iota
	standsInBlock
	standsFailed
)

func standingOf(status byte) standing {
	switch status {
	case pgwire.TxIdle:
		return standsIdle
	case pgwire.TxInBlock:
		return standsInBlock
	}
	return standsFailed
}

// broken is that behind an error.
func (s standing) broken() standing {
	out := s & standsIdle
	if s&^standsIdle != 0 {
		out |= standsFailed
	}
	return out
}

// standing is that behind a statement that has succeeded.
func (c class) standing(at standing) standing {
	switch {
	case at == 0:
		return 0 // no server has come so far
	case c.has(clsEnds | clsOpaque):
		return standsIdle | standsInBlock | standsFailed
	case c.has(clsChain) && at == standsIdle:
		return standsIdle // it failed
	case c.has(clsCommit|clsRollback) && c.has(clsChain):
		return at&standsIdle | standsInBlock
	case c.has(clsCommit | clsRollback):
		return standsIdle
	case c.has(clsBegin|clsOpens) && at&standsIdle != 0:
		return standsInBlock
	case c.has(clsRollbackTo|clsMulti) && at&standsFailed != 0:
		return at&^standsFailed | standsInBlock
	}
	return at &^ standsFailed
}

// standing is that behind the batch.
func (b *batch) standing(at standing) standing {
	if b.wrapped {
		return standsIdle
	}
	if b.errored {
		if out := at.broken(); !(b.cls | b.before).has(clsEnds | clsOpaque | clsOpens) {
			return out
		}
		return standsIdle | standsFailed // it may have ended its block, or opened one, before
	}
	broken := standing(0)
	for i := range b.ops {
		o := &b.ops[i]
		if !o.isStatement() || o.internal {
			continue
		}
		switch {
		case o.cls.has(clsBegin): // else every block that is sent in one write would be in doubt
			broken |= at & standsFailed
		case !o.cls.has(clsCommit | clsRollback), len(b.ops) > 1: // of an end the Bind may fail
			broken |= at.broken()
		}
		at = o.cls.standing(at)
	}
	return at | broken
}

// judgeAt is judge for a batch behind others that are lost too, where the server may stand so.
func judgeAt(b *batch, at standing, status byte, inDoubt bool) (verdict, byte) {
	if b.behind && at == standsFailed {
		b.behind, b.live = false, pgwire.TxFailed // an error that was answered says so
	}
	v, next := judge(*b, status, inDoubt)
	if v == verdictRolledBack && b.behind && status != pgwire.TxIdle && at&standsIdle != 0 {
		if outside, _ := judge(*b, pgwire.TxIdle, false); outside == verdictUnknown {
			v = verdictUnknown
		}
	}
	return v, next
}

// together is the first of what is outstanding, with all that may be of the same transaction.
func (l *loss) together() []pending {
	for i := range l.pending {
		if !l.pending[i].goesOn {
			return l.pending[:i+1]
		}
	}
	return l.pending
}

// askTogether asks whether the transaction that the first of what is outstanding is in surely has
// only read, if something of it is in doubt: then all of it can be run again, or told 40001. It is
// asked before anything of it is answered, since what is answered in part is not run again.
func (s *session) askTogether(ctx context.Context, b *backend, l *loss) error {
	all := l.together()
	isOpen := func(p pending) bool { return p.verdict == verdictUnknown && !p.wasAsked }
	if !slices.ContainsFunc(all, isOpen) {
		return nil
	}
	reads, err := s.onlyRead(ctx, b, l, all)
	if err != nil {
		return err
	}
	for i := range all {
		p := &all[i]
		if p.wasAsked = true; reads && p.verdict == verdictUnknown {
			p.verdict = verdictRolledBack
		}
	}
	return nil
}
