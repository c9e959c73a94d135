package election_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// newsAgent is an agent whose status a test changes.
type newsAgent struct {
	mu      sync.Mutex
	status  election.MemberStatus
	changed chan struct{}
}

func (a *newsAgent) Status() election.MemberStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status
}

func (a *newsAgent) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

func (a *newsAgent) Do(context.Context, election.Order) (election.OrderResult, error) {
	return election.OrderResult{}, errors.New("no PostgreSQL")
}

func (a *newsAgent) set(s election.MemberStatus) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = s
	close(a.changed)
	a.changed = make(chan struct{})
}

// TestReportDoesNotWaitForTheProbe: a primary that takes connections and answers nothing holds a
// probe up until it is given up; what the agent has to say goes out meanwhile.
func TestReportDoesNotWaitForTheProbe(t *testing.T) {
	agent := &newsAgent{changed: make(chan struct{})}
	g := electiontest.NewGroup(t, 1)
	g.Change = func(cfg *election.Config, deps *election.Deps) {
		cfg.Profile, deps.Agent = election.ProfileCloud, agent
		deps.Loop = func(election.Coordinator) election.LeaderLoop { return idle{} }
	}
	silent, err := net.Listen("tcp", g.Nodes[0].Postgres)
	if err != nil {
		t.Fatal(err)
	}
	first := make(chan net.Conn, 1)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for n := 0; ; n++ {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			if n == 0 {
				first <- c
			}
			defer c.Close() // not before: a probe that is hung up on ends at once
		}
	})
	defer accepting.Wait()
	defer silent.Close()
	g.Start("node1")
	change(t, g, election.IntentBootstrap, "node1")
	probe := <-first
	agent.set(election.MemberStatus{Name: "node1", Phase: election.PhaseStopped})
	electiontest.Wait(t, "report", 10*time.Second, func() bool {
		obs, _ := g.Running["node1"].Observations()
		return len(obs) == 1 && obs[0].Member.Phase == election.PhaseStopped
	})
	if _, err := io.ReadFull(probe, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	_ = probe.SetReadDeadline(time.Now().Add(time.Millisecond))
	var late net.Error
	if _, err := probe.Read(make([]byte, 1)); !errors.As(err, &late) || !late.Timeout() {
		t.Errorf("the report came after the end of the probe (%v)", err)
	}
}

// TestProbesFitIntoTheSilence: a node is blind no later than a standby gives its stream up.
func TestProbesFitIntoTheSilence(t *testing.T) {
	for _, profile := range []string{election.ProfileLAN, election.ProfileCloud,
		election.ProfileWAN} {
		timing, err := election.TimingOf(profile)
		if err != nil {
			t.Fatal(err)
		}
		p := election.DefaultPolicy(timing)
		all := time.Duration(p.ProbeRepeats) * election.ProbeLimit(timing)
		if all > timing.Silence || election.ProbeLimit(timing) < timing.Interval {
			t.Errorf("%s: %d probes take up to %v, the silence is %v", profile, p.ProbeRepeats, all,
				timing.Silence)
		}
	}
}
