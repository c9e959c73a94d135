package election

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"

	"holdfast/pgwire"
)

// agentSampler belongs to the goroutine that runs it, with its connection.
type agentSampler struct {
	a    *PostgresAgent
	conn *pgconn.PgConn
	pid  int // postmaster of conn
	// ctl is pg_control of the stopped server, as long as it stays stopped.
	ctl     *pgControl
	badFrom time.Time // since when the live server, of badPid, has not answered
	badPid  int
	// wasPrimary tells that the newest sample with a role was that of a primary.
	wasPrimary bool
	// recovering is what was last seen of a standby that takes no logins.
	recovering   MemberStatus
	recoveringAt time.Time
	// pending are the settings that waited for a start of the server when conn's backend had last
	// read its files at pendingOf; empty is that it was not asked.
	pending   []string
	pendingOf string
}

// runSample reads the server at every interval, quickly after events, and at once when its
// postmaster dies.
func (s *agentSampler) runSample(ctx context.Context) {
	defer func() { pgClose(s.conn) }()
	for {
		wait := s.a.cfg.SampleInterval
		if s.a.isHurried(time.Now()) {
			wait = min(wait, 25*time.Millisecond)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-s.a.kick:
		case <-t.C:
		}
		t.Stop()
		s.once(ctx)
	}
}

// once takes one sample and publishes it.
func (s *agentSampler) once(ctx context.Context) {
	st := s.look(ctx)
	if ctx.Err() != nil {
		return
	}
	rec := s.a.record()
	st.Name, st.Pledged, st.Adopted = s.a.cfg.Name, rec.Pledged, s.a.adoptedRole()
	st.Lost = rec.Lost
	if st.Phase == PhasePrimary {
		st.Sync = s.a.memberSync()
	}
	if s.keepsLogical(st) {
		st.Logical = s.a.Status().Logical
	}
	if st.SystemID == "" && st.Phase != PhaseForeign && st.Phase != PhaseEmpty {
		st.SystemID = rec.SystemID
	}
	s.a.publish(st)
	if s.a.lacksCheckpoint(st) {
		pgPoke(s.a.oldControl)
	}
}

// keepsLogical tells that the server was a primary when it last told its logical slots and does
// not answer now: what became of them with its successor is measured by them.
func (s *agentSampler) keepsLogical(st MemberStatus) bool {
	switch st.Phase {
	case PhasePrimary:
		s.wasPrimary = true
		return st.Problem != "" && st.Logical == nil
	case PhaseStopped, PhaseStarting, PhaseUnknown:
		return s.wasPrimary
	}
	s.wasPrimary = false
	return false
}

func (s *agentSampler) look(ctx context.Context) MemberStatus {
	a := s.a
	kind, why := a.inspectDir()
	pid, word, err := a.postmaster()
	if err == nil && kind == pgDirUnknown {
		err = errors.New(why)
	}
	if err != nil && s.conn != nil && a.watchedPid() != 0 {
		// The files cannot be looked at, but the server can be asked.
		kind, pid, err = pgDirOurs, s.pid, nil
	}
	if pid == 0 {
		pgClose(s.conn)
		s.conn, s.pid, s.badFrom = nil, 0, time.Time{}
	}
	if p := a.rebuild.Load(); p != nil {
		return MemberStatus{Phase: *p, Pid: pid}
	}
	switch {
	case err != nil:
		return MemberStatus{Phase: PhaseUnknown, Problem: err.Error()}
	case kind == pgDirForeign:
		return MemberStatus{Phase: PhaseForeign, Problem: why}
	case kind == pgDirEmpty:
		return MemberStatus{Phase: PhaseEmpty}
	case pid == 0:
		return s.lookStopped(ctx)
	}
	s.ctl = nil
	a.watch(ctx, pid)
	st, err := s.query(ctx, pid)
	if err == nil {
		s.badFrom = time.Time{}
		st.Pid = pid
		return st
	}
	pgClose(s.conn)
	s.conn = nil
	if s.badFrom.IsZero() || s.badPid != pid {
		s.badFrom, s.badPid = time.Now(), pid
	}
	old := a.Status()
	if again, _, err2 := a.postmaster(); err2 == nil && again == 0 {
		return s.lookStopped(ctx)
	}
	if word == "starting" && isNotYet(err) && time.Since(s.badFrom) > noLoginsAfter {
		if st, ok := s.lookRecovering(ctx, pid); ok {
			return st
		}
	}
	phase := PhaseStarting
	if old.Pid == pid && (old.Phase == PhasePrimary || old.Phase == PhaseStandby) {
		phase = old.Phase // alive, but does not answer
	}
	out := MemberStatus{Phase: phase, Pid: pid, Timeline: old.Timeline,
		Incarnation: old.Incarnation, ServerVersion: old.ServerVersion}
	if old.Pid != pid {
		out.Timeline, out.Incarnation = 0, ""
	}
	if d := time.Since(s.badFrom); d > a.cfg.QueryTimeout || pgIsAuthError(err) {
		out.Problem = "the server (" + word + ") does not answer: " + err.Error()
	}
	return out
}

