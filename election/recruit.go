package election

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
)

// orderRecruit fences this standby from the old primary and answers how far it is. When it
// returns, the pledge is durable and the standby acknowledges nothing to anybody before an order
// or a committed lock of the pledged epoch (DESIGN 10.4, 10.5).
func (a *PostgresAgent) orderRecruit(ctx context.Context, o Order) (OrderResult, error) {
	if err := a.needOurs(); err != nil {
		return OrderResult{}, err
	}
	if err := a.disarmFor(ctx, o); err != nil {
		return OrderResult{}, err
	}
	running, err := a.isRunning(ctx)
	if errors.Is(err, errNoLogins) || err == nil && !running && a.isQuiet && a.hasStandbySignal() {
		if err := a.pledge(o); err != nil {
			return OrderResult{}, err
		}
		return a.fenceByFiles(ctx, a.standbySync(), o.WaitLSN)
	}
	if err != nil {
		return OrderResult{}, err
	}
	if !running && !a.hasStandbySignal() {
		return a.recruitPromoted(ctx, o, false)
	}
	if running {
		standby, err := a.inRecovery(ctx)
		if err != nil {
			return OrderResult{}, err
		}
		if !standby {
			return a.recruitPromoted(ctx, o, true)
		}
	}
	if err := a.pledge(o); err != nil {
		return OrderResult{}, err
	}
	res, err := a.fence(ctx, running, a.standbySync(), o.WaitLSN)
	if errors.Is(err, errNoLogins) {
		return a.fenceByFiles(ctx, a.standbySync(), o.WaitLSN)
	}
	return res, err
}

// recruitPromoted answers for a member that was promoted under an intent that never became the
// lock: it may be the only one with every acknowledged commit (DESIGN 10.7).
func (a *PostgresAgent) recruitPromoted(ctx context.Context, o Order, running bool,
) (OrderResult, error) {
	st, _ := a.deps.Source.State()
	if st.Lock != nil && (st.Lock.Holder == a.cfg.Name ||
		a.record().PrimaryEpoch <= st.Lock.Epoch) {
		return OrderResult{}, fmt.Errorf("%w: it is, or was, the primary of a lock", ErrAgentRole)
	}
	if err := a.pledge(o); err != nil {
		return OrderResult{}, err
	}
	if !running {
		// Promoted and then stopped before its lock was entered: it may be the only one with
		// every acknowledged commit, so it has to answer. Nobody but the agent gets in.
		if err := a.startClosed(ctx, a.record().SyncNames); err != nil {
			return OrderResult{}, err
		}
	}
	return a.readPrimary(ctx)
}

// fence makes the server a standby that streams from nobody and has replayed all it holds.
func (a *PostgresAgent) fence(ctx context.Context, running bool, syncNames string,
	wait pgwire.LSN,
) (OrderResult, error) {
	conf := pgConf{syncNames: syncNames, recruited: true}
	if !running {
		if err := a.launchStandby(ctx, conf); err != nil {
			return OrderResult{}, err
		}
	}
	if err := a.applyConf(ctx, conf); err != nil {
		return OrderResult{}, err
	}
	err := a.waitLocalEnd(ctx)
	if errors.Is(err, errReplayPaused) {
		if err = a.growRecruited(ctx, conf); err == nil {
			err = a.waitLocalEnd(ctx)
		}
	}
	if err != nil {
		return OrderResult{}, err
	}
	res, err := a.readPosition(ctx)
	if err != nil {
		return res, err
	}
	// wait is where the shutdown checkpoint's record starts: having it means to be past that.
	if wait != 0 && res.LSN <= wait {
		return res, fmt.Errorf("the standby has WAL up to %v only, not the record at %v",
			res.LSN, wait)
	}
	return res, nil
}

var errReplayPaused = errors.New("replay is paused: SELECT pg_wal_replay_resume()")

// waitLocalEnd returns when no walreceiver is left and the startup process has replayed all WAL
// that is here. Either of two proofs is enough: the position received since the server's start
// is known and replayed; or the startup process was seen waiting for new WAL twice, with more
// than one whole interval between, so that it has scanned pg_wal once more after the first.
func (a *PostgresAgent) waitLocalEnd(ctx context.Context) error {
	var seen time.Time
	var seenAt string
	for {
		row, err := a.queryRow(ctx, `SELECT
			(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walreceiver')
			+ (SELECT count(*) FROM pg_stat_wal_receiver),
			coalesce(pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn(), false),
			coalesce(pg_last_wal_replay_lsn()::text, ''),
			coalesce((SELECT wait_event FROM pg_stat_activity
			WHERE backend_type = 'startup'), ''), pg_is_wal_replay_paused()`)
		if err != nil {
			return fmt.Errorf("wait for the end of local WAL: %w", err)
		}
		waiting := row[3] == "RecoveryRetrieveRetryInterval"
		switch {
		case row[4] == "t":
			return errReplayPaused
		case row[0] != "0":
			seen = time.Time{}
		case row[1] == "t":
			return nil
		case waiting && seen.IsZero():
			seen, seenAt = time.Now(), row[2]
		case waiting && row[2] != seenAt:
			seen, seenAt = time.Now(), row[2]
		case waiting && time.Since(seen) > 3*pgRetryRecruited:
			return nil
		}
		if err := pauseFor(ctx, 3*time.Millisecond); err != nil {
			return fmt.Errorf("wait for the end of local WAL (startup process: %q): %w",
				row[3], err)
		}
	}
}

