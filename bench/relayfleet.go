package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// hostSource is what is built with the packages of every tree.
//
//go:embed relayhost/main.go relayhost/doc.go
var hostSource embed.FS

// origin is the server behind all targets.
type origin struct {
	addr, incarnation, version string
	lookupUser, lookupPassword string
	secret                     string // of the clients' role, as the server stores it
	// more are targets that came with the server.
	more []*target
	// isStub tells that each target has a server of its own. Behind one server that all share, those
	// that come later would search long for a port that the connections of the others have left.
	isStub bool
}

// fleet is all targets and, if they are ours, the stubs behind them. stop ends them.
type fleet struct {
	targets []*target
	stubs   []*exec.Cmd
}

// behind is the server for one more target.
func (f *fleet) behind(o *origin) (*origin, error) {
	if !o.isStub {
		return o, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	own := *o
	cmd, addr, err := start(self, "stub", "--scram")
	if err != nil {
		return nil, err
	}
	f.stubs = append(f.stubs, cmd)
	own.addr = addr
	return &own, nil
}

func (f *fleet) stop() error {
	var err error
	for _, t := range f.targets {
		err = errors.Join(err, t.stop())
	}
	for _, stub := range f.stubs {
		err = errors.Join(err, stopProcess(stub))
	}
	return err
}

// startFleet starts the targets before the origin; nil is a stub that is started as well. What is
// returned is to be stopped, after an error too.
func (r *Relay) startFleet(ctx context.Context, o *origin) (*fleet, error) {
	f := &fleet{}
	if o == nil {
		o = &origin{incarnation: stubIncarnation, lookupUser: benchUser,
			lookupPassword: benchPassword, version: "stub", isStub: true}
		var err error
		if o.secret, err = stubSecret(stubIterations); err != nil {
			return f, err
		}
	}
	name := "server " + o.version
	if r.report.Versions[name] == "" {
		r.report.Versions[name] = "behind the targets"
	}
	own, err := f.behind(o)
	if err != nil {
		return f, err
	}
	f.targets = append(f.targets, &target{Name: "direct", Version: "no proxy", addr: own.addr})
	f.targets = append(f.targets, o.more...)
	if r.Foreign {
		if err := r.startForeigners(ctx, f, o); err != nil {
			return f, err
		}
	}
	for _, tree := range r.Trees {
		if err := r.startTree(ctx, f, tree, o); err != nil {
			return f, err
		}
	}
	for _, t := range f.targets {
		if r.report.Versions[t.Name] == "" {
			r.report.Versions[t.Name] = t.Version
			fmt.Fprintf(r.Log, "%s: %s\n", t.Name, t.Version)
		}
	}
	return f, nil
}

// startForeigners starts those of the others that are installed.
func (r *Relay) startForeigners(ctx context.Context, f *fleet, o *origin) error {
	for _, begin := range []func(context.Context, string, *origin) (*target, error){
		startHAProxy, startPgBouncer,
	} {
		dir, err := os.MkdirTemp(r.dir, "foreign-")
		if err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
		own, err := f.behind(o)
		if err != nil {
			return err
		}
		t, err := begin(ctx, dir, own)
		if errors.Is(err, exec.ErrNotFound) {
			fmt.Fprintf(r.Log, "left out: %v\n", err)
			continue
		}
		if err != nil {
			return err
		}
		f.targets = append(f.targets, t)
	}
	return nil
}

// startTree builds the proxy of a source tree, once, and runs every variant of it.
func (r *Relay) startTree(ctx context.Context, f *fleet, tree string, o *origin) error {
	name, dir, ok := strings.Cut(tree, "=")
	if !ok {
		return fmt.Errorf("--holdfast %q: is not name=directory", tree)
	}
	binary := filepath.Join(r.dir, "host-"+name)
	if _, err := os.Stat(binary); err != nil {
		fmt.Fprintf(r.Log, "building %s from %s\n", name, dir)
		if err := buildHost(ctx, dir, binary); err != nil {
			return fmt.Errorf("build %s: %w", tree, err)
		}
	}
	for _, v := range r.Variants {
		variant, set, _ := strings.Cut(v, "=")
		if set == "" {
			set = "{}"
		}
		own, err := f.behind(o)
		if err != nil {
			return err
		}
		cmd, addr, err := start(binary, "-backend", own.addr, "-incarnation", own.incarnation,
			"-lookup-user", o.lookupUser, "-lookup-password", o.lookupPassword, "-set", set)
		if err != nil {
			return err
		}
		f.targets = append(f.targets, &target{Name: strings.TrimSpace(name + " " + variant),
			Version: strings.TrimSpace(commitOf(ctx, dir) + " " + strings.Trim(set, "{}")),
			addr:    addr, cmd: cmd})
	}
	return nil
}

// buildHost builds relayhost with the packages of that tree, which may be older than relayhost and
// is not changed.
func buildHost(ctx context.Context, dir, binary string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	replace := make(map[string]string)
	for _, name := range []string{"main.go", "doc.go"} {
		text, err := hostSource.ReadFile("relayhost/" + name)
		if err != nil {
			return err
		}
		from := binary + "-" + name
		if err := os.WriteFile(from, text, 0o600); err != nil {
			return err
		}
		replace[filepath.Join(dir, "bench", "relayhost", name)] = from
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	if err := os.WriteFile(binary+".json", overlay, 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", "hashicorpmetrics", "-trimpath",
		"-buildvcs=false", "-ldflags", "-s -w", "-overlay", binary+".json", "-o", binary,
		"./bench/relayhost")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// commitOf names the commit that a tree is at.
func commitOf(ctx context.Context, dir string) string {
	cmd := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--tags")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
