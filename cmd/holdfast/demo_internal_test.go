package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
)

func sampleScreen() screen {
	st := healthyStatus()
	st.Epoch = 4
	st.Members[1].Held = 7
	st.Members[2].AgeMS = -1
	st.Intent = &IntentStatus{Kind: "failover", To: "node2", Epoch: 5}
	return screen{
		width: 110, height: 30, elapsed: 83 * time.Second, profile: "lan", status: st,
		phase: "kill -9 of everything on node1", phaseTime: 1200 * time.Millisecond,
		last: &DemoChange{Fault: faultPostmaster, Node: "node3", Kind: "failover", From: "node3",
			To: "node1", Epoch: 4, GapMS: 412,
			PhasesMS: map[string]int64{"endorse": 60, "promote": 90, "total": 150}},
		stats:  LoadStats{Sessions: 60, Kept: 40, Cut: 20, Commits: 12345, Retried: 7, InDoubt: 3},
		ledger: LedgerReport{Acknowledged: 12000},
		rate:   []int{0, 10, 20, 40, 80, 0, 0, 40},
		events: []demoEvent{{Event: "note", Seconds: 1.5, Text: "first\nsecond"}},
		answer: "kill node: next",
	}
}

func TestScreenShowsWhatMatters(t *testing.T) {
	s := sampleScreen()
	text := ansi.Strip(s.render())
	for _, want := range []string{
		"60 sessions", "◆ node1    primary", "○ node3    silent",
		"kill -9 of everything on node1 (1.2 s)",
		"failover to node2 under epoch 5", "failover node3 -> node1, epoch 4", "412 ms without a commit",
		"endorse ▇▇▇▇▇▇▇▇▇▇ 60", "promote", "kept 40", "dropped 0", "ended with their node 20",
		"committed 12345", "retried 7", "in doubt 3", "lost 0", "doubled 0", "first", "second",
		"k kill postmaster", "q quit", "kill node: next",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not on the screen:\n%s", want, text)
		}
	}
	if strings.Contains(text, "total") {
		t.Error("the total is shown as a phase")
	}
	lines := strings.Split(text, "\n")
	if len(lines) != s.height {
		t.Errorf("%d lines on a screen of %d", len(lines), s.height)
	}
}

func TestScreenFitsNarrowTerminals(t *testing.T) {
	for _, size := range [][2]int{{20, 5}, {80, 24}, {0, 0}} {
		s := sampleScreen()
		s.width, s.height = size[0], size[1]
		for i, line := range strings.Split(s.render(), "\n") {
			if w := lipgloss.Width(line); w > max(size[0], 20) {
				t.Errorf("%v: line %d is %d wide", size, i, w)
			}
		}
	}
	empty := screen{width: 80}
	if !strings.Contains(empty.render(), "no member is known yet") {
		t.Error("an empty screen says nothing")
	}
}

func TestCommitRateShowsGaps(t *testing.T) {
	s := screen{rate: []int{8, 8, 0, 1, 8}}
	if got := ansi.Strip(s.commitRate()); !strings.HasPrefix(got, "commits ██ ▁█ ") {
		t.Errorf("%q", got)
	}
}

func TestLiveKeys(t *testing.T) {
	cancelled := false
	newModel := func() *liveModel {
		d := newDemo(DemoCommand{}, func(demoEvent) {})
		return &liveModel{demo: d, log: &liveLog{}, cancel: func() { cancelled = true }}
	}
	press := func(m *liveModel, key string) {
		m.Update(tea.KeyPressMsg{Code: rune(key[0]), Text: key})
	}
	for _, k := range viewKeys {
		m := newModel()
		press(m, k.key)
		select {
		case got := <-m.demo.commands:
			if got != k.fault {
				t.Errorf("%s does %s", k.key, got)
			}
		default:
			t.Errorf("%s does nothing", k.key)
		}
	}
	m := newModel()
	press(m, "k")
	press(m, "n")
	if got := <-m.demo.commands; got != faultPostmaster || !strings.Contains(m.answer, "one thing") {
		t.Errorf("a second key: %s, %q", got, m.answer)
	}
	m.demo.ready = &demoReady{}
	press(m, "q")
	if cancelled || !m.isStopping {
		t.Error("q does not end the demo in an orderly way")
	}
	press(m, "q")
	if !cancelled {
		t.Error("the second q does not end the demo at once")
	}
	if _, cmd := m.Update(demoEnded{}); cmd == nil {
		t.Error("the view outlives the demo")
	}
}

