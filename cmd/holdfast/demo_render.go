package main

import (
	"fmt"
	"image/color"
	"strings"
	"time"

	"charm.land/lipgloss/v2"

	"holdfast/election"
)

// screen is all that the live view shows; render makes the text of it.
type screen struct {
	width, height int
	elapsed       time.Duration
	profile       string
	status        Status
	phase         string // what is being done; empty if nothing is
	phaseTime     time.Duration
	last          *DemoChange
	stats         LoadStats
	ledger        LedgerReport
	rate          []int
	events        []demoEvent
	answer        string
}

// The colors are of the terminal's own palette, so that they fit light and dark ones.
var (
	colorGood   color.Color = lipgloss.Green
	colorWarn   color.Color = lipgloss.Yellow
	colorBad    color.Color = lipgloss.Red
	colorAccent color.Color = lipgloss.Cyan

	styleTitle = lipgloss.NewStyle().Bold(true).Foreground(colorAccent)
	styleHead  = lipgloss.NewStyle().Faint(true)
	styleBold  = lipgloss.NewStyle().Bold(true)
)

func paint(c color.Color, text string) string {
	return lipgloss.NewStyle().Foreground(c).Render(text)
}

// render draws the screen; lines that do not fit are cut.
func (s *screen) render() string {
	var lines []string
	add := func(l ...string) { lines = append(lines, l...) }
	add(s.title(), "")
	add(s.topology()...)
	add("", s.doing())
	add(s.lastChange()...)
	add("", s.commitRate(), "")
	add(s.counters()...)
	add("")
	help := s.help()
	// The events take what is left, at least some lines of it.
	room := max(3, s.height-len(lines)-2)
	var log []string
	for _, e := range s.events {
		for l := range strings.SplitSeq(e.lines(), "\n") {
			log = append(log, styleHead.Render(fmt.Sprintf("%7.1fs ", e.Seconds))+l)
		}
	}
	add(log[max(0, len(log)-room):]...)
	for len(lines) < s.height-1 {
		add("")
	}
	add(help)
	cut := lipgloss.NewStyle().MaxWidth(max(s.width, 20)).Inline(true)
	for i := range lines {
		lines[i] = cut.Render(lines[i])
	}
	return strings.Join(lines, "\n")
}

func (s *screen) title() string {
	return fmt.Sprintf("%s  three nodes on this machine, %d sessions, profile %s   %s",
		styleTitle.Render("holdfast demo"), s.stats.Sessions, s.profile,
		s.elapsed.Truncate(time.Second))
}

// topology is a line for each member.
func (s *screen) topology() []string {
	lines := []string{styleHead.Render(fmt.Sprintf("  %-8s %-12s %3s %14s %10s %-8s %8s %6s",
		"MEMBER", "ROLE", "TL", "LSN", "LAG", "SYNC", "SESSIONS", "HELD"))}
	for _, m := range s.status.Members {
		dot, role := paint(colorWarn, "●"), m.Role
		switch {
		case m.AgeMS < 0 || m.AgeMS > 2000:
			dot, role = paint(colorBad, "○"), "silent"
		case m.Name == s.status.Primary && m.Role == "primary":
			dot = paint(colorAccent, "◆")
		case m.Streaming:
			dot = paint(colorGood, "●")
		}
		held := fmt.Sprintf("%6d", m.Held)
		if m.Held > 0 {
			held = paint(colorWarn, held)
		}
		lag := "-"
		if m.LagBytes != nil {
			lag = bytesText(*m.LagBytes)
		}
		line := fmt.Sprintf("%s %-8s %-12s %3d %14s %10s %-8s %8d %s", dot, m.Name, role,
			m.Timeline, m.LSN, lag, m.Sync, m.Sessions, held)
		if m.Problem != "" {
			line += "  " + paint(colorWarn, m.Problem)
		}
		lines = append(lines, line)
	}
	if len(s.status.Members) == 0 {
		lines = append(lines, "  no member is known yet")
	}
	return lines
}

