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
	"runtime/pprof"
	"slices"
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
	fleetKind = flag.String("fleet.kind", "both", "sidecars that are real, simulated, or both in turn")
	fleetCPU  = flag.String("fleet.cpu", "", "write a CPU profile of the voters with sidecars")
)

// fleetEnv holds the configuration of the sidecars in the process that runs them.
const fleetEnv = "HOLDFAST_TEST_FLEET"

// TestFleet runs sidecars, in a process of their own, on three voters, with mutual TLS: first whole
// nodes, then simulated ones, of which a machine can run more. The voters among themselves must not
// notice how many there are, and a change of the lock must reach them all: its endorsement waits
// until every one has given its lease back. With -fleet=5000 -fleet.kind=simulated it is the
// measurement in docs/failover.md.
func TestFleet(t *testing.T) {
	if os.Getenv(fleetEnv) != "" {
		t.Skip("this is the process of the sidecars")
	}
	g, count := startFleetVoters(t)
	epoch := change(t, g, election.IntentBootstrap, "node1")
	waitGranted(t, g, epoch)
	alone := measureFleet(g, count)
	t.Logf("voters alone:  %v", alone)
	borrowed := map[string]float64{}
	for i, kind := range []string{"real", "simulated"} {
		if *fleetKind != "both" && *fleetKind != kind {
			continue
		}
		f := startFleet(t, g, kind)
		t.Logf("%d %s sidecars hold the lease after %v", *fleetSize, kind, f.await(t, epoch))
		if *fleetCPU != "" {
			startProfile(t, *fleetCPU)
		}
		with := measureFleet(g, count)
		pprof.StopCPUProfile()
		t.Logf("with sidecars: %v", with)
		checkFleet(t, alone, with)
		borrowed[kind] = with.requests["borrow"]
		begin := time.Now()
		epoch = change(t, g, election.IntentFailover, g.Nodes[1-i].Name)
		t.Logf("lock of epoch %d after %v, all sidecars hold it %v later", epoch,
			time.Since(begin).Round(time.Millisecond), f.await(t, epoch))
		f.stop(t)
	}
	if r, s := borrowed["real"], borrowed["simulated"]; len(borrowed) == 2 &&
		(s < r*0.8 || s > r*1.2) {
		t.Errorf("real sidecars borrow %.0f times a second, simulated ones %.0f times", r, s)
	}
}

// checkFleet compares what the voters did among themselves.
func checkFleet(t *testing.T, alone, with fleetCost) {
	t.Helper()
	for path, n := range alone.requests {
		// Reports and renewals come at intervals: one more or less is chance.
		if was, is := n, with.requests[path]; path != "/v1/state" && path != "borrow" &&
			is > was*1.5+1 {
			t.Errorf("%s: %.1f a second alone, %.1f with sidecars", path, was, is)
		}
	}
	if with.requests["borrow"] == 0 {
		t.Error("nobody borrowed")
	}
}

func startProfile(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := pprof.StartCPUProfile(f); err != nil {
		t.Fatal(err)
	}
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
	rss      string
}

// String shows what is not zero.
func (c fleetCost) String() string {
	var b strings.Builder
	for _, path := range []string{"/v1/renew", "/v1/report", "borrow", "/v1/state"} {
		fmt.Fprintf(&b, "%s %.0f/s, ", path, c.requests[path])
	}
	return fmt.Sprintf("%sCPU of all voters %v/s, %s", b.String(),
		c.cpu.Round(time.Millisecond/10), c.rss)
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
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS:") {
			out.rss = strings.Join(strings.Fields(line), " ")
		}
	}
	return out
}

// fleet is the process of the sidecars.
type fleet struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startFleet(t *testing.T, g *electiontest.Group, kind string) *fleet {
	t.Helper()
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
		fmt.Sprint(*fleetSize), "-fleet.kind", kind)}
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
		if strings.HasPrefix(f.out.Text(), "borrowed") {
			t.Log(f.out.Text())
		}
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
	hold, stop := startSidecars(t, cfg)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		for until := time.Now().Add(3 * time.Minute); !hold(in.Text()); {
			if time.Now().After(until) {
				t.Fatalf("not all sidecars hold the lease of epoch %s", in.Text())
			}
			time.Sleep(5 * time.Millisecond) // until they do
		}
		fmt.Println("all", in.Text())
	}
	stop()
}

// startSidecars starts sidecars of the kind that was asked for. A fleet is not rolled out in an
// instant.
func startSidecars(t *testing.T, cfg election.Config) (hold func(epoch string) bool, stop func()) {
	if *fleetKind == "simulated" {
		ctx, cancel := context.WithCancel(t.Context())
		f, err := newSimFleet(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		for range *fleetSize {
			f.start()
			time.Sleep(3 * time.Millisecond) // handshakes cost the voters most
		}
		return f.hold, func() {
			fmt.Printf("borrowed %d times, refused or failed %d times, %d have no lease at the end\n",
				f.renewed.Load(), f.failed.Load(), f.lapsed())
			cancel()
			f.work.Wait()
		}
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
		time.Sleep(3 * time.Millisecond) // handshakes cost the voters most
	}
	return func(epoch string) bool {
			return !slices.ContainsFunc(nodes, func(n *election.Node) bool {
				return !holdsLease(n, epoch)
			})
		}, func() {
			var work errgroup.Group
			for _, n := range nodes {
				work.Go(func() error { return n.Close(context.Background()) })
			}
			if err := work.Wait(); err != nil {
				t.Error(err)
			}
		}
}

func holdsLease(n *election.Node, epoch string) bool {
	return fmt.Sprint(n.Lease().Epoch()) == epoch && n.Now() < n.Lease().Until()
}