func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		name string
		r    DemoResult
		ok   bool
	}{
		{"fine", DemoResult{Stats: LoadStats{Retried: 5, InDoubt: 3, Cut: 20},
			Ledger: LedgerReport{InDoubt: 3, InDoubtThere: 1, Pending: 1}}, true},
		{"lost", DemoResult{Ledger: LedgerReport{Lost: 1}}, false},
		{"doubled", DemoResult{Ledger: LedgerReport{Doubled: 1}}, false},
		{"ghost", DemoResult{Ledger: LedgerReport{Ghosts: 1}}, false},
		{"foreign", DemoResult{Ledger: LedgerReport{Foreign: 1}}, false},
		{"unbalanced", DemoResult{Ledger: LedgerReport{Unbalanced: 1}}, false},
		{"dropped", DemoResult{Stats: LoadStats{Dropped: 1}}, false},
		{"state", DemoResult{Stats: LoadStats{StateWrong: 1}}, false},
		{"miscounted", DemoResult{Stats: LoadStats{Miscounted: 1}}, false},
		{"refused", DemoResult{Stats: LoadStats{Refused: 1}}, false},
		{"fault failed", DemoResult{Changes: []DemoChange{{Error: "no"}}}, false},
	} {
		tt.r.judge()
		if tt.r.OK != tt.ok || tt.ok != (len(tt.r.Wrong) == 0) {
			t.Errorf("%s: %v %v", tt.name, tt.r.OK, tt.r.Wrong)
		}
		if got := strings.Contains(tt.r.text(), "WRONG"); got == tt.ok {
			t.Errorf("%s: %s", tt.name, tt.r.text())
		}
	}
}

func TestPrinters(t *testing.T) {
	var out bytes.Buffer
	e := demoEvent{Event: "change", Seconds: 2, Change: &DemoChange{Fault: faultNode, Node: "node1",
		Kind: "failover", From: "node1", To: "node2", Epoch: 3, GapMS: 999}}
	printPlain(&out)(e)
	if !strings.Contains(out.String(), "2.0s  failover node1 -> node2, epoch 3") ||
		!strings.Contains(out.String(), "999 ms without a commit") {
		t.Errorf("%q", out.String())
	}
	out.Reset()
	printJSON(&out)(e)
	var back demoEvent
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back.Change.GapMS != 999 {
		t.Errorf("%q: %v", out.String(), err)
	}
}

func TestControlLines(t *testing.T) {
	var notes []string
	d := newDemo(DemoCommand{In: strings.NewReader("\nbogus\nnode\nswitchover\nquit\nfreeze\n")},
		func(e demoEvent) { notes = append(notes, e.Text) })
	d.runControl()
	if len(notes) != 2 || !strings.Contains(notes[0], `"bogus"`) ||
		!strings.Contains(notes[1], "switchover was not taken") {
		t.Errorf("notes: %q", notes)
	}
	if got := <-d.commands; got != faultNode {
		t.Errorf("took %s", got)
	}
	select {
	case <-d.quit:
	default:
		t.Error("quit does not end the demo")
	}
}

// TestSchedule holds the promise of the help text: every kind has its turn, and a mild one comes
// between any two that hit hard.
func TestSchedule(t *testing.T) {
	seen := map[faultKind]bool{}
	for i, k := range faultSchedule {
		seen[k] = true
		next := faultSchedule[(i+1)%len(faultSchedule)]
		if k.isMild() == next.isMild() {
			t.Errorf("%s follows %s", next, k)
		}
	}
	for _, k := range allFaults {
		if !seen[k] || k.title("node1") == "" {
			t.Errorf("%s never happens", k)
		}
	}
}

func TestDemoRefusesBadFlags(t *testing.T) {
	good := DemoCommand{Profile: "lan", Interval: 20 * time.Second, Sessions: 60}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for name, edit := range map[string]func(*DemoCommand){
		"sessions": func(c *DemoCommand) { c.Sessions = 201 },
		"interval": func(c *DemoCommand) { c.Interval = time.Second },
		"duration": func(c *DemoCommand) { c.Duration = -1 },
		"changes":  func(c *DemoCommand) { c.Changes = -1 },
		// What they would be counted by.
		"changes needs an --interval": func(c *DemoCommand) { c.Changes, c.Interval = 1, 0 },
		"profile":                     func(c *DemoCommand) { c.Profile = "moon" },
		"json":                        func(c *DemoCommand) { c.Plain, c.JSON = true, true },
	} {
		c := good
		edit(&c)
		if err := c.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "--"+name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMixOfSessions(t *testing.T) {
	for _, tt := range []struct {
		isMixed bool
		kinds   int
	}{{false, 5}, {true, 6}} {
		l := NewLoad(LoadConfig{Sessions: 60, Mixed: tt.isMixed,
			Proxies: []string{"a:1", "b:1", "c:1"}})
		kinds, homes := map[sessionKind]int{}, map[int]int{}
		both := map[[2]any]bool{}
		for _, s := range l.sessions {
			kinds[s.kind]++
			homes[s.home]++
			both[[2]any{s.kind, s.home}] = true
		}
		if len(kinds) != tt.kinds || homes[0] != 20 || homes[1] != 20 || len(both) != 3*tt.kinds {
			t.Errorf("kinds %v, homes %v, %d pairs", kinds, homes, len(both))
		}
	}
}
