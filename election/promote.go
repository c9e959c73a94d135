package election

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// orderPromote makes the recruited standby a primary and reads the boundary of the new epoch.
func (a *PostgresAgent) orderPromote(ctx context.Context, o Order) (OrderResult, error) {
	if err := a.needOurs(); err != nil {
		return OrderResult{}, err
	}
	if rec := a.record(); rec.Unentered && rec.PrimaryEpoch != o.Epoch {
		if err := a.disarmFor(ctx, o); err != nil {
			return OrderResult{}, err
		}
	}
	running, err := a.isRunning(ctx)
	if errors.Is(err, errNoLogins) {
		return a.promoteByFiles(ctx, o)
	}
	if err != nil {
		return OrderResult{}, err
	}
	standby := a.hasStandbySignal()
	if running {
		if standby, err = a.inRecovery(ctx); err != nil {
			return OrderResult{}, err
		}
	}
	if !standby {
		return a.promoteAgain(ctx, o, running)
	}
	if err := a.pledge(o); err != nil {
		return OrderResult{}, err
	}
	if running {
		if err := a.findWaitSlots(ctx, o.SyncNames); err != nil {
			return OrderResult{}, err
		}
	}
	// The fence of the recruit step is repeated: it costs a few ms if it stands already, and
	// makes an order without one safe.
	pos, err := a.fence(ctx, running, o.SyncNames, 0)
	if errors.Is(err, errNoLogins) {
		return a.promoteByFiles(ctx, o)
	}
	if err != nil {
		return OrderResult{}, err
	}
	if err := a.ensureSlots(ctx, o.Members); err != nil {
		return OrderResult{}, err
	}
	if err := a.beginPromotion(o, pos); err != nil {
		return OrderResult{}, err
	}
	if _, err := a.exec(ctx, "SELECT pg_promote(false)"); err != nil {
		return OrderResult{}, fmt.Errorf("promote: %w", err)
	}
	if err := a.awaitPromoted(ctx); err != nil {
		return OrderResult{}, err
	}
	return a.finishPromotion(ctx, o, pos)
}

// finishPromotion reads the boundary of a server that was just promoted, and proves that its
// commits wait for standbys. pos is where it was before.
func (a *PostgresAgent) finishPromotion(ctx context.Context, o Order, pos OrderResult,
) (OrderResult, error) {
	res, err := a.readPrimary(ctx)
	if err != nil {
		return res, err
	}
	// Before the proof, whose commits take xids: a client's COMMIT with one of those would be
	// in doubt, though it never came here.
	res.XidHi, err = a.allocateXid(ctx)
	if err != nil {
		return res, err
	}
	if err := a.proveWaiting(ctx, o.SyncNames); err != nil {
		return res, err
	}
	res.XidLo = min(pos.XidLo, res.XidHi)
	a.tellLogical(ctx, &res)
	return res, a.remember(o, res)
}

// tellLogical adds the logical slots to the result of a promotion. They only tell what was lost: a
// promotion does not fail for them.
func (a *PostgresAgent) tellLogical(ctx context.Context, res *OrderResult) {
	have, err := a.readLogical(ctx)
	if err != nil {
		a.log.Warn("logical slots are not known", zap.Error(err))
	}
	res.Logical, res.HasLogical = have, err == nil
}

// awaitPromoted returns once the server is a primary. pg_promote's own wait looks every 100 ms
// only.
func (a *PostgresAgent) awaitPromoted(ctx context.Context) error {
	for {
		if err := pauseFor(ctx, 3*time.Millisecond); err != nil {
			return fmt.Errorf("promote: %w", err)
		}
		if standby, err := a.inRecovery(ctx); err != nil || !standby {
			return err
		}
	}
}

// promoteAgain answers an order to promote what is a primary already. The boundary is between
// the xids of older locks and this server's; it stays true as long as nobody was served, that is
// as long as no lock named the promotion. A new incarnation does not move it either: xids at or
// past hi never came here before the promotion.
func (a *PostgresAgent) promoteAgain(ctx context.Context, o Order, running bool,
) (OrderResult, error) {
	rec := a.record()
	st, _ := a.deps.Source.State()
	if st.Lock != nil && st.Lock.Epoch >= rec.PrimaryEpoch && st.Lock.Epoch < o.Epoch {
		return OrderResult{}, fmt.Errorf("%w: it is, or was, the primary of a lock; start-primary "+
			"restarts it", ErrAgentRole)
	}
	if rec.ResultEpoch == o.Epoch && rec.SyncNames != o.SyncNames {
		// Two leaders with unlike configurations. The first may have entered the lock with its
		// rule; whoever still leads begins a fresh epoch.
		return OrderResult{}, fmt.Errorf("%w: it answered for epoch %d with the sync set %q already,"+
			" not %q", ErrAgentRole, o.Epoch, rec.SyncNames, o.SyncNames)
	}
	if err := a.pledge(o); err != nil {
		return OrderResult{}, err
	}
	if !running {
		if err := a.startClosed(ctx, o.SyncNames); err != nil {
			return OrderResult{}, err
		}
	}
	now, err := a.readPrimary(ctx)
	if err != nil {
		return OrderResult{}, err
	}
	if err := a.applyConf(ctx, pgConf{syncNames: o.SyncNames}); err != nil {
		return OrderResult{}, err
	}
	if err := a.ensureSlots(ctx, o.Members); err != nil {
		return OrderResult{}, err
	}
	if rec.Result != nil {
		now.XidLo, now.XidHi = rec.Result.XidLo, rec.Result.XidHi
	}
	if rec.Result == nil || rec.ResultEpoch == 0 {
		// The agent was cut off between the promotion and its answer. An upper end that is read
		// later is higher, which only makes more xids unknown.
		if now.XidHi, err = a.allocateXid(ctx); err != nil {
			return OrderResult{}, err
		}
	}
	if r := rec.Result; r == nil || rec.ResultEpoch == 0 || r.Incarnation != now.Incarnation {
		if err := a.proveWaiting(ctx, o.SyncNames); err != nil {
			return OrderResult{}, err
		}
	}
	a.tellLogical(ctx, &now)
	return now, a.remember(o, now)
}

