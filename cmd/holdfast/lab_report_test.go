package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestE2EFaults runs the failure table: a bounded part of it, or with HOLDFAST_FAULTS=all every
// line, and then writes the report to HOLDFAST_FAULTS_REPORT. HOLDFAST_FAULTS may also be part of
// a fault's name.
func TestE2EFaults(t *testing.T) {
	needCluster(t)
	if os.Getenv(labInside) == "" && os.Getenv("HOLDFAST_BINARY") == "" {
		if !enterLab(t, "HOLDFAST_BINARY="+buildBinary(t)) {
			return
		}
	}
	if !enterLab(t) {
		return
	}
	var kinds []labKind
	byKind := map[labKind][]*labFault{}
	for i := range labFaults {
		f := &labFaults[i]
		if f.profile == "" {
			f.profile = "cloud"
		}
		if isWanted(f, os.Getenv("HOLDFAST_FAULTS")) {
			if byKind[f.labKind] == nil {
				kinds = append(kinds, f.labKind)
			}
			byKind[f.labKind] = append(byKind[f.labKind], f)
		}
	}
	report, err := loadLabReport(os.Getenv("HOLDFAST_FAULTS_REPORT"))
	if err != nil {
		t.Fatalf("read the report of earlier runs: %v", err)
	}
	for _, kind := range kinds {
		binary := os.Getenv("HOLDFAST_BINARY")
		if kind.isClocked {
			binary = buildClockBinary(t)
		}
		runFaults(t, binary, kind, byKind[kind], report)
	}
	t.Logf("the failure table:\n%s", report.table())
}

func isWanted(f *labFault, which string) bool {
	switch which {
	case "":
		return f.isBounded && f.known == ""
	case "all":
		return true
	}
	return strings.Contains(f.name, which)
}

// runFaults runs faults on one cluster as long as it recovers, and on a new one otherwise.
func runFaults(t *testing.T, binary string, kind labKind, faults []*labFault,
	report *labReport,
) {
	t.Helper()
	var l *lab
	end := func() {
		if l == nil {
			return
		}
		if err := l.close(); err != nil {
			t.Errorf("end of the lab: %v", err)
		}
		l = nil
	}
	defer end()
	for _, f := range faults {
		if f.isFresh {
			end()
		}
		if l == nil {
			var err error
			if l, err = startLab(t, binary, kind); err != nil {
				t.Fatalf("start the lab: %v", err)
			}
		}
		out, err := l.do(t.Context(), f)
		if err != nil {
			out.fail("%v", err)
			out.Passed, out.isSpoilt = false, true
		}
		report.add(t, out)
		if out.Passed {
			t.Logf("ok: %s", out.line())
			continue
		}
		t.Errorf("FAILED: %s\n    %s\n    errors: %s", out.line(), strings.Join(out.Failures,
			"\n    "), strings.Join(out.Errors, "\n            "))
		for _, n := range l.cluster.Nodes {
			t.Logf("log of %s ends with:\n%s", n.Name, n.LogTail(25))
		}
		if out.isSpoilt {
			end()
		}
	}
}

// labReport is what the long target writes, anew after each fault.
type labReport struct {
	Command string          `json:"command"`
	Faults  []*labOutcomeOf `json:"faults"`
}

// loadLabReport reads the report of earlier runs, of which a run of some lines replaces those.
func loadLabReport(dir string) (*labReport, error) {
	r := &labReport{Command: "make faults"}
	text, err := os.ReadFile(filepath.Join(dir, "faults.json"))
	if dir == "" || os.Getenv("HOLDFAST_FAULTS") == "all" || errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(text, r)
	}
	return r, err
}

// put replaces the line of the same fault, or adds it, in the order of the table.
func (r *labReport) put(o *labOutcomeOf) {
	r.Faults = append(slices.DeleteFunc(r.Faults, func(old *labOutcomeOf) bool {
		return old.Name == o.Name
	}), o)
	place := func(o *labOutcomeOf) int {
		return slices.IndexFunc(labFaults, func(f labFault) bool { return f.name == o.Name })
	}
	slices.SortStableFunc(r.Faults, func(a, b *labOutcomeOf) int { return place(a) - place(b) })
}

