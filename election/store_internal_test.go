package election

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

// faultyDisk is a disk whose writes fail or hang on demand.
type faultyDisk struct {
	diskStore
	fails     atomic.Bool
	failsLogs atomic.Bool
	mu        sync.Mutex // held by the test: writes hang
	wrote     atomic.Int64
}

var errDisk = errors.New("no space left on device")

func (d *faultyDisk) write(f func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fails.Load() {
		return errDisk
	}
	d.wrote.Add(1)
	return f()
}

func (d *faultyDisk) Set(k, v []byte) error {
	return d.write(func() error { return d.diskStore.Set(k, v) })
}

func (d *faultyDisk) SetUint64(k []byte, v uint64) error {
	return d.write(func() error { return d.diskStore.SetUint64(k, v) })
}

func (d *faultyDisk) StoreLogs(l []*raft.Log) error {
	return d.write(func() error {
		if d.failsLogs.Load() {
			return errDisk
		}
		return d.diskStore.StoreLogs(l)
	})
}

func newFaultyStore(t *testing.T) (*store, *faultyDisk, *atomic.Int64) {
	t.Helper()
	inner, err := openStore(t.TempDir(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { goleak.VerifyNone(t) })
	t.Cleanup(func() {
		if err := inner.Close(); err != nil {
			t.Error(err)
		}
	})
	disk := &faultyDisk{diskStore: inner.diskStore}
	s := newStore(disk, zap.NewNop())
	s.stall, s.retry = 30*time.Millisecond, 5*time.Millisecond
	silenced := new(atomic.Int64)
	s.onSilent = func() { silenced.Add(1) }
	return s, disk, silenced
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestStoreFailureIsSilence: Raft would end the process if the store told it of the error (I6).
func TestStoreFailureIsSilence(t *testing.T) {
	s, disk, silenced := newFaultyStore(t)
	disk.fails.Store(true)
	done := make(chan error, 2)
	go func() { done <- s.SetUint64([]byte("term"), 7) }()
	go func() { done <- s.Set([]byte("vote"), []byte("a")) }()
	waitFor(t, "silence", s.isSilent)
	select {
	case err := <-done:
		t.Fatalf("a write that failed returned: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	disk.fails.Store(false)
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "its return", func() bool { return !s.isSilent() })
	if silenced.Load() != 1 {
		t.Errorf("streams closed %d times", silenced.Load())
	}
	if v, err := s.GetUint64([]byte("term")); err != nil || v != 7 {
		t.Errorf("the write was lost: %d, %v", v, err)
	}
}

// TestStoreStallIsSilence: a leader whose disk hangs would keep the group from electing another.
func TestStoreStallIsSilence(t *testing.T) {
	s, disk, silenced := newFaultyStore(t)
	disk.mu.Lock()
	done := make(chan error, 1)
	go func() { done <- s.StoreLog(&raft.Log{Index: 1, Term: 1}) }()
	waitFor(t, "silence", s.isSilent)
	disk.mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	waitFor(t, "its return", func() bool { return !s.isSilent() })
	if silenced.Load() != 1 {
		t.Errorf("streams closed %d times", silenced.Load())
	}
	if i, err := s.LastIndex(); err != nil || i != 1 {
		t.Errorf("the entry that hung did not land: %d, %v", i, err)
	}
}

// TestStoreLogErrorIsRafts: an entry that was not written is not repeated behind Raft's back.
func TestStoreLogErrorIsRafts(t *testing.T) {
	s, disk, _ := newFaultyStore(t)
	disk.fails.Store(true)
	if err := s.StoreLog(&raft.Log{Index: 1}); !errors.Is(err, errDisk) {
		t.Errorf("got %v", err)
	}
	if s.isSilent() {
		t.Error("an error that raft handles silenced the node")
	}
}

// TestStoreThatFailsWhileClosingStaysSilent: the vote that was not written must not be answered.
func TestStoreThatFailsWhileClosingStaysSilent(t *testing.T) {
	s, disk, silenced := newFaultyStore(t)
	s.closed.Store(true)
	disk.fails.Store(true)
	if err := s.Set([]byte("vote"), []byte("a")); err != nil {
		t.Errorf("raft would panic on %v", err)
	}
	if !s.isSilent() || silenced.Load() != 1 {
		t.Errorf("silent: %t; streams closed %d times", s.isSilent(), silenced.Load())
	}
}

func TestStoreForwardsMonotonic(t *testing.T) {
	s, disk, _ := newFaultyStore(t)
	if s.IsMonotonic() {
		t.Error("bolt is not monotonic")
	}
	s.diskStore = monotonicDisk{disk}
	if !s.IsMonotonic() {
		t.Error("IsMonotonic of the wrapped store is lost")
	}
}

type monotonicDisk struct{ *faultyDisk }

func (monotonicDisk) IsMonotonic() bool { return true }

func TestStoreSaysWhatIsWrong(t *testing.T) {
	t.Run("open elsewhere", func(t *testing.T) {
		dir := t.TempDir()
		s, err := openStore(dir, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, err = openStore(dir, zap.NewNop())
		wantError(t, err, "raft.db", "another process", "running already")
	})
	t.Run("file in place of the directory", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "raft")
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := openStore(dir, zap.NewNop())
		wantError(t, err, dir, "not a directory", "raft.dir")
	})
	t.Run("not a database", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "raft.db")
		if err := os.WriteFile(path, []byte(strings.Repeat("x", 20000)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := openStore(dir, zap.NewNop())
		wantError(t, err, path, "damaged", "join anew")
	})
	for name, options := range map[string]string{
		"full": "size=16k", "read-only": "size=16k,ro",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := openStore(mountTmpfs(t, options), zap.NewNop())
			wantError(t, err, "write to raft directory", "free space", "raft.dir")
		})
	}
}

