package election

import (
	"context"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWatchPostmasterTakesNoThread: who waits for a death waits in Go's poller, hears of it at
// once, and ends with its context.
func TestWatchPostmasterTakesNoThread(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	pid := cmd.Process.Pid
	if fd, err := unix.PidfdOpen(pid, 0); err != nil {
		t.Skipf("the kernel has none of what is tested: pidfd_open: %v", err)
	} else {
		_ = unix.Close(fd)
	}

	const watchers = 40
	before := threads(t)
	var left sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range watchers {
		left.Go(func() { watchPostmaster(ctx, pid) })
	}
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		if n := threads(t) - before; n > watchers/4 {
			t.Fatalf("%d goroutines that wait for a process have %d threads more", watchers, n)
		}
	}

	canceled, end := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() { watchPostmaster(canceled, pid); close(over) }()
	end()
	await(t, over, "the end of the context")

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	dead := make(chan struct{})
	go func() { left.Wait(); close(dead) }()
	await(t, dead, "the death of the process, which nobody has waited for yet")
}

func threads(t *testing.T) int {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(dir)
}

func await(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("not told of " + what)
	}
}
