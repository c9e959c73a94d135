package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Bounds of the demo's beginning and end.
const (
	startTimeout = 2 * time.Minute
	stopTimeout  = 30 * time.Second
	statusPeriod = 250 * time.Millisecond
)

// demo runs one demonstration: it owns the cluster, the load and the goroutine that looks at the
// cluster's status.
type demo struct {
	cfg     DemoCommand
	begin   time.Time
	print   func(demoEvent)
	cluster *Cluster
	load    *Load

	commands chan faultKind // what somebody asked for; one waits at most
	quit     chan struct{}
	quitOnce sync.Once

	mu      sync.Mutex
	status  Status
	phase   string // what is being done, for the view
	ready   *demoReady
	changes []DemoChange
	ledger  LedgerReport // of what was checked so far
	checked int64        // ids below it are checked
	since   time.Time    // when phase began
}

func newDemo(cfg DemoCommand, print func(demoEvent)) *demo {
	return &demo{
		cfg: cfg, begin: time.Now(), print: print, checked: 1,
		commands: make(chan faultKind, 1), quit: make(chan struct{}),
	}
}

// emit tells an event.
func (d *demo) emit(e demoEvent) {
	e.Seconds = seconds(time.Since(d.begin))
	d.mu.Lock()
	if e.Event == "fault" || e.Event == "start" {
		d.phase, d.since = e.Text, time.Now()
	}
	d.mu.Unlock()
	d.print(e)
}

func (d *demo) note(format string, args ...any) {
	d.emit(demoEvent{Event: "note", Text: fmt.Sprintf(format, args...)})
}

// command asks for a fault; it is not taken while another one waits.
func (d *demo) command(k faultKind) bool {
	select {
	case d.commands <- k:
		return true
	default:
		return false
	}
}

// stop ends the demo after what it is doing.
func (d *demo) stop() { d.quitOnce.Do(func() { close(d.quit) }) }

// run does all of it. Everything that it started is gone when it returns.
func (d *demo) run(ctx context.Context) (err error) {
	d.emit(demoEvent{Event: "start", Text: "starting three nodes"})
	d.cluster, err = StartCluster(ctx, ClusterConfig{
		Binary: d.cfg.Binary, Parent: d.cfg.Parent, Keep: d.cfg.Keep, Profile: d.cfg.Profile,
		Fence: d.cfg.Fence, Settings: d.cfg.Setting,
	})
	if err != nil {
		return err
	}
	defer func() {
		d.emit(demoEvent{Event: "start", Text: "ending all processes"})
		err = errors.Join(err, d.cluster.Close())
		if d.cfg.Keep {
			d.note("data and logs are in %s", d.cluster.Dir)
		}
	}()
	if err := d.prepare(ctx); err != nil {
		if interrupted(ctx, err) {
			return errors.New("interrupted before the cluster was ready")
		}
		return err
	}
	var watchers sync.WaitGroup
	defer watchers.Wait()
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	watchers.Go(func() { d.runStatus(watch) })
	if d.cfg.Control {
		// It may sit in a read for ever, so nobody waits for it: it owns nothing.
		go d.runControl()
	}
	d.runFaults(ctx)
	return d.finish()
}

// prepare waits for the cluster and starts the load.
func (d *demo) prepare(ctx context.Context) error {
	st, err := d.cluster.WaitHealthy(ctx, startTimeout)
	if err != nil {
		return fmt.Errorf("start cluster: %w", err)
	}
	secret, err := d.cluster.Secret("superuser")
	if err != nil {
		return err
	}
	r := &demoReady{Dir: d.cluster.Dir, Primary: st.Primary, Superuser: "postgres",
		PasswordFile: filepath.Join(d.cluster.pkiDir(), "secrets", "superuser")}
	cfg := LoadConfig{Sessions: d.cfg.Sessions, Mixed: true, Superuser: "postgres",
		SuperuserPassword: secret}
	for _, n := range d.cluster.Nodes {
		r.Nodes = append(r.Nodes, demoNode{Name: n.Name, Proxy: n.Proxy, HTTP: n.HTTP})
		cfg.Proxies = append(cfg.Proxies, n.Proxy)
	}
	if d.cfg.Sessions > 0 {
		d.emit(demoEvent{Event: "start",
			Text: fmt.Sprintf("connecting %d sessions", d.cfg.Sessions)})
		load := NewLoad(cfg)
		d.mu.Lock()
		d.load = load
		d.mu.Unlock()
		err := load.Setup(ctx)
		if err == nil {
			err = load.Start(ctx)
		}
		if err != nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			load.Stop(ctx)
			return err
		}
	}
	d.mu.Lock()
	d.ready, d.status = r, st
	d.mu.Unlock()
	d.emit(demoEvent{Event: "ready", Ready: r})
	return nil
}