// remember makes the answer durable, so that a repeated order gets the same one.
func (a *PostgresAgent) remember(o Order, res OrderResult) error {
	return a.updateRecord(func(r *agentRecord) {
		r.PrimaryEpoch, r.SyncNames, r.Upstream = o.Epoch, o.SyncNames, nil
		r.Result, r.ResultEpoch, r.SystemID = &res, o.Epoch, res.SystemID
		r.Served = &agentStart{res.Incarnation, a.startSeen}
	})
}

// readPrimary reads timeline, position and incarnation in one query. The LSN is the switch point
// of the timeline if it began with a promotion: what lies past it on the older timeline is lost.
func (a *PostgresAgent) readPrimary(ctx context.Context) (OrderResult, error) {
	a.startSeen = lastStart(a.cfg.DataDir) // before the query: a later start has another name
	row, err := a.queryRow(ctx, `SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
		pg_current_wal_lsn(), (SELECT system_identifier FROM pg_control_system()), `+
		pgIncarnationSQL)
	if err != nil {
		return OrderResult{}, fmt.Errorf("read the new primary: %w", err)
	}
	tl, err1 := strconv.ParseUint(row[0], 16, 32)
	lsn, err2 := pgwire.ParseLSN(row[1])
	if err := errors.Join(err1, err2); err != nil {
		return OrderResult{}, fmt.Errorf("read the new primary: %w", err)
	}
	res := OrderResult{Timeline: uint32(tl), LSN: lsn, SystemID: row[2], Incarnation: row[3]}
	history, err := os.ReadFile(filepath.Join(a.cfg.DataDir, "pg_wal",
		fmt.Sprintf("%08X.history", tl)))
	if err == nil {
		if forks := pgParseHistory(string(history)); len(forks) > 0 {
			res.LSN = forks[len(forks)-1].at
		}
	}
	return res, nil
}

// pgFork is a line of a timeline history file: timeline tl was left at a position.
type pgFork struct {
	tl uint32
	at pgwire.LSN
}

// pgParseHistory reads a timeline history file (manual, "Timelines"); bad lines are skipped.
func pgParseHistory(text string) []pgFork {
	var forks []pgFork
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		tl, err1 := strconv.ParseUint(f[0], 10, 32)
		at, err2 := pgwire.ParseLSN(f[1])
		if err1 == nil && err2 == nil {
			forks = append(forks, pgFork{uint32(tl), at})
		}
	}
	return forks
}

// allocateXid takes a fresh xid: every xid at or past it was given out later. It is rolled back,
// so that no commit record waits for standbys.
func (a *PostgresAgent) allocateXid(ctx context.Context) (uint64, error) {
	row, err := a.queryRow(ctx, "BEGIN; SELECT pg_current_xact_id(); ROLLBACK")
	if err != nil {
		return 0, fmt.Errorf("read next xid: %w", err)
	}
	xid, err := strconv.ParseUint(row[0], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read next xid: %w", err)
	}
	return xid, nil
}

