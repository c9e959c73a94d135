package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// reapSpec says what a reaper ends and removes.
type reapSpec struct {
	Dir    string `json:"dir"`
	Binary string `json:"binary"`
	Keep   bool   `json:"keep"`
}

// markerName is a file that only a cluster's directory has: without it nothing is removed.
const markerName = ".holdfast-cluster"

// makeClusterDir makes a new directory with the marker in it.
func makeClusterDir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	// PostgreSQL's account must be able to enter it, whatever the umask.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, markerName), []byte(dir+"\n"), 0o600); err != nil {
		return fmt.Errorf("mark directory: %w", err)
	}
	return nil
}

// reapTimeout bounds how long processes are waited for; SIGKILL ends all but those that hang in
// the kernel.
const reapTimeout = 20 * time.Second

// reap ends every process of the cluster, first the nodes, which would start PostgreSQL again,
// then the servers, and removes the directory. Running it twice, or twice at once, is harmless.
func reap(spec reapSpec) error {
	if spec.Dir == "" || !filepath.IsAbs(spec.Dir) {
		return nil
	}
	var err error
	nodes := []string{spec.Binary}
	err = errors.Join(err, endAll(spec.Dir, nodes, 0))
	err = errors.Join(err, endAll(spec.Dir, postgresNames(), 2*time.Second))
	if err != nil {
		return err
	}
	if markers, err := os.ReadFile(filepath.Join(spec.Dir, markerName)); err != nil ||
		string(markers) != spec.Dir+"\n" {
		return removeUnmarked(spec.Dir)
	}
	freeSharedMemory(spec.Dir)
	unmountUnder(spec.Dir)
	if spec.Keep {
		return nil
	}
	if err := os.RemoveAll(spec.Dir); err != nil {
		return fmt.Errorf("remove directory: %w", err)
	}
	return nil
}

// unmountUnder takes away the file systems that a fault lab mounted in the directory; without
// any, as everywhere else, it does nothing. What cannot be unmounted shows when it is removed.
func unmountUnder(dir string) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			_ = unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
}

// removeUnmarked removes what a crash between making the directory and marking it left: an empty
// one. A directory with anything in it is not ours to remove.
func removeUnmarked(dir string) error {
	err := os.Remove(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("remove directory: %w", err)
	}
	return nil
}

// postgresNames are the programs of PostgreSQL that may run in a cluster's directory.
func postgresNames() []string {
	return append(slices.Clone(postgresPrograms), "pgbench", "psql", "pg_isready")
}

// endAll ends the processes until two looks in a row find none: a new one may be started by one
// that was not ended yet. During the grace a server is shut down at once (SIGQUIT), by which it
// gives back its shared memory; everything else is killed.
func endAll(dir string, programs []string, grace time.Duration) error {
	begin := time.Now()
	for empty := 0; empty < 2; {
		found := processesUnder(dir, programs)
		if len(found) == 0 {
			empty++
			time.Sleep(5 * time.Millisecond) // nothing may interrupt the cleaning up
			continue
		}
		empty = 0
		since := time.Since(begin)
		if since > reapTimeout {
			return fmt.Errorf("end processes of %s: %d do not end, the first is %d (%s)",
				dir, len(found), found[0].pid, found[0].program)
		}
		for _, p := range found {
			sig := unix.SIGKILL
			if p.program == "postgres" && since < grace {
				sig = unix.SIGQUIT
			}
			if err := signalUnder(p, dir, programs, sig); err != nil {
				return err
			}
			if p.state != 'T' {
				continue
			}
			if err := signalUnder(p, dir, programs, unix.SIGCONT); err != nil {
				return err
			}
		}
		time.Sleep(20 * time.Millisecond) // reapTimeout bounds it
	}
	return nil
}

// freeSharedMemory frees the System V segments that killed servers left behind.
func freeSharedMemory(dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "*", "pg", "*", "postmaster.pid"))
	if err != nil {
		return
	}
	for _, f := range files {
		_, id := postmasterFile(filepath.Dir(f))
		var desc unix.SysvShmDesc
		if id == 0 {
			continue
		}
		if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, &desc); err != nil || desc.Nattch != 0 {
			continue
		}
		_, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
	}
}

// reaper is the process that outlives a crash of this one. It reads a pipe that the kernel closes
// when we die, and reaps then.
type reaper struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
	done bool
}

// startReaper starts it in a session of its own, where Ctrl-C does not reach it.
func startReaper(binary string, spec reapSpec) (*reaper, error) {
	line, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("start reaper: %w", err)
	}
	cmd := exec.Command(binary, "demo-reaper")
	cmd.Dir = "/"
	cmd.Env = nodeEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start reaper: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start reaper: %w", err)
	}
	r := &reaper{cmd: cmd, pipe: pipe}
	if _, err := pipe.Write(append(line, '\n')); err != nil {
		return nil, errors.Join(fmt.Errorf("start reaper: %w", err), r.close())
	}
	return r, nil
}

// close lets the reaper run and waits for it; the reaper bounds itself.
func (r *reaper) close() error {
	if r.done {
		return nil
	}
	r.done = true
	_ = r.pipe.Close()
	if err := r.cmd.Wait(); err != nil {
		return fmt.Errorf("reaper: %w", err)
	}
	return nil
}

// ReaperCommand is the subcommand that cleans up after a demo that died.
type ReaperCommand struct {
	In io.Reader
}

// Run reads what to watch over, waits until the pipe is closed, and reaps.
func (c ReaperCommand) Run() error {
	// Whatever ends the parent's session must not end this.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	in := bufio.NewReaderSize(c.In, 4096)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("demo-reaper is started by demo, not by hand: %w", err)
	}
	var spec reapSpec
	if err := json.Unmarshal(line, &spec); err != nil {
		return fmt.Errorf("read what to watch over: %w", err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("wait for the parent: %w", err)
	}
	return reap(spec)
}

func newReaperCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "demo-reaper",
		Short:  "Clean up after a demo that died",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ReaperCommand{In: cmd.InOrStdin()}.Run()
		},
	}
}
