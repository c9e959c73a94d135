package proxy

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// Two-phase commit (DESIGN 10.15). PREPARE TRANSACTION ends its block like COMMIT and is guarded
// like it; what it leaves is in progress for pg_xact_status, and in the list of prepared
// transactions. COMMIT PREPARED and ROLLBACK PREPARED come in any session, outside a block: the
// transaction id is looked up by the identifier before they are forwarded, on a connection of our
// own, since the server refuses them behind another statement of the same pipeline.
const twoPhase = clsPrepares | clsCommitPrepared | clsRollbackPrepared

// wantsPreparedGuard tells whether a COMMIT or ROLLBACK PREPARED that comes now has to wait for the
// transaction id of what it ends.
func (s *session) wantsPreparedGuard(c class) bool {
	f := &s.flow
	return c.has(clsCommitPrepared|clsRollbackPrepared) && s.proxy.cfg.CommitGuard != GuardOff &&
		f.expected() == pgwire.TxIdle && !f.skipping && f.unsent == 0
}

// guardPrepared learns which transaction is meant and then forwards the COMMIT or ROLLBACK PREPARED
// that is at the head of the inbox. Where it cannot be learnt, nobody can know its outcome later.
func (s *session) guardPrepared(ctx context.Context, b *backend) error {
	if err := s.awaitCancels(ctx); err != nil {
		return err
	}
	var xid uint64
	if gid, ok := s.guardedGID(); ok {
		var err error
		if xid, err = s.proxy.preparedXID(ctx, b.primary.Epoch, gid); err != nil {
			s.log().Info("a prepared transaction could not be looked up", zap.Error(err))
		}
	}
	if err := s.gate(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	if s.flow.isSafePoint() && s.proxy.isDraining(b.primary.Epoch) {
		s.noCancel = false
		s.mu.Unlock()
		return nil // the drain has begun since gate looked: the gate comes once more
	}
	s.xid, s.inner = xid, nil
	return s.forwardCommit(b, xid != 0)
}

// gidMax is the length of a global transaction identifier (GIDSIZE in twophase.h, with its end).
const gidMax = 199

// guardedGID is the identifier that the guarded statement names, if its text tells it for sure: in
// printable ASCII, which is the same in all encodings, and with nothing in it that another kind of
// constant than '...' could have been read with.
func (s *session) guardedGID() (string, bool) {
	for i := range s.guarded.effects {
		e := &s.guarded.effects[i]
		if !e.cls.has(clsCommitPrepared | clsRollbackPrepared) {
			continue
		}
		if e.name == "" || len(e.name) > gidMax || e.name[0] == '$' {
			return "", false
		}
		for _, c := range []byte(e.name) {
			if c < ' ' || c > '~' || strings.IndexByte(`\'`, c) >= 0 {
				return "", false
			}
		}
		return e.name, true
	}
	return "", false
}

// preparedXID is the transaction id, with its epoch, of the prepared transaction with that
// identifier; 0 if there is none. The list has the lower 32 bits.
func (p *Proxy) preparedXID(ctx context.Context, epoch uint64, gid string) (uint64, error) {
	pr, _ := p.topo.Current()
	if pr == nil || pr.Epoch != epoch {
		return 0, errOvertaken
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout)
	defer cancel()
	rows, err := p.outcomesAt.query(ctx, pr, "SELECT transaction, pg_catalog.pg_snapshot_xmax("+
		"pg_catalog.pg_current_snapshot()) FROM pg_catalog.pg_prepared_xact() WHERE gid = "+
		quoteLiteral(gid))
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	if len(rows) != 1 || len(rows[0]) != 2 {
		return 0, errors.New("look up a prepared transaction: unexpected answer")
	}
	low, err := strconv.ParseUint(string(rows[0][0]), 10, 32)
	if err != nil {
		return 0, err
	}
	next, err := strconv.ParseUint(string(rows[0][1]), 10, 64)
	if err != nil {
		return 0, err
	}
	return widenXID(uint32(low), next), nil
}

// widenXID gives a transaction id that is in use its epoch: such ids are less than 2^31 away from
// one another (transam.h, TransactionIdPrecedes). The other one may be older or newer.
func widenXID(low uint32, other uint64) uint64 {
	return other + uint64(int64(int32(low-uint32(other))))
}

// isPrepared tells whether the transaction waits for its second phase.
func (p *Proxy) isPrepared(ctx context.Context, pr *Primary, xid uint64) (bool, error) {
	rows, err := p.outcomesAt.query(ctx, pr, "SELECT EXISTS (SELECT FROM "+
		"pg_catalog.pg_prepared_xact() WHERE transaction = '"+
		strconv.FormatUint(uint64(uint32(xid)), 10)+"'::pg_catalog.xid)")
	if err != nil {
		return false, err
	}
	if len(rows) != 1 || len(rows[0]) != 1 {
		return false, errors.New("look up a prepared transaction: unexpected answer")
	}
	return string(rows[0][0]) == "t", nil
}

// isSecondPhase tells that all of it is one COMMIT or ROLLBACK PREPARED that was guarded: what it
// is for was done when it was answered, and the Sync behind it commits nothing.
func (c class) isSecondPhase() bool {
	return c == clsEnds|clsCommitPrepared || c == clsEnds|clsRollbackPrepared
}

// errAborted is what a client is told of a transaction, or a second phase, that came to nothing.
func errAborted(cls class) *pgwire.Error {
	if cls.has(clsCommitPrepared | clsRollbackPrepared) {
		return errNotExecuted() // of the prepared transaction this says nothing
	}
	return errCommitAborted()
}

// outcomeOf is what a status of a transaction says about a statement of that class: whether it has
// done what it is for. A transaction that is in progress and not prepared is not known yet.
func outcomeOf(status string, isPrepared bool, cls class) (o outcome, known bool) {
	switch {
	case status == "committed" && cls.has(clsRollbackPrepared):
		return outcomeAborted, true // run again, it gets the server's own answer
	case status == "committed":
		return outcomeCommitted, true
	case status == "aborted" && cls.has(clsRollbackPrepared):
		return outcomeCommitted, true
	case status == "aborted":
		return outcomeAborted, true
	case status == "in progress" && isPrepared && cls.has(clsPrepares):
		return outcomeCommitted, true
	case status == "in progress" && isPrepared:
		return outcomeAborted, true // the second phase has not come
	case status == "in progress":
		return outcomeUnknown, false
	}
	return outcomeUnknown, true
}
