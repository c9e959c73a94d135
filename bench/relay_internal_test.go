package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain lets the benchmark start its stub from the test's binary.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "stub" {
		main()
		return
	}
	os.Exit(m.Run())
}

// smoke is a run of everything that needs neither PostgreSQL nor other proxies, as short as can be.
func smoke(t *testing.T) Relay {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	return Relay{Trees: []string{"Holdfast=.."}, Variants: []string{"",
		`guard off={"CommitGuard":"off"}`}, Clients: []int{2}, Rounds: 2,
		Round: 40 * time.Millisecond, Sessions: 20, Settle: time.Millisecond,
		Watch: 100 * time.Millisecond, Crowd: 200 * time.Millisecond, StreamMB: 20,
		Out: &bytes.Buffer{}, Log: &bytes.Buffer{}}
}

// leftBehind lists what a run must not leave: files, and processes of ours.
func leftBehind(t *testing.T) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "hf-bench-*"))
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("children cannot be listed: %v", err)
	}
	for _, task := range tasks {
		if b, _ := os.ReadFile(task); len(b) > 0 {
			left = append(left, "processes "+string(b))
		}
	}
	return left
}

func TestRelaySmoke(t *testing.T) {
	r := smoke(t)
	r.JSON = filepath.Join(t.TempDir(), "report.json")
	r.HTML = filepath.Join(t.TempDir(), "report.html")
	if err := r.Run(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, r.Log)
	}
	if left := leftBehind(t); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	text, err := os.ReadFile(r.JSON)
	if err != nil {
		t.Fatal(err)
	}
	var report RelayReport
	if err := json.Unmarshal(text, &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Series) != 6*3 || len(report.Idle) != 2 || len(report.Many) != 3 {
		t.Fatalf("%d series, %d idle, %d beside a stream", len(report.Series), len(report.Idle),
			len(report.Many))
	}
	for _, s := range report.Series {
		if len(s.Rounds) != 2 {
			t.Errorf("%s, %s: %d rounds", s.Mode, s.Target, len(s.Rounds))
		}
		for _, round := range s.Rounds {
			if round.Units <= 0 || round.P50 <= 0 || round.P99 < round.P50 {
				t.Errorf("%s, %s: %+v", s.Mode, s.Target, round)
			}
			if (round.CPU > 0) == (s.Target == "direct") {
				t.Errorf("%s, %s: %v s of CPU", s.Mode, s.Target, round.CPU)
			}
		}
	}
	for _, i := range report.Idle {
		if i.Peak < 1<<20 || i.Login <= 0 {
			t.Errorf("idle sessions: %+v", i)
		}
	}
	for _, c := range report.Crowd {
		if c.Logins != 40 || c.Failed != 0 || c.P50 <= 0 {
			t.Errorf("logins beside idle sessions: %+v", c)
		}
	}
	if len(report.Crowd) != 2 {
		t.Errorf("%d crowds", len(report.Crowd))
	}
	page, err := os.ReadFile(r.HTML)
	if err != nil || !bytes.Contains(page, []byte("<svg")) {
		t.Errorf("page of %d bytes, %v", len(page), err)
	}
}

// TestRelayInterrupted: Ctrl-C ends the context.
func TestRelayInterrupted(t *testing.T) {
	r := smoke(t)
	r.Rounds, r.Modes = 1000000, []string{"prepared select"}
	ctx, cancel := context.WithCancel(t.Context())
	log := &signalWriter{seen: make(chan struct{})}
	r.Log = log
	go func() {
		<-log.seen
		cancel()
	}()
	if err := r.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if left := leftBehind(t); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// signalWriter closes seen when the rounds have begun.
type signalWriter struct {
	seen chan struct{}
	done bool
}

func (w *signalWriter) Write(p []byte) (int, error) {
	if !w.done && bytes.Contains(p, []byte("round ")) {
		w.done = true
		close(w.seen)
	}
	return len(p), nil
}

func TestSpread(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   Spread
	}{
		{nil, Spread{}},
		{[]float64{5}, Spread{5, 5, 5}},
		{[]float64{9, 1, 5}, Spread{1, 5, 9}},
		{[]float64{4, 1, 3, 2}, Spread{1, 2.5, 4}},
	} {
		if got := spread(tt.values); got != tt.want {
			t.Errorf("%v: %+v, want %+v", tt.values, got, tt.want)
		}
	}
}

