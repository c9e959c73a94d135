package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Failover measures the time without a commit by kind of change.
type Failover struct {
	// Binary is the holdfast to measure.
	Binary string
	// Rounds is how often each kind is measured.
	Rounds int
	// Kinds are the kinds of changes, as `holdfast demo --control` knows them.
	Kinds []string
	// Profile is the group's timing profile.
	Profile string
	// Fence is the group's.
	Fence   string
	Clients int
	// Dir is where the cluster's directory is made; empty is the temporary one.
	Dir string
	// JSON is a file for all rounds; empty writes none.
	JSON string
	// Add takes the rounds that are in JSON already to the new ones.
	Add bool
	// Chart is a file for the throughput around each kind of change; empty writes none.
	Chart string
	Out   io.Writer
}

// allKinds is what is measured unless it is said otherwise.
var allKinds = []string{"postmaster", "node", "switchover", "freeze", "pause"}

// FailoverReport is everything that was measured.
type FailoverReport struct {
	At      time.Time       `json:"at"`
	Version string          `json:"version"`
	Profile string          `json:"profile"`
	Fence   string          `json:"fence,omitempty"`
	Clients int             `json:"clients"`
	CPUs    int             `json:"cpus"`
	Rounds  []FailoverRound `json:"rounds"`
	Summary []KindSummary   `json:"summary"`
}

// FailoverRound is one change.
type FailoverRound struct {
	Fault string `json:"fault"`
	// Kind is what the lock's history calls it; empty if nothing was changed.
	Kind      string           `json:"kind,omitempty"`
	Cause     string           `json:"cause,omitempty"`
	GapMS     float64          `json:"gap_ms"`
	StallMS   float64          `json:"stall_ms"`
	HealthyMS int64            `json:"healthy_ms"`
	PhasesMS  map[string]int64 `json:"phases_ms,omitempty"`
	// SpansMS divides the time from the fault to the next commit, as the four parts that a
	// change always has.
	SpansMS map[string]float64 `json:"spans_ms,omitempty"`
	Commits int                `json:"commits"`
	// Dropped are connections that were lost, though no client was on the killed node.
	Dropped int `json:"dropped"`

	// Commits of each step of 50 ms, from 0.5 s before the fault.
	Throughput []int `json:"throughput,omitempty"`
}

// KindSummary is the distribution of one kind.
type KindSummary struct {
	Fault   string       `json:"fault"`
	Rounds  int          `json:"rounds"`
	Gap     Distribution `json:"gap_ms"`
	Stall   Distribution `json:"stall_ms"`
	Dropped int          `json:"dropped"`
	// Spans and Phases are the distributions of SpansMS and PhasesMS.
	Spans  map[string]Distribution `json:"spans_ms,omitempty"`
	Phases map[string]Distribution `json:"phases_ms,omitempty"`
	// Throughput is the mean of commits a second in steps of 50 ms, from 0.5 s before the fault.
	Throughput []float64 `json:"commits_per_second,omitempty"`
}

// Run measures and prints.
func (f Failover) Run(ctx context.Context) error {
	if f.Rounds < 1 || f.Clients < 1 {
		return errors.New("--rounds and --clients must be at least 1")
	}
	before, err := f.earlier()
	if err != nil {
		return err
	}
	d, err := startDemo(ctx, f.Binary, f.Profile, f.Fence, f.Dir)
	if err != nil {
		return err
	}
	r, err := f.measure(ctx, d)
	r.Rounds = append(before, r.Rounds...)
	// What was measured before it was interrupted is not lost.
	return errors.Join(err, d.close(), f.report(r))
}

