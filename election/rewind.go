package election

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
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

// diverged tells whether WAL up to end on a member's timeline is not part of the holder's history.
// Two timelines of one number that began at different places are not the same one.
func (v pgHolderView) diverged(own pgOwnLine, end pgwire.LSN) bool {
	theirs := append(slices.Clone(v.forks), pgFork{v.timeline, math.MaxUint64})
	ours := append(slices.Clone(own.forks), pgFork{own.tl, math.MaxUint64})
	common := pgwire.LSN(0)
	for i := range min(len(theirs), len(ours)) {
		if theirs[i].tl != ours[i].tl {
			break
		}
		common = min(theirs[i].at, ours[i].at)
		if theirs[i].at != ours[i].at {
			break
		}
	}
	return end > common
}

// beginOf is where a timeline of the holder's began.
func (v pgHolderView) beginOf(tl uint32) (pgwire.LSN, bool) {
	begin := pgwire.LSN(0)
	for _, f := range append(slices.Clone(v.forks), pgFork{v.timeline, 0}) {
		if f.tl == tl {
			return begin, true
		}
		begin = f.at
	}
	return 0, false
}

// pgOwnLine is the timeline of this member's WAL, and where it left those before.
type pgOwnLine struct {
	tl    uint32
	forks []pgFork
	// isOwn tells that it wrote to it as a primary, isUnentered that it began it by a promotion of
	// which no lock was seen.
	isOwn, isUnentered bool
}

func (l pgOwnLine) begin() pgwire.LSN {
	if len(l.forks) == 0 {
		return 0
	}
	return l.forks[len(l.forks)-1].at
}

// hides tells that the history cannot show that the member's timeline is not the holder's of that
// number, by which pg_rewind goes. Who wrote to the holder's present one as a primary has written
// another one; two promotions at one place begin two that look alike.
func (v pgHolderView) hides(own pgOwnLine) bool {
	begin, ok := v.beginOf(own.tl)
	return ok && (own.isOwn && own.tl == v.timeline || own.isUnentered && begin == own.begin())
}

// diverged is that of the view, for a timeline of this member's.
func (a *PostgresAgent) diverged(v pgHolderView, tl uint32, end pgwire.LSN) (bool, error) {
	own, err := a.lineOf(v, tl)
	return v.diverged(own, end), err
}

// lineOf reads the history of a timeline in pg_wal. Without one only the number can be compared.
func (a *PostgresAgent) lineOf(v pgHolderView, tl uint32) (pgOwnLine, error) {
	own := pgOwnLine{tl: tl}
	if tl == 1 {
		return own, nil
	}
	b, err := os.ReadFile(filepath.Join(a.cfg.DataDir, "pg_wal", fmt.Sprintf("%08X.history", tl)))
	if err == nil {
		own.forks = pgParseHistory(string(b))
		return own, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return own, fmt.Errorf("read history of timeline %d: %w", tl, err)
	}
	for i, f := range append(slices.Clone(v.forks), pgFork{tl: v.timeline}) {
		if f.tl == tl {
			own.forks = v.forks[:i]
		}
	}
	return own, nil
}

// ownLine is the newest timeline of the stopped server.
func (a *PostgresAgent) ownLine(v pgHolderView, c pgControl) (pgOwnLine, error) {
	tl, isOwn := max(c.timeline, c.minTL), !a.hasStandbySignal()
	if isOwn { // a crash may have come before the first checkpoint of its timeline
		lines, err := walLines(filepath.Join(a.cfg.DataDir, "pg_wal"), c)
		if err != nil {
			return pgOwnLine{}, err
		}
		tl = max(tl, lines[0].tl)
	}
	own, err := a.lineOf(v, tl)
	own.isOwn, own.isUnentered = isOwn, isOwn && a.record().Unentered
	return own, err
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
	own := pgOwnLine{}
	if !rec.Rewinding { // else the directory is not one's own any more, nor the other's yet
		if own, err = a.ownLine(view, ctl); err != nil {
			return err
		}
		if a.mayJustFollow(view, own, ctl) {
			a.log.Info("rejoining without rewind", zap.Uint64("epoch", lock.Epoch))
			return a.startRejoined(ctx, holder)
		}
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
	rerr := errSameNumber
	if own.tl != view.timeline && !view.hides(own) {
		rerr = a.rewindServer(ctx, holder, ctl)
	}
	if rerr != nil {
		// No server may run in a directory that is renamed.
		if _, err := a.stopServer(ctx, a.cfg.StopTimeout); err != nil {
			return errors.Join(rerr, err)
		}
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
func (a *PostgresAgent) mayJustFollow(v pgHolderView, own pgOwnLine, c pgControl) bool {
	if v.hides(own) {
		return false
	}
	switch c.state {
	case "shut down":
		// The shutdown checkpoint is the last record; it starts before the fork or is lost.
		return !v.diverged(own, c.checkpoint+1)
	case "shut down in recovery", "in archive recovery":
		return a.hasStandbySignal() && !v.diverged(own, c.minLSN)
	}
	return false
}

func (a *PostgresAgent) startRejoined(ctx context.Context, holder Member) error {
	err := a.updateRecord(func(r *agentRecord) {
		r.PrimaryEpoch, r.Result, r.StartXid, r.Unentered = 0, nil, 0, false
	})
	if err != nil {
		return err
	}
	conf := pgConf{upstream: &holder, syncNames: a.standbySync()}
	return a.startStandby(ctx, conf)
}

// errSameNumber says why pg_rewind is of no use.
var errSameNumber = errors.New("its timeline has the number of one of the new primary's and is " +
	"another: pg_rewind would take the two for one")

// recoverOnce ends the recovery of a standby that crashed, and stops it cleanly: pg_rewind ends a
// crash by single-user mode, which no standby can enter. It leaves no server running.
func (a *PostgresAgent) recoverOnce(ctx context.Context) error {
	err := a.launchStandby(ctx, pgConf{syncNames: a.standbySync(), recruited: true})
	// A server that lets nobody in may not be consistent yet.
	for end := time.Now().Add(a.cfg.StartTimeout); errors.Is(err, errNoLogins) &&
		time.Now().Before(end); err = a.waitReady(ctx, nil) {
		if err = pauseFor(ctx, 100*time.Millisecond); err != nil {
			break
		}
	}
	_, stopErr := a.stopServer(ctx, a.cfg.StopTimeout)
	return errors.Join(err, stopErr)
}

// rewindServer runs pg_rewind. The durable mark says that the directory is not whole; it stays
// until all that pg_rewind copied from the source is this member's own again.
func (a *PostgresAgent) rewindServer(ctx context.Context, holder Member, c pgControl) error {
	defer a.rebuilding(PhaseRewind)()
	a.scan = nil
	if c.state == "in archive recovery" && a.hasStandbySignal() {
		if err := a.recoverOnce(ctx); err != nil {
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
