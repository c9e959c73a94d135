package election

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"holdfast/pgwire"
)

// A start of a server that crashed gives out again the ids of transactions that were not flushed.
// Whether a client's COMMIT with such an id arrived cannot be asked once somebody else has taken
// the id: the boundary of a start in place is the next id of the recovery, before anybody could
// take one (DESIGN.md I99).

// agentStart is a start of the server that the agent has answered for, or has opened the door of.
type agentStart struct {
	Incarnation string `json:"incarnation"`
	// Start names it on disk (lastStart).
	Start string `json:"start"`
}

// lastStart names the newest start of a postmaster of the data directory, also of one that is down:
// each writes postmaster.opts before it recovers, nobody removes the file, and neither a clone nor
// a rewind brings another server's. Empty if it cannot be told. (pgStartOf ends with the server.)
func lastStart(dataDir string) string {
	info, err := os.Stat(filepath.Join(dataDir, "postmaster.opts"))
	if err != nil {
		return ""
	}
	return strconv.FormatInt(info.ModTime().UnixNano(), 10)
}

// startAgain is startClosed. It returns the name of the start if that is the first since the one
// whose door was open; empty if another may lie between, of which only its owner knows what it has
// committed.
func (a *PostgresAgent) startAgain(ctx context.Context, syncNames string,
) (first string, err error) {
	before, served := lastStart(a.cfg.DataDir), a.record().Served
	if err := a.startClosed(ctx, syncNames); err != nil {
		return "", err
	}
	if served == nil || before == "" || before != served.Start {
		return "", nil
	}
	return lastStart(a.cfg.DataDir), nil
}

// noteStartXid reads the boundary of a start in place and writes it down, unless an earlier start
// did and the door was not opened since: what proves the sync set commits with ids that a crash has
// made free, and so does whatever else a closed door lets in (background workers, the superuser).
func (a *PostgresAgent) noteStartXid(ctx context.Context, first string) error {
	rec := a.record()
	if rec.StartXid != 0 {
		return nil
	}
	start := lastStart(a.cfg.DataDir)
	row, err := a.queryRow(ctx, "SELECT "+pgIncarnationSQL)
	if err != nil {
		return fmt.Errorf("read next xid: %w", err)
	}
	next, err := a.allocateXid(ctx)
	if err != nil {
		return err
	}
	opened, err := a.readStartXid(ctx)
	if err != nil {
		return err
	}
	lo, hi := uint64(0), next
	switch {
	case start == "" || start != lastStart(a.cfg.DataDir): // it was not one server that answered
	case rec.Served != nil && rec.Served.Incarnation == row[0]:
		lo = next // no id was given out twice: it has all of them
		err = a.flushXid(ctx)
	case start == first && opened != 0 && opened <= next:
		// Those up to the one just taken are a background worker's.
		lo, hi = opened, opened
	}
	if err != nil {
		return err
	}
	if lo == 0 {
		a.log.Warn("somebody else may have started the server, or used it since it recovered: " +
			"nothing is known of commits that were under way")
	}
	return a.updateRecord(func(r *agentRecord) { r.StartLo, r.StartXid = lo, hi })
}

// flushXid has the ids that were given out so far known after a crash, too: what is written down of
// them stands for every further start, and those whose transactions have no flushed WAL would be
// given out again below it.
func (a *PostgresAgent) flushXid(ctx context.Context) error {
	if _, err := a.exec(ctx, "SELECT pg_logical_emit_message(true, 'holdfast', '')"); err != nil {
		return fmt.Errorf("flush next xid: %w", err)
	}
	return nil
}

// readStartXid is the next id with which the running server opened, 0 if that cannot be told any
// more. It stands in the checkpoint that ends a recovery, or a clean stop. Only that kind begins
// where its own record is: an online one first writes a record of the running transactions, or,
// since 17, of its beginning.
func (a *PostgresAgent) readStartXid(ctx context.Context) (uint64, error) {
	row, err := a.queryRow(ctx,
		"SELECT checkpoint_lsn, redo_lsn, next_xid FROM pg_control_checkpoint()")
	if err != nil {
		return 0, fmt.Errorf("read next xid: %w", err)
	}
	at, err1 := pgwire.ParseLSN(row[0])
	redo, err2 := pgwire.ParseLSN(row[1])
	if err1 != nil || err2 != nil || at != redo {
		return 0, nil
	}
	return parseFullXid(row[2]), nil
}
