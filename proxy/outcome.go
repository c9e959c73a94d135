package proxy

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"holdfast/pgwire"
)

// outcome is what became of a transaction in doubt.
type outcome uint8

const (
	outcomeUnknown outcome = iota
	outcomeCommitted
	outcomeAborted
)

// String names the outcome for logs and metrics.
func (o outcome) String() string {
	switch o {
	case outcomeCommitted:
		return "committed"
	case outcomeAborted:
		return "aborted"
	}
	return "unknown"
}

// lookupLeast is the least time that a lookup has, whatever the session's limit is: what can be
// known is not told as unknown.
const lookupLeast = time.Second

// outcomePoll is the pause between two looks at a transaction or a standby.
const outcomePoll = 5 * time.Millisecond

// outcome looks up what became of the transaction of a lost session (DESIGN.md I4, I5). An error
// means that the primary could not be asked now; ask again. why tells a client what could not be
// known. cls is the class of the statement that ends it, if it is one; committed then means that
// this has done what it is for. limit is the session's time.
func (p *Proxy) outcome(ctx context.Context, pr *Primary, l *loss, cls class, limit time.Duration,
) (outcome, string, error) {
	if l.xid == 0 {
		return outcomeUnknown, "The transaction had no transaction id before its COMMIT.", nil
	}
	switch fateOf(l.xid, l.epoch, pr.Boundaries) {
	case fateAborted:
		o, _ := outcomeOf("aborted", false, cls)
		return o, "", nil
	case fateUnknown:
		return outcomeUnknown, "The transaction id was given out around the promotion.", nil
	}
	ctx, cancel := context.WithTimeout(ctx, max(limit, lookupLeast))
	defer cancel()
	xid := strconv.FormatUint(l.xid, 10)
	for {
		status, err := p.statusOf(ctx, pr, xid)
		if err != nil {
			return outcomeUnknown, "", err
		}
		isPrepared := false
		if status == "in progress" && cls.has(twoPhase) {
			if isPrepared, err = p.isPrepared(ctx, pr, l.xid); err != nil {
				return outcomeUnknown, "", err
			}
		}
		o, known := outcomeOf(status, isPrepared, cls)
		switch {
		case !known:
			if err := sleep(ctx, outcomePoll); err != nil {
				return outcomeUnknown, "", err
			}
		case o == outcomeCommitted:
			return o, "", p.awaitFlushed(ctx, pr)
		case o == outcomeAborted:
			return o, "", nil
		default:
			return o, "The server no longer knows about the transaction.", nil
		}
	}
}

// statusOf is what the primary says of a transaction id; one that is in its future never arrived.
func (p *Proxy) statusOf(ctx context.Context, pr *Primary, xid string) (string, error) {
	rows, err := p.outcomesAt.query(ctx, pr,
		"SELECT pg_catalog.pg_xact_status('"+xid+"'::pg_catalog.xid8)")
	var pe *pgwire.Error
	if errors.As(err, &pe) && pe.Code == pgwire.CodeInvalidParameterValue {
		return "aborted", nil
	}
	if err != nil {
		return "", err
	}
	if len(rows) != 1 || len(rows[0]) != 1 {
		return "", errors.New("look up outcome: unexpected answer")
	}
	return string(rows[0][0]), nil
}

// flushedSQL asks whether a position is as durable as an acknowledged commit: by the server's own
// setting, which changes when standbys go away and come back. While nobody is waited for, what is
// committed is acknowledged.
const flushedSQL = `SELECT s = '' OR
 (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication
  WHERE sync_state IN ('sync', 'quorum') AND flush_lsn >= lsn) >=
 greatest(coalesce(substring(s FROM '^(?:ANY|FIRST) ([0-9]+) ')::int, 1), %d)
FROM (SELECT pg_catalog.current_setting('synchronous_standby_names') AS s,
 '%s'::pg_lsn AS lsn) AS setting`

// awaitFlushed waits until the synchronous standbys have flushed past a position read after the
// lookup: what was found committed is by then as durable as an acknowledged commit. The position is
// what the primary itself has flushed, which a commit comes behind (RecordTransactionCommit): what
// is beyond it may wait for the next commit, or a checkpoint. A commit that need not be flushed to
// be acknowledged (synchronous_commit = off) is not awaited either.
func (p *Proxy) awaitFlushed(ctx context.Context, pr *Primary) error {
	rows, err := p.outcomesAt.query(ctx, pr, "SELECT pg_catalog.pg_current_wal_flush_lsn()")
	if err != nil {
		return err
	}
	if len(rows) != 1 || len(rows[0]) != 1 {
		return errors.New("read position: unexpected answer")
	}
	lsn, err := pgwire.ParseLSN(string(rows[0][0]))
	if err != nil {
		return err
	}
	sql := fmt.Sprintf(flushedSQL, pr.SyncQuorum, lsn)
	for {
		rows, err := p.outcomesAt.query(ctx, pr, sql)
		if err != nil {
			return err
		}
		if len(rows) == 1 && len(rows[0]) == 1 {
			if string(rows[0][0]) == "t" {
				return nil
			}
		}
		if err := sleep(ctx, outcomePoll); err != nil {
			return err
		}
	}
}

// endBackend makes sure that the lost backend of a primary that still lives is gone, so that
// nothing it was doing can take effect after its client was told.
func (p *Proxy) endBackend(ctx context.Context, pr *Primary, l *loss) error {
	if l.started == "" {
		return errors.New("end lost backend: when it was started is not known")
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout)
	defer cancel()
	sql := fmt.Sprintf("SELECT holdfast.end_backend(%d, timestamptz 'epoch'"+
		" + %s * interval '1 microsecond')", l.pid, quoteLiteral(l.started)+"::float8")
	for {
		rows, err := p.outcomesAt.query(ctx, pr, sql)
		if err != nil {
			return fmt.Errorf("end lost backend: %w", err)
		}
		if len(rows) == 1 && len(rows[0]) == 1 && string(rows[0][0]) == "t" {
			return nil
		}
		if err := sleep(ctx, outcomePoll); err != nil {
			return fmt.Errorf("end lost backend: %w", err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
