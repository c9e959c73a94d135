package election

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.uber.org/zap"
)

// cloneServer makes the data directory anew from the holder. It works beside the place and
// renames at the end: a crash leaves the old data, or none, or the whole clone. Old data of ours is
// kept aside, one generation. The caller holds ops and has stopped the server.
func (a *PostgresAgent) cloneServer(ctx context.Context, holder Member, epoch uint64,
	reason string,
) error {
	defer a.rebuilding(PhaseCloning)()
	a.unproved, a.scan = 0, nil // nothing of the old data stays
	tmp := a.cfg.DataDir + ".holdfast-clone"
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("remove the rest of an earlier clone: %w", err)
	}
	if err := a.makeDataParent(tmp); err != nil {
		return err
	}
	// Its own application_name: with the member's, the copy would count as a synchronous
	// standby although nothing it holds would survive a failed clone.
	info, err := a.conninfo(holder, pgReplicationRole, "holdfast clone "+a.cfg.Name)
	if err != nil {
		return err
	}
	a.log.Info("cloning", zap.String("from", holder.Name), zap.String("reason", reason))
	if _, err := a.run(ctx, "pg_basebackup", "-D", tmp, "-d", info, "--checkpoint=fast",
		"-X", "stream", "-S", SlotName(a.cfg.Name), "--no-password"); err != nil {
		return fmt.Errorf("clone from %q: %w", holder.Name, err)
	}
	marker, err := os.ReadFile(filepath.Join(tmp, pgMarkerName))
	if err != nil {
		return fmt.Errorf("clone from %q: its data is not holdfast's: %w", holder.Name, err)
	}
	if err := a.finishCopy(tmp, holder); err != nil {
		return err
	}
	kind, why := a.inspectDir()
	switch kind {
	case pgDirForeign:
		return fmt.Errorf("%w: %s", ErrAgentForeign, why)
	case pgDirUnknown:
		return errors.New(why)
	case pgDirOurs:
		if err := a.keepOneLost(epoch); err != nil {
			return err
		}
	case pgDirEmpty:
	}
	if err := a.installDir(tmp); err != nil {
		return err
	}
	st, _ := a.deps.Source.State()
	a.log.Info("clone done", zap.Int("marker_bytes", len(marker)))
	return a.updateRecord(func(r *agentRecord) {
		r.Rewinding, r.SystemID = false, st.SystemID
		r.PrimaryEpoch, r.Result, r.StartXid = 0, nil, 0
		r.Reinit, r.Unentered = false, false
	})
}

// orderReinit notes that the data is to be made anew; the reconcile loop does it, which may take
// hours. The mark is durable: the agent goes on after its own restart.
func (a *PostgresAgent) orderReinit() (OrderResult, error) {
	if err := a.needOurs(); err != nil {
		return OrderResult{}, err
	}
	st, _ := a.deps.Source.State()
	if st.Lock == nil || st.Lock.Holder == a.cfg.Name {
		return OrderResult{}, fmt.Errorf("%w: it is the primary", ErrAgentRole)
	}
	err := a.updateRecord(func(r *agentRecord) { r.Reinit = true })
	if err == nil {
		pgPoke(a.work)
	}
	return OrderResult{}, err
}

// reinit makes the data anew as an operator asked. The old data is kept aside, as with every
// clone, and stays in its place until the new copy is whole.
func (a *PostgresAgent) reinit(ctx context.Context, s agentStep) error {
	if _, err := a.stopServer(ctx, a.cfg.StopTimeout); err != nil {
		return err
	}
	if err := a.endOrphans(ctx); err != nil {
		return err
	}
	err := a.cloneServer(ctx, *s.holder, s.lock.Epoch, "asked for by an operator")
	if err != nil {
		return err
	}
	return a.startRejoined(ctx, *s.holder)
}

// finishCopy makes a copy of the holder's directory this member's own standby.
func (a *PostgresAgent) finishCopy(dir string, holder Member) error {
	if err := a.writeFile(filepath.Join(dir, "standby.signal"), nil, 0o600); err != nil {
		return fmt.Errorf("write standby.signal: %w", err)
	}
	conf := pgConf{upstream: &holder, syncNames: a.standbySync()}
	if _, _, err := a.writeConf(dir, conf); err != nil {
		return err
	}
	_, _, err := a.writeHBA(dir, pgDoorOpen)
	return err
}

// keepOneLost renames our old data to DataDir.lost-EPOCH and removes earlier ones, unless the old
// data hold nothing of their own.
func (a *PostgresAgent) keepOneLost(epoch uint64) error {
	old, _ := filepath.Glob(a.cfg.DataDir + ".lost-*")
	if a.gap.clones && len(old) > 0 {
		// Those may be the only copy of commits; what is replaced now lacks nothing else.
		if err := os.RemoveAll(a.replacedDir()); err != nil {
			return fmt.Errorf("remove replaced data: %w", err)
		}
		return a.setAside(a.replacedDir())
	}
	for _, dir := range old {
		if strings.HasPrefix(dir, a.cfg.DataDir+".lost-") {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("remove older lost data: %w", err)
			}
		}
	}
	return a.setAside(fmt.Sprintf("%s.lost-%d", a.cfg.DataDir, epoch))
}

// rebuilding shows the phase and has orders refused until the returned function is called.
func (a *PostgresAgent) rebuilding(p MemberPhase) func() {
	a.rebuild.Store(&p)
	pgPoke(a.kick)
	return func() { a.rebuild.Store(nil); a.hurry() }
}
