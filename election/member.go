package election

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"go.uber.org/zap"
)

// agentRecord is what the agent must remember over its own crash and over pg_rewind. It lives in
// StatePath, outside PGDATA (DESIGN 10.4), in one file that is replaced atomically and fsynced.
type agentRecord struct {
	V        int    `json:"v"`
	Cluster  string `json:"cluster"`
	SystemID string `json:"system_id,omitempty"`
	// Pledged is the highest epoch of an order; older ones are refused for good.
	Pledged uint64 `json:"pledged,omitempty"`
	// LockEpoch is that of the newest lock that was seen here. What a node reads of its log after a
	// start may be older.
	LockEpoch uint64 `json:"lock_epoch,omitempty"`
	// Upstream is the member to stream from by order of UpstreamEpoch.
	Upstream      *Member `json:"upstream,omitempty"`
	UpstreamEpoch uint64  `json:"upstream_epoch,omitempty"`
	// PrimaryEpoch is the epoch under which this member was last made a primary.
	PrimaryEpoch uint64 `json:"primary_epoch,omitempty"`
	// Result is the answer to the order of ResultEpoch that made it one.
	Result      *OrderResult `json:"result,omitempty"`
	ResultEpoch uint64       `json:"result_epoch,omitempty"`
	// StartXid is the next xid when it was first started in place since its door was open, 0 once
	// that is opened again. It does not go by the lock: the state here may be behind the door.
	// StartLo is the lower end of that boundary; 0: nothing is known below StartXid.
	StartXid uint64 `json:"start_xid,omitempty"`
	StartLo  uint64 `json:"start_lo,omitempty"`
	// Served is the newest start that was answered for, or whose door was opened.
	Served    *agentStart `json:"served,omitempty"`
	SyncNames string      `json:"sync_names,omitempty"`
	// Unentered is set before a promotion under PrimaryEpoch begins, and cleared when a lock names
	// this member, or when it is a standby again.
	Unentered bool `json:"unentered,omitempty"`
	// SyncEpoch and SyncSeq name the newest record of the sync set that was acted upon.
	SyncEpoch uint64   `json:"sync_epoch,omitempty"`
	SyncSeq   uint64   `json:"sync_seq,omitempty"`
	Members   []Member `json:"members,omitempty"`
	// Rewinding is set before pg_rewind writes, and cleared when the directory is whole again.
	Rewinding bool `json:"rewinding,omitempty"`
	// Reinit is set from the order to clone the data anew until that is done.
	Reinit bool `json:"reinit,omitempty"`
	// Lost is the newest report of transactions that were given up.
	Lost *LostSummary `json:"lost,omitempty"`
	// Adopted is set from an adoption to the group's first lock, Files until the next start.
	Adopted *agentAdopted     `json:"adopted,omitempty"`
	Files   *agentServerFiles `json:"files,omitempty"`
}

const agentRecordName = "agent.json"

func (a *PostgresAgent) loadRecord() (agentRecord, error) {
	path := filepath.Join(a.state, agentRecordName)
	fresh := agentRecord{V: Version, Cluster: a.cfg.Cluster}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return fresh, nil
	}
	if err != nil {
		return fresh, fmt.Errorf("read the pledge: %w", err)
	}
	var r agentRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return fresh, fmt.Errorf("read the pledge in %s: %w (restore it; without it an overtaken "+
			"order could be obeyed)", path, err)
	}
	if r.V > Version {
		return fresh, fmt.Errorf("%s has version %d, this release knows %d: upgrade", path, r.V,
			Version)
	}
	if r.Cluster != a.cfg.Cluster {
		return fresh, fmt.Errorf("%s belongs to cluster %q, the configuration says %q: choose "+
			"another state path or correct the name", path, r.Cluster, a.cfg.Cluster)
	}
	return r, nil
}

func (a *PostgresAgent) record() agentRecord {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rec
}