func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

// mountTmpfs mounts a small file system, or skips the test where that is not allowed; to root, in
// CI, it is.
func mountTmpfs(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	flags := uintptr(0)
	if size, ok := strings.CutSuffix(options, ",ro"); ok {
		options, flags = size, syscall.MS_RDONLY
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", flags, options); err != nil {
		if os.Getenv("CI") == "true" && os.Geteuid() == 0 {
			t.Fatalf("mount a small file system: %v", err)
		}
		t.Skipf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestEndorsementFileSaysWhatIsWrong(t *testing.T) {
	for name, tc := range map[string]struct {
		text  string
		words []string
	}{
		"cut off": {`{"v":1,"endor`, []string{"endorsed.json", "damaged", "join anew"}},
		"empty":   {``, []string{"damaged"}},
		"foreign": {`{"x":1}`, []string{"damaged"}},
		"newer":   {`{"v":99,"endorsed":3}`, []string{"version 99", "newer than 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := endorsementFile{path: filepath.Join(t.TempDir(), "endorsed.json")}
			if err := os.WriteFile(f.path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := f.load()
			wantError(t, err, tc.words...)
		})
	}
	f := endorsementFile{path: filepath.Join(t.TempDir(), "missing", "endorsed.json")}
	wantError(t, f.save(endorsement{V: 1}), "write endorsement", "no such file")
}

// TestSilentStreamsNeitherDialNorAccept is the other half of I6.
func TestSilentStreamsNeitherDialNorAccept(t *testing.T) {
	defer goleak.VerifyNone(t)
	layer := &streamLayer{handoff: newHandoff(raftAddr("x")), isSilent: func() bool { return true }}
	if _, err := layer.Dial("127.0.0.1:1", time.Second); !errors.Is(err, errSilent) {
		t.Errorf("a silent node dials: %v", err)
	}
	ours, theirs := net.Pipe()
	go layer.give(ours)
	accepted := make(chan error, 1)
	go func() {
		_, err := layer.Accept()
		accepted <- err
	}()
	if _, err := theirs.Read(make([]byte, 1)); err == nil {
		t.Error("a silent node spoke")
	}
	_ = layer.Close()
	if err := <-accepted; err == nil {
		t.Error("a silent node accepted")
	}
	_ = theirs.Close()
}

// TestCloseIsBoundedByItsContext: a disk that hangs for good must not keep the process.
func TestCloseIsBoundedByItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	release := make(chan struct{})
	defer close(release)
	err := waitClosed(ctx, "store", func() error { <-release; return nil })
	wantError(t, err, "close store", "deadline")
}