// readPosition reads timeline, position and the lower end of the xid boundary of a standby whose
// replay has ended.
func (a *PostgresAgent) readPosition(ctx context.Context) (OrderResult, error) {
	res, err := a.readReplay(ctx)
	if err != nil {
		return res, err
	}
	row, err := a.queryRow(ctx, `SELECT
		greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()),
		system_identifier, `+pgIncarnationSQL+` FROM pg_control_system()`)
	if err != nil {
		return res, fmt.Errorf("read position: %w", err)
	}
	if res.LSN, err = pgwire.ParseLSN(row[0]); err != nil {
		return res, fmt.Errorf("read position: %w", err)
	}
	res.SystemID, res.Incarnation = row[1], row[2]
	res.XidLo, err = a.findXidLo(ctx)
	return res, err
}

// readReplay reads how far a standby has replayed, and on which timeline.
func (a *PostgresAgent) readReplay(ctx context.Context) (OrderResult, error) {
	row, err := a.queryRow(ctx, `SELECT coalesce(pg_last_wal_replay_lsn(), '0/0'),
		c.timeline_id, coalesce(r.min_recovery_end_timeline, 0)
		FROM pg_control_checkpoint() c, pg_control_recovery() r`)
	if err != nil {
		return OrderResult{}, fmt.Errorf("read position: %w", err)
	}
	replay, err1 := pgwire.ParseLSN(row[0])
	tl, err2 := strconv.ParseUint(row[1], 10, 32)
	minTL, err3 := strconv.ParseUint(row[2], 10, 32)
	if err := errors.Join(err1, err2, err3); err != nil {
		return OrderResult{}, fmt.Errorf("read position: %w", err)
	}
	return OrderResult{LSN: replay,
		Timeline: max(uint32(tl), uint32(minTL), a.walTimeline(replay))}, nil
}

// pgIncarnationSQL is the incarnation token: it changes with every start of a postmaster, which
// with restart_after_crash=off is every start of the shared memory (DESIGN 10.8).
const pgIncarnationSQL = `(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint::text`

// walTimeline is the highest timeline of which there is a WAL file that holds the position: what
// a standby replays last, before its next restart point puts it into pg_control. A timeline whose
// history is not there is none that it follows: of a timeline that was given up pg_rewind keeps
// the file in which the two diverged (since 17, and in later minor releases of the older ones).
func (a *PostgresAgent) walTimeline(lsn pgwire.LSN) uint32 {
	dir, err := os.Open(filepath.Join(a.cfg.DataDir, "pg_wal"))
	if err != nil || lsn == 0 {
		return 0
	}
	defer func() { _ = dir.Close() }()
	names, _ := dir.Readdirnames(-1)
	size := a.walSegmentBytes()
	seg := uint64(lsn-1) / size
	perID := (uint64(1) << 32) / size
	suffix := fmt.Sprintf("%08X%08X", seg/perID, seg%perID)
	best := uint64(0)
	for _, n := range names {
		if len(n) == 24 && strings.HasSuffix(n, suffix) {
			tl, err := strconv.ParseUint(n[:8], 16, 32)
			if err == nil && (tl == 1 || slices.Contains(names, n[:8]+".history")) {
				best = max(best, tl)
			}
		}
	}
	return uint32(best)
}

// walSegmentBytes is the size of a WAL file, taken from one of them.
func (a *PostgresAgent) walSegmentBytes() uint64 {
	files, _ := filepath.Glob(filepath.Join(a.cfg.DataDir, "pg_wal",
		strings.Repeat("[0-9A-F]", 24)))
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && info.Size() >= 1<<20 &&
			info.Size()&(info.Size()-1) == 0 {
			return uint64(info.Size())
		}
	}
	return 16 << 20
}

// xidSearchMax bounds the search for the next xid above the newest completed one: more than all
// that max_connections and prepared transactions with subtransactions plausibly hold open.
const xidSearchMax = 1 << 26

