package election

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// fsm is the thin raft.FSM over the pure state. It publishes each new state; readers share it and
// never change it.
type fsm struct {
	mu      sync.Mutex
	state   *State
	index   uint64
	changed chan struct{}
	// stuck is set for good by an entry that this release does not understand: the state stays
	// what it was before, and no snapshot hides the entry from the release that will.
	stuck error
	// replayed is the last index that was in the log when this process started: what it did has an
	// unknown age. unplanned are when newer unplanned changes were applied here, newest last.
	replayed  uint64
	unplanned []time.Time
}

var (
	_ raft.FSM    = (*fsm)(nil)
	_ StateSource = (*fsm)(nil)
)

func newFSM() *fsm { return &fsm{state: &State{V: Version}, changed: make(chan struct{})} }

// State implements StateSource.
func (f *fsm) State() (*State, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state, f.changed
}

// at returns the state with the index of the entry that made it.
func (f *fsm) at() (*State, uint64, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state, f.index, f.changed
}

// applied is the answer to a log entry.
type applied struct {
	result Result
	err    error
}

// problem tells why the state here follows the log no more; nil if it does.
func (f *fsm) problem() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stuck
}

// Apply implements raft.FSM. An entry that no release could read changes nothing and says so; one
// of a newer release stops the state here, since what comes after it rests on it.
func (f *fsm) Apply(l *raft.Log) any {
	c, err := decodeCommand(l.Data)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stuck == nil && errors.Is(err, errNewerEntry) {
		f.stuck = fmt.Errorf("entry %d: %w", l.Index, err)
	}
	if f.stuck != nil {
		return applied{err: f.stuck}
	}
	if err != nil {
		return applied{err: err}
	}
	next, r := apply(f.state, c)
	if next != f.state {
		if c.Kind == CommandCommitLock && l.Index > f.replayed {
			f.noteChangeLocked(next)
		}
		f.publishLocked(next, l.Index)
	}
	return applied{result: r}
}

// unplannedKept is how many unplanned changes are remembered; above Policy.MaxChanges.
const unplannedKept = 50

// noteChangeLocked remembers when an unplanned change was entered. Every node does, so that the
// limit on them outlives the leader; no clock of another node is compared.
func (f *fsm) noteChangeLocked(s *State) {
	n := len(s.History)
	if n == 0 || !s.History[n-1].isUnplanned() {
		return
	}
	f.unplanned = append(f.unplanned, time.Now())
	if len(f.unplanned) > unplannedKept {
		f.unplanned = f.unplanned[1:]
	}
}

// unplannedAges are how long ago unplanned changes were entered.
func (f *fsm) unplannedAges() []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []time.Duration
	for _, at := range f.unplanned {
		out = append(out, time.Since(at))
	}
	return out
}

// startAt tells what was in the log before this process.
func (f *fsm) startAt(index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replayed = index
}

func (f *fsm) publishLocked(s *State, index uint64) {
	f.state, f.index = s, index
	close(f.changed)
	f.changed = make(chan struct{})
}

// snapshotBody is what a snapshot holds.
type snapshotBody struct {
	V     int    `json:"v"`
	Index uint64 `json:"index"`
	State *State `json:"state"`
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stuck != nil {
		return nil, fmt.Errorf("no snapshot: %w", f.stuck)
	}
	return &snapshot{body: snapshotBody{V: Version, Index: f.index, State: f.state}}, nil
}

// snapshotBytesMax bounds a snapshot that is read.
const snapshotBytesMax = 64 << 20

// Restore implements raft.FSM.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	var b snapshotBody
	if err := json.NewDecoder(io.LimitReader(r, snapshotBytesMax)).Decode(&b); err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}
	if b.V > Version {
		return fmt.Errorf("read snapshot: version %d is newer than %d; upgrade this node", b.V,
			Version)
	}
	if b.State == nil {
		return errors.New("read snapshot: it holds no state")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stuck = nil
	f.publishLocked(b.State, b.Index)
	return nil
}

// snapshot is a state on its way to disk.
type snapshot struct{ body snapshotBody }

// Persist implements raft.FSMSnapshot.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := json.NewEncoder(sink).Encode(s.body); err != nil {
		_ = sink.Cancel()
		return fmt.Errorf("write snapshot: %w", err)
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (s *snapshot) Release() {}