// lookStopped tells that the server is down, after its orphans were ended: they could still
// write. While an order or a step runs, that one ends them, and the server counts as starting.
func (s *agentSampler) lookStopped(ctx context.Context) MemberStatus {
	a := s.a
	if pids, err := pgOrphans(a.cfg.DataDir); err != nil {
		return MemberStatus{Phase: PhaseUnknown, Problem: err.Error()}
	} else if len(pids) > 0 {
		select {
		case a.ops <- struct{}{}:
			err := a.endOrphans(ctx)
			a.unlockOps()
			if err != nil {
				return MemberStatus{Phase: PhaseStarting, Problem: err.Error()}
			}
		default:
			return MemberStatus{Phase: PhaseStarting}
		}
	}
	if s.ctl == nil {
		ctl, err := a.controlData(ctx)
		if err != nil {
			return MemberStatus{Phase: PhaseStopped, Problem: err.Error()}
		}
		s.ctl = &ctl
	}
	c := s.ctl
	return MemberStatus{Phase: PhaseStopped, SystemID: c.systemID, CheckpointTimeline: c.timeline,
		Timeline: max(c.timeline, c.minTL), LSN: max(c.checkpoint, c.minLSN)}
}

const pgSampleSQL = `SELECT pg_is_in_recovery(), ` + pgIncarnationSQL + `,
 current_setting('server_version_num'), i.system_identifier, c.timeline_id,
 coalesce(r.min_recovery_end_timeline, 0),
 CASE WHEN pg_is_in_recovery() THEN ''
  ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END,
 coalesce(CASE WHEN pg_is_in_recovery()
  THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
  ELSE pg_current_wal_insert_lsn() END, '0/0'),
 coalesce(pg_last_wal_replay_lsn(), '0/0'),
 coalesce(w.status, ''), coalesce(w.received_tli, 0), coalesce(w.sender_host, ''),
 coalesce(w.sender_port, 0), pg_conf_load_time()
FROM pg_control_system() i, pg_control_checkpoint() c, pg_control_recovery() r
 LEFT JOIN pg_stat_wal_receiver w ON true;
SELECT application_name, coalesce(state, ''), coalesce(sync_state, ''),
 coalesce(flush_lsn, '0/0'), coalesce(replay_lsn, '0/0') FROM pg_stat_replication
 WHERE application_name NOT LIKE 'holdfast clone %' ORDER BY 1 LIMIT 100;
SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'holdfast\_%' ORDER BY 1;
` + pgLogicalSQL

func (s *agentSampler) query(ctx context.Context, pid int) (MemberStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, s.a.cfg.QueryTimeout)
	defer cancel()
	if s.pid != pid {
		pgClose(s.conn)
		s.conn = nil
	}
	if s.conn == nil {
		c, err := s.a.connect(ctx)
		if err != nil {
			return MemberStatus{}, err
		}
		s.conn, s.pid = c, pid
		s.pending, s.pendingOf = nil, ""
	}
	results, err := s.conn.Exec(ctx, pgSampleSQL+strconv.Itoa(logicalMax)).ReadAll()
	if err != nil {
		return MemberStatus{}, err
	}
	st := s.a.readSample(results)
	if len(results) > 0 && len(results[0].Rows) > 0 {
		s.lookPending(ctx, string(results[0].Rows[0][13]))
		st.PendingRestart = s.pending
	}
	return st, nil
}

