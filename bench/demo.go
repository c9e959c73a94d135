package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// demoEvent is what is read of a line of `holdfast demo --json`.
type demoEvent struct {
	Event  string      `json:"event"`
	Text   string      `json:"text"`
	Ready  *demoReady  `json:"ready"`
	Change *demoChange `json:"change"`
}

type demoReady struct {
	Primary      string     `json:"primary"`
	Nodes        []demoNode `json:"nodes"`
	Superuser    string     `json:"superuser"`
	PasswordFile string     `json:"password_file"`
}

type demoNode struct {
	Name  string `json:"name"`
	Proxy string `json:"proxy"`
}

type demoChange struct {
	Node      string           `json:"node"`
	Kind      string           `json:"kind"`
	To        string           `json:"to"`
	Cause     string           `json:"cause"`
	PhasesMS  map[string]int64 `json:"phases_ms"`
	HealthyMS int64            `json:"healthy_ms"`
	FaultAt   time.Time        `json:"fault_at"`
	LockAt    *time.Time       `json:"lock_at"`
	Error     string           `json:"error"`
}

// demo is a cluster that `holdfast demo` runs for us. One goroutine reads its events; close waits
// for it and for the process.
type demo struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	events chan demoEvent
	ready  demoReady
}

// startDemo starts the cluster without a load and waits until it is ready.
func startDemo(ctx context.Context, binary, profile, fence, dir string, settings ...string,
) (*demo, error) {
	args := []string{"demo", "--json", "--control", "--interval", "0", "--sessions", "0",
		"--profile", profile}
	if fence != "lease" {
		args = append(args, "--fence", fence)
	}
	for _, line := range settings {
		args = append(args, "--setting", line)
	}
	if dir != "" {
		args = append(args, "--dir", dir)
	}
	d := &demo{cmd: exec.Command(binary, args...), events: make(chan demoEvent, 100)}
	d.cmd.Stderr = os.Stderr
	// Ctrl-C is ours to pass on.
	d.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start cluster (is --binary right? `make build` makes it): %w", err)
	}
	go d.runRead(out)
	e, err := d.await(ctx, "ready", 3*time.Minute)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start cluster: %w", err), d.close())
	}
	d.ready = *e.Ready
	return d, nil
}

func (d *demo) runRead(out io.Reader) {
	defer close(d.events)
	in := bufio.NewScanner(out)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var e demoEvent
		if json.Unmarshal(in.Bytes(), &e) == nil {
			d.events <- e
		}
	}
}

// await takes events up to the named one.
func (d *demo) await(ctx context.Context, name string, timeout time.Duration) (demoEvent, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		select {
		case e, ok := <-d.events:
			switch {
			case !ok:
				return e, errors.New("the cluster has ended")
			case e.Event == name:
				return e, nil
			}
		case <-timer.C:
			return demoEvent{}, fmt.Errorf("no %q within %v", name, timeout)
		case <-ctx.Done():
			return demoEvent{}, ctx.Err()
		}
	}
}

// change asks for a change and waits until the cluster has recovered from it.
func (d *demo) change(ctx context.Context, fault string) (demoChange, error) {
	if _, err := fmt.Fprintln(d.in, fault); err != nil {
		return demoChange{}, fmt.Errorf("ask for %s: %w", fault, err)
	}
	e, err := d.await(ctx, "change", 5*time.Minute)
	if err != nil {
		return demoChange{}, fmt.Errorf("wait for %s: %w", fault, err)
	}
	return *e.Change, nil
}

// password reads the superuser's.
func (d *demo) password() (string, error) {
	b, err := os.ReadFile(d.ready.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// close ends the cluster and waits until all of it is gone.
func (d *demo) close() error {
	_ = d.in.Close()
	for range d.events { // what it says at its end
	}
	if err := d.cmd.Wait(); err != nil {
		return fmt.Errorf("end cluster: %w", err)
	}
	return nil
}
