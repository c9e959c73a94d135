package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Relay measures what the way through a proxy costs.
type Relay struct {
	// Trees are source trees of Holdfast, name=directory; each is a target.
	Trees []string
	// Variants are settings of the proxy, name=JSON; each is a target of every tree.
	Variants []string
	// Modes are parts of the names of the modes to run; empty runs all.
	Modes    []string
	Clients  []int
	Rounds   int
	Round    time.Duration
	Sessions int           // of the modes with many sessions
	Settle   time.Duration // before the memory of idle sessions is read
	Watch    time.Duration // how long idle sessions are watched
	Crowd    time.Duration // how long clients log in beside idle sessions
	StreamMB int           // of the stream beside many sessions
	Binary   string        // of holdfast, for PostgreSQL; empty leaves PostgreSQL out
	JSON     string
	HTML     string
	Quick    bool
	Foreign  bool // with PgBouncer and HAProxy
	Out, Log io.Writer

	dir    string
	report RelayReport
}

// worker is the load of one target in one mode.
type worker interface {
	// round runs for about d and returns what was done; CPU is filled in by the caller.
	round(ctx context.Context, d time.Duration) (RelayRound, error)
	close()
}

// relayMode is one way to use a proxy. Its rounds are run by all targets in turn.
type relayMode struct {
	name, unit string
	open       func(ctx context.Context, t *target) (worker, error)
}

// quick makes it a matter of minutes: enough to see a difference of a fifth.
func (r *Relay) quick() {
	r.Rounds, r.Round = 3, 200*time.Millisecond
	r.Settle, r.Watch = 2*time.Second, 2*time.Second
	r.Clients, r.Sessions, r.StreamMB = []int{8, 64}, 1000, 100
	r.Crowd = 2 * time.Second
}

// Run measures and prints.
func (r *Relay) Run(ctx context.Context) (err error) {
	if r.Rounds < 1 || r.Round <= 0 || r.Sessions < 1 || r.Watch <= 0 ||
		r.Crowd <= 0 {
		return errors.New("--rounds, --round, --sessions, --watch and --crowd must be greater than zero")
	}
	raiseFiles()
	if r.dir, err = os.MkdirTemp("", "hf-bench-"); err != nil {
		return err
	}
	if err := os.Chmod(r.dir, 0o711); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.dir)) }()
	r.report = newRelayReport(r.Rounds, r.Round)
	if err := r.runStub(ctx); err != nil {
		return err
	}
	if err := r.runPostgres(ctx); err != nil {
		return err
	}
	r.report.writeTable(r.Out)
	return r.save()
}

