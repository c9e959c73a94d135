package election

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

// agentStep is a pass of the reconcile loop, with what it found.
type agentStep struct {
	lock   *Lock
	holder *Member // the lock's holder if that is another member
	mine   bool    // the lock names this member
}

// runReconcile brings the server to what the committed lock says, whenever the state or the
// server changed, and once in a while. It acts on committed locks only, never on an intent or on
// a lease that ran out (DESIGN 10.7).
func (a *PostgresAgent) runReconcile(ctx context.Context) {
	lastSlots := time.Time{}
	failures := 0
	for ctx.Err() == nil {
		_, newer := a.deps.Source.State()
		err := a.reconcile(ctx, &lastSlots)
		wait, work := time.Second, a.work
		switch {
		case err == nil:
			failures = 0
			a.setProblem("")
		case ctx.Err() != nil:
			return
		case errors.Is(err, errAgentWait):
			failures, wait, work = 0, 50*time.Millisecond, nil
			a.setProblem(err.Error())
		default:
			// The failed step itself made samples: only a newer state cuts the pause short.
			wait, work = min(5*time.Second, 250*time.Millisecond<<min(failures, 5)), nil
			failures++
			a.setProblem(err.Error())
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-newer:
		case <-work:
		case <-t.C:
		}
		t.Stop()
	}
}

func (a *PostgresAgent) setProblem(text string) {
	a.mu.Lock()
	changed := a.problem != text
	a.problem = text
	a.mu.Unlock()
	if !changed {
		return
	}
	if text != "" {
		a.log.Warn("member is not in its place", zap.String("problem", text))
	}
	pgPoke(a.kick)
}

func (a *PostgresAgent) reconcile(parent context.Context, lastSlots *time.Time) error {
	if err := a.lockOps(parent); err != nil {
		return err
	}
	defer a.unlockOps()
	st, newer := a.deps.Source.State()
	if st.Lock == nil {
		return nil
	}
	// What takes long is given up when the state has a newer lock than it began under.
	ctx, cancel := context.WithCancel(parent)
	watchDone := make(chan struct{})
	defer func() { cancel(); <-watchDone }()
	go func() { defer close(watchDone); a.cancelOnNewLock(ctx, cancel, st.Lock.Epoch, newer) }()

	err := a.reconcileTo(ctx, st, lastSlots)
	if err == nil {
		err = a.noteLock(st.Lock.Epoch)
	}
	if err != nil && ctx.Err() != nil && parent.Err() == nil {
		return nil // overtaken by a newer lock
	}
	return err
}

func (a *PostgresAgent) reconcileTo(ctx context.Context, st *State, lastSlots *time.Time) error {
	if err := a.endAdoption(); err != nil {
		return err
	}
	step := agentStep{lock: st.Lock, mine: st.Lock.Holder == a.cfg.Name}
	step.holder = a.memberNamed(st.Lock.Holder)
	kind, why := a.inspectDir()
	if kind != pgDirOurs && kind != pgDirUnknown && a.watchedPid() != 0 {
		return errPostmasterFile // it was renamed or unmounted: nothing may take its place
	}
	switch kind {
	case pgDirForeign:
		return a.reconcileForeign(ctx, step, why)
	case pgDirEmpty:
		return a.reconcileEmpty(ctx, step)
	case pgDirUnknown:
		return errors.New(why)
	case pgDirOurs:
	}
	if a.record().Reinit && step.holder != nil && step.lock.Epoch >= a.record().Pledged {
		return a.reinit(ctx, step)
	}
	if done, err := a.reconcileUnentered(ctx, step); done || err != nil {
		return err
	}
	if pid, word, err := a.postmaster(); err != nil {
		return err
	} else if pid == 0 {
		return a.reconcileStopped(ctx, step)
	} else if word != "ready" && word != "standby" {
		if a.letsNobodyIn(pid, word) {
			return a.reconcileRecovering(ctx, step)
		}
		return nil // starting or stopping
	}
	return a.reconcileRunning(ctx, step, lastSlots)
}

