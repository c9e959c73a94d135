package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	holdfast "holdfast/cmd/holdfast"
)

// The machine's clock belongs to others, and a namespace has none of its own. So the lab builds
// holdfast with a standard library whose time.Now is the given number of seconds off: everything in
// the process, TLS and Raft too, reads the stepped clock, and the product has no seam for it.
// PostgreSQL keeps the real one.

// clockFile has the offset of a node's wall clock, clockSeen what the clock then said.
const (
	clockFile = "wall-offset"
	clockSeen = "wall-clock"
)

// clockOffsetSource is added to package time.
const clockOffsetSource = `package time

import "sync/atomic"

// LabOffset is how many seconds the wall clock is off.
var LabOffset atomic.Int64
`

// clockMainSource is added to the command; a process without the file keeps its clock.
const clockMainSource = `package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func init() {
	dir, err := os.Getwd()
	if err != nil {
		return
	}
	if _, err := os.Stat(filepath.Join(dir, "wall-offset")); err != nil {
		return
	}
	go func() {
		for ; ; time.Sleep(20 * time.Millisecond) {
			b, _ := os.ReadFile(filepath.Join(dir, "wall-offset"))
			off, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			if err != nil {
				continue // it is being written
			}
			time.LabOffset.Store(off)
			now := strconv.FormatInt(time.Now().Unix(), 10)
			_ = os.WriteFile(filepath.Join(dir, "wall-clock"), []byte(now), 0o600)
		}
	}()
}
`

// buildClockBinary builds holdfast with a wall clock that can be stepped.
func buildClockBinary(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("go env: %v", err)
	}
	timeDir := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	text, err := os.ReadFile(filepath.Join(timeDir, "time.go"))
	if err != nil {
		t.Fatal(err)
	}
	const now = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(text), now) != 1 {
		t.Fatalf("time.Now of this Go release is another one: adapt %q", now)
	}
	patched := strings.Replace(string(text), now, now+"\tsec += LabOffset.Load()\n", 1)
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	replace := map[string]string{}
	for target, source := range map[string]string{
		filepath.Join(timeDir, "time.go"):      patched,
		filepath.Join(timeDir, "lab_clock.go"): clockOffsetSource,
		filepath.Join(here, "lab_clock.go"):    clockMainSource,
	} {
		file := filepath.Join(dir, fmt.Sprintf("%d.go", len(replace)))
		if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[target] = file
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file, path := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "holdfast")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-tags", "hashicorpmetrics", "-overlay", file, "-o", path, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build with a clock that can be stepped: %v\n%s", err, out)
	}
	return path
}

// setClock sets a node's wall clock off by some seconds and waits until the node has it.
func (r *labRun) setClock(n *holdfast.ClusterNode, off int64) error {
	if err := writeClock(n, off); err != nil {
		return err
	}
	for range 100 {
		if err := r.sleep(50 * time.Millisecond); err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(n.Dir, clockSeen))
		if err != nil {
			continue
		}
		seen, err := strconv.ParseInt(string(b), 10, 64)
		if diff := seen - time.Now().Unix() - off; err == nil && diff >= -2 && diff <= 2 {
			return nil
		}
	}
	return fmt.Errorf("the wall clock of %s was not stepped by %d s", n.Name, off)
}

func writeClock(n *holdfast.ClusterNode, off int64) error {
	return os.WriteFile(filepath.Join(n.Dir, clockFile), []byte(strconv.FormatInt(off, 10)), 0o600)
}

// clockStep is minutes, in seconds.
const clockStep = 600

// stepClocks steps the wall clocks apart and together, back and forth, and at the end to right. In
// the middle it does something.
func stepClocks(middle func(*labRun) error) func(*labRun) error {
	return func(r *labRun) error {
		for i, step := range [][]int64{
			{clockStep, -clockStep, 0}, {-clockStep, clockStep, -clockStep}, {0, 0, clockStep},
			{clockStep, clockStep, clockStep}, {-clockStep, -clockStep, -clockStep}, {0, 0, 0},
		} {
			for j, n := range r.cluster.Nodes {
				if err := r.setClock(n, step[j]); err != nil {
					return err
				}
			}
			if i == 1 && middle != nil {
				if err := middle(r); err != nil {
					return err
				}
			}
			if err := r.sleep(3 * time.Second); err != nil {
				return err
			}
		}
		return nil
	}
}

// switchover moves the primary to the next node and waits for it.
func switchover(r *labRun) error {
	to := r.others(r.primary.Name)[0].Name
	if err := r.cluster.Switchover(r.ctx, to); err != nil {
		return err
	}
	_, err := r.cluster.WaitEpoch(r.ctx, r.before.Epoch, time.Minute)
	return err
}
