package election

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"
)

// Bounds of the proof of a rule: of one attempt, during which the server's other work of the agent
// waits; and after how long a walsender that does not take the setting is ended.
const (
	syncAttempt  = 700 * time.Millisecond
	syncEndAfter = 3 * time.Second
	syncPoll     = 3 * time.Millisecond
)

// syncProof is how far the agent is with a record of the sync set; it belongs to the holder of
// ops.
type syncProof struct {
	epoch, seq uint64
	began      time.Time
	// isStalled tells that every process is known to have left the older rules.
	isStalled bool
	// barrier is a position read once no process had an older rule: what was acknowledged by one
	// is below it. A standby that lags has more than one attempt to reach it.
	barrier string
	isDone  bool
}

// standingSync is the rule to which a primary is brought; ok is false while there is no record for
// its lock, or only one that is older than what was done already: then nothing is done.
func (a *PostgresAgent) standingSync(st *State) (last SyncRule, ok bool) {
	sy, rec := st.Sync, a.record()
	if sy == nil || sy.Epoch != st.Lock.Epoch || len(sy.Rules) == 0 || sy.Epoch < rec.SyncEpoch ||
		sy.Epoch == rec.SyncEpoch && sy.Seq < rec.SyncSeq {
		return SyncRule{}, false
	}
	return sy.Rules[len(sy.Rules)-1], true
}

// reconcileSync brings a primary's synchronous_standby_names to the last rule of the replicated
// record, or keeps the one of its promotion while there is none, and proves that no process
// acknowledges commits by an older one (DESIGN.md I41, I42).
func (a *PostgresAgent) reconcileSync(ctx context.Context, st *State) error {
	sy, rec := st.Sync, a.record()
	last, ok := a.standingSync(st)
	setting := rec.SyncNames
	if ok {
		setting = last.Setting()
	}
	if err := a.findWaitSlots(ctx, setting); err != nil {
		return err
	}
	if !ok {
		return a.applyConf(ctx, pgConf{syncNames: setting})
	}
	if rec.SyncEpoch != sy.Epoch || rec.SyncSeq != sy.Seq || rec.SyncNames != last.Setting() {
		err := a.updateRecord(func(r *agentRecord) {
			r.SyncEpoch, r.SyncSeq, r.SyncNames = sy.Epoch, sy.Seq, last.Setting()
		})
		if err != nil {
			return err
		}
	}
	if p := a.syncProof; p.epoch != sy.Epoch || p.seq != sy.Seq {
		a.syncProof = syncProof{epoch: sy.Epoch, seq: sy.Seq, began: time.Now()}
	}
	var err error
	if !a.syncProof.isDone && len(sy.Rules) > 1 {
		err = a.proveSync(ctx, sy.Rules)
	}
	// Whatever became of the proof, the setting is that of the last rule.
	if cerr := a.applyConf(ctx, pgConf{syncNames: last.Setting()}); cerr != nil {
		return cerr
	}
	if err != nil {
		a.log.Debug("sync set not proved yet", zap.Error(err))
		return nil
	}
	if !a.syncProof.isDone {
		a.syncProof.isDone = true
		a.mu.Lock()
		a.provedSync = MemberSync{Epoch: sy.Epoch, Seq: sy.Seq}
		a.mu.Unlock()
		a.log.Info("sync set in force", zap.Stringer("rule", last), zap.Uint64("seq", sy.Seq))
		pgPoke(a.kick)
	}
	return nil
}

// proveSync makes one attempt at the proof. It gives way to orders.
func (a *PostgresAgent) proveSync(ctx context.Context, rules []SyncRule) error {
	ctx, cancel := a.yielding(ctx)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, syncAttempt)
	defer cancel()
	last, needs := rules[len(rules)-1], needsOf(rules)
	if needs.stall && !a.syncProof.isStalled {
		if err := a.stallSync(ctx, rules, needs.probe); err != nil {
			return err
		}
		a.syncProof.isStalled = true
	}
	if err := a.applyConf(ctx, pgConf{syncNames: last.Setting()}); err != nil {
		return err
	}
	if err := a.proveReload(ctx); err != nil {
		return err
	}
	if err := a.awaitWalsenders(ctx, rules, false); err != nil {
		return err
	}
	if last.Wait > 0 {
		// Walsenders answer commits when a standby tells its position, not when they read a
		// setting: what they held back until now waits for more WAL, which others may not write.
		if _, err := a.exec(ctx, "SELECT pg_logical_emit_message(true, 'holdfast', '')"); err != nil {
			return fmt.Errorf("write to the log: %w", err)
		}
	}
	if !needs.barrier {
		return nil
	}
	return a.awaitBarrier(ctx, last)
}

