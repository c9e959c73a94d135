package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is one entry of /proc that belongs to a cluster.
type process struct {
	pid int
	// program is the base name of what it executes.
	program string
	state   byte
}

// processesUnder lists the processes that run one of the programs (names of PostgreSQL's, or the
// path of a binary) and work in dir: by their working directory, or because an argument names
// it, as with pg_basebackup. A zombie counts as gone.
func processesUnder(dir string, programs []string) []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if p, ok := lookAtProcess(pid, dir, programs); ok {
			found = append(found, p)
		}
	}
	return found
}

func lookAtProcess(pid int, dir string, programs []string) (process, bool) {
	base := fmt.Sprintf("/proc/%d/", pid)
	exe, err := os.Readlink(base + "exe")
	if err != nil {
		return process{}, false
	}
	exe = strings.TrimSuffix(exe, " (deleted)")
	p := process{pid: pid, program: filepath.Base(exe)}
	if !slices.Contains(programs, p.program) && !slices.Contains(programs, exe) {
		return process{}, false
	}
	if p.state = processState(pid); p.state == 0 || p.state == 'Z' || p.state == 'X' {
		return process{}, false
	}
	cwd, err := os.Readlink(base + "cwd")
	if err == nil && isUnder(strings.TrimSuffix(cwd, " (deleted)"), dir) {
		return p, true
	}
	args, err := os.ReadFile(base + "cmdline")
	if err != nil {
		return process{}, false
	}
	for arg := range bytes.SplitSeq(args, []byte{0}) {
		if strings.Contains(string(arg), dir+"/") {
			return p, true
		}
	}
	return process{}, false
}

// isUnder tells whether path is dir or below it.
func isUnder(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

// processState is the letter that /proc gives a process; 0 if there is none.
func processState(pid int) byte {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name is in parentheses and may hold anything, a parenthesis too.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 || len(b) < i+3 {
		return 0
	}
	return b[i+2]
}

// signalUnder signals a process of the cluster. It takes a handle first and looks again then, so
// that a pid that was given to somebody else is never hit.
func signalUnder(p process, dir string, programs []string, sig syscall.Signal) error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, ok := lookAtProcess(p.pid, dir, programs); !ok {
		return nil
	}
	err = unix.PidfdSendSignal(fd, sig, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	return nil
}

// postmasterFile reads what postmaster.pid says of a data directory: the pid and the id of the
// System V memory that marks the directory as in use (0 if there is none).
func postmasterFile(dataDir string) (pid, shmID int) {
	b, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	if err != nil || len(b) > 4096 {
		return 0, 0
	}
	lines := strings.Split(string(b), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid < 2 {
		return 0, 0
	}
	if len(lines) > 6 {
		if f := strings.Fields(lines[6]); len(f) == 2 {
			shmID, err = strconv.Atoi(f[1])
			if err != nil {
				shmID = 0
			}
		}
	}
	return pid, shmID
}
