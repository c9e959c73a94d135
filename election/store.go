package election

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.uber.org/zap"
)

// diskStore is what the store wraps.
type diskStore interface {
	raft.LogStore
	raft.StableStore
	Close() error
}

// store wraps the log and stable store on disk. hashicorp/raft panics when the stable store
// fails, and a leader whose disk hangs goes on with its heartbeats, so that nobody is elected in
// its place. Here a write to the stable store that fails is repeated, and as long as one fails or
// does not return the node is silent: its transport takes and makes no connection, the others go
// on without it, and the proxy of this process lives on through the other voters (DESIGN.md I6).
type store struct {
	diskStore
	log *zap.Logger
	// stall is from when on a write that has not returned silences the node, retry the pause
	// before one that failed is repeated.
	stall, retry time.Duration
	closed       atomic.Bool
	// onSilent is called when the node falls silent.
	onSilent func()
	// leads tells whether this node leads the group, probe tries the disk by a write.
	leads func() bool
	probe func() error
	// probing are the goroutines of silentUntilClean.
	probing sync.WaitGroup
	// measure is told how long each write took, onSilence of each silence.
	measure   func(what string, took time.Duration)
	onSilence func()

	// refused tells that the newest log entries could not be written.
	refused atomic.Bool

	mu    sync.Mutex
	bad   int       // writes that failed or hang, or landed without a clean probe since
	doubt diskDoubt // guarded by mu
	back  time.Time // when the newest silence ended; guarded by mu
}

var (
	_ raft.LogStore          = (*store)(nil)
	_ raft.StableStore       = (*store)(nil)
	_ raft.MonotonicLogStore = (*store)(nil)
)

// openStore opens the store in dir, or says what to do about it.
func openStore(dir string, log *zap.Logger) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open raft directory: %w (see raft.dir)", err)
	}
	if err := probeDir(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "raft.db")
	b, err := raftboltdb.New(raftboltdb.Options{
		Path: path, BoltOptions: &bolt.Options{Timeout: 2 * time.Second},
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: another process has it open; is the node running "+
			"already?", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w; if it is damaged, remove this node's raft directory "+
			"as a whole and let it join anew", path, err)
	}
	s := newStore(b, log)
	s.probe = func() error { return probeDir(dir) }
	return s, nil
}

func newStore(inner diskStore, log *zap.Logger) *store {
	return &store{
		diskStore: inner, log: log, stall: stallTime, retry: storeRetry, onSilent: func() {},
		leads: func() bool { return false }, probe: func() error { return nil },
		measure: func(string, time.Duration) {}, onSilence: func() {},
	}
}

// probeDir writes a file of some size and removes it, so that a full or read-only file system is
// found at once and not by the first vote.
func probeDir(dir string) error {
	path := filepath.Join(dir, ".probe")
	defer os.Remove(path)
	if err := writeSynced(path, make([]byte, 64<<10), 0o600); err != nil {
		return fmt.Errorf("write to raft directory: %w; it must be writable and have free "+
			"space (see raft.dir)", err)
	}
	return nil
}

// slowWrite is from when on a write is worth a line in the log.
const slowWrite = 500 * time.Millisecond

// stallTime is from when on a write counts as stalled. Falling silent costs no more than an
// election, which no client notices.
const stallTime = 2 * time.Second

// storeRetry is the pause before a write that failed is repeated.
const storeRetry = time.Second

// errStalled is a write that does not return.
var errStalled = errors.New("write has not returned")

// isSilent tells whether a write is failing or hanging now, or has been and no probe was clean yet.
func (s *store) isSilent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bad > 0
}

// trust tells how often the disk has silenced the node of late, and when that ended.
func (s *store) trust(now time.Time) (diskDoubt, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doubt.at(now), s.back
}

// What is written.
const (
	writeLog = "log"
	writeSet = "set"
)

// diskWrite is one write, from its start until it landed or was given up.
type diskWrite struct {
	what  string
	isBad bool // guarded by store.mu
	ended bool // guarded by store.mu
}

// markBad makes the node silent until the write ends.
func (s *store) markBad(w *diskWrite, cause error) {
	s.mu.Lock()
	first := false
	if !w.isBad && !w.ended {
		w.isBad = true
		s.bad++
		first = s.bad == 1
	}
	if first {
		s.doubt = s.doubt.silenced(time.Now())
	}
	s.mu.Unlock()
	if first {
		s.log.Error("raft disk failed, node is silent", zap.String("write", w.what),
			zap.Error(cause))
		s.onSilence()
		s.onSilent()
	}
}