// stallSync stops all acknowledgements by a setting that no process can mistake for an older one,
// until each walsender has shown it and, if need be, a commit was seen to wait.
func (a *PostgresAgent) stallSync(ctx context.Context, rules []SyncRule, probe bool) error {
	last := rules[len(rules)-1]
	if err := a.applyConf(ctx, pgConf{syncNames: last.stallSetting()}); err != nil {
		return err
	}
	if err := a.proveReload(ctx); err != nil {
		return err
	}
	if err := a.awaitWalsenders(ctx, rules, true); err != nil {
		return err
	}
	if !probe {
		return nil
	}
	return a.seeCommitWait(ctx)
}

// proveReload reads the sequence number of the file from a backend that was started after the
// reload: when it has it, the postmaster has signalled every older process.
func (a *PostgresAgent) proveReload(ctx context.Context) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer pgClose(c)
	rows, err := pgQuery(ctx, c, "SELECT current_setting('holdfast.conf_seq', true)")
	if err != nil || len(rows) != 1 || rows[0][0] != a.verifiedSeq {
		return fmt.Errorf("a new backend has not read version %s of %s: %w", a.verifiedSeq,
			pgConfName, err)
	}
	return nil
}

// walsendersBehind selects the walsenders that still have another setting, by the priority that
// each writes itself when it has read one: ANY gives 1, stallSetting more, neither gives 0. One
// that has not told a flush position shows 0 whatever it has.
func walsendersBehind(rules []SyncRule, isStall bool) string {
	last := rules[len(rules)-1]
	var all []string
	for _, r := range rules {
		all = append(all, r.Names...)
	}
	wrong := "sync_priority > 1"
	if isStall {
		wrong = "sync_priority = 1"
	}
	return `FROM pg_stat_replication WHERE CASE
		WHEN application_name = ANY (` + pgNameArray(all) + `) AND flush_lsn IS NULL
		AND state <> 'startup' THEN true
		WHEN application_name = ANY (` + pgNameArray(last.Names) + `) THEN ` + wrong + `
		ELSE sync_priority > 0 END`
}

func pgNameArray(names []string) string {
	if len(names) == 0 {
		return "ARRAY[]::text[]"
	}
	return "ARRAY[" + pgLiterals(names) + "]::text[]"
}

// awaitWalsenders waits until no walsender has another setting. One that does not take it, hung as
// it may be, is ended after a while.
func (a *PostgresAgent) awaitWalsenders(ctx context.Context, rules []SyncRule, isStall bool,
) error {
	behind := walsendersBehind(rules, isStall)
	if time.Since(a.syncProof.began) > syncEndAfter {
		rows, err := a.exec(ctx, "SELECT pid, pg_terminate_backend(pid) "+behind)
		if err != nil {
			return fmt.Errorf("end walsenders: %w", err)
		}
		if len(rows) > 0 {
			a.log.Warn("walsenders that do not take the sync set were ended",
				zap.Int("count", len(rows)))
		}
	}
	return a.pollSync(ctx, "walsenders have the older setting", "SELECT count(*) = 0 "+behind)
}

// awaitBarrier waits until Wait standbys of the rule have flushed all that was acknowledged by
// an older one: up to a position read after no process had it any more.
func (a *PostgresAgent) awaitBarrier(ctx context.Context, r SyncRule) error {
	if a.syncProof.barrier == "" {
		row, err := a.queryRow(ctx, "SELECT pg_current_wal_insert_lsn()")
		if err != nil {
			return fmt.Errorf("read position: %w", err)
		}
		a.syncProof.barrier = row[0]
	}
	return a.pollSync(ctx, "the standbys are not in sync", `SELECT
		count(DISTINCT application_name) >= `+strconv.Itoa(r.Wait)+` FROM pg_stat_replication
		WHERE application_name = ANY (`+pgNameArray(r.Names)+`)
		AND flush_lsn >= `+pgLiteral(a.syncProof.barrier)+`::pg_lsn`)
}

