package election

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
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
