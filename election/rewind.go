package election

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// errAgentWait says that a step has to wait for the new primary; it is tried again.
var errAgentWait = errors.New("waiting for the new primary")

// pgHolderView is what this member needs to know of the holder to rejoin it.
type pgHolderView struct {
	timeline   uint32   // by IDENTIFY_SYSTEM
	checkpoint uint32   // timeline in its pg_control
	forks      []pgFork // where older timelines were left
}

// viewHolder asks the lock's holder for its timeline history. It answers errAgentWait while the
// server there is not yet what the lock says.
func (a *PostgresAgent) viewHolder(ctx context.Context, holder Member, lock *Lock,
) (pgHolderView, error) {
	ctx, cancel := a.yielding(ctx)
	defer cancel()
	c, err := a.dialMember(ctx, holder, pgReplicationRole, a.secrets.replication, true)
	if err != nil {
		return pgHolderView{}, err
	}
	defer pgClose(c)
	rows, err := pgQuery(ctx, c, "IDENTIFY_SYSTEM")
	if err != nil || len(rows) != 1 || len(rows[0]) < 2 {
		return pgHolderView{}, fmt.Errorf("identify %q: %w", holder.Name, err)
	}
	if own := a.record().SystemID; own != "" && rows[0][0] != own {
		return pgHolderView{}, fmt.Errorf("%w: %q has system id %s, this member %s",
			ErrAgentForeign, holder.Name, rows[0][0], own)
	}
	tl, err := strconv.ParseUint(rows[0][1], 10, 32)
	if err != nil {
		return pgHolderView{}, fmt.Errorf("identify %q: %w", holder.Name, err)
	}
	v := pgHolderView{timeline: uint32(tl)}
	if v.timeline < lock.Timeline {
		return v, fmt.Errorf("%w: %q is on timeline %d, the lock on %d", errAgentWait,
			holder.Name, v.timeline, lock.Timeline)
	}
	if v.timeline > 1 {
		rows, err := pgQuery(ctx, c, fmt.Sprintf("TIMELINE_HISTORY %d", v.timeline))
		if err != nil || len(rows) != 1 || len(rows[0]) < 2 {
			return v, fmt.Errorf("timeline history of %q: %w", holder.Name, err)
		}
		v.forks = pgParseHistory(rows[0][1])
	}
	l, err := a.dialMember(ctx, holder, pgLookupRole, a.secrets.lookup, false)
	if err != nil {
		return v, err
	}
	defer pgClose(l)
	rows, err = pgQuery(ctx, l, "SELECT timeline_id FROM pg_control_checkpoint()")
	if err != nil || len(rows) != 1 {
		return v, fmt.Errorf("checkpoint of %q: %w", holder.Name, err)
	}
	cp, err := strconv.ParseUint(rows[0][0], 10, 32)
	if err != nil {
		return v, fmt.Errorf("checkpoint of %q: %w", holder.Name, err)
	}
	v.checkpoint = uint32(cp)
	return v, nil
}

// diverged tells whether WAL up to end on timeline tl is not part of the holder's history.
func (v pgHolderView) diverged(tl uint32, end pgwire.LSN) bool {
	if tl == v.timeline {
		return false
	}
	for _, f := range v.forks {
		if f.tl == tl {
			return end > f.at
		}
	}
	return true
}