// report prints and writes what was measured.
func (f Failover) report(r FailoverReport) error {
	r.Summary = summarize(r.Rounds)
	printTable(f.Out, r)
	if f.Chart != "" {
		if err := os.WriteFile(f.Chart, chart(r), 0o600); err != nil {
			return fmt.Errorf("write chart: %w", err)
		}
	}
	if f.JSON == "" {
		return nil
	}
	b, err := r.encode()
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := os.WriteFile(f.JSON, b, 0o600); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// measure runs the rounds, the kinds in turn, so that a slow spell does not hit one kind only.
func (f Failover) measure(ctx context.Context, d *demo) (FailoverReport, error) {
	r := FailoverReport{At: time.Now().UTC(), Profile: f.Profile, Fence: f.Fence, Clients: f.Clients,
		CPUs: runtime.NumCPU(), Version: f.version(ctx)}
	password, err := d.password()
	if err != nil {
		return r, err
	}
	l := &load{user: d.ready.Superuser, password: password}
	primary := d.ready.Primary
	l.use(away(d.ready.Nodes, primary))
	if err := l.start(ctx, f.Clients); err != nil {
		return r, err
	}
	defer l.stop()
	var faults pace
	for i := range f.Rounds {
		for _, kind := range f.Kinds {
			l.use(away(d.ready.Nodes, primary))
			// The clients move, and the servers calm down.
			if err := wait(ctx, max(2*time.Second, faults.wait(kind, time.Now()))); err != nil {
				return r, err
			}
			one, to, err := f.one(ctx, d, l, kind)
			if err != nil {
				return r, err
			}
			if to != "" {
				primary = to
			}
			r.Rounds = append(r.Rounds, one)
			fmt.Fprintf(f.Out, "round %d of %d, %-10s %7.0f ms without a commit; %s\n", i+1,
				f.Rounds, kind, one.GapMS, phases(one.PhasesMS))
		}
	}
	return r, nil
}

// pace keeps the faults of a run rarer than what makes a group hold back (election.Policy's
// MaxChanges within FlapWindow), which is not what a round measures.
type pace []time.Time

const (
	paceFaults = 5
	paceWindow = 65 * time.Second
)

// wait is how long a fault of this kind has to wait; it is taken to happen then.
func (p *pace) wait(kind string, now time.Time) time.Duration {
	if kind == "switchover" || kind == "pause" {
		return 0 // no unplanned change of the lock
	}
	at := now
	if n := len(*p); n >= paceFaults {
		if free := (*p)[n-paceFaults].Add(paceWindow); free.After(at) {
			at = free
		}
	}
	*p = append(*p, at)
	return at.Sub(now)
}

// one measures one change; to is the primary after it, if there was one.
func (f Failover) one(ctx context.Context, d *demo, l *load, kind string) (FailoverRound, string,
	error,
) {
	l.mark()
	ch, err := d.change(ctx, kind)
	if err != nil {
		return FailoverRound{}, "", err
	}
	if ch.Error != "" {
		return FailoverRound{}, "", fmt.Errorf("%s: %s", kind, ch.Error)
	}
	m := l.round()
	// The throughput after the change belongs to the picture.
	if err := wait(ctx, time.Second); err != nil {
		return FailoverRound{}, "", err
	}
	return FailoverRound{
		Fault: kind, Kind: ch.Kind, Cause: ch.Cause, HealthyMS: ch.HealthyMS,
		PhasesMS: ch.PhasesMS, GapMS: ms(m.Gap), StallMS: ms(m.Stall), Commits: m.Commits,
		Dropped: m.Dropped, SpansMS: spans(ch, l.firstAfter),
		Throughput: l.throughput(ch.FaultAt),
	}, ch.To, nil
}

// spans divides the time from the fault to the first commit after it: until the change was begun,
// until the old primary could do nothing more, until the new one was promoted, until a client
// committed. The phases of fencing overlap; they are what is left of the whole.
func spans(ch demoChange, firstAfter func(time.Time) time.Time) map[string]float64 {
	if ch.LockAt == nil || ch.PhasesMS == nil {
		return nil
	}
	phase := func(names ...string) (sum float64) {
		for _, name := range names {
			sum += float64(ch.PhasesMS[name])
		}
		return sum
	}
	// The lock is entered once the new primary is promoted.
	all := ms(ch.LockAt.Sub(ch.FaultAt))
	begun := phase("total") - phase("detect")
	promote := min(begun, phase("choose", "promote", "start", "repoint"))
	out := map[string]float64{
		"detect": max(0, all-begun), "fence": begun - promote, "promote": promote,
	}
	// The longest gap may be a later one: the old primary is rewound on the same disk.
	if first := firstAfter(*ch.LockAt); !first.IsZero() {
		out["reopen"] = ms(first.Sub(*ch.LockAt))
	}
	return out
}

// away are the proxies that are not on the primary's node.
func away(nodes []demoNode, primary string) []string {
	var proxies []string
	for _, n := range nodes {
		if n.Name != primary {
			proxies = append(proxies, n.Proxy)
		}
	}
	return proxies
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func newFailoverCommand() *cobra.Command {
	f := Failover{}
	cmd := &cobra.Command{
		Use:   "failover",
		Short: "Time without a commit, by kind of change",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.Out = cmd.OutOrStdout()
			for _, k := range f.Kinds {
				if !slices.Contains(allKinds, k) {
					return fmt.Errorf("--kinds: %q is none of %s", k, strings.Join(allKinds, ", "))
				}
			}
			return f.Run(cmd.Context())
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.Binary, "binary", "bin/holdfast", "the holdfast to measure")
	fl.IntVar(&f.Rounds, "rounds", 10, "how often each kind is measured")
	fl.StringSliceVar(&f.Kinds, "kinds", allKinds, "the kinds of changes")
	fl.StringVar(&f.Profile, "profile", "lan", "timing profile of the group")
	fl.StringVar(&f.Fence, "fence", "lease", "what a failover waits for: lease, recruit")
	fl.IntVar(&f.Clients, "clients", 8, "number of clients")
	fl.StringVar(&f.Dir, "dir", "", "make the cluster's directory in this one")
	fl.StringVar(&f.JSON, "out", "", "write all rounds to this file")
	fl.BoolVar(&f.Add, "add", false, "add to the rounds that are in that file already")
	fl.StringVar(&f.Chart, "chart", "", "draw the throughput around each kind into this file (SVG)")
	return cmd
}
