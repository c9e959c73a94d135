package main

import (
	"bytes"
	"fmt"
	"html"
	"time"
)

// Sizes of a chart, in pixels.
const (
	chartWidth  = 860
	chartHeight = 150
	chartLeft   = 60
	chartGap    = 56
)

// chart draws the mean throughput of each kind as one SVG that needs nothing else.
func chart(r FailoverReport) []byte {
	var b bytes.Buffer
	all := len(r.Summary)*(chartHeight+chartGap) + 20
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" `+
		`font-family="sans-serif" font-size="12"><rect width="100%%" height="100%%" fill="white"/>`,
		chartWidth+chartLeft+20, all)
	for i, s := range r.Summary {
		drawKind(&b, r, s, 34+i*(chartHeight+chartGap))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func drawKind(b *bytes.Buffer, r FailoverReport, s KindSummary, top int) {
	if len(s.Throughput) == 0 {
		return
	}
	peak := 1.0
	for _, v := range s.Throughput {
		peak = max(peak, v)
	}
	n := len(s.Throughput)
	bottom := top + chartHeight
	x := func(i float64) float64 { return chartLeft + i*chartWidth/float64(n) }
	y := func(v float64) float64 { return float64(bottom) - v/peak*chartHeight }
	text := func(x, y float64, anchor, s string) {
		fmt.Fprintf(b, `<text x="%.0f" y="%.0f" text-anchor="%s">%s</text>`, x, y, anchor,
			html.EscapeString(s))
	}
	text(chartLeft, float64(top)-10, "start", fmt.Sprintf(
		"%s (%s): commits a second, mean of %d rounds; without a commit %.0f ms median, %.0f ms p99",
		s.Fault, r.Profile, s.Rounds, s.Gap.Median, s.Gap.P99))
	text(chartLeft-6, y(peak)+4, "end", fmt.Sprintf("%.0f", peak))
	text(chartLeft-6, y(0), "end", "0")
	b.WriteString(`<path fill="none" stroke="#1f5fa8" stroke-width="1.5" d="`)
	for i, v := range s.Throughput {
		command := "L"
		if i == 0 {
			command = "M"
		}
		// A step is drawn as one.
		fmt.Fprintf(b, "%s%.1f %.1fH%.1f", command, x(float64(i)), y(v), x(float64(i+1)))
	}
	b.WriteString(`"/>`)
	fault := x(float64(lead / step))
	fmt.Fprintf(b, `<path fill="none" stroke="#b03030" stroke-dasharray="4 3" d="M%.1f %dV%d"/>`,
		fault, top, bottom)
	fmt.Fprintf(b, `<path stroke="#888" d="M%d %dH%d"/>`, chartLeft, bottom, chartLeft+chartWidth)
	perSecond := int(time.Second / step)
	for at, sec := int(lead/step), 0; at < n; at, sec = at+perSecond, sec+1 {
		text(x(float64(at)), float64(bottom)+15, "middle", fmt.Sprintf("%d s", sec))
	}
}