// cancelOnNewLock ends when ctx does.
func (a *PostgresAgent) cancelOnNewLock(ctx context.Context, cancel func(), epoch uint64,
	newer <-chan struct{},
) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-newer:
		}
		var st *State
		st, newer = a.deps.Source.State()
		if st.Lock != nil && st.Lock.Epoch != epoch {
			cancel()
			return
		}
	}
}

func (a *PostgresAgent) reconcileForeign(ctx context.Context, s agentStep, why string) error {
	pid, _, err := a.postmaster()
	if err != nil || !a.cfg.AdoptForeign || pid != 0 || s.holder == nil {
		return err // without one, the sample shows the problem
	}
	a.log.Warn("foreign data is put aside as configured", zap.String("why", why))
	if err := a.setAside(a.cfg.DataDir + ".foreign"); err != nil {
		return err
	}
	return a.reconcileEmpty(ctx, s)
}

func (a *PostgresAgent) reconcileEmpty(ctx context.Context, s agentStep) error {
	if s.mine {
		return errors.New("the lock names this member, but its data directory is empty")
	}
	if s.holder == nil || s.lock.Epoch < a.record().Pledged {
		return nil
	}
	st, _ := a.deps.Source.State()
	err := a.updateRecord(func(r *agentRecord) { r.SystemID = st.SystemID })
	if err != nil {
		return err
	}
	if err := a.cloneServer(ctx, *s.holder, s.lock.Epoch, "empty data directory"); err != nil {
		return err
	}
	return a.startRejoined(ctx, *s.holder)
}

func (a *PostgresAgent) reconcileStopped(ctx context.Context, s agentStep) error {
	rec := a.record()
	if err := a.endOrphans(ctx); err != nil {
		return err
	}
	if st, _ := a.deps.Source.State(); st.Maintenance != nil {
		return nil // whoever stopped it starts it, or ends the maintenance
	}
	switch {
	case rec.Rewinding && s.holder != nil:
		return a.rejoin(ctx, *s.holder, s.lock)
	case s.mine || (s.lock.Epoch < rec.PrimaryEpoch && !a.hasStandbySignal()):
		// The coordinator orders start-primary under a new epoch, or promotes again what an
		// intent without a lock had promoted.
		return nil
	case a.hasStandbySignal():
		return a.startStandby(ctx, a.standbyConf(a.desiredUpstream()))
	case s.holder != nil:
		return a.rejoin(ctx, *s.holder, s.lock)
	}
	return nil
}

func (a *PostgresAgent) standbyConf(up *Member) pgConf {
	return pgConf{upstream: up, syncNames: a.standbySync(), recruited: up == nil}
}

func (a *PostgresAgent) reconcileRunning(ctx context.Context, s agentStep,
	lastSlots *time.Time,
) error {
	standby, err := a.inRecovery(ctx)
	if err != nil {
		return err
	}
	if standby {
		return a.reconcileStandby(ctx, s, lastSlots)
	}
	if s.mine {
		return a.reconcilePrimary(ctx, s, lastSlots)
	}
	if s.lock.Epoch <= a.record().PrimaryEpoch {
		return nil // promoted under an intent that is not the lock yet
	}
	a.log.Warn("another member is primary by the lock; stopping this one",
		zap.String("holder", s.lock.Holder), zap.Uint64("epoch", s.lock.Epoch))
	if _, err := a.stopServer(ctx, min(2*time.Second, a.cfg.StopTimeout)); err != nil {
		return err
	}
	if s.holder == nil {
		return nil
	}
	return a.rejoin(ctx, *s.holder, s.lock)
}

