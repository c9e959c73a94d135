package election

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.uber.org/zap"
)

// store wraps the log and stable store on disk. hashicorp/raft panics when the stable store
// fails; here a failing write is repeated, and until it succeeds the node is silent: its
// transport takes and makes no connection, the others go on without it, and the proxy of this
// process lives on through the other voters (DESIGN.md I6).
type store struct {
	*raftboltdb.BoltStore
	log    *zap.Logger
	silent atomic.Bool
	closed atomic.Bool
	// onSilent is called when the node falls silent.
	onSilent func()
}

var (
	_ raft.LogStore    = (*store)(nil)
	_ raft.StableStore = (*store)(nil)
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
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &store{BoltStore: b, log: log, onSilent: func() {}}, nil
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

// storeRetry is the pause before a write that failed is repeated.
const storeRetry = time.Second

// keepTrying repeats a write to the stable store until it lands.
func (s *store) keepTrying(what string, write func() error) error {
	for {
		start := time.Now()
		err := write()
		if d := time.Since(start); d > slowWrite {
			s.log.Warn("raft disk is slow", zap.String("write", what), zap.Duration("took", d))
		}
		if err == nil {
			if s.silent.CompareAndSwap(true, false) {
				s.log.Info("raft disk works again, node takes part again")
			}
			return nil
		}
		if s.closed.Load() {
			return nil // the transport is closed: nothing can come of it any more
		}
		if s.silent.CompareAndSwap(false, true) {
			s.log.Error("raft disk failed, node is silent", zap.String("write", what),
				zap.Error(err))
			s.onSilent()
		}
		time.Sleep(storeRetry) // nothing needs to interrupt it: raft's goroutine waits for the disk
	}
}

// Set implements raft.StableStore.
func (s *store) Set(key, val []byte) error {
	return s.keepTrying("set", func() error { return s.BoltStore.Set(key, val) })
}

// SetUint64 implements raft.StableStore.
func (s *store) SetUint64(key []byte, val uint64) error {
	return s.keepTrying("set", func() error { return s.BoltStore.SetUint64(key, val) })
}

// StoreLog implements raft.LogStore.
func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore. An error is raft's to handle: a leader steps down, a
// follower refuses the entries.
func (s *store) StoreLogs(logs []*raft.Log) error {
	start := time.Now()
	err := s.BoltStore.StoreLogs(logs)
	if d := time.Since(start); d > slowWrite {
		s.log.Warn("raft disk is slow", zap.String("write", "log"), zap.Duration("took", d))
	}
	if err != nil {
		s.log.Error("raft log could not be written", zap.Error(err))
		return fmt.Errorf("write raft log: %w", err)
	}
	return nil
}
