package main_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	holdfast "holdfast/cmd/holdfast"
)

// TestE2ENodeUnit runs a node in a control group of its own, as its systemd unit does, and ends and
// restarts it as systemd does with KillMode=process: only the main process gets the signal.
// PostgreSQL lives on as it is, in the same control group, and other proxies' sessions go on.
func TestE2ENodeUnit(t *testing.T) {
	needCluster(t)
	group := makeCgroup(t)
	c, err := holdfast.NewCluster(t.Context(), holdfast.ClusterConfig{
		Binary: buildBinary(t), Prefix: "holdfast-e2e",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	// The first member is made on the node with the lowest name: it is the primary.
	unit := c.Node("node1")
	if err := unit.StartIn(group); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes[1:] {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	before := waitHealthy(t, c)
	if before.Primary != unit.Name {
		t.Fatalf("primary is %s, want %s", before.Primary, unit.Name)
	}
	makeDatabase(t, c)
	prober := newProber(t, c.Node("node2"))
	pid := unit.Postmaster()
	started := startTime(t, pid)
	// Otherwise this would show nothing: the unit's default, which ends the whole group, would
	// not reach PostgreSQL.
	for _, p := range []int{unit.Pid(), pid} {
		if !slices.Contains(cgroupPids(t, group), p) {
			t.Fatalf("process %d is not in the unit's control group", p)
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := unit.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if _, err := unit.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		if got := unit.Postmaster(); got != pid {
			t.Fatalf("after %v the postmaster is %d, was %d", sig, got, pid)
		}
		if err := unit.StartIn(group); err != nil {
			t.Fatal(err)
		}
		after := waitHealthy(t, c)
		if got := unit.Postmaster(); got != pid || startTime(t, pid) != started {
			t.Errorf("after %v and a restart the postmaster is %d, was %d", sig, got, pid)
		}
		if after.Epoch != before.Epoch {
			t.Errorf("after %v and a restart the epoch is %d, was %d: %+v", sig, after.Epoch,
				before.Epoch, after.Last)
		}
		if !slices.Contains(cgroupPids(t, group), pid) {
			t.Errorf("after %v the postmaster left the control group", sig)
		}
		t.Logf("%v and restart: longest time without a commit through %s: %d ms", sig,
			"another proxy", prober.Gap(begin, time.Now()).Milliseconds())
	}
	prober.Stop()
	checkProber(t, prober)
}

// makeCgroup makes a control group, of version 2 or 1, whichever can be written.
func makeCgroup(t *testing.T) string {
	t.Helper()
	var last error
	for _, parent := range []string{
		"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/pids",
	} {
		if _, err := os.Stat(filepath.Join(parent, "cgroup.procs")); err != nil {
			last = err
			continue
		}
		dir := filepath.Join(parent, fmt.Sprintf("holdfast-e2e-%d", os.Getpid()))
		if last = os.Mkdir(dir, 0o755); last != nil {
			continue
		}
		t.Cleanup(func() {
			// The kernel takes a moment to forget the last process.
			var err error
			for range 100 {
				if err = os.Remove(dir); err == nil {
					return
				}
				time.Sleep(20 * time.Millisecond) // cleaning up is not interrupted
			}
			t.Errorf("remove control group: %v", err)
		})
		return dir
	}
	t.Skipf("no control group can be made: %v", last)
	return ""
}

func cgroupPids(t *testing.T, dir string) []int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for f := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// startTime is when a process started, in ticks since boot (proc_pid_stat(5), field 22).
func startTime(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 20 {
		t.Fatalf("cannot read %q", b)
	}
	return f[19]
}
