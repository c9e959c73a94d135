package election

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"holdfast/pgwire"
)

// A standby that begins its recovery while the primary has a transaction with more than 64 open
// subtransactions cannot make a snapshot, and lets nobody in, before that transaction ends. It
// receives and acknowledges commits all the same. If the primary is lost, the transaction never
// ends: such a standby is asked, re-pointed and promoted by files and signals (DESIGN.md I93).

// errNoLogins says that a server recovers as a standby and lets nobody in.
var errNoLogins = errors.New("the standby recovers and takes no logins yet")

// noLoginsAfter is how long a standby must have let nobody in before it is handled by files: an
// ordinary start is sooner done.
const noLoginsAfter = time.Second

// recoveringText is what such a standby shows unless something worse is to be told.
const recoveringText = "it takes no logins yet: it replays WAL, or waits for the end of a " +
	"transaction with more than 64 open subtransactions"

// isNotYet tells that the postmaster let nobody in because of its state.
func isNotYet(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && pe.Code == "57P03"
}

// lookRecovering tells about a standby that takes no logins, from its files; ok is false if it is
// none. pg_control is read every two seconds only.
func (s *agentSampler) lookRecovering(ctx context.Context, pid int) (MemberStatus, bool) {
	if s.recovering.Pid == pid && time.Since(s.recoveringAt) < 2*time.Second {
		return s.recovering, true
	}
	if !s.a.hasStandbySignal() {
		return MemberStatus{}, false
	}
	c, err := s.a.controlData(ctx)
	// One whose backup has not ended can be neither recruited nor promoted.
	if err != nil || c.state != "in archive recovery" || !c.isWhole() {
		return MemberStatus{}, false
	}
	if s.recovering.Pid != pid {
		s.a.mu.Lock()
		s.a.recoverPid, s.a.recoverMin = pid, c.minLSN
		s.a.mu.Unlock()
	}
	lines, err := walLines(filepath.Join(s.a.cfg.DataDir, "pg_wal"), c)
	if err != nil {
		return MemberStatus{}, false
	}
	s.recoveringAt = time.Now()
	s.recovering = MemberStatus{Phase: PhaseRecovering, Pid: pid, SystemID: c.systemID,
		CheckpointTimeline: c.timeline, Timeline: max(lines[0].tl, c.minTL),
		LSN: max(c.checkpoint, c.minLSN)}
	return s.recovering, true
}

// letsNobodyIn tells that the postmaster's standby recovers and lets nobody in: for a while by
// now, or as one whose end is read from files anyway.
func (a *PostgresAgent) letsNobodyIn(pid int, word string) bool {
	if word != "starting" || !a.hasStandbySignal() {
		return false
	}
	if a.isQuiet {
		// Its children are there, so it has looked for orders to promote that are left over.
		pids, err := pgOrphans(a.cfg.DataDir)
		return err == nil && len(pids) > 1
	}
	st := a.Status()
	return st.Phase == PhaseRecovering && st.Pid == pid
}

// fenceByFiles is fence for a server that lets nobody in. Whether a running one has taken a new
// primary_conninfo cannot be seen from outside, so it is stopped: a server that is down
// acknowledges nothing, and the next start reads a file without an upstream. How far it is, its WAL
// tells.
func (a *PostgresAgent) fenceByFiles(ctx context.Context, syncNames string, wait pgwire.LSN,
) (OrderResult, error) {
	conf := pgConf{syncNames: syncNames, recruited: true}
	if !a.isQuiet {
		// One that has no position is left alone.
		if _, err := a.walControl(ctx); err != nil {
			return OrderResult{}, fmt.Errorf("read position: %w", err)
		}
		a.log.Warn("the standby takes no logins; it is fenced by a restart")
		// Written before, so that whoever else starts it meanwhile reads this.
		if err := a.tellConf(conf); err != nil {
			return OrderResult{}, err
		}
		if _, err := a.stopServer(ctx, min(2*time.Second, a.cfg.StopTimeout)); err != nil {
			return OrderResult{}, err
		}
	}
	if !a.hasStandbySignal() {
		return OrderResult{}, fmt.Errorf("%w: a promotion of it has ended just now", ErrAgentRole)
	}
	res, err := a.readQuiet(ctx)
	if err := errors.Join(err, a.launchAgain(ctx, conf)); err != nil {
		return OrderResult{}, err
	}
	if wait != 0 && res.LSN <= wait {
		return res, fmt.Errorf("the standby has WAL up to %v only, not the record at %v",
			res.LSN, wait)
	}
	return res, nil
}