// readSample trusts the shape of the query above; a number that does not parse reads as 0.
func (a *PostgresAgent) readSample(results []*pgconn.Result) MemberStatus {
	var st MemberStatus
	num := func(b []byte, base int) uint64 {
		n, _ := strconv.ParseUint(string(b), base, 64)
		return n
	}
	lsn := func(b []byte) pgwire.LSN {
		l, _ := pgwire.ParseLSN(string(b))
		return l
	}
	if len(results) != 4 || len(results[0].Rows) != 1 {
		return MemberStatus{Phase: PhaseStarting, Problem: "the sample query gave no row"}
	}
	r := results[0].Rows[0]
	st.Incarnation, st.ServerVersion = string(r[1]), int(num(r[2], 10))
	st.SystemID, st.CheckpointTimeline = string(r[3]), uint32(num(r[4], 10))
	st.LSN = lsn(r[7])
	if string(r[0]) == "t" {
		st.Phase = PhaseStandby
		st.Streaming = string(r[9]) == "streaming"
		st.Timeline = max(st.CheckpointTimeline, uint32(num(r[5], 10)), uint32(num(r[10], 10)))
		if !st.Streaming {
			st.Timeline = max(st.Timeline, a.walTimeline(lsn(r[8])))
		}
		if len(r[11]) > 0 {
			st.Upstream = net.JoinHostPort(string(r[11]), string(r[12]))
		}
	} else {
		st.Phase, st.Timeline = PhasePrimary, uint32(num(r[6], 16))
	}
	for _, r := range results[1].Rows {
		st.Standbys = append(st.Standbys, StandbyStatus{Name: string(r[0]), State: string(r[1]),
			SyncState: string(r[2]), FlushLSN: lsn(r[3]), ReplayLSN: lsn(r[4])})
	}
	for _, r := range results[2].Rows {
		st.Slots = append(st.Slots, string(r[0]))
	}
	for _, r := range results[3].Rows {
		row := make([]string, len(r))
		for i, v := range r {
			row[i] = string(v)
		}
		st.Logical = append(st.Logical, logicalSlot(row))
	}
	return st
}

// publish replaces the status, and wakes those who wait if it matters for a decision.
func (a *PostgresAgent) publish(st MemberStatus) {
	a.mu.Lock()
	if st.Problem == "" {
		st.Problem = a.problem
	}
	if st.Problem == "" {
		st.Problem = a.slotProblem
	}
	if st.Problem == "" && st.Phase == PhaseStandby {
		st.Problem = a.sizeProblem
	}
	if st.Problem == "" && st.Phase == PhaseRecovering {
		st.Problem = recoveringText
	}
	old := a.status
	a.status = st
	wake := !agentSameForDecision(old, st)
	if wake {
		close(a.changed)
		a.changed = make(chan struct{})
	}
	a.mu.Unlock()
	if wake {
		pgPoke(a.work)
	}
	if old.Phase != st.Phase {
		a.log.Info("member phase", zap.String("phase", string(st.Phase)),
			zap.String("was", string(old.Phase)), zap.Uint32("timeline", st.Timeline),
			zap.Stringer("lsn", st.LSN))
	}
}

func agentSameForDecision(x, y MemberStatus) bool {
	sameStandby := func(p, q StandbyStatus) bool {
		return p.Name == q.Name && p.State == q.State && p.SyncState == q.SyncState
	}
	sameLogical := func(p, q LogicalSlot) bool { p.LSN, q.LSN = 0, 0; return p == q }
	return x.Phase == y.Phase && x.Pid == y.Pid && x.Incarnation == y.Incarnation &&
		x.SystemID == y.SystemID && x.Timeline == y.Timeline && x.Streaming == y.Streaming &&
		x.Upstream == y.Upstream && x.Pledged == y.Pledged && x.Problem == y.Problem &&
		x.CheckpointTimeline == y.CheckpointTimeline && x.Sync == y.Sync &&
		x.Adopted == y.Adopted &&
		slices.EqualFunc(x.Standbys, y.Standbys, sameStandby) && slices.Equal(x.Slots, y.Slots) &&
		slices.EqualFunc(x.Logical, y.Logical, sameLogical)
}
