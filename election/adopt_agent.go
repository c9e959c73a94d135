package election

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
)

// agentAdopted is the part of the agent's record by which a running server waits for the group's
// first lock; it goes with the first lock that the agent sees.
type agentAdopted struct {
	// Role is what the server was when it was adopted.
	Role string `json:"role"`
}

// agentServerFiles are files of one start of an adopted server that lie outside its data
// directory. With the next start the agent's own are used.
type agentServerFiles struct {
	// Start names the start (pgStartOf).
	Start string `json:"start"`
	HBA   string `json:"hba"`
}

// pgStartOf names a start of a server by what its postmaster.pid begins with: pid, directory and
// time.
func pgStartOf(dataDir string) string {
	b, err := os.ReadFile(pgPostmasterFile(dataDir))
	lines := strings.SplitN(string(b), "\n", 4)
	if err != nil || len(lines) < 4 {
		return ""
	}
	return strings.Join(lines[:3], " ")
}

// mirrorHBA writes pg_hba.conf where an adopted server reads it, as long as it is that server.
func (a *PostgresAgent) mirrorHBA(text string) (changed bool, err error) {
	f := a.record().Files
	if f == nil || f.Start == "" || f.Start != pgStartOf(a.cfg.DataDir) {
		return false, nil
	}
	info, err := os.Stat(f.HBA)
	if err != nil {
		return false, fmt.Errorf("look at the server's pg_hba.conf: %w", err)
	}
	if old, err := os.ReadFile(f.HBA); err == nil && string(old) == text {
		return false, nil
	}
	if err := a.writeFile(f.HBA, []byte(text), info.Mode().Perm()); err != nil {
		return false, fmt.Errorf("write %s: %w", f.HBA, err)
	}
	return true, nil
}

// adoptedRole is what the member tells of its adoption while the group has no lock.
func (a *PostgresAgent) adoptedRole() string {
	st, _ := a.deps.Source.State()
	if rec := a.record(); rec.Adopted != nil && st.Lock == nil {
		return rec.Adopted.Role
	}
	return ""
}

// endAdoption forgets the adoption once there is a lock: a group that loses its state must not
// take this server for one that waits for its first.
func (a *PostgresAgent) endAdoption() error {
	if a.record().Adopted == nil {
		return nil
	}
	return a.updateRecord(func(r *agentRecord) { r.Adopted = nil })
}

// orderAdopt is the order to bootstrap for a server that was adopted: it is taken over as it runs,
// its sessions with it. Before the lock nothing is promised about it; in synchronous mode the
// answer comes only once commits wait for standbys and these have all that was committed before.
func (a *PostgresAgent) orderAdopt(ctx context.Context, o Order) (OrderResult, error) {
	rec := a.record()
	if rec.Adopted.Role != adoptedPrimary {
		return OrderResult{}, fmt.Errorf("%w: it was adopted as a %s", ErrAgentRole,
			rec.Adopted.Role)
	}
	running, err := a.isRunning(ctx)
	if err != nil {
		return OrderResult{}, err
	}
	if err := a.pledge(o); err != nil {
		return OrderResult{}, err
	}
	if err := a.updateRecord(func(r *agentRecord) { r.PrimaryEpoch = o.Epoch }); err != nil {
		return OrderResult{}, err
	}
	if !running {
		if err := a.startClosed(ctx, rec.SyncNames); err != nil {
			return OrderResult{}, err
		}
	}
	if standby, err := a.inRecovery(ctx); err != nil || standby {
		return OrderResult{}, fmt.Errorf("%w: it runs as a standby (%v)", ErrAgentRole, err)
	}
	if err := a.ensureSlots(ctx, o.Members); err != nil {
		return OrderResult{}, err
	}
	if err := a.adoptSync(ctx, o, rec.SyncNames); err != nil {
		return OrderResult{}, err
	}
	res, err := a.readPrimary(ctx)
	if err != nil {
		return res, err
	}
	if res.XidHi, err = a.allocateXid(ctx); err != nil {
		return res, err
	}
	res.XidLo = res.XidHi // no proxy served an older epoch: there are none
	return res, a.remember(o, res)
}

// adoptSync turns synchronous replication on when enough standbys stream under their names: sooner
// it would only stop the commits of clients that are served.
func (a *PostgresAgent) adoptSync(ctx context.Context, o Order, before string) error {
	if o.SyncNames == "" {
		return a.applyConf(ctx, pgConf{})
	}
	need, names := parseSyncNames(o.SyncNames)
	count := func(cond string) (int, error) {
		rows, err := a.exec(ctx, `SELECT DISTINCT application_name FROM pg_stat_replication
			WHERE state = 'streaming' AND application_name IN (`+pgLiterals(names)+") AND "+cond)
		return len(rows), err
	}
	n, err := count("true")
	if err != nil {
		return fmt.Errorf("look at the standbys: %w", err)
	}
	if n < need {
		if err := a.applyConf(ctx, pgConf{syncNames: before}); err != nil {
			return err
		}
		return fmt.Errorf("synchronous replication needs %d of %s to stream, %d do: adopt or start "+
			"them", need, strings.Join(names, ", "), n)
	}
	if err := a.applyConf(ctx, pgConf{syncNames: o.SyncNames}); err != nil {
		return err
	}
	// Once a commit is seen to wait, all do. Whoever looked before is done, or past its WAL record.
	if err := a.proveWaiting(ctx, o.SyncNames); err != nil {
		return err
	}
	row, err := a.queryRow(ctx, "SELECT pg_current_wal_lsn()")
	if err != nil {
		return err
	}
	for {
		n, err := count("flush_lsn >= " + pgLiteral(row[0]))
		if err != nil {
			return fmt.Errorf("look at the standbys: %w", err)
		}
		if n >= need {
			return nil
		}
		if err := pauseFor(ctx, 10*time.Millisecond); err != nil {
			a.log.Warn("standbys lag behind", zap.String("lsn", row[0]))
			return fmt.Errorf("wait for standbys to have %s: %w", row[0], err)
		}
	}
}

var syncNamesPattern = regexp.MustCompile(`(?i)^\s*(?:ANY|FIRST)?\s*(\d+)\s*\((.*)\)\s*$`)

// parseSyncNames reads what SyncNames writes: how many standbys a commit waits for, and of which.
func parseSyncNames(text string) (need int, names []string) {
	need = 1
	if m := syncNamesPattern.FindStringSubmatch(text); m != nil {
		need, _ = strconv.Atoi(m[1])
		text = m[2]
	}
	for name := range strings.SplitSeq(text, ",") {
		names = append(names, strings.ReplaceAll(strings.Trim(strings.TrimSpace(name), `"`),
			`""`, `"`))
	}
	return need, names
}
