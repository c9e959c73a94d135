package election

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// KillServerForTest ends a server and all that is left of it. It is asked first: a killed server
// leaves its shared memory to the machine.
func KillServerForTest(pid int, dataDir string) {
	const grace = 2 * time.Second
	sig := unix.SIGQUIT
	if live, _, _ := pgPostmaster(dataDir); live == pid {
		pgSignal(pid, sig, dataDir)
	}
	for begin := time.Now(); time.Since(begin) < 2*grace; {
		pids, _ := pgOrphans(dataDir)
		if len(pids) == 0 {
			return
		}
		if live, _, _ := pgPostmaster(dataDir); live == 0 || time.Since(begin) > grace {
			sig = unix.SIGKILL
		}
		for _, p := range pids {
			if sig == unix.SIGKILL {
				pgSignal(p, sig, dataDir)
			}
		}
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 1e7}, nil)
	}
}

// SegmentForTest is the System V segment of a data directory's server, by its postmaster.pid; -1 if
// there is none.
func SegmentForTest(dataDir string) int {
	b, _ := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	if lines := strings.Split(string(b), "\n"); len(lines) > 6 {
		if f := strings.Fields(lines[6]); len(f) == 2 {
			if id, err := strconv.Atoi(f[1]); err == nil {
				return id
			}
		}
	}
	return -1
}

// FreeSegmentForTest frees a segment that no process uses, and tells whether it is gone.
func FreeSegmentForTest(id int) bool {
	var desc unix.SysvShmDesc
	if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, &desc); err != nil {
		return true
	}
	if desc.Nattch != 0 {
		return false
	}
	_, err := unix.SysvShmCtl(id, unix.IPC_RMID, nil)
	return err == nil
}

// GenerateAgentSecrets makes password files as `holdfast init` does.
func GenerateAgentSecrets(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, name := range agentSecretNames {
		text := []byte(rand.Text() + rand.Text() + "\n")
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// StartXidForTest starts a server in place as an order does, and lets between act behind the closed
// door before the boundary is read.
func StartXidForTest(t *testing.T, a *PostgresAgent, between func()) (lo, hi uint64) {
	t.Helper()
	ctx := context.Background()
	if err := a.lockOps(ctx); err != nil {
		t.Fatal(err)
	}
	defer a.unlockOps()
	first, err := a.startAgain(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	between()
	if err := a.noteStartXid(ctx, first); err != nil {
		t.Fatal(err)
	}
	r := a.record()
	return r.StartLo, r.StartXid
}
