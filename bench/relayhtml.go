package main

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"maps"
	"slices"
)

// bar is one line of a chart: a value with what was around it.
type bar struct {
	label string
	value Spread
}

// Sizes of a chart, in pixels of SVG.
const (
	barsWidth = 640
	barsLabel = 150
	barsValue = 170
	barsRow   = 22
)

// colour is that of a target, so that the eye finds it in every chart.
func colour(i int) string {
	colours := []string{"#9aa5b1", "#c0504d", "#4f81bd", "#2e8b57", "#8064a2", "#d98b2b",
		"#3aa6b9", "#70543e"}
	return colours[max(0, i)%len(colours)]
}

// writeChart draws bars with a line from min to max.
func writeChart(out io.Writer, title string, digits int, colours []string, bars []bar) {
	top := 0.0
	for _, b := range bars {
		top = max(top, b.value.Max)
	}
	if top == 0 {
		return
	}
	height := len(bars)*barsRow + 6
	fmt.Fprintf(out, "<figure><figcaption>%s</figcaption>\n<svg viewBox=\"0 0 %d %d\" "+
		"width=\"%d\" role=\"img\">\n", html.EscapeString(title), barsWidth, height, barsWidth)
	x := func(v float64) float64 {
		return barsLabel + v/top*(barsWidth-barsLabel-barsValue)
	}
	for i, b := range bars {
		y := i*barsRow + 4
		fmt.Fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", barsLabel-6,
			y+14, html.EscapeString(b.label))
		fmt.Fprintf(out, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n",
			barsLabel, y+2, x(b.value.Median)-barsLabel, barsRow-8, colours[i])
		fmt.Fprintf(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#222\"/>\n",
			x(b.value.Min), x(b.value.Max), y+9, y+9)
		fmt.Fprintf(out, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", x(b.value.Max)+6, y+14,
			html.EscapeString(b.value.text(digits)))
	}
	fmt.Fprintln(out, "</svg></figure>")
}

const htmlHead = `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Holdfast: cost of the relay</title>
<style>
body { font: 15px/1.4 sans-serif; margin: 2em auto; max-width: 90em; padding: 0 1em; color: #222 }
figure { display: inline-block; margin: .5em 1em .5em 0; vertical-align: top }
figcaption { font-weight: bold; margin-bottom: .2em }
svg text { font: 12px sans-serif }
pre { background: #f4f4f4; padding: 1em; overflow: auto }
</style></head><body>
<h1>Cost of the relay</h1>
`

// writeHTML writes one page with everything in it: plots, tables, machine, versions.
func (r RelayReport) writeHTML(out io.Writer) error {
	var page bytes.Buffer
	page.WriteString(htmlHead)
	fmt.Fprintf(&page, "<p>%s, %s.<br><code>%s</code></p>\n<ul>\n", r.At.Format("2006-01-02 15:04"),
		html.EscapeString(r.Machine), html.EscapeString(r.Command))
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		fmt.Fprintf(&page, "<li>%s: %s</li>\n", html.EscapeString(name),
			html.EscapeString(r.Versions[name]))
	}
	fmt.Fprintf(&page, "</ul>\n<p>Bars are medians of %d rounds of %.2g s, all targets in turn; "+
		"lines go from the smallest to the largest round.</p>\n", r.Rounds, r.Round)
	names := slices.Sorted(maps.Keys(r.Versions))
	for _, mode := range r.modes() {
		fmt.Fprintf(&page, "<h2>%s</h2>\n", html.EscapeString(mode))
		r.plotMode(&page, mode, names)
	}
	r.plotSessions(&page, names)
	page.WriteString("<h2>Figures</h2>\n<pre>")
	var table bytes.Buffer
	r.writeTable(&table)
	page.WriteString(html.EscapeString(table.String()))
	page.WriteString("</pre></body></html>\n")
	_, err := out.Write(page.Bytes())
	return err
}

// plotMode draws throughput, CPU, the distribution of latency and memory of one mode.
func (r RelayReport) plotMode(out io.Writer, mode string, names []string) {
	var rate, cost, memory, latency []bar
	var colours, latencyColours []string
	unit := ""
	for _, s := range r.Series {
		if s.Mode != mode {
			continue
		}
		unit = s.Unit
		c := colour(slices.Index(names, s.Target))
		colours = append(colours, c)
		rate = append(rate, bar{s.Target, s.of(RelayRound.Rate)})
		cost = append(cost, bar{s.Target, s.of(RelayRound.Cost)})
		peak := float64(s.PeakBytes) / (1 << 20)
		memory = append(memory, bar{s.Target, Spread{peak, peak, peak}})
		for _, q := range []struct {
			name string
			of   func(RelayRound) float64
		}{
			{s.Target + " p50", func(r RelayRound) float64 { return r.P50 }},
			{"p90", func(r RelayRound) float64 { return r.P90 }},
			{"p99", func(r RelayRound) float64 { return r.P99 }},
			{"p99.9", func(r RelayRound) float64 { return r.P999 }},
		} {
			latency = append(latency, bar{q.name, s.of(q.of)})
			latencyColours = append(latencyColours, c)
		}
	}
	writeChart(out, "Throughput, "+unit+"/s", 0, colours, rate)
	writeChart(out, "CPU of the proxy, microseconds per "+unit, 1, colours, cost)
	writeChart(out, "Latency, microseconds", 0, latencyColours, latency)
	writeChart(out, "Peak resident memory, MiB", 1, colours, memory)
}

// plotSessions draws what was measured with many sessions.
func (r RelayReport) plotSessions(out io.Writer, names []string) {
	one := func(v float64) Spread { return Spread{v, v, v} }
	var memory, cpu, stalls []bar
	var colours, stallColours []string
	for _, i := range r.Idle {
		colours = append(colours, colour(slices.Index(names, i.Target)))
		memory = append(memory, bar{i.Target, one(i.Bytes / 1024)})
		cpu = append(cpu, bar{i.Target, one(i.CPU)})
	}
	for _, m := range r.Many {
		c := colour(slices.Index(names, m.Target))
		stallColours = append(stallColours, c, c)
		stalls = append(stalls, bar{m.Target + " alone", one(m.AloneP99)},
			bar{"beside", one(m.P99)})
	}
	if len(memory)+len(stalls) > 0 {
		fmt.Fprintln(out, "<h2>Many sessions</h2>")
	}
	writeChart(out, "Resident memory per idle session, KiB", 2, colours, memory)
	writeChart(out, "CPU while all sessions are idle, percent", 2, colours, cpu)
	writeChart(out, "p99 without and beside a stream, microseconds", 0, stallColours, stalls)
}
