package main

import (
	"context"
	"encoding/json"
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
	Clients int
	// Dir is where the cluster's directory is made; empty is the temporary one.
	Dir string
	// JSON is a file for all rounds; empty writes none.
	JSON string
	Out  io.Writer
}

// allKinds is what is measured unless it is said otherwise.
var allKinds = []string{"postmaster", "node", "switchover", "freeze", "pause"}

// FailoverReport is everything that was measured.
type FailoverReport struct {
	At      time.Time       `json:"at"`
	Version string          `json:"version"`
	Profile string          `json:"profile"`
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
	Commits   int              `json:"commits"`
	// Dropped are connections that were lost, though no client was on the killed node.
	Dropped int `json:"dropped"`
}

// KindSummary is the distribution of one kind.
type KindSummary struct {
	Fault   string       `json:"fault"`
	Rounds  int          `json:"rounds"`
	Gap     Distribution `json:"gap_ms"`
	Stall   Distribution `json:"stall_ms"`
	Dropped int          `json:"dropped"`
}

// Run measures and prints.
func (f Failover) Run(ctx context.Context) error {
	if f.Rounds < 1 || f.Clients < 1 {
		return errors.New("--rounds and --clients must be at least 1")
	}
	d, err := startDemo(ctx, f.Binary, f.Profile, f.Dir)
	if err != nil {
		return err
	}
	r, err := f.measure(ctx, d)
	if err := errors.Join(err, d.close()); err != nil {
		return err
	}
	r.Summary = summarize(r.Rounds)
	printTable(f.Out, r)
	if f.JSON == "" {
		return nil
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := os.WriteFile(f.JSON, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// measure runs the rounds, the kinds in turn, so that a slow spell does not hit one kind only.
func (f Failover) measure(ctx context.Context, d *demo) (FailoverReport, error) {
	r := FailoverReport{At: time.Now().UTC(), Profile: f.Profile, Clients: f.Clients,
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
	for i := range f.Rounds {
		for _, kind := range f.Kinds {
			l.use(away(d.ready.Nodes, primary))
			if err := settle(ctx); err != nil {
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
	return FailoverRound{
		Fault: kind, Kind: ch.Kind, Cause: ch.Cause, HealthyMS: ch.HealthyMS,
		PhasesMS: ch.PhasesMS, GapMS: ms(m.Gap), StallMS: ms(m.Stall), Commits: m.Commits,
		Dropped: m.Dropped,
	}, ch.To, nil
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

// settle lets the clients move and the servers calm down between two rounds.
func settle(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(2 * time.Second):
		return nil
	}
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
	fl.IntVar(&f.Clients, "clients", 8, "number of clients")
	fl.StringVar(&f.Dir, "dir", "", "make the cluster's directory in this one")
	fl.StringVar(&f.JSON, "out", "", "write all rounds to this file")
	return cmd
}