// runStatus keeps the newest status for the view.
func (d *demo) runStatus(ctx context.Context) {
	for ctx.Err() == nil {
		if st, err := d.cluster.Status(ctx); err == nil {
			d.mu.Lock()
			d.status = st
			d.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(statusPeriod):
		}
	}
}

// runControl reads commands until the input ends, which ends the demo.
func (d *demo) runControl() {
	defer d.stop()
	in := bufio.NewScanner(d.cfg.In)
	for in.Scan() {
		word := strings.TrimSpace(in.Text())
		if word == "quit" {
			return
		}
		k, ok := parseFault(word)
		switch {
		case word == "":
		case !ok:
			d.note("unknown command %q: %s", word, demoCommands)
		case !d.command(k):
			d.note("one command waits already: %s was not taken", word)
		}
	}
}

// runFaults does what the schedule and the commands say until the demo is to end.
func (d *demo) runFaults(ctx context.Context) {
	var end <-chan time.Time
	if d.cfg.Duration > 0 {
		end = time.After(d.cfg.Duration)
	}
	var tick <-chan time.Time
	if d.cfg.Interval > 0 {
		t := time.NewTicker(d.cfg.Interval / 2)
		defer t.Stop()
		tick = t.C
	}
	schedule := d.schedule()
	for next := 0; d.cfg.Changes == 0 || next < d.cfg.Changes; {
		d.mu.Lock()
		d.phase = ""
		d.mu.Unlock()
		// The end goes first if it is due together with another fault.
		select {
		case <-end:
			return
		default:
		}
		var kind faultKind
		select {
		case <-ctx.Done():
			return
		case <-d.quit:
			return
		case <-end:
			return
		case kind = <-d.commands:
		case <-tick:
			kind = schedule[next%len(schedule)]
			next++
		}
		if ctx.Err() != nil {
			return
		}
		d.oneFault(ctx, kind)
	}
}

func (d *demo) oneFault(ctx context.Context, kind faultKind) {
	ch := d.fault(ctx, kind)
	if ctx.Err() != nil && ch.Error == "" {
		return // the end came in the middle of it: there is no result to tell
	}
	d.mu.Lock()
	d.changes = append(d.changes, ch)
	from := d.checked
	d.mu.Unlock()
	d.emit(demoEvent{Event: "change", Change: &ch})
	if d.load == nil || ctx.Err() != nil {
		return
	}
	report, to, err := d.load.Check(ctx, from)
	if err != nil {
		if !interrupted(ctx, err) {
			d.note("%v", err)
		}
		return
	}
	d.mu.Lock()
	d.checked = to
	d.ledger.Add(report)
	total := d.ledger
	d.mu.Unlock()
	stats := d.load.Stats()
	d.emit(demoEvent{Event: "check", Stats: &stats, Ledger: &total})
}

// finish ends the load and checks the whole ledger, not only what is new: what was there once
// could be gone by now. It works after Ctrl-C too.
func (d *demo) finish() error {
	d.mu.Lock()
	result := DemoResult{Changes: d.changes}
	d.phase = "checking the ledger"
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var err error
	if d.load != nil {
		d.load.Stop(ctx)
		result.Stats = d.load.Stats()
		check, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		result.Ledger, _, err = d.load.Check(check, 1)
	}
	result.Seconds = seconds(time.Since(d.begin))
	result.judge()
	if err != nil {
		result.OK = false
		result.Wrong = append(result.Wrong, err.Error())
	}
	d.mu.Lock()
	d.ledger = result.Ledger
	d.mu.Unlock()
	d.emit(demoEvent{Event: "result", Result: &result})
	if err := d.report(&result); err != nil {
		return err
	}
	if !result.OK {
		return fmt.Errorf("%w: %s", errDemoWrong, strings.Join(result.Wrong, "; "))
	}
	return nil
}

// report writes the result to a file if one is named.
func (d *demo) report(r *DemoResult) error {
	if d.cfg.Report == "" {
		return nil
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := os.WriteFile(d.cfg.Report, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}