// TestAgainstIsPaired: a machine that is half as fast for a while changes no ratio, though the
// medians of the two are far apart.
func TestAgainstIsPaired(t *testing.T) {
	series := func(costs ...float64) RelaySeries {
		var s RelaySeries
		for _, c := range costs {
			s.Rounds = append(s.Rounds, RelayRound{Units: 1e6, CPU: c, Seconds: 1})
		}
		return s
	}
	base, other := series(10, 20, 40, 0), series(8, 16, 32, 5)
	if got := other.against(base, RelayRound.Cost); got != (Spread{0.8, 0.8, 0.8}) {
		t.Errorf("%+v", got)
	}
	if got := other.against(RelaySeries{}, RelayRound.Cost); got != (Spread{}) {
		t.Errorf("against nothing: %+v", got)
	}
	if got := base.of(RelayRound.Cost); got != (Spread{0, 15, 40}) {
		t.Errorf("%+v", got)
	}
	if got := (RelayRound{}).Rate(); got != 0 {
		t.Errorf("rate of no time: %v", got)
	}
}

func TestLatencies(t *testing.T) {
	took := make([]int64, 1000)
	for i := range took {
		took[len(took)-1-i] = int64(i+1) * 1000
	}
	var r RelayRound
	r.latencies(took)
	if r.P50 != 500 || r.P90 != 900 || r.P99 != 990 || r.P999 != 999 || r.Mean != 500.5 {
		t.Errorf("%+v", r)
	}
	r.latencies(nil)
}

func TestPgbenchOutput(t *testing.T) {
	took, err := readPgbenchLog(strings.NewReader("0 1 250 0 1700000000 1\n3 2 1250 0 1700000000 2\n"))
	if err != nil || len(took) != 2 || took[1] != 1250000 {
		t.Errorf("%v, %v", took, err)
	}
	for _, bad := range []string{"0 1 250\n", "0 1 skipped 0 1700000000 1\n"} {
		if _, err := readPgbenchLog(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	for _, tt := range []struct {
		out  string
		want float64
		isOK bool
	}{
		{"latency average = 1 ms\ntps = 817.25 (without initial connection time)\n", 817.25, true},
		{"number of transactions actually processed: 0\n", 0, true},
		{"pgbench: error: connection failed\n", 0, false},
	} {
		if got, err := pgbenchRate(tt.out); got != tt.want || (err == nil) != tt.isOK {
			t.Errorf("%q: %v, %v", tt.out, got, err)
		}
	}
}

func TestReportIsComplete(t *testing.T) {
	r := RelayReport{Command: "bench relay <all>", Versions: map[string]string{"a<b": "1"},
		Series: []RelaySeries{
			{Mode: "m", Unit: "tx", Target: relayBase, Rounds: []RelayRound{{Units: 10, CPU: 2e-4,
				Seconds: 1, P50: 3, P90: 4, P99: 5, P999: 6}}},
			{Mode: "m", Unit: "tx", Target: "a<b", Rounds: []RelayRound{{Units: 10, CPU: 1e-4,
				Seconds: 1}}},
		},
		Idle: []RelayIdle{{Target: "a<b", Sessions: 9, Bytes: 2048}},
		Many: []RelayMany{{Target: "a<b", AloneP99: 10, P99: 15}},
	}
	var table, page bytes.Buffer
	r.writeTable(&table)
	for _, want := range []string{"0.50 (0.50..0.50)", "2.00 KiB", "1.50", "bench relay <all>"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, table.String())
		}
	}
	if err := r.writeHTML(&page); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(page.String(), "a<b") || strings.Count(page.String(), "<svg") != 5 {
		t.Errorf("%d plots, or a name was not escaped", strings.Count(page.String(), "<svg"))
	}
}

func TestRelayRefuses(t *testing.T) {
	for _, change := range []func(*Relay){
		func(r *Relay) { r.Rounds = 0 },
		func(r *Relay) { r.Round = 0 },
		func(r *Relay) { r.Sessions = 0 },
		func(r *Relay) { r.Trees = []string{"no name"} },
		func(r *Relay) { r.Variants = []string{`x={"NoSuchField":1}`} },
	} {
		r := smoke(t)
		change(&r)
		r.Modes = []string{"simple"}
		if err := r.Run(t.Context()); err == nil {
			t.Errorf("%+v: no error", r)
		}
		if left := leftBehind(t); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}
