package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Distribution is what a number of measurements amount to.
type Distribution struct {
	Min    float64 `json:"min"`
	Median float64 `json:"p50"`
	P90    float64 `json:"p90"`
	P99    float64 `json:"p99"`
	Max    float64 `json:"max"`
}

// distribution sorts the values; a percentile is the smallest value that so many do not exceed.
func distribution(values []float64) Distribution {
	if len(values) == 0 {
		return Distribution{}
	}
	v := slices.Sorted(slices.Values(values))
	at := func(percent int) float64 { return v[(len(v)*percent+99)/100-1] }
	return Distribution{Min: v[0], Median: at(50), P90: at(90), P99: at(99), Max: v[len(v)-1]}
}

// summarize groups the rounds by fault, in the order in which the faults first came.
func summarize(rounds []FailoverRound) []KindSummary {
	var out []KindSummary
	for _, first := range rounds {
		if slices.ContainsFunc(out, func(s KindSummary) bool { return s.Fault == first.Fault }) {
			continue
		}
		s := KindSummary{Fault: first.Fault}
		var gaps, stalls []float64
		var series [][]int
		spans, phases := map[string][]float64{}, map[string][]float64{}
		for _, r := range rounds {
			if r.Fault != first.Fault {
				continue
			}
			s.Rounds++
			s.Dropped += r.Dropped
			gaps, stalls = append(gaps, r.GapMS), append(stalls, r.StallMS)
			series = append(series, r.Throughput)
			for name, v := range r.SpansMS {
				spans[name] = append(spans[name], v)
			}
			for name, v := range r.PhasesMS {
				phases[name] = append(phases[name], float64(v))
			}
		}
		s.Gap, s.Stall = distribution(gaps), distribution(stalls)
		s.Spans, s.Phases = distributions(spans), distributions(phases)
		s.Throughput = meanThroughput(series)
		out = append(out, s)
	}
	return out
}

func distributions(values map[string][]float64) map[string]Distribution {
	if len(values) == 0 {
		return nil
	}
	out := make(map[string]Distribution, len(values))
	for name, v := range values {
		out[name] = distribution(v)
	}
	return out
}

// meanThroughput is the mean of commits a second by step, up to the end of the shortest round.
func meanThroughput(series [][]int) []float64 {
	n := len(series[0])
	for _, s := range series {
		n = min(n, len(s))
	}
	out := make([]float64, n)
	perSecond := float64(time.Second) / float64(step) / float64(len(series))
	for i := range out {
		for _, s := range series {
			out[i] += float64(s[i]) * perSecond
		}
		out[i] = math.Round(out[i])
	}
	return out
}

// spanNames are the parts of a change in their order.
var spanNames = []string{"detect", "fence", "promote", "reopen"}

// printSpans prints where the time of each kind goes.
func printSpans(out io.Writer, r FailoverReport) {
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "change\tpart\tmin\tp50\tp90\tp99\tmax\t")
	for _, s := range r.Summary {
		for _, name := range spanNames {
			if d, ok := s.Spans[name]; ok {
				fmt.Fprintf(w, "%s\t%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t\n", s.Fault, name,
					d.Min, d.Median, d.P90, d.P99, d.Max)
			}
		}
	}
	_ = w.Flush()
}

// printTable prints the distributions.
func printTable(out io.Writer, r FailoverReport) {
	fmt.Fprintf(out, "\n%s, profile %s, %d clients, %d CPUs; milliseconds\n\n", r.Version,
		r.Profile, r.Clients, r.CPUs)
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "change\trounds\tgap min\tp50\tp90\tp99\tmax\tstall p50\tmax\tdropped\t")
	for _, s := range r.Summary {
		fmt.Fprintf(w, "%s\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%d\t\n", s.Fault,
			s.Rounds, s.Gap.Min, s.Gap.Median, s.Gap.P90, s.Gap.P99, s.Gap.Max, s.Stall.Median,
			s.Stall.Max, s.Dropped)
	}
	_ = w.Flush()
	fmt.Fprintln(out)
	printSpans(out, r)
}

// earlier reads the rounds of the report that is added to.
func (f Failover) earlier() ([]FailoverRound, error) {
	if !f.Add {
		return nil, nil
	}
	b, err := os.ReadFile(f.JSON)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read --out, for --add: %w", err)
	}
	var r FailoverReport
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read --out, for --add: %s: %w", f.JSON, err)
	}
	if r.Profile != f.Profile {
		return nil, fmt.Errorf("--add: %s is of profile %s", f.JSON, r.Profile)
	}
	return r.Rounds, nil
}

// encode writes a line for each round, which has a hundred numbers.
func (r FailoverReport) encode() ([]byte, error) {
	rounds := r.Rounds
	r.Rounds = nil
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, err
	}
	var lines [][]byte
	for _, one := range rounds {
		line, err := json.Marshal(one)
		if err != nil {
			return nil, err
		}
		lines = append(lines, append([]byte("    "), line...))
	}
	all := append([]byte("\"rounds\": [\n"), bytes.Join(lines, []byte(",\n"))...)
	return append(bytes.Replace(b, []byte(`"rounds": null`), append(all, "\n  ]"...), 1),
		'\n'), nil
}

// phases lists phases by name.
func phases(ms map[string]int64) string {
	names := make([]string, 0, len(ms))
	for name := range ms {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %d", name, ms[name])
	}
	return strings.Join(names, ", ")
}

// version asks the binary what it is.
func (f Failover) version(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, f.Binary, "version").Output()
	if err != nil {
		return "holdfast of unknown version"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