// reconcilePrimary opens the door when the lock names the running incarnation, and closes it
// when the server was started behind the lock's back.
func (a *PostgresAgent) reconcilePrimary(ctx context.Context, s agentStep,
	lastSlots *time.Time,
) error {
	rec := a.record()
	if s.lock.Epoch < rec.PrimaryEpoch {
		return nil // an order is on its way into the lock
	}
	start := lastStart(a.cfg.DataDir)
	row, err := a.queryRow(ctx, "SELECT "+pgIncarnationSQL)
	if err != nil {
		return err
	}
	door := pgDoor(row[0] == s.lock.Incarnation)
	served := agentStart{row[0], start}
	if door == pgDoorOpen && (rec.StartXid != 0 || rec.Served == nil || *rec.Served != served) {
		err := a.updateRecord(func(r *agentRecord) {
			r.StartXid, r.StartLo, r.Served = 0, 0, &served
		})
		if err != nil {
			return err
		}
	}
	if err := a.applyDoor(ctx, door); err != nil {
		return err
	}
	if !door {
		return errors.New("the server was started without an order: it stays closed until the " +
			"lock names its incarnation")
	}
	st, _ := a.deps.Source.State()
	if st.Lock == nil || st.Lock.Epoch != s.lock.Epoch {
		return nil // overtaken: the next pass sees it
	}
	if err := a.reconcileSync(ctx, st); err != nil {
		return err
	}
	if time.Since(*lastSlots) < slotInterval {
		return nil
	}
	*lastSlots = time.Now()
	return a.ensureSlots(ctx, a.members())
}

func (a *PostgresAgent) reconcileStandby(ctx context.Context, s agentStep,
	lastSlots *time.Time,
) error {
	if s.mine {
		return errors.New("the lock names this member, but it runs as a standby")
	}
	up := a.desiredUpstream()
	isSlotTime := time.Since(*lastSlots) >= slotInterval
	if up == nil || s.holder == nil || up.Name != s.holder.Name {
		isSlotTime = false
	} else if isSlotTime || !a.slotSync {
		if err := a.reconcileSlotSync(ctx, s.holder); err != nil {
			return err
		}
	}
	if err := a.applyConf(ctx, a.standbyConf(up)); err != nil {
		return err
	}
	if err := a.applyDoor(ctx, pgDoorOpen); err != nil {
		return err
	}
	if !isSlotTime {
		return nil
	}
	*lastSlots = time.Now()
	if err := a.ensureSlots(ctx, a.members()); err != nil {
		return err
	}
	if err := a.wakeSlotSync(ctx); err != nil {
		return err
	}
	if restarted, err := a.reconcileSizes(ctx); restarted || err != nil {
		return err
	}
	if !a.Status().Streaming {
		return a.checkDiverged(ctx, s)
	}
	if err := a.advanceSlots(ctx, *s.holder, a.members()); err != nil {
		a.log.Debug("slots not advanced", zap.Error(err)) // no Problem: it keeps nobody back
	}
	return nil
}

// checkDiverged finds a standby that got more WAL from the old primary than the new one has; it
// cannot follow, and is rewound. So cannot one whose WAL is gone.
func (a *PostgresAgent) checkDiverged(ctx context.Context, s agentStep) error {
	view, err := a.viewHolder(ctx, *s.holder, s.lock)
	if err != nil {
		// A holder that is away is nothing wrong with this member, which may replace it.
		a.log.Debug("holder not asked", zap.Error(err))
		return nil
	}
	pos, err := a.readReplay(ctx)
	if err != nil {
		return err
	}
	if diverged, err := a.diverged(view, pos.Timeline, pos.LSN); err != nil {
		return err
	} else if !diverged {
		return a.checkWALGone(ctx, s, pos.Timeline)
	}
	a.log.Warn("standby has diverged from the new primary", zap.Stringer("lsn", pos.LSN),
		zap.Uint32("timeline", pos.Timeline))
	if _, err := a.stopServer(ctx, a.cfg.StopTimeout); err != nil {
		return err
	}
	return a.rejoin(ctx, *s.holder, s.lock)
}
