package main_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// demoRun is a `holdfast demo` with JSON output in a directory of its own.
type demoRun struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	events *bufio.Scanner
	parent string
}

// demoLine is what the test reads of an event.
type demoLine struct {
	Event  string `json:"event"`
	Text   string `json:"text"`
	Change struct {
		Fault string `json:"fault"`
		GapMS int64  `json:"gap_ms"`
		Error string `json:"error"`
	} `json:"change"`
	Result struct {
		OK    bool     `json:"ok"`
		Wrong []string `json:"wrong"`
		Stats struct {
			Kept    int64 `json:"kept"`
			Dropped int64 `json:"dropped"`
			Commits int64 `json:"commits"`
		} `json:"stats"`
		Ledger struct {
			Acknowledged int64 `json:"acknowledged"`
			Lost         int64 `json:"lost"`
			Doubled      int64 `json:"doubled"`
			Kinds        []struct {
				Kind         string           `json:"kind"`
				Acknowledged int64            `json:"acknowledged"`
				Refused      int64            `json:"refused"`
				DoubtBy      map[string]int64 `json:"in_doubt_by"`
			} `json:"kinds"`
			// Examples explain what is wrong.
			Examples []string `json:"examples"`
		} `json:"ledger"`
	} `json:"result"`
}

func startDemo(t *testing.T, bin string, args ...string) *demoRun {
	t.Helper()
	parent, err := os.MkdirTemp("", "holdfast-e2e-demo")
	if err != nil {
		t.Fatal(err)
	}
	// PostgreSQL's account must be able to enter it.
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(parent); err != nil {
			t.Error(err)
		}
	})
	args = append([]string{"demo", "--json", "--control", "--dir", parent}, args...)
	d := &demoRun{cmd: exec.Command(bin, args...), parent: parent}
	// A group of its own, to send it what Ctrl-C sends.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.cmd.Stderr = os.Stderr
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.events = bufio.NewScanner(out)
	d.events.Buffer(nil, 1<<20)
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
	})
	return d
}

// await reads events up to the named one.
func (d *demoRun) await(t *testing.T, event string) demoLine {
	t.Helper()
	for d.events.Scan() {
		var e demoLine
		if err := json.Unmarshal(d.events.Bytes(), &e); err != nil {
			t.Fatalf("%v in %s", err, d.events.Text())
		}
		if e.Event == "note" {
			t.Log(e.Text)
		}
		if e.Event == event {
			return e
		}
	}
	t.Fatalf("the demo ended without %q: %v", event, d.events.Err())
	return demoLine{}
}

// traces lists what is left of the demo: processes that work in its directory or name it, and
// the directory itself.
func (d *demoRun) traces(t *testing.T) []string {
	t.Helper()
	var left []string
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		cwd, _ := os.Readlink(p + "/cwd")
		args, _ := os.ReadFile(p + "/cmdline")
		inDir := strings.HasPrefix(cwd, d.parent)
		if inDir || strings.Contains(string(args), d.parent+"/") {
			left = append(left, fmt.Sprintf("%s: %s in %s", p,
				strings.ReplaceAll(string(args), "\x00", " "), cwd))
		}
	}
	entries, err := os.ReadDir(d.parent)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, filepath.Join(d.parent, e.Name()))
	}
	return left
}

// TestE2EDemoLeavesNothing ends demos in every way there is: nothing stays behind.
func TestE2EDemoLeavesNothing(t *testing.T) {
	needCluster(t)
	bin := buildBinary(t)
	for _, tt := range []struct {
		name string
		end  func(*testing.T, *demoRun)
	}{
		{"killed", func(t *testing.T, d *demoRun) {
			if err := d.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = d.cmd.Wait()
		}},
		{"Ctrl-C", func(t *testing.T, d *demoRun) {
			if err := syscall.Kill(-d.cmd.Process.Pid, syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			if e := d.await(t, "result"); !e.Result.OK {
				t.Errorf("result: %+v", e.Result)
			}
		}},
		{"end of input", func(t *testing.T, d *demoRun) {
			if err := d.in.Close(); err != nil {
				t.Fatal(err)
			}
			if e := d.await(t, "result"); !e.Result.OK {
				t.Errorf("result: %+v", e.Result)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := startDemo(t, bin, "--interval", "0", "--sessions", "12")
			d.await(t, "ready")
			if len(d.traces(t)) < 10 {
				t.Fatal("the test does not see the demo's processes")
			}
			tt.end(t, d)
			var left []string
			for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
				if left = d.traces(t); len(left) == 0 {
					return
				}
				waitUntil(t, time.Now().Add(100*time.Millisecond))
			}
			t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		})
	}
}

// TestE2EDemo runs each kind of fault once under load, as `holdfast demo` does it: no session is
// dropped, and nothing is lost or doubled.
func TestE2EDemo(t *testing.T) {
	needCluster(t)
	d := startDemo(t, buildBinary(t), "--interval", "0")
	d.await(t, "ready")
	for _, fault := range []string{"postmaster", "switchover", "node", "freeze", "pause",
		"immediate", "restart", "cut"} {
		if _, err := fmt.Fprintln(d.in, fault); err != nil {
			t.Fatal(err)
		}
		e := d.await(t, "change")
		t.Logf("%s: %d ms without a commit", fault, e.Change.GapMS)
		if e.Change.Fault != fault || e.Change.Error != "" {
			t.Errorf("%+v", e.Change)
		}
		d.await(t, "check")
	}
	if _, err := fmt.Fprintln(d.in, "quit"); err != nil {
		t.Fatal(err)
	}
	r := d.await(t, "result").Result
	t.Logf("%d commits, %d sessions kept, %d dropped, %d lost, %d doubled", r.Stats.Commits,
		r.Stats.Kept, r.Stats.Dropped, r.Ledger.Lost, r.Ledger.Doubled)
	if !r.OK || r.Ledger.Acknowledged == 0 || r.Stats.Kept < 40 {
		t.Errorf("result: %+v", r)
	}
	// The mixed sessions' 21 kinds, and what three of the other kinds of sessions write.
	if len(r.Ledger.Kinds) != 24 {
		t.Errorf("%d kinds of writes", len(r.Ledger.Kinds))
	}
	for _, k := range r.Ledger.Kinds {
		if k.Acknowledged+k.Refused == 0 {
			t.Errorf("no write of kind %q was settled", k.Kind)
		}
		// What the proxy cannot look up: docs/ledger.md.
		isBlind := k.Kind == "COPY, autocommit" || k.Kind == "transfer, string with BEGIN"
		if n := k.DoubtBy["08007"]; n > 0 && !isBlind {
			t.Errorf("%d writes of kind %q are in doubt", n, k.Kind)
		}
	}
	for d.events.Scan() { // what it says while it cleans up
	}
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("exit: %v", err)
	}
}