func (r *labReport) add(t *testing.T, o *labOutcomeOf) {
	t.Helper()
	o.When = time.Now().UTC().Format(time.RFC3339)
	r.put(o)
	dir := os.Getenv("HOLDFAST_FAULTS_REPORT")
	if dir == "" {
		return
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = errors.Join(
			os.WriteFile(filepath.Join(dir, "faults.json"), append(text, '\n'), 0o644),
			os.WriteFile(filepath.Join(dir, "faults.md"), []byte(r.markdown()), 0o644))
	}
	if err != nil {
		t.Fatalf("write report: %v", err)
	}
}

func (o *labOutcomeOf) verdict() string {
	switch {
	case o.Passed:
		return "ok"
	case o.Known != "":
		return "FAILED (known)"
	}
	return "FAILED"
}

func (o *labOutcomeOf) line() string {
	return fmt.Sprintf("%s (%s): %s; %d sessions lost, %d cut with their proxy, errors %s, "+
		"%d ms without a commit from %d ms on%s (by proxy %v; the lab's own disk %d ms), "+
		"healthy %d ms after, %d commits, "+
		"direct writes %v, holds %v, switchover %d ms, caught up %d ms, %.0f s", o.Name,
		o.Profile, o.Change, o.Lost, o.Cut, codesText(o.Codes), o.GapMS, o.GapAtMS, o.aimText(),
		o.GapsMS, o.PulseMS,
		o.HealthyMS, o.Ledger.Acknowledged, o.DoorAcks, o.Holds, o.ChangeMS,
		o.CaughtUpMS, o.SecondsRun)
}

// aimText says of a line with an aim whether this run met it: it is no verdict, since that depends
// on what else the machine did.
func (o *labOutcomeOf) aimText() string {
	if o.AimMS == 0 {
		return ""
	}
	word := "met"
	if o.AimGapMS >= o.AimMS {
		word = "not met"
	}
	return fmt.Sprintf(" (aim: under %d ms; %d ms through the worst proxy, %s)", o.AimMS, o.AimGapMS,
		word)
}

func codesText(codes map[string]int) string {
	var parts []string
	for _, code := range slices.Sorted(maps.Keys(codes)) {
		parts = append(parts, fmt.Sprintf("%s: %d", code, codes[code]))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func (r *labReport) table() string {
	var b strings.Builder
	b.WriteString("| fault | profile | must | verdict | roles changed | sessions lost | " +
		"errors by SQLSTATE | longest time without a commit | old primary back | " +
		"healthy after the end |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	yes := map[bool]string{true: "yes", false: "no"}
	for _, o := range r.Faults {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %d | %s | %d ms%s | %s | %.1f s |\n", o.Name,
			o.Profile, o.Expected, o.verdict(), yes[o.RolesChanged], o.Lost, codesText(o.Codes),
			o.GapMS, o.aimText(), yes[o.IsOldBack], float64(o.HealthyMS)/1000)
	}
	return b.String()
}

func (r *labReport) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# The failure table, run\n\nWritten by `%s`; what it means is in "+
		"docs/faults.md. When each line was run is in faults.json,\nand how many sessions ended "+
		"with the process of their own proxy, which is not a session lost.\n\n%s", r.Command,
		r.table())
	for _, o := range r.Faults {
		if o.Passed {
			continue
		}
		fmt.Fprintf(&b, "\n**%s: %s**", o.verdict(), o.Name)
		if o.Known != "" {
			fmt.Fprintf(&b, " — %s", o.Known)
		}
		b.WriteString("\n\n")
		for _, f := range o.Failures {
			fmt.Fprintf(&b, "- %s\n", strings.ReplaceAll(f, "\n", " "))
		}
	}
	return b.String()
}
