package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"text/tabwriter"
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
		for _, r := range rounds {
			if r.Fault != first.Fault {
				continue
			}
			s.Rounds++
			s.Dropped += r.Dropped
			gaps, stalls = append(gaps, r.GapMS), append(stalls, r.StallMS)
		}
		s.Gap, s.Stall = distribution(gaps), distribution(stalls)
		out = append(out, s)
	}
	return out
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