// readQuiet reads the position of a standby that was stopped, or has run without an upstream since.
func (a *PostgresAgent) readQuiet(ctx context.Context) (OrderResult, error) {
	if !a.isQuiet {
		if err := a.syncWAL(); err != nil {
			return OrderResult{}, err
		}
		a.isQuiet, a.scan = true, nil
	}
	res, err := a.readWALEnd(ctx)
	if err != nil {
		return OrderResult{}, fmt.Errorf("read position: %w", err)
	}
	return res, nil
}

// launchAgain starts the standby that the fence has stopped, also if ctx has ended: in maintenance
// nobody else does.
func (a *PostgresAgent) launchAgain(ctx context.Context, conf pgConf) error {
	if pid, _, err := a.postmaster(); err != nil || pid != 0 {
		return err
	}
	end := time.Now().Add(time.Second)
	if d, ok := ctx.Deadline(); ok && d.After(end) {
		end = d
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), end)
	defer cancel()
	if err := a.launchStandby(ctx, conf); !errors.Is(err, errNoLogins) {
		return err
	}
	return nil
}

// promoteByFiles is orderPromote for a standby that lets nobody in. It opens as a primary behind
// the closed door, as one that is started in place does, since nothing could be proved before.
func (a *PostgresAgent) promoteByFiles(ctx context.Context, o Order) (OrderResult, error) {
	if err := a.pledge(o); err != nil {
		return OrderResult{}, err
	}
	pos, err := a.fenceByFiles(ctx, o.SyncNames, 0)
	if err != nil {
		return OrderResult{}, err
	}
	if _, _, err := a.writeHBA(a.cfg.DataDir, pgDoorClosed); err != nil {
		return OrderResult{}, err
	}
	a.verifiedHBA, a.toldSeq = "", "" // that file is read with the other
	if err := a.tellConf(pgConf{syncNames: o.SyncNames, recruited: true}); err != nil {
		return OrderResult{}, err
	}
	if err := a.beginPromotion(o, pos); err != nil {
		return OrderResult{}, err
	}
	if err := a.signalPromote(ctx); err != nil {
		return OrderResult{}, fmt.Errorf("promote: %w", err)
	}
	if err := a.emptyServer(ctx, o.SyncNames); err != nil {
		return OrderResult{}, err
	}
	if err := a.ensureSlots(ctx, o.Members); err != nil {
		return OrderResult{}, err
	}
	return a.finishPromotion(ctx, o, pos)
}

// signalPromote does what pg_ctl promote does, and returns once the server is a primary that takes
// logins. It replays all WAL that is here first.
func (a *PostgresAgent) signalPromote(ctx context.Context) error {
	pid, _, err := a.postmaster()
	if err != nil || pid == 0 {
		return errors.Join(ErrAgentDown, err)
	}
	if err := a.writeFile(a.promoteFile(), nil, 0o600); err != nil {
		return err
	}
	pgSignal(pid, unix.SIGUSR1, a.cfg.DataDir)
	for {
		if err := pauseFor(ctx, 3*time.Millisecond); err != nil {
			return err
		}
		now, word, err := a.postmaster()
		switch {
		case err != nil:
			return err
		case now != pid:
			return fmt.Errorf("the server ended: %w%s", ErrAgentDown, a.logSince(0))
		case word != "ready" && word != "standby":
			continue
		}
		if standby, err := a.inRecovery(ctx); err == nil && !standby {
			return nil
		}
	}
}

