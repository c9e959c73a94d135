package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
)

// viewPeriod is how often the live view is drawn anew.
const viewPeriod = 100 * time.Millisecond

// The commit rate is shown as slices of time, the newest at the right.
const (
	rateSlice = 250 * time.Millisecond
	rateWidth = 60
)

// liveLog keeps the newest events for the view and the last one for the end.
type liveLog struct {
	mu     sync.Mutex
	events []demoEvent
	result *DemoResult
}

// liveLogMax is how many events the view can show.
const liveLogMax = 100

func (l *liveLog) add(e demoEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Event == "result" {
		l.result = e.Result
	}
	if e.Event == "check" {
		return // the counters are always on the screen
	}
	l.events = append(l.events, e)
	if len(l.events) > liveLogMax {
		l.events = l.events[1:]
	}
}

func (l *liveLog) newest(n int) []demoEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]demoEvent(nil), l.events[max(0, len(l.events)-n):]...)
}

// runLive runs the demo beside the live view. The demo's goroutine tells the view that it ended,
// and is waited for whatever becomes of the view.
func runLive(ctx context.Context, c DemoCommand) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log := &liveLog{}
	d := newDemo(c, log.add)
	m := &liveModel{demo: d, log: log, cancel: cancel, width: 80, height: 30}
	p := tea.NewProgram(m, tea.WithOutput(c.Out), tea.WithInput(c.In),
		tea.WithoutSignalHandler())
	var demoErr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		demoErr = d.run(ctx)
		p.Send(demoEnded{})
	}()
	_, err := p.Run()
	d.stop()
	if err != nil {
		cancel()
	}
	<-done
	if log.result != nil {
		fmt.Fprintln(c.Out, log.result.text())
	}
	if demoErr == nil && err != nil {
		return fmt.Errorf("live view (--plain does without): %w", err)
	}
	return demoErr
}

// demoEnded tells the view that the demo's goroutine is done; viewTick that it is time to draw.
type (
	demoEnded struct{}
	viewTick  time.Time
)

// liveModel is the live view's model for bubbletea: it only reads the demo, but for the keys.
type liveModel struct {
	demo          *demo
	log           *liveLog
	cancel        context.CancelFunc
	width, height int
	isStopping    bool
	answer        string // to the last key
}

// Init implements tea.Model.
func (m *liveModel) Init() tea.Cmd { return tick() }

func tick() tea.Cmd {
	return tea.Tick(viewPeriod, func(t time.Time) tea.Msg { return viewTick(t) })
}

// Update implements tea.Model.
func (m *liveModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case viewTick:
		return m, tick()
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case demoEnded:
		return m, tea.Quit
	case tea.KeyPressMsg:
		m.press(msg.String())
	}
	return m, nil
}

// viewKeys are the keys that do something to the primary.
var viewKeys = []struct {
	key   string
	fault faultKind
	text  string
}{
	{"k", faultPostmaster, "kill postmaster"},
	{"n", faultNode, "kill node"},
	{"s", faultSwitchover, "switchover"},
	{"f", faultFreeze, "freeze PostgreSQL"},
	{"p", faultPause, "freeze holdfast"},
}

func (m *liveModel) press(key string) {
	if key == "q" || key == "ctrl+c" || key == "esc" {
		m.quit()
		return
	}
	for _, k := range viewKeys {
		switch {
		case k.key != key:
		case m.isStopping:
		case m.demo.command(k.fault):
			m.answer = k.text + ": next"
		default:
			m.answer = k.text + ": one thing after the other, please"
		}
	}
}

// quit ends the demo in an orderly way; asked again, or before the cluster is there, at once.
func (m *liveModel) quit() {
	m.demo.mu.Lock()
	isReady := m.demo.ready != nil
	m.demo.mu.Unlock()
	if m.isStopping || !isReady {
		m.cancel()
	}
	m.isStopping = true
	m.answer = "ending"
	m.demo.stop()
}

// View implements tea.Model.
func (m *liveModel) View() tea.View {
	s := m.demo.screen(time.Now())
	s.width, s.height, s.answer = m.width, m.height, m.answer
	s.events = m.log.newest(liveLogMax)
	v := tea.NewView(s.render())
	v.AltScreen = true
	v.WindowTitle = "holdfast demo"
	return v
}

// screen is a moment of the demo as the view shows it.
func (d *demo) screen(now time.Time) screen {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := screen{
		elapsed: now.Sub(d.begin), status: d.status, phase: d.phase, ledger: d.ledger,
		profile: d.cfg.Profile,
	}
	if d.phase != "" {
		s.phaseTime = now.Sub(d.since)
	}
	if n := len(d.changes); n > 0 {
		last := d.changes[n-1]
		s.last = &last
	}
	if d.load != nil {
		s.stats = d.load.Stats()
		s.rate = d.load.Clock().Since(now, rateSlice, rateWidth)
	}
	return s
}
