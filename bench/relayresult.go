package main

import (
	"slices"
	"time"
)

// RelayRound is what one round of one target amounted to.
type RelayRound struct {
	Units   float64 `json:"units"` // transactions, megabytes, logins
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu_seconds"` // of the target's process
	P50     float64 `json:"p50_us"`
	P90     float64 `json:"p90_us"`
	P99     float64 `json:"p99_us"`
	P999    float64 `json:"p999_us"`
	Mean    float64 `json:"mean_us"`
}

// Rate is units per second.
func (r RelayRound) Rate() float64 { return ratio(r.Units, r.Seconds) }

// Cost is microseconds of the target's CPU per unit.
func (r RelayRound) Cost() float64 { return ratio(r.CPU*1e6, r.Units) }

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// RelaySeries are the rounds of one target in one mode, in the order in which they were run: round
// i of all targets of a mode were run one after the other.
type RelaySeries struct {
	Mode   string       `json:"mode"`
	Unit   string       `json:"unit"`
	Target string       `json:"target"`
	Rounds []RelayRound `json:"rounds"`
	// PeakBytes is the target's largest resident set in this mode.
	PeakBytes int64 `json:"peak_rss_bytes"`
}

// Spread is a median with what was around it.
type Spread struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

// spread is that of the values; of an even number of them the median is between the middle two.
func spread(values []float64) Spread {
	n := len(values)
	if n == 0 {
		return Spread{}
	}
	v := slices.Sorted(slices.Values(values))
	return Spread{Min: v[0], Median: (v[(n-1)/2] + v[n/2]) / 2, Max: v[n-1]}
}

// of is the spread of one figure of all rounds.
func (s RelaySeries) of(figure func(RelayRound) float64) Spread {
	values := make([]float64, len(s.Rounds))
	for i, r := range s.Rounds {
		values[i] = figure(r)
	}
	return spread(values)
}

// against is the spread of the ratios of a figure, round by round: what slows the machine down for
// a while slows both.
func (s RelaySeries) against(base RelaySeries, figure func(RelayRound) float64) Spread {
	var values []float64
	for i := range min(len(s.Rounds), len(base.Rounds)) {
		if b := figure(base.Rounds[i]); b > 0 {
			values = append(values, figure(s.Rounds[i])/b)
		}
	}
	return spread(values)
}

// latencies fills in the latencies, given in nanoseconds.
func (r *RelayRound) latencies(took []int64) {
	if len(took) == 0 {
		return
	}
	slices.Sort(took)
	var sum int64
	for _, t := range took {
		sum += t
	}
	at := func(permille int) float64 {
		return float64(took[(len(took)*permille+999)/1000-1]) / 1000
	}
	r.P50, r.P90, r.P99, r.P999 = at(500), at(900), at(990), at(999)
	r.Mean = float64(sum) / float64(len(took)) / 1000
}

// RelayReport is everything that was measured.
type RelayReport struct {
	At       time.Time         `json:"at"`
	Command  string            `json:"command"`
	Machine  string            `json:"machine"`
	Rounds   int               `json:"rounds"`
	Round    float64           `json:"round_seconds"`
	Versions map[string]string `json:"versions"`
	Series   []RelaySeries     `json:"series"`
	Idle     []RelayIdle       `json:"idle,omitempty"`
	Crowd    []RelayCrowd      `json:"crowd,omitempty"`
	Many     []RelayMany       `json:"many,omitempty"`
}

// find is the series of a target in a mode.
func (r RelayReport) find(mode, target string) (RelaySeries, bool) {
	i := slices.IndexFunc(r.Series, func(s RelaySeries) bool {
		return s.Mode == mode && s.Target == target
	})
	if i < 0 {
		return RelaySeries{}, false
	}
	return r.Series[i], true
}

// relayBase is what others are compared with.
const relayBase = "HAProxy"

// modes are the modes in the order in which they were run.
func (r RelayReport) modes() []string {
	var names []string
	for _, s := range r.Series {
		if !slices.Contains(names, s.Mode) {
			names = append(names, s.Mode)
		}
	}
	return names
}