// updateRecord changes the record durably: when it returns nil, it is on disk. The caller holds
// ops.
func (a *PostgresAgent) updateRecord(change func(*agentRecord)) error {
	r := a.record()
	change(&r)
	r.LockEpoch = a.lockSeen()
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the pledge: %w", err)
	}
	if err := a.writeFile(filepath.Join(a.state, agentRecordName), b, 0o600); err != nil {
		return fmt.Errorf("write the pledge: %w", err)
	}
	a.mu.Lock()
	a.rec = r
	a.mu.Unlock()
	return nil
}

var _ FormerMember = (*PostgresAgent)(nil)

// WasMember implements FormerMember. Data that was adopted belongs to no group before its first
// order.
func (a *PostgresAgent) WasMember() (file string, yes bool) {
	r := a.record()
	file = filepath.Join(a.state, agentRecordName)
	return file, r.wasMember()
}

// wasMember tells that a group has given this node orders or data, or that its lock was seen here.
// A new group's epochs begin anew: what is remembered of the old one would refuse its orders.
func (r agentRecord) wasMember() bool {
	return r.Pledged > 0 || max(r.LockEpoch, r.SyncEpoch) > 0 || r.SystemID != "" && r.Adopted == nil
}

func (a *PostgresAgent) checkPledge(epoch uint64) error {
	if p := a.record().Pledged; epoch < p {
		return fmt.Errorf("%w: pledged to %d", ErrAgentStaleEpoch, p)
	}
	return nil
}

// lockSeen is the epoch of the newest lock that was ever seen here; 0 if none was. In a record of
// an older release only the sync set tells of one.
func (a *PostgresAgent) lockSeen() uint64 {
	st, _ := a.deps.Source.State()
	rec := a.record()
	return max(rec.LockEpoch, rec.SyncEpoch, lockEpoch(st))
}

// noteLock makes durable that a lock of that epoch was seen, where no other write has. The door of
// a primary does not wait for it: what opens it writes the record, or finds it as it is to be.
func (a *PostgresAgent) noteLock(epoch uint64) error {
	if a.record().LockEpoch >= epoch {
		return nil
	}
	return a.updateRecord(func(*agentRecord) {})
}

// checkOver refuses an order that comes late, when the change that it was given for is over: a lock
// of its epoch or of a later one is entered. The pledge cannot tell: who rejoined by itself has no
// order of the later epoch, and a primary that was restarted was stopped under its own.
//
// An order to a standby is compared with the lock that the state has now: after a recovery from an
// older log its epochs may be below one that was seen once, and no change of the lock comes first.
func (a *PostgresAgent) checkOver(o Order) error {
	lock := a.lockSeen()
	if o.isUnderLock() {
		st, _ := a.deps.Source.State()
		lock = lockEpoch(st)
	}
	if lock == 0 || !o.isOver(lock) {
		return nil
	}
	return fmt.Errorf("%w: the lock is of epoch %d", ErrAgentStaleEpoch, lock)
}

// isOver tells that the change of an order has ended in the lock of that epoch, or was replaced by
// one that has: whoever gives it still does not know, and nothing comes of an answer.
func (o Order) isOver(lock uint64) bool {
	if o.isUnderLock() {
		return o.Epoch < lock
	}
	return o.Epoch <= lock
}

// isUnderLock tells that an order belongs to no change of the lock: it is given under the lock's
// own epoch.
func (o Order) isUnderLock() bool {
	switch o.Kind {
	case OrderCheckpoint, OrderSlots, OrderRestart, OrderReinit:
		return true
	}
	return false
}

// pledge makes the order's epoch durable before anything is done under it (DESIGN 10.4).
func (a *PostgresAgent) pledge(o Order) error {
	r := a.record()
	if r.Pledged == o.Epoch && len(o.Members) == 0 {
		return nil
	}
	return a.updateRecord(func(r *agentRecord) {
		r.Pledged = max(r.Pledged, o.Epoch)
		if len(o.Members) > 0 {
			r.Members = slices.Clone(o.Members)
		}
	})
}

// members are all members known here: of the state, or of the last order before there is one.
func (a *PostgresAgent) members() []Member {
	if s, _ := a.deps.Source.State(); len(s.Members) > 0 {
		return s.Members
	}
	return a.record().Members
}

