package election

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// pgIsGone tells that the error of a look at /proc says that the process does not exist; any
// other one (no file descriptors left, no memory) says nothing about it.
func pgIsGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// pgProc tells about the process pid. alive is false only if it is proven: there is none, or a
// zombie, which is dead though its pid is still taken (DESIGN 10.11a).
func pgProc(pid int) (alive bool, ppid int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !pgIsGone(err), 0
	}
	// The name is in parentheses and may hold anything; what follows the last one is fields.
	i := bytes.LastIndexByte(b, ')')
	fields := strings.Fields(string(b[i+1:]))
	if i < 0 || len(fields) < 2 {
		return false, 0
	}
	ppid, _ = strconv.Atoi(fields[1])
	return fields[0] != "Z" && fields[0] != "X", ppid
}

// pgServesDir tells whether pid is a postgres process whose working directory is dir. PostgreSQL's
// processes change to PGDATA; the name in the process title is never asked. A zombie has neither.
// An error says that it cannot be told.
func pgServesDir(pid int, dir os.FileInfo) (bool, error) {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err == nil && filepath.Base(strings.TrimSuffix(exe, " (deleted)")) != "postgres" {
		return false, nil
	}
	var cwd os.FileInfo
	if err == nil {
		cwd, err = os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	}
	if err != nil {
		// A process that may not be looked at belongs to another account (pgMayLook).
		if pgIsGone(err) || errors.Is(err, os.ErrPermission) {
			return false, nil
		}
		return false, fmt.Errorf("look at process %d: %w", pid, err)
	}
	return os.SameFile(cwd, dir), nil
}

// pgMayLook checks that processes of PostgreSQL's account can be told apart at all: without it a
// live postmaster would look like a dead one.
func pgMayLook(c *pgAccount) error {
	if c.cred == nil {
		return nil
	}
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("look at processes: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			if err == nil && caps&(1<<unix.CAP_SYS_PTRACE) != 0 {
				return nil
			}
		}
	}
	return fmt.Errorf("root without the capability CAP_SYS_PTRACE cannot see the processes of "+
		"%s: add it, or run holdfast as %s", c.name, c.name)
}

// postmaster gives the pid of the live postmaster of the data directory, 0 if there is none, and
// the state word that the postmaster writes into its file (starting, ready, standby, stopping).
// An error says that it cannot be told, which is never taken for "there is none".
func (a *PostgresAgent) postmaster() (pid int, word string, err error) {
	pid, word, err = pgPostmaster(a.cfg.DataDir)
	if err != nil || pid != 0 {
		return pid, word, err
	}
	if pid = a.watchedPid(); pid == 0 {
		return 0, "", nil
	}
	if a.isEnding(pid) {
		return pid, "stopping", nil
	}
	return 0, "", errPostmasterFile
}

// isEnding tells that the live postmaster pid still serves the data directory and has no file there
// any more. It removes the file as the last thing before it exits (UnlinkLockFiles in PostgreSQL's
// miscinit.c), and one whose file was taken from it ends itself within a minute.
func (a *PostgresAgent) isEnding(pid int) bool {
	if _, err := os.Lstat(pgPostmasterFile(a.cfg.DataDir)); !errors.Is(err, os.ErrNotExist) {
		return false
	}
	dir, err := os.Stat(a.cfg.DataDir)
	if err != nil {
		return false
	}
	is, err := pgServesDir(pid, dir)
	return err == nil && is
}

// pgPostmasterFile is the file that says which process serves a data directory.
func pgPostmasterFile(dataDir string) string { return filepath.Join(dataDir, "postmaster.pid") }