// rejoin makes the stopped server a standby of the holder: as it is if it has not diverged, else
// by pg_rewind, else by a clone. The caller holds ops; orphans are gone.
func (a *PostgresAgent) rejoin(ctx context.Context, holder Member, lock *Lock) error {
	view, err := a.viewHolder(ctx, holder, lock)
	if err != nil {
		return err
	}
	rec := a.record()
	ctl, err := a.controlData(ctx)
	if err != nil && !rec.Rewinding {
		return err
	}
	if !rec.Rewinding && a.mayJustFollow(view, ctl) {
		a.log.Info("rejoining without rewind", zap.Uint64("epoch", lock.Epoch))
		return a.startRejoined(ctx, holder)
	}
	if view.checkpoint < lock.Timeline {
		// pg_rewind of 13 to 15 would say "no rewind required" (DESIGN 10.11).
		return fmt.Errorf("%w: %q has no checkpoint on timeline %d yet", errAgentWait,
			holder.Name, lock.Timeline)
	}
	a.log.Warn("data has diverged; rewinding", zap.Uint64("epoch", lock.Epoch),
		zap.Uint32("timeline", ctl.timeline), zap.Uint32("to_timeline", view.timeline))
	if !rec.Rewinding { // else it was reported before, and the WAL is not whole any more
		a.reportLost(ctx, view, ctl, lock.Epoch)
	}
	rerr := a.rewindServer(ctx, holder, ctl)
	if rerr != nil {
		if ctx.Err() != nil {
			return rerr
		}
		a.log.Error("rewind not possible; cloning", zap.Error(rerr))
		if err := a.cloneServer(ctx, holder, lock.Epoch, "rewind not possible"); err != nil {
			return errors.Join(rerr, err)
		}
	}
	return a.startRejoined(ctx, holder)
}

// mayJustFollow tells whether the local WAL surely ends within the holder's history. A crashed
// server does not know its own end: pg_rewind finds out.
func (a *PostgresAgent) mayJustFollow(v pgHolderView, c pgControl) bool {
	switch c.state {
	case "shut down":
		// The shutdown checkpoint is the last record; it starts before the fork or is lost.
		return !v.diverged(c.timeline, c.checkpoint+1)
	case "shut down in recovery", "in archive recovery":
		return a.hasStandbySignal() && !v.diverged(max(c.timeline, c.minTL), c.minLSN)
	}
	return false
}

func (a *PostgresAgent) startRejoined(ctx context.Context, holder Member) error {
	err := a.updateRecord(func(r *agentRecord) { r.PrimaryEpoch, r.Result, r.StartXid = 0, nil, 0 })
	if err != nil {
		return err
	}
	conf := pgConf{upstream: &holder, syncNames: a.standbySync()}
	return a.startStandby(ctx, conf)
}

// rewindServer runs pg_rewind. The durable mark says that the directory is not whole; it stays
// until all that pg_rewind copied from the source is this member's own again.
func (a *PostgresAgent) rewindServer(ctx context.Context, holder Member, c pgControl) error {
	defer a.rebuilding(PhaseRewind)()
	if c.state == "in archive recovery" && a.hasStandbySignal() {
		// pg_rewind ends a crash by single-user mode, which no standby can enter.
		conf := pgConf{syncNames: a.standbySync(), recruited: true}
		err := a.launchStandby(ctx, conf)
		// A server that lets nobody in may not be consistent yet.
		for end := time.Now().Add(a.cfg.StartTimeout); errors.Is(err, errNoLogins) &&
			time.Now().Before(end); err = a.waitReady(ctx, nil) {
			if err := pgSleep(ctx, 100*time.Millisecond); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		if _, err := a.stopServer(ctx, a.cfg.StopTimeout); err != nil {
			return err
		}
	} else if a.unproved != 0 && c.minLSN <= a.unproved {
		return errors.New("it was stopped before its data were seen to be consistent")
	}
	info, err := a.conninfo(holder, pgRewindRole, "holdfast rewind "+a.cfg.Name)
	if err != nil {
		return err
	}
	if err := a.updateRecord(func(r *agentRecord) { r.Rewinding = true }); err != nil {
		return err
	}
	begin := time.Now()
	out, err := a.run(ctx, "pg_rewind", "-D", a.cfg.DataDir,
		"--source-server="+info+" dbname=postgres")
	if err != nil {
		return err
	}
	if strings.Contains(out, "no rewind required") {
		a.log.Info("no rewind required")
	}
	if err := a.finishCopy(a.cfg.DataDir, holder); err != nil {
		return err
	}
	if err := a.writeMarker(a.cfg.DataDir, a.record().SystemID); err != nil {
		return err
	}
	a.log.Info("rewound", zap.Duration("took", time.Since(begin)))
	return a.updateRecord(func(r *agentRecord) { r.Rewinding = false })
}
