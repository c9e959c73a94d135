package proxy

import (
	"maps"

	"holdfast/pgwire"
)

// The server is asked for what a statement has set in the same write as that statement, where it is
// sure that no transaction is open behind it (DESIGN.md I31). ReadyForQuery of the client is kept
// back until that is answered, as it is where the question could not go out before. So the client
// waits for no round trip, and between the two answers there is nothing but the server's own time.
// The question is a transaction of its own: inside the client's it would see what is set LOCAL, and
// the locks of the transaction, and would miss what a deferred trigger sets.

// stateAsked is what the question for the session's state that is outstanding asks for.
type stateAsked struct {
	custom map[string]struct{} // the names of custom settings
	facts  bool                // what only the backend has
	ahead  bool                // it went out with a statement
}

// stateQuestionMax bounds what a question for the state has beside its text.
const stateQuestionMax = 256

// mayStayOpen is what may leave a transaction open, or have the server take no question.
const mayStayOpen = clsBegin | clsOpens | clsChain | clsEnds | clsPrepares | clsOpaque | clsCopy

// endsIdle tells that something is outstanding, and that no good transaction can be open once the
// server has dealt with it, whatever fails of it. At worst it is in a failed one, and refuses what
// it is asked.
func (f *flow) endsIdle() bool {
	if f.head == len(f.ops) || len(f.ops)-f.head > aheadMax || f.expected() != pgwire.TxIdle ||
		f.unsynced > 0 || f.skipping || f.copyIn || f.copying || f.wrapped {
		return false
	}
	for i := f.head; i < len(f.ops); i++ {
		// From 18 on a Query leaves the transaction of a batch without a Sync open.
		o := &f.ops[i]
		if o.snapshot || o.behind || o.kind == opCopyEnd || o.cls.has(mayStayOpen) {
			return false
		}
	}
	return true
}

// isStateNext tells that the question for the session's state is what the server comes to now.
func (f *flow) isStateNext() bool {
	o := f.current()
	return o != nil && o.snapshot
}

// foresee is what of the tracker a question has to know, once those operations have succeeded.
func (t *tracker) foresee(ops []op) tracker {
	next := tracker{
		dirty: t.dirty, suspect: t.suspect, custom: maps.Clone(t.custom),
		loginUser: t.loginUser, locks: lockTable{cfg: t.locks.cfg},
	}
	for i := range ops {
		for j := range ops[i].effects {
			next.took(&ops[i].effects[j])
		}
		if ops[i].cls.has(clsAdvisory) {
			next.suspect |= reasonAdvisory
		}
	}
	next.suspect |= t.suspect
	return next
}

// asksState tells whether the server may be asked for the session's state behind the n bytes at the
// head of the inbox, which are recorded and about to be sent. A question that failed is not asked
// ahead again before one has succeeded. The caller holds s.mu and is the owner.
func (s *session) asksState(n int) bool {
	f, t := &s.flow, &s.track
	return (f.setting > 0 || t.dirty) && f.endsIdle() && n == len(s.in.bytes()) &&
		s.passing == 0 && s.cancels == 0 && s.again == nil && !s.lostTx && !s.endHeld && t.failed == 0
}

// appendState appends that question, if there is a use for it and room for all of it, and records
// it. The caller holds s.mu and is the owner.
func (s *session) appendState(out []byte, n, room int) []byte {
	if !s.asksState(n) {
		return out
	}
	next := s.track.foresee(s.flow.ops[s.flow.head:])
	if !next.dirty {
		return out // what is set ends with its transaction
	}
	sql := next.snapshotSQL()
	if len(sql)+stateQuestionMax > room {
		return out
	}
	s.state = stateAsked{custom: next.custom, facts: next.suspect != 0, ahead: true}
	return s.appendSnapshot(s.backend, out, sql, s.unit.end()+n)
}

// appendSnapshot appends a question for the session's state, and records it. The caller holds s.mu.
func (s *session) appendSnapshot(b *backend, out []byte, sql string, at int) []byte {
	before := s.pushed
	out = pgwire.AppendSync(s.appendQuestion(b, out, sql, at))
	s.push(op{kind: opSync, internal: true, start: at})
	f := &s.flow
	for i := len(f.ops) - (s.pushed - before); i < len(f.ops); i++ {
		f.ops[i].snapshot = true
	}
	return out
}

// askBehind records the question that goes behind the n bytes at the head of the inbox, if one
// does; send puts it there. The caller holds s.mu and is the owner.
func (s *session) askBehind(n int) {
	switch {
	case n == 0:
	case s.asksAhead(n):
		s.askAhead(n)
	default:
		if out := s.appendState(s.out[:0], n, s.in.spare()); len(out) > 0 {
			s.out, s.ahead = out, out
		}
	}
}

// injectSnapshot asks the server for the session's state after something changed it, while the
// ReadyForQuery of that something waits.
func (s *session) injectSnapshot() error {
	s.mu.Lock()
	b := s.backend
	if !s.endHeld || !s.flow.isSafePoint() || b == nil || s.lost {
		s.mu.Unlock()
		return nil
	}
	before := s.flow
	s.pushed = 0
	s.rows, s.rowsCut, s.inner = nil, false, nil
	s.state = stateAsked{custom: s.track.custom, facts: s.track.suspect != 0}
	out := s.appendSnapshot(b, s.out[:0], s.track.snapshotSQL(), 0)
	s.out = out
	s.mu.Unlock()
	return s.sendInner(b, out, before)
}

// awaitsState takes the ReadyForQuery in front of a question for the session's state; true keeps it
// from the client until that is answered. In a failed block, the end of which the server has
// skipped, nothing waits. The caller holds s.mu.
func (s *session) awaitsState() bool {
	s.rows, s.rowsCut, s.inner = nil, false, nil
	s.endHeld = s.flow.status == pgwire.TxIdle
	return s.endHeld
}

// stateTold takes the end of the question for the session's state; true keeps its ReadyForQuery,
// which stands for the one that was kept back, from the client. What went out with a statement and
// failed, or did not ask for all that turned out to be needed, is asked once more. The caller holds
// s.mu.
func (s *session) stateTold() bool {
	asked, held, t := s.state, s.endHeld, &s.track
	switch {
	case s.flow.status != pgwire.TxIdle:
	case s.inner == nil:
		t.applyAsked(s.rows, s.rowsCut, asked)
		s.bookLocks()
	case !asked.ahead:
		t.snapshotFailed()
	}
	s.rows, s.inner, s.state = nil, nil, stateAsked{}
	if asked.ahead && held && t.dirty && s.flow.isSafePoint() {
		s.interrupt()
		return true
	}
	s.endHeld = false
	s.notify() // the client's next messages wait for it
	return !held
}

// applyAsked takes the rows of a question that asked for that. What it did not ask for, since that
// was not foreseen, stays to be asked.
func (t *tracker) applyAsked(rows [][3]string, cut bool, asked stateAsked) {
	missed := t.suspect
	if asked.facts {
		missed = 0
	}
	t.suspect &^= missed
	t.applySnapshot(rows, cut)
	t.suspect |= missed
	t.dirty = missed != 0
	for name := range t.custom {
		if t.isMissed(asked.custom, name) {
			t.dirty = true
		}
	}
}
