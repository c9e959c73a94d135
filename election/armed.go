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

	"go.uber.org/zap"
)

// A promotion that was asked of the server goes off when its startup process gets to it, which may
// be long after the order and its epoch are over: by files it first replays all WAL that is here.
// Until the lock names this member, the record says that one was begun (Unentered).

// promoteFile asks a server to promote itself, with a signal to its postmaster.
func (a *PostgresAgent) promoteFile() string { return filepath.Join(a.cfg.DataDir, "promote") }

// beginPromotion writes down that from here on this may be the only server with every acknowledged
// commit, before it is promoted: a restarted agent does not rewind it, and a later epoch does not
// take it for a standby.
func (a *PostgresAgent) beginPromotion(o Order, pos OrderResult) error {
	tls, err := histories(filepath.Join(a.cfg.DataDir, "pg_wal"))
	if err != nil {
		return err
	}
	newest := slices.Max(append(tls, 1))
	return a.updateRecord(func(r *agentRecord) {
		r.PrimaryEpoch, r.SyncNames, r.Upstream = o.Epoch, o.SyncNames, nil
		r.Result, r.ResultEpoch, r.StartXid =
			&OrderResult{XidLo: pos.XidLo, Timeline: newest}, 0, 0
		r.Unentered = true
		r.Reinit = false // its data becomes the group's: what was to be thrown away is not any more
	})
}

// isArmed tells that the server may be about to promote itself. One that is a primary already is
// not, nor one that is down and would start as a primary.
func (a *PostgresAgent) isArmed(ctx context.Context) (bool, error) {
	if !a.record().Unentered {
		if _, err := os.Lstat(a.promoteFile()); errors.Is(err, os.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("look for an order to promote: %w", err)
		}
	}
	pid, word, err := a.postmaster()
	if err != nil {
		return false, err
	}
	if pid != 0 && (word == "ready" || word == "standby") {
		standby, err := a.inRecovery(ctx)
		return err != nil || standby, nil // who does not answer may be a standby
	}
	// A promotion that is about to end, or the recovery of a primary that crashed, is waited for.
	return a.hasStandbySignal(), nil
}

// disarm ends a promotion that was begun under another epoch and has not gone off. Only a stop is
// sure: the startup process may have seen the order already. If the promotion has come to its end
// meanwhile, the server is left down, as a primary.
func (a *PostgresAgent) disarm(ctx context.Context) error {
	a.log.Warn("a promotion that was begun under an overtaken epoch is called off",
		zap.Uint64("epoch", a.record().PrimaryEpoch))
	if _, err := a.stopServer(ctx, min(2*time.Second, a.cfg.StopTimeout)); err != nil {
		return err
	}
	if err := os.Remove(a.promoteFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("call a promotion off: %w", err)
	}
	if !a.hasStandbySignal() {
		return nil
	}
	// An immediate stop may have come between the history file of the new timeline and the end of
	// recovery. Nothing is on that timeline, and its number is another's.
	if r := a.record(); r.Unentered && r.Result != nil && r.Result.Timeline != 0 {
		err := dropHistories(filepath.Join(a.cfg.DataDir, "pg_wal"), r.Result.Timeline)
		if err != nil {
			return fmt.Errorf("call a promotion off: %w", err)
		}
	}
	return a.updateRecord(func(r *agentRecord) {
		r.PrimaryEpoch, r.Result, r.ResultEpoch, r.Unentered = 0, nil, 0, false
	})
}

// disarmFor is disarm before an order that takes the server for a standby, if it needs to be. The
// pledge is raised first.
func (a *PostgresAgent) disarmFor(ctx context.Context, o Order) error {
	armed, err := a.isArmed(ctx)
	if err != nil || !armed {
		return err
	}
	if err := a.pledge(o); err != nil {
		return err
	}
	return a.disarm(ctx)
}

// reconcileUnentered looks at a promotion of which no lock was seen yet, and tells that the server
// was acted upon.
func (a *PostgresAgent) reconcileUnentered(ctx context.Context, s agentStep) (bool, error) {
	rec := a.record()
	if !rec.Unentered || s.lock.Epoch < rec.PrimaryEpoch {
		return false, nil
	}
	if s.mine {
		return false, a.updateRecord(func(r *agentRecord) { r.Unentered = false })
	}
	if armed, err := a.isArmed(ctx); err != nil || !armed {
		return false, err
	}
	if err := a.disarm(ctx); err != nil {
		return true, err
	}
	if !a.hasStandbySignal() {
		return true, nil // the next pass rejoins it
	}
	return true, a.startStandby(ctx, a.standbyConf(a.desiredUpstream()))
}

// histories are the timelines whose history files are in dir.
func histories(dir string) ([]uint32, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for timelines: %w", err)
	}
	var tls []uint32
	for _, e := range entries {
		name, isHistory := strings.CutSuffix(e.Name(), ".history")
		if tl, err := strconv.ParseUint(name, 16, 32); isHistory && len(name) == 8 && err == nil {
			tls = append(tls, uint32(tl))
		}
	}
	return tls, nil
}

// dropHistories removes those above a timeline.
func dropHistories(dir string, above uint32) error {
	tls, err := histories(dir)
	if err != nil {
		return err
	}
	for _, tl := range tls {
		if tl <= above {
			continue
		}
		if err := os.Remove(filepath.Join(dir, fmt.Sprintf("%08X.history", tl))); err != nil {
			return fmt.Errorf("remove a timeline that has not begun: %w", err)
		}
	}
	return pgSyncDir(dir)
}
