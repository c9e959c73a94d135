package main_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	holdfast "holdfast/cmd/holdfast"
)

// TestE2EProcess1 runs a node as process 1 of a pid namespace, as the database image does, and
// kills its PostgreSQL again and again: no dead process stays on the kernel's list, SIGTERM still
// ends the node in an orderly way, and its exit code comes through.
func TestE2EProcess1(t *testing.T) {
	needCluster(t)
	if os.Geteuid() != 0 {
		skipUnlessCI(t, "only root makes a pid namespace")
	}
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
	n := c.Node("node1")
	if err := n.StartUnder("unshare", "--pid", "--fork", "--mount-proc"); err != nil {
		t.Fatal(err)
	}
	for _, other := range c.Nodes[1:] {
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
	}
	waitHealthy(t, c)
	first := 0
	for pid, p := range allProcesses(t) {
		if p.parent == n.Pid() {
			first = pid
		}
	}
	killed := 0
	for range 3 {
		// The status may be of before the last death: there may be no postmaster at this moment.
		killed = waitHiddenPostmaster(t, n, killed)
		if err := signalProcess(killed, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitHiddenPostmaster(t, n, killed)
		waitHealthy(t, c)
	}
	for until := time.Now().Add(10 * time.Second); ; {
		dead := 0
		for _, p := range allProcesses(t) {
			if p.parent == first && p.state == "Z" {
				dead++
			}
		}
		if dead == 0 {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("%d dead processes were left to process 1 and stay", dead)
		}
		time.Sleep(20 * time.Millisecond) // polls, with an end
	}
	endProcess1(t, n, first)
}

// endProcess1 stops the node and looks at how it ended.
func endProcess1(t *testing.T, n *holdfast.ClusterNode, first int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := signalProcess(first, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, err := n.Wait(ctx); err != nil || code != 0 {
		t.Errorf("after SIGTERM: exit code %d, %v", code, err)
	}
	if log := n.LogTail(3); !strings.Contains(log, "node stopped") {
		t.Errorf("the node did not stop in an orderly way:\n%s", log)
	}
	writeFile(t, n.ConfigPath, "nonsense: true\n")
	if err := n.StartUnder("unshare", "--pid", "--fork", "--mount-proc"); err != nil {
		t.Fatal(err)
	}
	if code, err := n.Wait(ctx); err != nil || code == 0 {
		t.Errorf("with a wrong configuration: exit code %d, %v", code, err)
	}
}

// waitHiddenPostmaster waits for a postmaster of a node other than the last one.
func waitHiddenPostmaster(t *testing.T, n *holdfast.ClusterNode, last int) int {
	t.Helper()
	for until := time.Now().Add(time.Minute); ; {
		if pid := hiddenPostmaster(t, n); pid != 0 && pid != last {
			return pid
		}
		if time.Now().After(until) {
			t.Fatalf("no postmaster after %d:\n%s", last, n.LogTail(20))
		}
		time.Sleep(20 * time.Millisecond) // polls, with an end
	}
}

// signalProcess signals one process. Unlike kill(2) it takes a pid of 0, which somebody did not
// find, as an error, and not as this process's group with all that runs the tests.
func signalProcess(pid int, sig os.Signal) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Signal(sig)
}

// hiddenPostmaster finds the postmaster of a node whose postmaster.pid is of another pid
// namespace; 0 if there is none.
func hiddenPostmaster(t *testing.T, n *holdfast.ClusterNode) int {
	t.Helper()
	all := allProcesses(t)
	serves := func(pid int) bool {
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		return err == nil && cwd == n.DataDir && all[pid].name == "(postgres)"
	}
	for pid, p := range all {
		if serves(pid) && !serves(p.parent) {
			return pid
		}
	}
	return 0
}

type procStat struct {
	name, state string
	parent      int
}

// allProcesses reads the state of every process.
func allProcesses(t *testing.T) map[int]procStat {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]procStat{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it ended
		}
		name, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil || len(f) < 2 {
			t.Fatalf("cannot read %q", b)
		}
		parent, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatalf("cannot read %q", b)
		}
		_, name, _ = strings.Cut(name, " ")
		all[pid] = procStat{name: name + ")", state: f[0], parent: parent}
	}
	return all
}
