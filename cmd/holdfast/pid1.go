package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// forwarded are the signals that process 1 passes on; what it does not ask for, the kernel keeps
// from it.
var forwarded = []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1,
	unix.SIGUSR2}

// runAsInit is the whole of process 1 of a container: it runs this command line again as its
// child and waits for whatever dies. PostgreSQL puts itself into a session of its own, so process
// 1 inherits every postmaster, and every backend of one that was killed; nobody else can take
// their pids off the kernel's list, which the container's limit bounds. It is a process of its own
// because waiting for any child would take the results from those parts of a node that wait for
// theirs. It returns how the child ended; with process 1 the kernel ends all others.
func runAsInit() error {
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("run as process 1: %w", err)
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded...) // before the child, so that none is lost
	pid, err := syscall.ForkExec(binary, os.Args, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2},
		// In a group of its own a terminal's Ctrl-C reaches it once: through us.
		Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return fmt.Errorf("run as process 1: %w", err)
	}
	go forwardSignals(signals, pid) // ends with the process
	status, err := reapUntil(pid)
	if err != nil {
		return fmt.Errorf("run as process 1: %w", err)
	}
	code := status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal()) // as a shell says it
	}
	if code == 0 {
		return nil
	}
	return codedError{code: code}
}

func forwardSignals(signals <-chan os.Signal, pid int) {
	for sig := range signals {
		if s, ok := sig.(syscall.Signal); ok {
			_ = unix.Kill(pid, s) // it is there until reapUntil returns, and then so do we
		}
	}
}

// reapUntil waits for children, own and inherited ones, until the one has ended.
func reapUntil(child int) (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for children: %w", err)
		case pid == child && (status.Exited() || status.Signaled()):
			return status, nil
		}
	}
}
