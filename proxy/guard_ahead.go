package proxy

import (
	"go.uber.org/zap"

	"holdfast/pgwire"
)

// The transaction id of a block is learnt without a round trip (DESIGN.md I28): the question goes
// out in the same write as a statement that writes by its text, the client has its answer as it
// comes, and ours is taken whenever that comes. A number stays what it is for as long as the block
// is open. COMMIT waits for the answer where it is not there yet, and asks again where it was none.

// xidQuestion is the question. The server answers it with ReadyForQuery, as it does a Query, so
// that it may stand between any two batches.
var xidQuestion = pgwire.AppendFunctionCall(nil, xidOID)

// asksAhead tells whether the question goes behind the n bytes at the head of the inbox that are
// about to be sent. Should it fail, the backend is lost; so it is only asked where another one can
// stand in and run the unit again, and never while a cancel request is on its way. The caller holds
// s.mu and is the owner.
func (s *session) asksAhead(n int) bool {
	if n == 0 || !s.flow.wantsXID() || n != len(s.in.bytes()) || s.passing > 0 ||
		len(xidQuestion) > s.in.spare() {
		return false
	}
	cfg, t := &s.proxy.cfg, &s.track
	return cfg.CommitGuard != GuardOff && !s.asksLate && s.cancels == 0 && s.again == nil &&
		s.tries == 0 && cfg.ReplayAttemptsMax > 0 && !s.lostTx && !s.endHeld &&
		s.unit.whole && len(s.unit.bytes)+n <= s.journalBytesMax() &&
		t.unmovable|t.suspect == 0 && !t.locks.mayHold() && !t.listens()
}

// askAhead records the question behind those n bytes; send puts it there.
func (s *session) askAhead(n int) {
	s.push(op{kind: opFunctionCall, internal: true, ahead: true, start: s.unit.end() + n})
	s.ahead = xidQuestion
}

// takeAhead puts what askBehind has recorded into the inbox, behind the client's, and returns how
// many bytes that are.
func (s *session) takeAhead() int {
	if s.work == nil || len(s.ahead) == 0 {
		return 0
	}
	n := len(s.ahead)
	s.in.extend(s.ahead)
	s.ahead = nil
	return n
}

// aheadFailed takes an ErrorResponse to a question that went ahead, and tells that it has undone
// what the client was told is done: a late cancel request, say. In a failed block the server
// refuses it, and outside of one it undoes nothing. The caller holds s.mu.
func (s *session) aheadFailed(body []byte) bool {
	if !s.flow.isAhead() || s.flow.status != pgwire.TxInBlock {
		return false
	}
	why := pgwire.ErrorCode(body)
	if string(why) != pgwire.CodeQueryCanceled {
		s.asksLate = true // it would fail again
	}
	s.log().Info("question for the transaction id failed", zap.ByteString("sqlstate", why))
	return true
}

// tookXID takes the answer to a FunctionCall of ours. The caller holds s.mu.
func (s *session) tookXID(body []byte) error {
	xid, err := parseXID(body)
	switch {
	case err != nil:
		return err
	case s.flow.isAhead():
		s.flow.told(xid)
	default:
		s.xid = xid
	}
	return nil
}

// knowsXID tells that a COMMIT that comes now can go out at once: what becomes of it can be looked
// up. What is outstanding before it in its batch must be of its own, so that appendSuccess has the
// answers. The caller holds s.mu.
func (s *session) knowsXID() bool {
	f := &s.flow
	if f.known.xid == 0 || s.cancels > 0 || s.again != nil || s.endHeld || f.skipping ||
		f.live != pgwire.TxInBlock {
		return false
	}
	for i := f.head; i < len(f.ops); i++ {
		switch o := &f.ops[i]; o.kind {
		case opParse, opBind, opClose:
			if o.internal {
				return false
			}
		case opDescribe:
			if !o.ofEnd {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// pushCommit records a message of a class that commits the block whose transaction id is known. It
// is in doubt from here on, before its first byte leaves. The caller holds s.mu.
func (s *session) pushCommit(kind opKind, cls class, at int) {
	s.xid, s.inner = s.flow.known.xid, nil
	s.inDoubt, s.noCancel = true, true
	s.push(op{kind: kind, commits: true, cls: commitClass(cls), start: at})
}

// commitClass is what counts of a statement that is in doubt.
func commitClass(cls class) class {
	if cls &= clsCommit | clsChain | clsEnds | twoPhase; cls.has(clsCommit) {
		cls |= clsMayWrite
	}
	return cls
}