// save writes the files that were asked for.
func (r *Relay) save() error {
	if r.JSON != "" {
		b, err := json.MarshalIndent(r.report, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(r.JSON, append(b, '\n'), 0o600); err != nil {
			return err
		}
	}
	if r.HTML == "" {
		return nil
	}
	f, err := os.Create(r.HTML)
	if err != nil {
		return err
	}
	return errors.Join(r.report.writeHTML(f), f.Close())
}

// wants tells whether a mode was asked for.
func (r *Relay) wants(mode string) bool {
	return len(r.Modes) == 0 || slices.ContainsFunc(r.Modes, func(part string) bool {
		return strings.Contains(mode, part)
	})
}

// runStub runs the modes that need no database. Every mode has processes of its own, so that the
// memory of one says nothing about another.
func (r *Relay) runStub(ctx context.Context) error {
	var modes []relayMode
	for _, n := range r.Clients {
		modes = append(modes, scriptMode("stub", preparedSelect, n))
	}
	modes = append(modes, scriptMode("stub", simpleSelect, 8), scriptMode("stub", largeResult, 1),
		scriptMode("stub", copyOut, 1), copyInMode(), loginMode())
	for _, m := range modes {
		if !r.wants(m.name) {
			continue
		}
		err := r.withFleet(ctx, func(f *fleet) error { return r.measure(ctx, f, m) })
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	for _, m := range []struct {
		name string
		run  func(ctx context.Context, t *target) error
	}{{modeIdle, r.idle}, {modeCrowd, r.crowd}, {modeMany, r.many}} {
		if !r.wants(m.name) {
			continue
		}
		if err := r.withFleet(ctx, func(f *fleet) error {
			for _, t := range f.targets {
				fmt.Fprintf(r.Log, "%s: %s\n", m.name, t.Name)
				if err := m.run(ctx, t); err != nil {
					return fmt.Errorf("%s: %s: %w", m.name, t.Name, err)
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// withFleet runs all targets in front of a stub while do runs.
func (r *Relay) withFleet(ctx context.Context, do func(*fleet) error) error {
	f, err := r.startFleet(ctx, nil)
	if err == nil {
		err = do(f)
	}
	return errors.Join(err, f.stop())
}

// measure runs the rounds of one mode, all targets in turn.
func (r *Relay) measure(ctx context.Context, f *fleet, m relayMode) error {
	workers := make([]worker, len(f.targets))
	defer func() {
		for _, w := range workers {
			if w != nil {
				w.close()
			}
		}
	}()
	series := make([]RelaySeries, len(f.targets))
	for i, t := range f.targets {
		var err error
		if workers[i], err = m.open(ctx, t); err != nil {
			return fmt.Errorf("%s: %w", t.Name, err)
		}
		if _, err = workers[i].round(ctx, r.Round/4); err != nil { // caches and buffers fill
			return fmt.Errorf("%s: %w", t.Name, err)
		}
		series[i] = RelaySeries{Mode: m.name, Unit: m.unit, Target: t.Name}
	}
	for n := range r.Rounds {
		fmt.Fprintf(r.Log, "%s: round %d of %d\n", m.name, n+1, r.Rounds)
		for k := range f.targets {
			i := (k + n) % len(f.targets) // none is always the first
			round, err := r.one(ctx, f.targets[i], workers[i])
			if err != nil {
				return fmt.Errorf("%s: %w", f.targets[i].Name, err)
			}
			series[i].Rounds = append(series[i].Rounds, round)
		}
	}
	for i, t := range f.targets {
		_, peak, err := t.memory()
		if err != nil {
			return err
		}
		series[i].PeakBytes = peak
	}
	r.report.Series = append(r.report.Series, series...)
	return nil
}

// one runs one round and accounts the target's CPU to it.
func (r *Relay) one(ctx context.Context, t *target, w worker) (RelayRound, error) {
	before, err := t.cpu()
	if err != nil {
		return RelayRound{}, err
	}
	round, err := w.round(ctx, r.Round)
	if err != nil {
		return round, err
	}
	after, err := t.cpu()
	round.CPU = (after - before).Seconds()
	return round, err
}

// raiseFiles asks for as many descriptors as thousands of sessions take; children inherit it.
func raiseFiles() {
	const want = 65536
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil || l.Cur >= want {
		return
	}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: max(l.Max, want)}) == nil {
		return
	}
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: l.Max, Max: l.Max})
}

func newRelayCommand() *cobra.Command {
	r := Relay{}
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Cost of the way through a proxy, beside PgBouncer and HAProxy",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.Out, r.Log = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if r.Quick {
				r.quick()
			}
			return r.Run(cmd.Context())
		},
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&r.Trees, "holdfast", []string{"Holdfast=."}, "source trees, name=directory")
	fl.StringArrayVar(&r.Variants, "variant", []string{""},
		`settings of the proxy, name={"CommitGuard":"off"}`)
	fl.StringSliceVar(&r.Modes, "modes", nil, "parts of the names of the modes to run; else all")
	fl.IntSliceVar(&r.Clients, "clients", []int{1, 8, 64, 500}, "numbers of clients")
	fl.IntVar(&r.Rounds, "rounds", 15, "rounds of each mode")
	fl.DurationVar(&r.Round, "round", 500*time.Millisecond, "length of a round")
	fl.IntVar(&r.Sessions, "sessions", 9900, "sessions where there are many")
	fl.DurationVar(&r.Settle, "settle", 10*time.Second, "wait before idle sessions are measured")
	fl.DurationVar(&r.Watch, "watch", 5*time.Second, "how long idle sessions are watched")
	fl.DurationVar(&r.Crowd, "crowd", time.Minute, "how long clients log in beside idle sessions")
	fl.IntVar(&r.StreamMB, "stream", 1000, "megabytes of the stream beside many sessions")
	fl.StringVar(&r.Binary, "binary", "", "the holdfast to run PostgreSQL with; none leaves it out")
	fl.BoolVar(&r.Foreign, "foreign", true, "PgBouncer and HAProxy too")
	fl.BoolVar(&r.Quick, "quick", false, "few short rounds, fewer sessions")
	fl.StringVar(&r.JSON, "out", "", "write all rounds to this file")
	fl.StringVar(&r.HTML, "html", "", "write the report with plots to this file")
	return cmd
}