// pollSync repeats a question until it is answered by true, or ctx ends.
func (a *PostgresAgent) pollSync(ctx context.Context, what, sql string) error {
	for {
		row, err := a.queryRow(ctx, sql)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if row[0] == "t" {
			return nil
		}
		if err := pauseFor(ctx, syncPoll); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// seeCommitWait makes commits until one is seen to wait for standbys. Whether commits wait at all
// is in shared memory, kept by the checkpointer, which may be busy; nothing else shows it. The
// commits hold nothing but a message that is read by nobody.
func (a *PostgresAgent) seeCommitWait(ctx context.Context) error {
	for ctx.Err() == nil {
		seen, err := a.tryCommitWait(ctx)
		if seen || err != nil {
			return err
		}
	}
	return fmt.Errorf("no commit waits for standbys yet: %w", ctx.Err())
}

// standbySync is the setting of a standby, where nobody waits. One that has a sync set while
// commits of the cluster wait is promoted without delay: its checkpointer knew long before.
func (a *PostgresAgent) standbySync() string {
	if names := a.record().SyncNames; names != "" {
		return names
	}
	st, _ := a.deps.Source.State()
	if st.Sync != nil && slices.ContainsFunc(st.Sync.Rules, func(r SyncRule) bool {
		return !r.MayLose
	}) {
		return SyncRule{}.stallSetting()
	}
	return ""
}

// proveWaiting returns once commits of a server that becomes primary are known to wait for the
// standbys of a setting, which is loaded already (DESIGN.md I42a).
func (a *PostgresAgent) proveWaiting(ctx context.Context, setting string) error {
	if setting == "" {
		return nil
	}
	if seen, err := a.tryCommitWait(ctx); err != nil || seen {
		return err
	}
	// It did not wait, or its standbys stream already and answer sooner than anybody can look: for
	// a moment there are none that count.
	nobody := SyncRule{}.stallSetting()
	if err := a.applyConf(ctx, pgConf{syncNames: nobody}); err != nil {
		return err
	}
	err := a.seeCommitWait(ctx)
	// Also when ctx has ended: commits must not wait until the order comes again.
	bctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.QueryTimeout)
	defer cancel()
	return errors.Join(err, a.applyConf(bctx, pgConf{syncNames: setting}))
}

func (a *PostgresAgent) tryCommitWait(ctx context.Context) (seen bool, err error) {
	c, err := a.connect(ctx)
	if err != nil {
		return false, err
	}
	pid := strconv.FormatUint(uint64(c.PID()), 10)
	done := make(chan error, 1)
	cctx, cancel := context.WithCancel(ctx)
	go func() { // ends with its commit: by itself, or since cctx ends
		_, err := pgQuery(cctx, c, `SET synchronous_commit = on; BEGIN;
			SELECT pg_logical_emit_message(true, 'holdfast', ''); COMMIT`)
		done <- err
	}()
	defer func() {
		_, _ = a.exec(context.WithoutCancel(ctx), "SELECT pg_terminate_backend("+pid+")")
		cancel()
		<-done
		pgClose(c)
	}()
	for {
		row, err := a.queryRow(ctx, `SELECT count(*) > 0 FROM pg_stat_activity WHERE pid = `+pid+
			` AND wait_event = 'SyncRep'`)
		if err != nil || row[0] == "t" {
			return err == nil, err
		}
		select {
		case err := <-done:
			done <- err
			return false, nil // it did not wait, or too short to be seen
		default:
		}
		if err := pauseFor(ctx, syncPoll); err != nil {
			return false, errors.Join(errors.New("no commit waits for standbys yet"), err)
		}
	}
}

// memberSync is what the agent reports of the sync set.
func (a *PostgresAgent) memberSync() MemberSync {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.provedSync
	m.Names, m.Under = a.rec.SyncNames, a.rec.ResultEpoch
	return m
}
