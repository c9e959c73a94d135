package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// newRelayReport describes the machine and the run.
func newRelayReport(rounds int, round time.Duration) RelayReport {
	return RelayReport{At: time.Now().UTC().Truncate(time.Second), Machine: machine(),
		Command: "bench " + strings.Join(os.Args[1:], " "), Rounds: rounds,
		Round: round.Seconds(), Versions: make(map[string]string)}
}

// machine says what this ran on.
func machine() string {
	model := "unknown processor"
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer func() { _ = f.Close() }()
		for in := bufio.NewScanner(f); in.Scan(); {
			if name, value, ok := strings.Cut(in.Text(), ":"); ok &&
				strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	var u unix.Utsname
	_ = unix.Uname(&u)
	return fmt.Sprintf("%d CPUs (%s), Linux %s, %s", runtime.NumCPU(), model,
		unix.ByteSliceToString(u.Release[:]), runtime.Version())
}

// writeTable prints everything as Markdown.
func (r RelayReport) writeTable(out io.Writer) {
	fmt.Fprintf(out, "Measured %s on %s, with `%s`: %d rounds of %.2g s.\n\n",
		r.At.Format("2006-01-02 15:04"), r.Machine, r.Command, r.Rounds, r.Round)
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		fmt.Fprintf(out, "- %s: %s\n", name, r.Versions[name])
	}
	for _, mode := range r.modes() {
		r.writeMode(out, mode)
	}
	if len(r.Idle) > 0 {
		fmt.Fprintf(out, "\n**%s**\n\n", modeIdle)
		rows := [][]string{{"target", "sessions", "RSS per session", "peak RSS", "CPU",
			"CPU per login"}}
		for _, i := range r.Idle {
			rows = append(rows, []string{i.Target, fmt.Sprint(i.Sessions),
				fmt.Sprintf("%.2f KiB", i.Bytes/1024), megabytes(i.Peak),
				fmt.Sprintf("%.2f %%", i.CPU), fmt.Sprintf("%.0f us", i.Login)})
		}
		writeRows(out, rows)
	}
	r.writeCrowd(out)
	if len(r.Many) == 0 {
		return
	}
	fmt.Fprintf(out, "\n**%s**\n\n", modeMany)
	rows := [][]string{{"target", "sessions", "tx/s", "p50 alone", "p99 alone", "p50 beside",
		"p99 beside", "p99 beside/alone", "stream"}}
	for _, m := range r.Many {
		us := func(f float64) string { return fmt.Sprintf("%.0f us", f) }
		rows = append(rows, []string{m.Target, fmt.Sprint(m.Sessions), fmt.Sprint(m.Pace),
			us(m.AloneP50), us(m.AloneP99), us(m.P50), us(m.P99),
			fmt.Sprintf("%.2f", ratio(m.P99, m.AloneP99)), fmt.Sprintf("%.0f MB/s", m.Stream)})
	}
	writeRows(out, rows)
}

// writeMode prints one mode: medians with min and max of the rounds.
func (r RelayReport) writeMode(out io.Writer, mode string) {
	base, _ := r.find(mode, relayBase)
	var rows [][]string
	for _, s := range r.Series {
		if s.Mode != mode {
			continue
		}
		if rows == nil {
			rows = [][]string{{"target", s.Unit + "/s", "p50 us", "p99 us", "CPU us/" + s.Unit,
				"CPU to " + relayBase, "rate to " + relayBase, "peak RSS"}}
		}
		median := func(f func(RelayRound) float64) string {
			return fmt.Sprintf("%.0f", s.of(f).Median)
		}
		rows = append(rows, []string{s.Target, s.of(RelayRound.Rate).text(0),
			median(func(r RelayRound) float64 { return r.P50 }),
			median(func(r RelayRound) float64 { return r.P99 }),
			s.of(RelayRound.Cost).text(1), s.against(base, RelayRound.Cost).text(2),
			s.against(base, RelayRound.Rate).text(2), megabytes(s.PeakBytes)})
	}
	fmt.Fprintf(out, "\n**%s**\n\n", mode)
	writeRows(out, rows)
}

// text is the median with min and max in brackets; a dash if there was nothing to measure.
func (s Spread) text(digits int) string {
	if s.Max == 0 {
		return "-"
	}
	return fmt.Sprintf("%.*f (%.*f..%.*f)", digits, s.Median, digits, s.Min, digits, s.Max)
}

func megabytes(bytes int64) string {
	if bytes == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
}

// writeRows prints a Markdown table whose columns are aligned; the first row is the head.
func writeRows(out io.Writer, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	for n, row := range rows {
		for i, cell := range row {
			fmt.Fprintf(out, "| %-*s ", width[i], cell)
		}
		fmt.Fprintln(out, "|")
		if n == 0 {
			for _, w := range width {
				fmt.Fprintf(out, "| %s ", strings.Repeat("-", w))
			}
			fmt.Fprintln(out, "|")
		}
	}
}