// pgMarker is PGDATA/holdfast.json: it tells data that Holdfast made from anybody else's. It is
// the same on all members, so that a copy by pg_basebackup or pg_rewind stays true.
type pgMarker struct {
	V        int    `json:"v"`
	Cluster  string `json:"cluster"`
	SystemID string `json:"system_id"`
}

const pgMarkerName = "holdfast.json"

func (a *PostgresAgent) writeMarker(dir, systemID string) error {
	b, err := json.Marshal(pgMarker{V: Version, Cluster: a.cfg.Cluster, SystemID: systemID})
	if err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	return a.writeFile(filepath.Join(dir, pgMarkerName), append(b, '\n'), 0o600)
}

// pgDirKind is what lies in the data directory.
type pgDirKind int

// The kinds of data directories.
const (
	pgDirEmpty pgDirKind = iota
	pgDirForeign
	// pgDirUnknown cannot be read now (a failing disk, no file descriptors left): what is there
	// is not known, so nothing is done to it and nothing is concluded from it.
	pgDirUnknown
	pgDirOurs
)

// inspectDir looks at the data directory. For a foreign one the text tells the remedy.
func (a *PostgresAgent) inspectDir() (pgDirKind, string) {
	dir := a.cfg.DataDir
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return pgDirEmpty, ""
	case err != nil:
		return pgDirUnknown, fmt.Sprintf("data directory cannot be read: %v", err)
	case len(entries) == 0:
		return pgDirEmpty, ""
	}
	const remedy = ": holdfast does not touch it; take it over with `holdfast adopt`, move it " +
		"away, set another data_dir, or set adopt_foreign to have it put aside"
	b, err := os.ReadFile(filepath.Join(dir, pgMarkerName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return pgDirUnknown, fmt.Sprintf("data directory cannot be read: %v", err)
	}
	if err != nil {
		return pgDirForeign, dir + " holds data that holdfast did not make" + remedy
	}
	var m pgMarker
	if err := json.Unmarshal(b, &m); err != nil || m.V > Version {
		return pgDirForeign, dir + "/" + pgMarkerName + " cannot be understood" + remedy
	}
	if m.Cluster != a.cfg.Cluster {
		return pgDirForeign, fmt.Sprintf("%s belongs to cluster %q, not to %q%s", dir,
			m.Cluster, a.cfg.Cluster, remedy)
	}
	rec := a.record()
	st, _ := a.deps.Source.State()
	for _, want := range []string{st.SystemID, rec.SystemID} {
		if want != "" && m.SystemID != want {
			return pgDirForeign, fmt.Sprintf("%s has system id %s, the cluster has %s%s", dir,
				m.SystemID, want, remedy)
		}
	}
	return pgDirOurs, m.SystemID
}

// setAside renames a directory that is in the way; it never deletes what Holdfast did not make.
func (a *PostgresAgent) setAside(to string) error {
	if _, err := os.Lstat(to); err == nil {
		return fmt.Errorf("put %s aside: %s is there already: move it away", a.cfg.DataDir, to)
	}
	if err := os.Rename(a.cfg.DataDir, to); err != nil {
		return fmt.Errorf("put data directory aside: %w", err)
	}
	a.log.Warn("data directory put aside", zap.String("to", to))
	return pgSyncDir(filepath.Dir(to))
}

// desiredUpstream is the member to stream from, and whether to stream at all: the committed
// lock's holder, or the order's upstream if its epoch is newer. A recruited standby streams from
// nobody before an order or a lock of its pledge (DESIGN 10.4).
func (a *PostgresAgent) desiredUpstream() *Member {
	st, _ := a.deps.Source.State()
	rec := a.record()
	if st.Lock != nil && st.Lock.Epoch >= max(rec.Pledged, rec.UpstreamEpoch) {
		return a.memberNamed(st.Lock.Holder)
	}
	if rec.Upstream != nil && rec.UpstreamEpoch >= rec.Pledged {
		return rec.Upstream
	}
	return nil
}

func (a *PostgresAgent) memberNamed(name string) *Member {
	for _, m := range a.members() {
		if m.Name == name && m.Name != a.cfg.Name && m.Postgres != "" {
			return &m
		}
	}
	return nil
}