// orderFollow points the standby at the order's upstream.
func (a *PostgresAgent) orderFollow(ctx context.Context, o Order) (OrderResult, error) {
	if o.Upstream.Postgres == "" || o.Upstream.Name == a.cfg.Name {
		return OrderResult{}, errors.New("the order names no other member to follow")
	}
	if err := a.needOurs(); err != nil {
		return OrderResult{}, err
	}
	if err := a.disarmFor(ctx, o); err != nil {
		return OrderResult{}, err
	}
	running, err := a.isRunning(ctx)
	letsNobodyIn := errors.Is(err, errNoLogins)
	if err != nil && !letsNobodyIn {
		return OrderResult{}, err
	}
	standby := a.hasStandbySignal()
	if running && !letsNobodyIn {
		if standby, err = a.inRecovery(ctx); err != nil {
			return OrderResult{}, err
		}
	}
	if !standby {
		return OrderResult{}, fmt.Errorf("%w: it is or was a primary; it rejoins when the new lock "+
			"is committed", ErrAgentRole)
	}
	if err := a.pledge(o); err != nil {
		return OrderResult{}, err
	}
	up := o.Upstream
	err = a.updateRecord(func(r *agentRecord) { r.Upstream, r.UpstreamEpoch = &up, o.Epoch })
	if err != nil {
		return OrderResult{}, err
	}
	conf := pgConf{upstream: &up, syncNames: a.standbySync()}
	if letsNobodyIn {
		return OrderResult{}, a.tellConf(conf)
	}
	if !running {
		err := a.launchStandby(ctx, conf)
		if errors.Is(err, errNoLogins) {
			return OrderResult{}, nil // it has read the configuration at its start
		}
		if err != nil {
			return OrderResult{}, err
		}
	}
	return OrderResult{}, a.applyConf(ctx, conf)
}

// orderStop stops the primary and answers where its shutdown checkpoint is.
func (a *PostgresAgent) orderStop(ctx context.Context, o Order) (OrderResult, error) {
	if err := a.needOurs(); err != nil {
		return OrderResult{}, err
	}
	if err := a.pledge(o); err != nil {
		return OrderResult{}, err
	}
	if _, err := a.stopServer(ctx, a.cfg.StopTimeout); err != nil {
		return OrderResult{}, err
	}
	c, err := a.controlData(ctx)
	if err != nil {
		return OrderResult{}, err
	}
	if c.state != "shut down" {
		return OrderResult{}, fmt.Errorf("the server is down, but not cleanly (%s): it has no "+
			"shutdown checkpoint to hand over", c.state)
	}
	return OrderResult{LSN: c.checkpoint, Timeline: c.timeline, SystemID: c.systemID}, nil
}

// orderStartPrimary starts the primary in place, or takes a running one over into a new epoch.
func (a *PostgresAgent) orderStartPrimary(ctx context.Context, o Order) (OrderResult, error) {
	if err := a.needOurs(); err != nil {
		return OrderResult{}, err
	}
	if a.hasStandbySignal() {
		return OrderResult{}, fmt.Errorf("%w: it is a standby", ErrAgentRole)
	}
	if err := a.pledge(o); err != nil {
		return OrderResult{}, err
	}
	running, err := a.isRunning(ctx)
	if err != nil {
		return OrderResult{}, err
	}
	if rec := a.record(); running && rec.ResultEpoch == o.Epoch && rec.Result != nil {
		if now, err := a.readPrimary(ctx); err == nil && now.Incarnation == rec.Result.Incarnation {
			return *rec.Result, nil
		}
	}
	err = a.updateRecord(func(r *agentRecord) {
		r.PrimaryEpoch, r.Upstream, r.Result = o.Epoch, nil, nil
		r.SyncNames, r.Reinit = o.SyncNames, false
	})
	if err != nil {
		return OrderResult{}, err
	}
	first := ""
	if running {
		err = a.emptyServer(ctx, o.SyncNames)
	} else {
		first, err = a.startAgain(ctx, o.SyncNames)
	}
	if err != nil {
		return OrderResult{}, err
	}
	if err := a.noteStartXid(ctx, first); err != nil {
		return OrderResult{}, err
	}
	if err := a.ensureSlots(ctx, o.Members); err != nil {
		return OrderResult{}, err
	}
	if err := a.proveWaiting(ctx, o.SyncNames); err != nil {
		return OrderResult{}, err
	}
	res, err := a.readPrimary(ctx)
	if err != nil {
		return res, err
	}
	rec := a.record()
	res.XidLo, res.XidHi = rec.StartLo, rec.StartXid
	return res, a.remember(o, res)
}

// startClosed starts the stopped server as a primary behind the closed door.
func (a *PostgresAgent) startClosed(ctx context.Context, syncNames string) error {
	if err := a.endOrphans(ctx); err != nil {
		return err
	}
	if _, _, err := a.writeConf(a.cfg.DataDir, pgConf{syncNames: syncNames}); err != nil {
		return err
	}
	if _, _, err := a.writeHBA(a.cfg.DataDir, pgDoorClosed); err != nil {
		return err
	}
	return a.startServer(ctx)
}

// emptyServer closes the door of a running primary and ends every client's session.
func (a *PostgresAgent) emptyServer(ctx context.Context, syncNames string) error {
	if err := a.applyConf(ctx, pgConf{syncNames: syncNames}); err != nil {
		return err
	}
	if err := a.applyDoor(ctx, pgDoorClosed); err != nil {
		return err
	}
	for {
		rows, err := a.exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`)
		if err != nil {
			return fmt.Errorf("end sessions: %w", err)
		}
		if len(rows) == 0 {
			return nil
		}
		if err := pauseFor(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("end sessions: %w", err)
		}
	}
}
