package election

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"

	"holdfast/pgwire"
)

// walGap is where a standby that does not stream waits for WAL, and since when. It belongs to the
// holder of ops.
type walGap struct {
	at    pgwire.LSN
	since time.Time
	// A clone that failed is tried again after a pause that grows: each stops a server that serves
	// reads, fills the disk and loads the primary.
	again time.Time
	pause time.Duration
	// clones tells that one is under way, of data that hold nothing which the holder lacks.
	clones bool
}

// Between two clones that nobody asked for.
const (
	walClonePauseMin = time.Minute
	walClonePauseMax = time.Hour
)

// tries notes that a clone begins.
func (g *walGap) tries(now time.Time) {
	g.pause = min(max(2*g.pause, walClonePauseMin), walClonePauseMax)
	g.again = now.Add(g.pause)
}

// walGapAfter is how long a standby must have waited at one place before the primary is asked
// whether it has that WAL still: by then its walreceiver has asked for it many times.
const walGapAfter = 5 * time.Second

// checkWALGone clones a standby anew that cannot go on: all WAL that is here is replayed, it has
// waited for more, and the holder has removed what comes next, by its own word. That happens when
// the standby was away for more than max_slot_wal_keep_size (its slot is lost then) or when its
// slot was dropped. The old data stays in its place until the copy is whole, and aside after that.
func (a *PostgresAgent) checkWALGone(ctx context.Context, s agentStep, timeline uint32) error {
	at, restore, err := a.waitsForWAL(ctx)
	if err != nil {
		return err
	}
	if at == 0 || at != a.gap.at {
		a.gap.at, a.gap.since = at, time.Now()
		return nil
	}
	if time.Since(a.gap.since) < walGapAfter {
		return nil
	}
	gone, err := a.isWALGone(ctx, *s.holder, timeline, at)
	if err != nil {
		a.log.Debug("holder not asked for WAL", zap.Error(err)) // it is away, or busy
		return nil
	}
	if !gone {
		a.gap.since = time.Now()
		return nil
	}
	why := fmt.Sprintf("%s has removed the WAL from %s on, which this member needs", s.holder.Name,
		at)
	st, _ := a.deps.Source.State()
	switch {
	case restore != "":
		// The archive may bring it, late or by somebody's hand; nobody knows from here.
		return fmt.Errorf("%s, and restore_command does not bring it: `holdfast reinit %s` makes "+
			"the data anew", why, a.cfg.Name)
	case st.Maintenance != nil:
		return fmt.Errorf("%s: the data is made anew when the maintenance ends", why)
	}
	if left := time.Until(a.gap.again); left > 0 {
		return fmt.Errorf("%s; the last clone failed, the next one begins in %s", why,
			left.Round(time.Second))
	}
	a.log.Warn("cloning anew", zap.String("why", why))
	a.gap.tries(time.Now())
	if _, err := a.stopServer(ctx, a.cfg.StopTimeout); err != nil {
		return err
	}
	if err := a.endOrphans(ctx); err != nil {
		return err
	}
	a.gap.clones = true
	err = a.cloneServer(ctx, *s.holder, s.lock.Epoch, why)
	if a.gap.clones = false; err != nil {
		return err
	}
	a.gap = walGap{}
	if err := os.RemoveAll(a.replacedDir()); err != nil {
		a.log.Warn("replaced data not removed", zap.Error(err))
	}
	return a.startRejoined(ctx, *s.holder)
}

// replacedDir is where data are kept that are of no use, until their clone is in its place.
func (a *PostgresAgent) replacedDir() string { return a.cfg.DataDir + ".replaced" }

// waitsForWAL tells where the startup process waits for WAL that is not here; 0 if it has some to
// replay, or replay is paused. In both waits it has looked through pg_wal in vain.
func (a *PostgresAgent) waitsForWAL(ctx context.Context) (at pgwire.LSN, restore string,
	err error,
) {
	row, err := a.queryRow(ctx, `SELECT coalesce(pg_last_wal_replay_lsn(), '0/0'),
		coalesce((SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'), '')
		IN ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream')
		AND NOT pg_is_wal_replay_paused()
		AND coalesce(pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn(), true),
		current_setting('restore_command')`)
	if err != nil {
		return 0, "", fmt.Errorf("read where replay waits: %w", err)
	}
	if row[1] != "t" {
		return 0, row[2], nil
	}
	at, err = pgwire.ParseLSN(row[0])
	return at, row[2], err
}

// walAskMax bounds the wait for the holder's answer. One that has the WAL sends it, or has nothing
// to send yet and is silent.
const walAskMax = 2 * time.Second

// errHasWAL ends the stream of a holder that sends WAL.
var errHasWAL = errors.New("it is sent")

// isWALGone asks the holder for the WAL at a position as a walreceiver would. Without a slot of its
// own it keeps nothing back.
func (a *PostgresAgent) isWALGone(ctx context.Context, holder Member, timeline uint32,
	at pgwire.LSN,
) (bool, error) {
	ctx, cancel := a.yielding(ctx)
	defer cancel()
	c, err := a.dialMember(ctx, holder, pgReplicationRole, a.secrets.replication, true)
	if err != nil {
		return false, err
	}
	defer pgClose(c)
	ctx, cancelAsk := context.WithTimeout(ctx, walAskMax)
	defer cancelAsk()
	_, err = c.CopyTo(ctx, refuser{}, fmt.Sprintf("START_REPLICATION PHYSICAL %s TIMELINE %d", at,
		timeline))
	var pe *pgconn.PgError
	return errors.As(err, &pe) && pe.Code == pgCodeNoFile, nil
}

// pgCodeNoFile is undefined_file: "requested WAL segment ... has already been removed".
const pgCodeNoFile = "58P01"

// refuser ends a copy with its first byte.
type refuser struct{}

var _ io.Writer = refuser{}

// Write implements io.Writer.
func (refuser) Write([]byte) (int, error) { return 0, errHasWAL }