// doing is what happens at this moment.
func (s *screen) doing() string {
	if s.phase == "" {
		return fmt.Sprintf("now   epoch %d, lease %s, all is well", s.status.Epoch,
			s.status.Lease.State)
	}
	text := fmt.Sprintf("now   %s (%.1f s)", s.phase, s.phaseTime.Seconds())
	if i := s.status.Intent; i != nil {
		text += fmt.Sprintf(": %s to %s under epoch %d", i.Kind, orDash(i.To), i.Epoch)
	}
	return paint(colorWarn, text)
}

// lastChange is what the newest change took, by phase.
func (s *screen) lastChange() []string {
	c := s.last
	if c == nil {
		return []string{"last  no change yet", ""}
	}
	what := fmt.Sprintf("%s: %s stays primary", c.Fault, c.Node)
	if c.Kind != "" {
		what = fmt.Sprintf("%s: %s %s -> %s, epoch %d", c.Fault, c.Kind, orDash(c.From), c.To,
			c.Epoch)
	}
	lines := []string{fmt.Sprintf("last  %s, %s without a commit", what,
		styleBold.Render(fmt.Sprintf("%d ms", c.GapMS)))}
	if c.Error != "" {
		return append(lines, paint(colorBad, "      "+c.Error))
	}
	return append(lines, "      "+phaseBars(c.PhasesMS))
}

// phaseBars shows each phase with a bar as long as its share.
func phaseBars(ms map[string]int64) string {
	var total int64
	for name, v := range ms {
		if name != "total" {
			total += v
		}
	}
	var parts []string
	for _, name := range election.PhaseNames() {
		v, ok := ms[name]
		if !ok || name == "total" || total == 0 {
			continue
		}
		bar := strings.Repeat("▇", int((v*24+total-1)/total))
		parts = append(parts, fmt.Sprintf("%s %s %d", name, paint(colorAccent, bar), v))
	}
	return strings.Join(parts, "  ")
}

// commitRate is a line that falls to nothing where there was no commit.
func (s *screen) commitRate() string {
	const levels = " ▁▂▃▄▅▆▇█"
	steps := []rune(levels)
	most, sum := 1, 0
	for _, n := range s.rate {
		most = max(most, n)
	}
	var b strings.Builder
	for _, n := range s.rate {
		i := (n*(len(steps)-1) + most - 1) / most
		b.WriteRune(steps[i])
	}
	// The newest slice is not full yet.
	perSecond := int(time.Second / rateSlice)
	if n := len(s.rate); n > perSecond {
		for _, v := range s.rate[n-1-perSecond : n-1] {
			sum += v
		}
	}
	return fmt.Sprintf("commits %s %d/s", paint(colorGood, b.String()), sum)
}

// counters are what the demo is about.
func (s *screen) counters() []string {
	st, l := &s.stats, &s.ledger
	return []string{
		fmt.Sprintf("sessions      kept %s   dropped %s   ended with their node %d   "+
			"state checked %d, wrong %s", styleBold.Render(fmt.Sprint(st.Kept)), zero(st.Dropped),
			st.Cut, st.StateChecks, zero(st.StateWrong)),
		fmt.Sprintf("transactions  committed %s   retried %d   in doubt %d",
			styleBold.Render(fmt.Sprint(st.Commits)), st.Retried, st.InDoubt),
		fmt.Sprintf("ledger        %d acknowledged commits checked   lost %s   doubled %s",
			l.Acknowledged, zero(l.Lost), zero(l.Doubled+l.Ghosts+l.Foreign+l.Unbalanced)),
	}
}

// zero is green as long as a number that must stay zero does.
func zero(n int64) string {
	if n == 0 {
		return paint(colorGood, "0")
	}
	return paint(colorBad, fmt.Sprint(n))
}

func (s *screen) help() string {
	var b strings.Builder
	for _, k := range viewKeys {
		fmt.Fprintf(&b, "%s %s  ", styleBold.Render(k.key), k.text)
	}
	b.WriteString(styleBold.Render("q") + " quit")
	if s.answer != "" {
		b.WriteString("   " + paint(colorWarn, s.answer))
	}
	return b.String()
}

// bytesText is a number of bytes for people.
func bytesText(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
