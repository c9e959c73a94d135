package election

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"
)

// RecoverPlan is what a node's Raft directory holds, and so what the group would go on with if
// this node were to recover it from a lost quorum.
type RecoverPlan struct {
	// Index and Term are of the newest entry of the log: of two nodes the one with the higher
	// term, or the higher index in the same term, knows more.
	Index, Term uint64
	// Epoch is the newest epoch that was begun, as far as this node knows.
	Epoch   uint64
	Lock    *Lock
	Members []Member
	Voters  []string
}

// recoverJump is how far a recovery goes on with what must never be given out twice: epochs,
// versions of the voter set and changes of the sync set. What was lost may have used some that
// this node has not heard of.
const recoverJump = 1000

// recovery is a node's Raft directory, opened while the node does not run. It owns the store.
type recovery struct {
	cfg   Config
	store *store
	snaps raft.SnapshotStore
	fsm   *fsm
	file  endorsementFile
	disk  endorsement
	plan  RecoverPlan
}

// PlanRecovery reads a node's Raft directory. It changes nothing; the node must not run.
func PlanRecovery(cfg Config) (RecoverPlan, error) {
	r, err := openRecovery(cfg)
	if err != nil {
		return RecoverPlan{}, fmt.Errorf("recover: %w", err)
	}
	return r.plan, r.store.Close()
}

// RecoverGroup makes a node the only voter of its group, with the state that its own log has,
// entries that were never committed included. What the lost nodes alone knew is lost. The node
// must not run, and none of the others may run with the Raft directory it has, ever again.
func RecoverGroup(cfg Config) (RecoverPlan, error) {
	r, err := openRecovery(cfg)
	if err != nil {
		return RecoverPlan{}, fmt.Errorf("recover: %w", err)
	}
	if err := r.run(); err != nil {
		return RecoverPlan{}, errors.Join(fmt.Errorf("recover: %w", err), r.store.Close())
	}
	return r.plan, r.store.Close()
}

func openRecovery(cfg Config) (*recovery, error) {
	r := &recovery{cfg: cfg, fsm: newFSM()}
	r.file = endorsementFile{path: filepath.Join(cfg.Dir, "endorsed.json")}
	var err error
	if r.disk, _, err = r.file.load(); err != nil {
		return nil, err
	}
	if r.store, err = openStore(cfg.Dir, zap.NewNop()); err != nil {
		return nil, err
	}
	if err := r.read(); err != nil {
		return nil, errors.Join(err, r.store.Close())
	}
	return r, nil
}

// read builds the state of snapshot and log.
func (r *recovery) read() error {
	var err error
	r.snaps, err = raft.NewFileSnapshotStoreWithLogger(r.cfg.Dir, 2, raftLogger(zap.NewNop()))
	if err != nil {
		return fmt.Errorf("open snapshots in %s: %w", r.cfg.Dir, err)
	}
	if err := r.readSnapshot(); err != nil {
		return err
	}
	last, err := r.store.LastIndex()
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	for i := r.plan.Index + 1; i <= last; i++ {
		var l raft.Log
		if err := r.store.GetLog(i, &l); err != nil {
			return fmt.Errorf("read entry %d of the log: %w", i, err)
		}
		if l.Type == raft.LogCommand {
			r.fsm.Apply(&l)
		}
		r.plan.Index, r.plan.Term = l.Index, l.Term
	}
	if err := r.fsm.problem(); err != nil {
		return err
	}
	s, _ := r.fsm.State()
	r.plan.Epoch, r.plan.Lock = s.LastEpoch, s.Lock
	r.plan.Members, r.plan.Voters = s.Members, voterNames(s)
	if _, isMember := memberOf(s.Members, r.cfg.Name); !isMember {
		return fmt.Errorf("the log in %s has no member %q: this node is not of that group, or was "+
			"removed from it, or never had its log", r.cfg.Dir, r.cfg.Name)
	}
	if s.Cluster != r.cfg.Cluster {
		return fmt.Errorf("the log in %s is of cluster %q, not %q (group.cluster)", r.cfg.Dir,
			s.Cluster, r.cfg.Cluster)
	}
	return nil
}

// readSnapshot restores the newest snapshot, if there is one.
func (r *recovery) readSnapshot() error {
	list, err := r.snaps.List()
	if err != nil {
		return fmt.Errorf("list snapshots in %s: %w", r.cfg.Dir, err)
	}
	if len(list) == 0 {
		return nil
	}
	_, body, err := r.snaps.Open(list[0].ID)
	if err != nil {
		return fmt.Errorf("open snapshot %s: %w", list[0].ID, err)
	}
	r.plan.Index, r.plan.Term = list[0].Index, list[0].Term
	return r.fsm.Restore(body)
}

// run writes the new beginning: a snapshot with this node as the only server of Raft.
func (r *recovery) run() error {
	self, _ := memberOf(r.plan.Members, r.cfg.Name)
	c := raft.DefaultConfig()
	c.LocalID, c.Logger = raft.ServerID(self.Name), raftLogger(zap.NewNop())
	addr := raft.ServerAddress(self.Address)
	_, trans := raft.NewInmemTransport(addr)
	defer func() { _ = trans.Close() }()
	fsm := &recoverFSM{fsm: newFSM(), self: self.Name, disk: r.disk}
	err := raft.RecoverCluster(c, fsm, r.store, r.store, r.snaps, trans, raft.Configuration{
		Servers: []raft.Server{{ID: c.LocalID, Address: addr}},
	})
	if err != nil {
		return err
	}
	// What is here is the group's log from now on, also if some of it had been lost.
	if err := r.store.Set(regainKey, nil); err != nil {
		return err
	}
	s, _ := fsm.State()
	e := r.disk
	e.V, e.Recovered = Version, s.Recovered
	return r.file.save(e)
}

// recoverFSM gives the snapshot of a recovery its state.
type recoverFSM struct {
	*fsm
	self string
	disk endorsement
}

// Snapshot implements raft.FSM.
func (f *recoverFSM) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	f.publishLocked(recoverState(f.state, f.self, f.disk), f.index+1)
	f.mu.Unlock()
	return f.fsm.Snapshot()
}

// recoverState is the state with which one node goes on alone. Lock, sync set and members stay:
// nobody is promoted who may lack a commit, and nodes that lost only the group can come back.
func recoverState(s *State, self string, disk endorsement) *State {
	next := *s
	next.Recovered = max(s.Recovered, disk.Recovered) + 1
	next.LastEpoch = max(s.LastEpoch, disk.Endorsed, disk.Floor) + recoverJump
	next.Voters = &VoterSet{
		Version: max(setVersion(s), disk.Set) + recoverJump, Names: []string{self},
	}
	next.MemberChange = nil
	if s.Intent != nil {
		// The same epoch may have been given to another intent, and a lock entered for it.
		it := *s.Intent
		it.Epoch = next.LastEpoch
		next.Intent = &it
	}
	if s.Sync != nil {
		// The primary may have acted upon a change of that number which is not this one.
		rec := *s.Sync
		rec.Seq += recoverJump
		next.Sync = &rec
	}
	return &next
}
