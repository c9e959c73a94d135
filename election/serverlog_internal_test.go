package election

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// logAgent is as much of an agent as its log needs, with a log of that many bytes.
func logAgent(t *testing.T, dir string, size int) (*PostgresAgent, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.WarnLevel)
	a := &PostgresAgent{state: dir, log: zap.New(core),
		account: &pgAccount{name: "me", uid: os.Geteuid(), gid: os.Getegid()}}
	a.cfg.LogBytesMax = 1 << 20
	var text bytes.Buffer
	for i := 0; text.Len() < size; i++ {
		fmt.Fprintf(&text, "line %d\n", i)
	}
	if err := os.WriteFile(a.logFile(), text.Bytes()[:size], 0o600); err != nil {
		t.Fatal(err)
	}
	return a, logs
}

func readLogs(t *testing.T, a *PostgresAgent) (old, log []byte) {
	t.Helper()
	old, _ = os.ReadFile(a.logFile() + ".1")
	log, err := os.ReadFile(a.logFile())
	if err != nil {
		t.Fatal(err)
	}
	return old, log
}

// TestLogIsCut: a log over its bound goes to .1, byte for byte, and what is left is below a block,
// whether the file system takes blocks out of files or not (tmpfs does not).
func TestLogIsCut(t *testing.T) {
	shm, err := os.MkdirTemp("/dev/shm", "hflog")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(shm) })
	for _, dir := range []string{t.TempDir(), shm} {
		a, logs := logAgent(t, dir, 1<<20)
		want, _ := os.ReadFile(a.logFile())
		if err := a.trimLog(t.Context()); err != nil {
			t.Fatal(err)
		}
		if old, log := readLogs(t, a); old != nil || !bytes.Equal(log, want) {
			t.Errorf("%s: a log at its bound was cut", dir)
		}
		for range 2 { // the second time there is an older one
			a, logs = logAgent(t, dir, 1<<20+12345)
			want, _ = os.ReadFile(a.logFile())
			if err := a.trimLog(t.Context()); err != nil {
				t.Fatal(err)
			}
			old, log := readLogs(t, a)
			if !bytes.Equal(append(old, log...), want) || len(log) > 4096 {
				t.Errorf("%s: %d bytes are %d and %d", dir, len(want), len(old), len(log))
			}
		}
		if logs.Len() != 0 {
			t.Errorf("warned: %v", logs.All())
		}
	}
}

// TestLogIsCutWithoutRoom: a copy that would fill the disk is not made; the log is cut all the
// same, and the node's log says so.
func TestLogIsCutWithoutRoom(t *testing.T) {
	a, logs := logAgent(t, t.TempDir(), 2<<20)
	a.logSpare = 1 << 60
	if err := os.WriteFile(a.logFile()+".1", []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.trimLog(t.Context()); err != nil {
		t.Fatal(err)
	}
	if old, log := readLogs(t, a); old != nil || len(log) != 0 {
		t.Errorf("left: %d and %d bytes", len(old), len(log))
	}
	if logs.FilterMessageSnippet("without a copy").Len() != 1 {
		t.Errorf("the log says %v", logs.All())
	}
}

// TestLogOfOthersIsNotCut: the directory is PostgreSQL's account's, and the agent may be root.
func TestLogOfOthersIsNotCut(t *testing.T) {
	outside, text := filepath.Join(t.TempDir(), "precious"), make([]byte, 2<<20)
	if err := os.WriteFile(outside, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, put := range map[string]func(from, to string) error{
		"symbolic link": os.Symlink, "hard link": os.Link,
	} {
		a, _ := logAgent(t, t.TempDir(), 0)
		_ = os.Remove(a.logFile())
		if err := put(outside, a.logFile()); err != nil {
			t.Fatal(err)
		}
		if err := a.trimLog(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
		if info, err := os.Stat(outside); err != nil || info.Size() != int64(len(text)) {
			t.Errorf("%s: the file was cut", name)
		}
	}
	a, _ := logAgent(t, t.TempDir(), 2<<20)
	if a.account.uid++; a.trimLog(t.Context()) == nil {
		t.Error("a file of somebody else was cut")
	}
	victim := filepath.Join(t.TempDir(), "victim")
	a, _ = logAgent(t, t.TempDir(), 2<<20)
	if err := os.Symlink(victim, a.logFile()+".1"); err != nil {
		t.Fatal(err)
	}
	if err := a.trimLog(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(victim); err == nil {
		t.Error("the copy went where a link led")
	}
	if old, _ := readLogs(t, a); len(old) == 0 {
		t.Error("there is no copy")
	}
}
