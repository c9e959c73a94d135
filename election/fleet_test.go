package election_test

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"holdfast/election"
	"holdfast/election/electiontest"
)

var (
	fleetSize = flag.Int("fleet", 40, "sidecars of TestFleet")
	fleetTime = flag.Duration("fleet.time", 2*time.Second, "how long TestFleet measures")
)

// fleetEnv holds the configuration of the sidecars in the process that runs them.
const fleetEnv = "HOLDFAST_TEST_FLEET"

// TestFleet runs sidecars, in a process of their own, on three voters: each is a whole node, with
// mutual TLS. The voters among themselves must not notice how many there are, and a change of the
// lock must reach them all: its endorsement waits until every one has given its lease back.
// With -fleet=5000 it is the measurement in docs/failover.md.
func TestFleet(t *testing.T) {
	if os.Getenv(fleetEnv) != "" {
		t.Skip("this is the process of the sidecars")
	}
	g, count := startFleetVoters(t)
	epoch := change(t, g, election.IntentBootstrap, "node1")
	waitGranted(t, g, epoch)
	alone := measureFleet(g, count)

	f := startFleet(t, g)
	t.Logf("%d sidecars hold the lease after %v", *fleetSize, f.await(t, epoch))
	with := measureFleet(g, count)
	t.Logf("voters alone:  %v", alone)
	t.Logf("with sidecars: %v", with)
	for path, n := range alone.requests {
		// Reports and renewals come at intervals: one more or less is chance.
		if was, is := n, with.requests[path]; path != "/v1/state" && path != "/v1/borrow" &&
			is > was*1.5+1 {
			t.Errorf("%s: %.1f a second alone, %.1f with sidecars", path, was, is)
		}
	}
	if with.requests["/v1/borrow"] == 0 {
		t.Error("nobody borrowed")
	}
	begin := time.Now()
	epoch = change(t, g, election.IntentFailover, "node2")
	t.Logf("lock of epoch %d after %v, all sidecars hold it %v later", epoch,
		time.Since(begin).Round(time.Millisecond), f.await(t, epoch))
	f.stop(t)
}

func startFleetVoters(t *testing.T) (*electiontest.Group, func() map[string]float64) {
	regs := map[string]*prometheus.Registry{}
	g := electiontest.NewGroup(t, 3)
	g.Change = func(cfg *election.Config, deps *election.Deps) {
		regs[cfg.Name] = prometheus.NewRegistry()
		cfg.Profile, deps.Registerer = election.ProfileCloud, regs[cfg.Name]
		deps.Loop = func(election.Coordinator) election.LeaderLoop { return idle{} }
	}
	for _, m := range g.Nodes {
		g.Start(m.Name)
	}
	return g, func() map[string]float64 {
		out := map[string]float64{}
		for _, r := range regs {
			families, err := r.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					if f.GetName() == "holdfast_election_requests_total" {
						out[m.GetLabel()[0].GetValue()] += m.GetCounter().GetValue()
					}
				}
			}
		}
		return out
	}
}

// fleetCost is what the three voters together did in a second.
type fleetCost struct {
	requests map[string]float64
	cpu      time.Duration
}

// String shows what is not zero.
func (c fleetCost) String() string {
	var b strings.Builder
	for _, path := range []string{"/v1/renew", "/v1/report", "/v1/borrow", "/v1/state"} {
		fmt.Fprintf(&b, "%s %.0f/s, ", path, c.requests[path])
	}
	return fmt.Sprintf("%sCPU of all voters %v/s", b.String(), c.cpu.Round(time.Millisecond/10))
}

func measureFleet(g *electiontest.Group, count func() map[string]float64) fleetCost {
	cpu := func() time.Duration {
		var u unix.Rusage
		_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before, used, begin := count(), cpu(), time.Now()
	time.Sleep(*fleetTime) // what is measured is a time of normal work
	out := fleetCost{requests: map[string]float64{}}
	sec := time.Since(begin).Seconds()
	out.cpu = time.Duration(float64(cpu()-used) / sec)
	for path, n := range count() {
		out.requests[path] = (n - before[path]) / sec
	}
	return out
}

// fleet is the process of the sidecars.
type fleet struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startFleet(t *testing.T, g *electiontest.Group) *fleet {
	cfg := g.Config("sidecar")
	cfg.Voter, cfg.Profile = false, election.ProfileCloud
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{cmd: exec.Command(exe, "-test.run", "^TestFleetSidecars$", "-fleet",
		fmt.Sprint(*fleetSize))}
	f.cmd.Env = append(os.Environ(), fleetEnv+"="+string(text))
	f.cmd.Stderr = os.Stderr
	if f.in, err = f.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	f.out = bufio.NewScanner(out)
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.in.Close() })
	return f
}

// await waits until all sidecars hold the lease of the epoch.
func (f *fleet) await(t *testing.T, epoch uint64) time.Duration {
	t.Helper()
	begin := time.Now()
	fmt.Fprintln(f.in, epoch)
	for f.out.Scan() {
		if f.out.Text() == fmt.Sprint("all ", epoch) {
			return time.Since(begin).Round(time.Millisecond)
		}
	}
	t.Fatal("the sidecars did not get the lease")
	return 0
}

func (f *fleet) stop(t *testing.T) {
	t.Helper()
	_ = f.in.Close()
	for f.out.Scan() {
	}
	if err := f.cmd.Wait(); err != nil {
		t.Errorf("sidecars: %v", err)
	}
}

// TestFleetSidecars is the other process of TestFleet. For each epoch that it reads it answers once
// all sidecars hold its lease; it ends with its input.
func TestFleetSidecars(t *testing.T) {
	text := os.Getenv(fleetEnv)
	if text == "" {
		t.Skip("part of TestFleet")
	}
	var cfg election.Config
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		t.Fatal(err)
	}
	nodes := make([]*election.Node, *fleetSize)
	for i := range nodes {
		n, err := election.New(cfg, election.Deps{Log: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		nodes[i] = n
		if i%100 == 99 {
			time.Sleep(300 * time.Millisecond) // a fleet is not rolled out in an instant
		}
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		for _, n := range nodes {
			for !holdsLease(n, in.Text()) {
				time.Sleep(5 * time.Millisecond) // until it does; the parent's patience is the bound
			}
		}
		fmt.Println("all", in.Text())
	}
	var work errgroup.Group
	for _, n := range nodes {
		work.Go(func() error { return n.Close(context.Background()) })
	}
	if err := work.Wait(); err != nil {
		t.Error(err)
	}
}

func holdsLease(n *election.Node, epoch string) bool {
	return fmt.Sprint(n.Lease().Epoch()) == epoch && n.Now() < n.Lease().Until()
}