// tellConf writes the configuration of a server that cannot be asked whether it took it, and has
// its postmaster read it: since PostgreSQL 13 the startup process and the walreceiver follow.
func (a *PostgresAgent) tellConf(c pgConf) error {
	seq, changed, err := a.writeConf(a.cfg.DataDir, c)
	if err != nil {
		return err
	}
	dropped, err := a.dropOverrides()
	if err != nil {
		return err
	}
	pid, _, err := a.postmaster()
	if err != nil || pid == 0 {
		return err // the next start reads it
	}
	if a.toldSeq == seq && a.toldPid == pid && !changed && !dropped {
		return nil
	}
	pgSignal(pid, unix.SIGHUP, a.cfg.DataDir)
	a.toldSeq, a.toldPid, a.divergedAt = seq, pid, time.Time{}
	return nil
}

// dropOverrides takes what the agent manages out of postgresql.auto.conf, which goes before its own
// file. Nobody can run ALTER SYSTEM meanwhile: the server is down, or lets nobody in.
func (a *PostgresAgent) dropOverrides() (changed bool, err error) {
	path := filepath.Join(a.cfg.DataDir, "postgresql.auto.conf")
	old, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read settings: %w", err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(old)) {
		if _, isOurs := pgManaged[confName(line)]; !isOurs {
			b.WriteString(line)
		}
	}
	if b.Len() == len(old) {
		return false, nil
	}
	a.log.Warn("settings in postgresql.auto.conf that hide holdfast's are dropped")
	if err := a.writeFile(path, []byte(b.String()), 0o600); err != nil {
		return false, fmt.Errorf("reset settings: %w", err)
	}
	return true, nil
}

// confName is the name of a line's setting; what follows may begin with "=", or not.
func confName(line string) string {
	line = strings.ToLower(strings.TrimSpace(line))
	end := strings.IndexFunc(line, func(r rune) bool {
		return r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z')
	})
	if end < 0 {
		return line
	}
	return line[:end]
}

// divergedEvery is how often a standby that takes no logins is looked at for WAL that its primary
// does not have.
const divergedEvery = 10 * time.Second

// reconcileRecovering points a standby that lets nobody in at the member that it should follow.
func (a *PostgresAgent) reconcileRecovering(ctx context.Context, s agentStep) error {
	if s.mine || s.lock.Epoch < a.record().PrimaryEpoch {
		return nil // it is being promoted
	}
	up := a.desiredUpstream()
	if err := a.tellConf(a.standbyConf(up)); err != nil {
		return err
	}
	if up == nil || s.holder == nil || up.Name != s.holder.Name ||
		time.Since(a.divergedAt) < divergedEvery {
		return nil
	}
	view, err := a.viewHolder(ctx, *s.holder, s.lock)
	if err != nil {
		a.log.Debug("holder not asked", zap.Error(err))
		return nil
	}
	a.divergedAt = time.Now()
	look, cancel := a.yielding(ctx)
	pos, err := a.readWALEnd(look)
	isCut := look.Err() != nil
	cancel()
	if err != nil && isCut || errors.Is(err, errNotWhole) {
		return nil // the next look goes on from there
	}
	if err != nil {
		return err
	}
	if diverged, err := a.diverged(view, pos.Timeline, pos.LSN); err != nil || !diverged {
		return err
	}
	a.log.Warn("standby has diverged from the new primary", zap.Stringer("lsn", pos.LSN),
		zap.Uint32("timeline", pos.Timeline))
	a.unproved = math.MaxUint64
	pid, _, _ := pgPostmaster(a.cfg.DataDir)
	a.mu.Lock()
	if pid == a.recoverPid {
		a.unproved = a.recoverMin
	}
	a.mu.Unlock()
	if _, err := a.stopServer(ctx, a.cfg.StopTimeout); err != nil {
		return err
	}
	return a.rejoin(ctx, *s.holder, s.lock)
}
