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

	"github.com/jackc/pgx/v5"

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
	waitCommits(t, prober, 20)
	pid := unit.Postmaster()
	// Otherwise this would show nothing: the unit's default, which ends the whole group, would
	// not reach PostgreSQL.
	for _, p := range []int{unit.Pid(), pid} {
		if !slices.Contains(cgroupPids(t, group), p) {
			t.Fatalf("process %d is not in the unit's control group", p)
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		restartUnit(t, c, unit, group, sig, prober)
	}
	prober.Stop()
	checkProber(t, prober)
	if t.Failed() {
		t.Log(unit.LogTail(200))
	}
}

// restartUnit ends the node's main process, starts it again, and checks that nothing else changed.
func restartUnit(t *testing.T, c *holdfast.Cluster, unit *holdfast.ClusterNode, group string,
	sig syscall.Signal, prober *holdfast.Prober,
) {
	t.Helper()
	before := waitHealthy(t, c)
	pid := unit.Postmaster()
	started := startTime(t, pid)
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
		t.Log(unit.LogTail(200))
		t.Fatalf("after %v the postmaster is %d, was %d", sig, got, pid)
	}
	if err := unit.StartIn(group); err != nil {
		t.Fatal(err)
	}
	// Until it serves again, what the others say of it may be of before.
	waitServing(t, unit)
	waitCommits(t, prober, 20)
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

// waitCommits waits until the prober has so many commits more than now.
func waitCommits(t *testing.T, p *holdfast.Prober, more int64) {
	t.Helper()
	for end, until := p.Commits()+more, time.Now().Add(time.Minute); p.Commits() < end; {
		if time.Now().After(until) {
			t.Fatalf("%d commits, want %d; last error: %v", p.Commits(), end, p.LastError())
		}
		time.Sleep(10 * time.Millisecond) // polls, with an end
	}
}

// waitServing waits until the node's proxy takes a session.
func waitServing(t *testing.T, n *holdfast.ClusterNode) {
	t.Helper()
	for until := time.Now().Add(time.Minute); ; {
		conn, err := pgx.Connect(t.Context(), e2eDSN(n))
		if err == nil {
			_ = conn.Close(t.Context())
			return
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // polls, with an end
	}
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
	skipUnlessCI(t, "no control group can be made: %v", last)
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