func pgPostmaster(dataDir string) (pid int, word string, err error) {
	b, err := os.ReadFile(pgPostmasterFile(dataDir))
	if errors.Is(err, os.ErrNotExist) {
		return 0, "", nil
	}
	if err != nil {
		return 0, "", fmt.Errorf("look for the postmaster: %w", err)
	}
	lines := strings.Split(string(b), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid < 2 || len(b) > 4096 { // negative: single-user mode
		return 0, "", nil
	}
	dir, err := os.Stat(dataDir)
	if err != nil {
		return 0, "", fmt.Errorf("look for the postmaster: %w", err)
	}
	if alive, _ := pgProc(pid); !alive {
		return 0, "", nil
	}
	if is, err := pgServesDir(pid, dir); err != nil || !is {
		return 0, "", err
	}
	if len(lines) > 7 {
		word = strings.TrimSpace(lines[7])
	}
	return pid, word, nil
}

// pgOrphans are the live postgres processes of the data directory.
func pgOrphans(dataDir string) ([]int, error) {
	dir, err := os.Stat(dataDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for orphans: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for orphans: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if is, err := pgServesDir(pid, dir); err != nil {
			return nil, err
		} else if !is {
			continue
		}
		if alive, _ := pgProc(pid); alive {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// endOrphans ends the processes that outlived their postmaster: they block a start, and may
// still write. The caller holds ops, so no postmaster of ours is just starting; one that
// somebody else starts shows its file within the pause.
func (a *PostgresAgent) endOrphans(ctx context.Context) error {
	if pids, err := pgOrphans(a.cfg.DataDir); err != nil {
		return err
	} else if len(pids) == 0 {
		return a.clearDeadLocks()
	}
	begin := time.Now()
	for sig, killed := unix.SIGQUIT, 0; ; {
		if err := pauseFor(ctx, 10*time.Millisecond); err != nil {
			return err
		}
		if pid, _, err := a.postmaster(); err != nil {
			return fmt.Errorf("end orphans: %w", err)
		} else if pid != 0 {
			return fmt.Errorf("end orphans: postmaster %d lives", pid)
		}
		pids, err := pgOrphans(a.cfg.DataDir)
		if err != nil {
			return fmt.Errorf("end orphans: %w", err)
		}
		if len(pids) == 0 {
			a.log.Info("orphans of a dead postmaster ended")
			return a.clearDeadLocks()
		}
		since := time.Since(begin)
		if since > 5*time.Second {
			return fmt.Errorf("end orphans: processes %v do not end (a hung disk?)", pids)
		}
		if since > 100*time.Millisecond {
			sig = unix.SIGKILL
		}
		if killed++; killed == 1 || sig == unix.SIGKILL {
			for _, pid := range pids {
				pgSignal(pid, sig, a.cfg.DataDir)
			}
		}
	}
}

// clearDeadLocks removes lock files whose postmaster is proven dead though its pid is still
// taken: by its zombie, which an idle init may leave for long, or by another program. PostgreSQL
// asks kill(pid, 0) only, and would refuse to start. There are no orphans (the caller has looked),
// and PostgreSQL's own check of the shared memory segment still stands.
func (a *PostgresAgent) clearDeadLocks() error {
	_, port, _ := net.SplitHostPort(a.cfg.Listen)
	for _, path := range []string{pgPostmasterFile(a.cfg.DataDir),
		filepath.Join(a.cfg.socketDir(), ".s.PGSQL."+port+".lock")} {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		first, rest, _ := strings.Cut(string(b), "\n")
		dir, _, _ := strings.Cut(rest, "\n")
		pid, err := strconv.Atoi(strings.TrimSpace(first))
		if err != nil || filepath.Clean(dir) != filepath.Clean(a.cfg.DataDir) {
			continue // not a file of this data directory: PostgreSQL's error tells
		}
		live, _, err := a.postmaster()
		if err != nil || live != 0 || unix.Kill(max(pid, -pid), 0) != nil {
			continue // alive, or gone for good: PostgreSQL handles both itself
		}
		a.log.Info("lock file of a dead postmaster removed", zap.String("path", path),
			zap.Int("pid", pid))
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove lock file of dead postmaster %d: %w", pid, err)
		}
	}
	return nil
}

// pgSignal signals pid through a pidfd after looking again, so that a recycled pid is safe.
func pgSignal(pid int, sig unix.Signal, dataDir string) {
	dir, err := os.Stat(dataDir)
	if err != nil {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if is, _ := pgServesDir(pid, dir); is && errors.Is(err, unix.ENOSYS) {
			_ = unix.Kill(pid, sig)
		}
		return
	}
	defer func() { _ = unix.Close(fd) }()
	if is, _ := pgServesDir(pid, dir); is {
		_ = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
}

// watchPostmaster returns when pid is dead or ctx ended; it sees a death at once.
func watchPostmaster(ctx context.Context, pid int) {
	if awaitDeath(ctx, pid) {
		return
	}
	for { // an old kernel, or dead already
		if alive, _ := pgProc(pid); !alive || pauseFor(ctx, 20*time.Millisecond) != nil {
			return
		}
	}
}

// awaitDeath waits for the death of pid, or the end of ctx, by Go's poller; false tells that it
// could not. A thread that waited in poll itself would keep its place in Go's scheduler, and the
// runtime's monitor would stay awake to take it away (proxy/DESIGN.md, 2026-11-30).
func awaitDeath(ctx context.Context, pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	if err := unix.SetNonblock(fd, true); err != nil { // else os takes it for one that blocks
		_ = unix.Close(fd)
		return false
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer func() { _ = f.Close() }()
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer stop()
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
	return err == nil || ctx.Err() != nil
}

// errPostmasterFile says that the files of the server and its process do not fit each other.
var errPostmasterFile = errors.New("the postmaster lives, but postmaster.pid is not its own")

// watchedPid is the postmaster that was last seen, if it has not ended, whatever its files say (a
// directory renamed or unmounted under it); else 0.
func (a *PostgresAgent) watchedPid() int {
	a.mu.Lock()
	pid := a.watched
	a.mu.Unlock()
	if pid == 0 {
		return 0
	}
	if alive, _ := pgProc(pid); !alive {
		return 0
	}
	return pid
}

// watch makes sure that one goroutine waits for the death of pid.
func (a *PostgresAgent) watch(ctx context.Context, pid int) {
	a.mu.Lock()
	known := a.watched == pid
	a.watched = pid
	a.mu.Unlock()
	if known {
		return
	}
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		watchPostmaster(ctx, pid)
		if ctx.Err() == nil {
			a.mu.Lock()
			if a.watched == pid {
				a.watched = 0
			}
			a.mu.Unlock()
			a.hurry()
		}
	}()
}
