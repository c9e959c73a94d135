package proxy

import (
	"errors"
	"fmt"
	"strconv"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// acknowledged is the newest commit that a client was told of and whose transaction id is known.
// Where commits wait for no standby, a failover may lose it, and so may a crash of the server after
// synchronous_commit = off: the session must not go on as if it were there (DESIGN.md I25).
type acknowledged struct{ xid, epoch uint64 }

// commitAnswered takes the server's answer to what was in doubt, a statement of that class or a
// Sync; the caller holds s.mu. It comes before the answer is written to the client.
func (s *session) commitAnswered(cls class) {
	if s.inDoubt && s.xid != 0 && !s.flow.rolledBack {
		if b := s.backend; b != nil {
			s.note(s.xid, b.primary.Epoch, cls)
		}
		s.countUnprotected()
	}
	s.track.mark.ended = ""
	s.inDoubt, s.noCancel = false, false
}

// note keeps the transaction id of a commit that the client is about to be told of; the caller
// holds s.mu.
func (s *session) note(xid, epoch uint64, cls class) {
	switch {
	case !cls.has(clsRollbackPrepared):
		s.acked, s.ackedPrepare = acknowledged{xid, epoch}, cls.has(clsPrepares)
	case s.acked.xid == xid:
		s.acked = acknowledged{} // what it had prepared is not to be there any more
	}
}

// commitFound takes the answer of a lookup: the commit is there, under that epoch, and the next one
// may lose it as any other.
func (s *session) commitFound(xid, epoch uint64, cls class) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(xid, epoch, cls)
}

// checkAcknowledged makes sure, on an idle backend that is not attached, that the primary has what
// the client was told is committed.
func (s *session) checkAcknowledged(b *backend) error {
	s.mu.Lock()
	a, prepared := s.acked, s.ackedPrepare
	s.mu.Unlock()
	if a.xid == 0 || a.epoch == b.primary.Epoch {
		return nil
	}
	isLost := fateOf(a.xid, a.epoch, b.primary.Boundaries) == fateAborted
	if !isLost {
		status, err := xactStatus(b, a.xid)
		if err != nil {
			return err
		}
		isLost = isLostStatus(status, prepared)
	}
	if !isLost {
		s.mu.Lock()
		s.acked.epoch = b.primary.Epoch
		s.mu.Unlock()
		return nil
	}
	s.proxy.metrics.lostCommits.Inc()
	s.log().Warn("a commit that a client was told of is lost", zap.Uint64("epoch", b.primary.Epoch),
		zap.Uint64("of_epoch", a.epoch), zap.Uint64("xid", a.xid))
	return notCarried(errLostCommit(a.xid))
}

// isLostStatus tells whether a new primary's status of a transaction that a client was told of
// means that it is lost. What was prepared is in progress, and may have been rolled back by another
// session since then. What was committed and is in progress has lost its COMMIT PREPARED, or its
// id.
func isLostStatus(status string, prepared bool) bool {
	switch status {
	case "future":
		return true
	case "aborted", "in progress":
		return !prepared
	}
	return false
}

// xactStatus is what the server knows of a transaction id: as pg_xact_status, empty if it knows
// nothing any more, "future" if it was never given out there.
func xactStatus(b *backend, xid uint64) (string, error) {
	if err := b.prove(); err != nil {
		return "", err
	}
	if b.reader == nil {
		b.reader = pgwire.NewReader(b.conn, loginBodyMax)
	}
	rows, err := pgwire.SimpleQuery(b.conn, b.reader, "SELECT pg_catalog.pg_xact_status('"+
		strconv.FormatUint(xid, 10)+"'::pg_catalog.xid8)")
	var pe *pgwire.Error
	if errors.As(err, &pe) && pe.Code == pgwire.CodeInvalidParameterValue {
		return "future", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for an acknowledged commit: %w", err)
	}
	if len(rows) != 1 || len(rows[0]) != 1 {
		return "", errors.New("look for an acknowledged commit: unexpected answer")
	}
	return string(rows[0][0]), nil
}