// findXidLo finds the smallest xid of which pg_xact_status says that it is in the future. The
// snapshot's xmax is only the newest *completed* xid + 1; xids in flight are above it (DESIGN
// 10.12).
func (a *PostgresAgent) findXidLo(ctx context.Context) (uint64, error) {
	row, err := a.queryRow(ctx, "SELECT pg_snapshot_xmax(pg_current_snapshot())")
	if err != nil {
		return 0, fmt.Errorf("read xid boundary: %w", err)
	}
	low, err := strconv.ParseUint(row[0], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read xid boundary: %w", err)
	}
	// known is the last one that is not in the future; unknown is one that is.
	known, step := low-1, uint64(1)
	unknown := low
	for {
		future, err := a.isFutureXid(ctx, unknown)
		if err != nil {
			return 0, err
		}
		if future {
			break
		}
		known, step = unknown, step*2
		unknown += step
		if step > xidSearchMax {
			return 0, errors.New("read xid boundary: no future xid found within the bound")
		}
	}
	for unknown-known > 1 {
		mid := known + (unknown-known)/2
		future, err := a.isFutureXid(ctx, mid)
		if err != nil {
			return 0, err
		}
		if future {
			unknown = mid
		} else {
			known = mid
		}
	}
	return unknown, nil
}

func (a *PostgresAgent) isFutureXid(ctx context.Context, xid uint64) (bool, error) {
	_, err := a.exec(ctx, fmt.Sprintf("SELECT pg_xact_status('%d'::xid8)", xid))
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "22023" { // "transaction ID ... is in the future"
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read xid boundary: %w", err)
	}
	return false, nil
}

func (a *PostgresAgent) needOurs() error {
	switch kind, why := a.inspectDir(); kind {
	case pgDirEmpty:
		return fmt.Errorf("%w: no data", ErrAgentDown)
	case pgDirForeign:
		return fmt.Errorf("%w: %s", ErrAgentForeign, why)
	case pgDirUnknown:
		return errors.New(why)
	case pgDirOurs:
		if a.record().Rewinding {
			return fmt.Errorf("%w: a rewind was interrupted", ErrAgentBusy)
		}
	}
	return nil
}

// isRunning tells whether there is a postmaster, and waits until it answers if so, or lets nobody
// in (errNoLogins).
func (a *PostgresAgent) isRunning(ctx context.Context) (bool, error) {
	if pid, _, err := a.postmaster(); err != nil || pid == 0 {
		return false, err
	}
	return true, a.waitReady(ctx, nil)
}

func (a *PostgresAgent) inRecovery(ctx context.Context) (bool, error) {
	row, err := a.queryRow(ctx, "SELECT pg_is_in_recovery()")
	if err != nil {
		return false, fmt.Errorf("read role: %w", err)
	}
	return row[0] == "t", nil
}

func (a *PostgresAgent) standbySignal() string {
	return filepath.Join(a.cfg.DataDir, "standby.signal")
}

func (a *PostgresAgent) hasStandbySignal() bool {
	_, err := os.Stat(a.standbySignal())
	return err == nil
}

// orderRestart restarts a standby, or starts one that was stopped.
func (a *PostgresAgent) orderRestart(ctx context.Context) (OrderResult, error) {
	if err := a.needOurs(); err != nil {
		return OrderResult{}, err
	}
	if !a.hasStandbySignal() {
		return OrderResult{}, fmt.Errorf("%w: it is no standby", ErrAgentRole)
	}
	if _, err := a.stopServer(ctx, a.cfg.StopTimeout); err != nil {
		return OrderResult{}, err
	}
	return OrderResult{}, a.startStandby(ctx, a.standbyConf(a.desiredUpstream()))
}

// startStandby starts the stopped server as a standby, also as one that lets nobody in for now.
func (a *PostgresAgent) startStandby(ctx context.Context, conf pgConf) error {
	if err := a.launchStandby(ctx, conf); !errors.Is(err, errNoLogins) {
		return err
	}
	return nil
}

// launchStandby is startStandby with errNoLogins for a server that lets nobody in.
func (a *PostgresAgent) launchStandby(ctx context.Context, conf pgConf) error {
	if err := a.endOrphans(ctx); err != nil {
		return err
	}
	if err := a.writeStandbyConf(conf); err != nil {
		return err
	}
	return a.startServer(ctx)
}

// writeStandbyConf makes the stopped server one that starts as a standby with that configuration.
func (a *PostgresAgent) writeStandbyConf(conf pgConf) error {
	if !a.hasStandbySignal() {
		if err := a.writeFile(a.standbySignal(), nil, 0o600); err != nil {
			return fmt.Errorf("write standby.signal: %w", err)
		}
	}
	if _, _, err := a.writeConf(a.cfg.DataDir, conf); err != nil {
		return err
	}
	_, err := a.dropOverrides()
	if err != nil {
		return err
	}
	_, _, err = a.writeHBA(a.cfg.DataDir, pgDoorOpen)
	return err
}
