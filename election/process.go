package election

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// pgAccount is the operating system account of PostgreSQL; cred is nil when it is our own.
type pgAccount struct {
	name     string
	uid, gid int
	cred     *syscall.Credential
}

func pgLookupAccount(name string) (*pgAccount, error) {
	if os.Geteuid() != 0 {
		return &pgAccount{name: name, uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("os_user %q: %w (PostgreSQL refuses to run as root)", name, err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("os_user %q: %w", name, err)
	}
	if uid == 0 {
		return nil, fmt.Errorf("os_user %q: PostgreSQL refuses to run as root", name)
	}
	cred := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if groups, err := u.GroupIds(); err == nil {
		for _, g := range groups {
			if n, err := strconv.ParseUint(g, 10, 32); err == nil {
				cred.Groups = append(cred.Groups, uint32(n))
			}
		}
	}
	return &pgAccount{name: name, uid: uid, gid: gid, cred: cred}, nil
}

func (c *pgAccount) own(path string) error {
	if c.cred == nil {
		return nil
	}
	return os.Lchown(path, c.uid, c.gid)
}

// reaches checks that the account may enter every directory above path.
func (c *pgAccount) reaches(path string) error {
	if c.cred == nil {
		return nil
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("look at %s: %w", dir, err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		need := os.FileMode(0o001)
		if ok && int(st.Uid) == c.uid {
			need = 0o100
		} else if ok && c.inGroup(st.Gid) {
			need = 0o010
		}
		if info.Mode().Perm()&need == 0 {
			return fmt.Errorf("account %s cannot enter %s (%v), which is above %s: chmod o+x it "+
				"or choose another directory", c.name, dir, info.Mode(), path)
		}
		if dir == "/" {
			return nil
		}
	}
}

func (c *pgAccount) inGroup(gid uint32) bool {
	for _, g := range c.cred.Groups {
		if g == gid {
			return true
		}
	}
	return gid == uint32(c.gid)
}

// pgFindBin finds PostgreSQL's programs.
func pgFindBin(dir string) (string, error) {
	var dirs []string
	if dir != "" {
		dirs = []string{dir}
	} else {
		dirs, _ = filepath.Glob("/usr/lib/postgresql/*/bin")
		version := func(d string) int {
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(d)))
			return n
		}
		sort.Slice(dirs, func(i, j int) bool { return version(dirs[i]) > version(dirs[j]) })
		if p, err := exec.LookPath("pg_ctl"); err == nil {
			dirs = append(dirs, filepath.Dir(p))
		}
	}
	var missing error
	for _, d := range dirs {
		missing = nil
		for _, name := range []string{"pg_ctl", "postgres", "initdb", "pg_controldata",
			"pg_basebackup", "pg_rewind"} {
			if _, err := os.Stat(filepath.Join(d, name)); err != nil {
				missing = fmt.Errorf("%s is not in %s", name, d)
				break
			}
		}
		if missing == nil {
			return d, nil
		}
	}
	if missing == nil {
		missing = errors.New("no PostgreSQL found")
	}
	return "", fmt.Errorf("bin_dir: %w: install PostgreSQL's server package (Debian: "+
		"postgresql) or set bin_dir", missing)
}

// run runs one of PostgreSQL's programs to its end as PostgreSQL's account; the error carries the
// end of what it printed. No password is ever an argument or part of the environment.
func (a *PostgresAgent) run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(a.bin, name), args...)
	cmd.Dir = "/"
	cmd.Env = pgEnviron(a.bin, name, os.Getenv, oomScore())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: a.account.cred}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if ctx.Err() != nil && err != nil {
		err = ctx.Err()
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", name, err,
			pgWithRemedy(pgTail(out.String(), 600)))
	}
	return out.String(), nil
}

// oomScoreFile is where a process tells the kernel how soon it is to be killed for memory.
const oomScoreFile = "/proc/self/oom_score_adj"

// oomScore is our own score; an unknown one counts as the usual 0.
func oomScore() int {
	b, _ := os.ReadFile(oomScoreFile)
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// pgEnviron is what PostgreSQL's programs get of the environment. The postmaster, which pg_ctl
// starts, gets what makes it raise its children's out-of-memory score: a node is spared by its
// unit, the postmaster inherits that, and a backend that eats all memory must not. Without the two
// variables a spared node asks for what they usually say.
func pgEnviron(bin, program string, getenv func(string) string, score int) []string {
	env := []string{"PATH=" + bin + ":/usr/bin:/bin", "LC_ALL=C", "HOME=/nonexistent"}
	if program != "pg_ctl" {
		return env
	}
	file, value := getenv("PG_OOM_ADJUST_FILE"), getenv("PG_OOM_ADJUST_VALUE")
	if file == "" && score < 0 {
		file, value = oomScoreFile, "0"
	}
	if file != "" {
		env = append(env, "PG_OOM_ADJUST_FILE="+file)
	}
	if file != "" && value != "" {
		env = append(env, "PG_OOM_ADJUST_VALUE="+value)
	}
	return env
}

// pgWithRemedy adds to what PostgreSQL printed the key to look at, where its words are known.
func pgWithRemedy(text string) string {
	for words, remedy := range map[string]string{
		"Address already in use": "another program has the port of postgres.listen: end it, or " +
			"choose another port, also in group.nodes of all nodes",
		"password authentication failed": "the passwords in postgres.secrets_dir are not those of " +
			"the other nodes: copy the directory from one that works",
	} {
		if strings.Contains(text, words) {
			text += " (" + remedy + ")"
		}
	}
	return text
}

// pgTail gives the last bytes of a text as one line.
func pgTail(s string, limit int) string {
	s = strings.TrimSpace(s)
	if len(s) > limit {
		s = "..." + s[len(s)-limit:]
	}
	return strings.ReplaceAll(s, "\n", " | ")
}

// writeFile replaces a file so that after a crash there is the old or the new one, whole.
func (a *PostgresAgent) writeFile(path string, data []byte, mode os.FileMode) error {
	tmp := path + ".holdfast-tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = a.account.own(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return pgSyncDir(filepath.Dir(path))
}

func pgSyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

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
	if err == nil && pid == 0 && a.watchedLives() {
		err = errPostmasterFile
	}
	return pid, word, err
}

func pgPostmaster(dataDir string) (pid int, word string, err error) {
	b, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
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
		if err := pgSleep(ctx, 10*time.Millisecond); err != nil {
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
	for _, path := range []string{filepath.Join(a.cfg.DataDir, "postmaster.pid"),
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
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		for { // an old kernel, or dead already
			if alive, _ := pgProc(pid); !alive || pgSleep(ctx, 20*time.Millisecond) != nil {
				return
			}
		}
	}
	defer func() { _ = unix.Close(fd) }()
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n > 0 || (err != nil && !errors.Is(err, unix.EINTR)) {
			return
		}
	}
}