// end takes the write out of the count.
func (s *store) end(w *diskWrite) {
	s.mu.Lock()
	last := false
	w.ended = true
	if w.isBad {
		s.bad--
		last = s.bad == 0
	}
	if last {
		s.back = time.Now()
		s.doubt.since = s.back
	}
	level := s.doubt.level
	s.mu.Unlock()
	if last {
		s.log.Info("raft disk works again, node takes part again",
			zap.Int("silences_of_late", level))
	}
}

// landed ends a write that reached the disk. One that failed before, or hung, was no clean one.
func (s *store) landed(w *diskWrite) {
	s.mu.Lock()
	isBad := w.isBad
	s.mu.Unlock()
	if !isBad || !s.probeUntil(w, 1) {
		s.end(w)
	}
}

// probeUntil probes in the background until so many probes in a row were clean; false if the store
// is being closed, which waits for those that have begun.
func (s *store) probeUntil(w *diskWrite, probes int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return false
	}
	s.probing.Go(func() { s.silentUntilClean(w, probes) })
	return true
}

// try writes once and watches the time. A write is never abandoned: it may still land, and what
// follows must not overtake it.
func (s *store) try(w *diskWrite, write func() error) error {
	start := time.Now()
	t := time.AfterFunc(s.stall, func() { s.markBad(w, errStalled) })
	defer t.Stop()
	err := write()
	d := time.Since(start)
	s.measure(w.what, d)
	if d > slowWrite {
		s.log.Warn("raft disk is slow", zap.String("write", w.what), zap.Duration("took", d))
	}
	return err
}

// keepTrying repeats a write to the stable store until it lands.
func (s *store) keepTrying(what string, write func() error) error {
	w := &diskWrite{what: what}
	for {
		err := s.try(w, write)
		if err == nil {
			s.landed(w)
			return nil
		}
		s.markBad(w, err)
		if s.closed.Load() {
			// Raft must go on to end. The node stays silent for good: nothing may leave that
			// rests on this write.
			return nil
		}
		time.Sleep(s.retry) // nothing needs to interrupt it: raft's goroutine waits for the disk
	}
}

// Set implements raft.StableStore.
func (s *store) Set(key, val []byte) error {
	return s.keepTrying(writeSet, func() error { return s.diskStore.Set(key, val) })
}

// SetUint64 implements raft.StableStore.
func (s *store) SetUint64(key []byte, val uint64) error {
	return s.keepTrying(writeSet, func() error { return s.diskStore.SetUint64(key, val) })
}

// StoreLog implements raft.LogStore.
func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// cleanProbes is how many probes in a row must be clean before a leader whose log could not be
// written takes part again: with the pauses more time than the others need to elect another one.
const cleanProbes = 4

// silentUntilClean ends a write that failed or hung once so many probes in a row were clean.
func (s *store) silentUntilClean(w *diskWrite, probes int) {
	within := slowWrite
	if probes == 1 {
		within = s.stall // else a disk that is slow all the time would never be let back
	}
	for clean := 0; ; {
		if clean++; !s.isClean(within) {
			clean = 0
		}
		if clean >= probes {
			s.end(w)
			return
		}
		for begin := time.Now(); time.Since(begin) < s.retry; {
			if s.closed.Load() {
				return // the node stays silent to its end
			}
			time.Sleep(s.retry / 20) // 50 ms; Close waits for it
		}
	}
}

// isClean writes to the disk and tells whether that went as it should.
func (s *store) isClean(within time.Duration) bool {
	begin := time.Now()
	return s.probe() == nil && time.Since(begin) < within
}

// Close waits for the probes and closes the store on disk.
func (s *store) Close() error {
	s.mu.Lock()
	s.closed.Store(true)
	s.mu.Unlock()
	s.probing.Wait()
	return s.diskStore.Close()
}

// StoreLogs implements raft.LogStore. An error is raft's to handle: a leader steps down, a
// follower refuses the entries. A leader is silent as well: it has the newest log and room for a
// vote, and would win each election anew, without a way to write what it leads with.
func (s *store) StoreLogs(logs []*raft.Log) error {
	w := &diskWrite{what: writeLog}
	err := s.try(w, func() error { return s.diskStore.StoreLogs(logs) })
	s.refused.Store(err != nil)
	if err == nil {
		s.landed(w)
		return nil
	}
	s.log.Error("raft log could not be written", zap.Error(err))
	if s.leads() && !s.closed.Load() {
		if s.markBad(w, err); !s.probeUntil(w, cleanProbes) {
			s.end(w)
		}
	} else {
		s.landed(w)
	}
	return fmt.Errorf("write raft log: %w", err)
}

// IsMonotonic implements raft.MonotonicLogStore with what the wrapped store says.
func (s *store) IsMonotonic() bool {
	m, ok := s.diskStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}
