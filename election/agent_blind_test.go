package election_test

import (
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/election"
)

// TestAgentBlindIsNoProof: an agent that has not looked yet, or cannot look, says nothing that the
// group would take for the death of a server that lives.
func TestAgentBlindIsNoProof(t *testing.T) {
	c := newAgentCluster(t, 1)
	early, err := election.NewPostgresAgent(c.cfgs["n1"], election.AgentDeps{Source: c.src})
	if err != nil {
		t.Fatal(err)
	}
	if st := early.Status(); st.Phase != election.PhaseUnknown {
		t.Errorf("before the first look: %+v", st)
	}
	c.start("n1")
	c.bootstrap("")
	c.open("n1")
	c.wait("n1", "primary", isPrimary)
	data := c.cfgs["n1"].DataDir

	t.Run("no file descriptors", func(t *testing.T) {
		var old unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
		_, probe := os.Open(os.DevNull)
		phases := c.watchPhases("n1", 600*time.Millisecond)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
		if probe == nil {
			t.Fatal("a file could still be opened: the test shows nothing")
		}
		c.checkNoProof(phases)
	})
	t.Run("directory renamed", func(t *testing.T) {
		if err := os.Rename(data, data+".away"); err != nil {
			t.Fatal(err)
		}
		phases := c.watchPhases("n1", 600*time.Millisecond)
		if err := os.Rename(data+".away", data); err != nil {
			t.Fatal(err)
		}
		c.checkNoProof(phases)
	})
	t.Run("file lost", func(t *testing.T) {
		file := data + "/postmaster.pid"
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		// In its place, and complete: PostgreSQL ends itself when the file is not its own.
		if err := os.Truncate(file, 0); err != nil {
			t.Fatal(err)
		}
		phases := c.watchPhases("n1", 600*time.Millisecond)
		if err := os.WriteFile(file, text, info.Mode()); err != nil {
			t.Fatal(err)
		}
		c.checkNoProof(phases)
	})
	if got := c.sql("n1", "SELECT pg_is_in_recovery()"); got != "f" {
		t.Errorf("in recovery: %s", got)
	}
}

func isPrimary(s election.MemberStatus) bool { return s.Phase == election.PhasePrimary }

// watchPhases collects the phases that an agent gives out for a while.
func (c *agentCluster) watchPhases(name string, d time.Duration) []election.MemberPhase {
	var seen []election.MemberPhase
	for end := time.Now().Add(d); time.Now().Before(end); {
		if p := c.agents[name].Status().Phase; !slices.Contains(seen, p) {
			seen = append(seen, p)
		}
		time.Sleep(5 * time.Millisecond) // samples come every 100 ms
	}
	return seen
}

// checkNoProof checks phases of a primary that lived on all the time.
func (c *agentCluster) checkNoProof(phases []election.MemberPhase) {
	c.t.Helper()
	for _, p := range phases {
		if p != election.PhasePrimary && p != election.PhaseUnknown {
			c.t.Errorf("phases %v of a live primary", phases)
		}
	}
	c.wait("n1", "primary again", isPrimary)
}

// TestAgentLooksClosely: what becomes of a stream is seen at once by an agent that was asked to
// look closely, and not with the next sample.
func TestAgentLooksClosely(t *testing.T) {
	c := newAgentCluster(t, 2)
	cfg := c.cfgs["n2"]
	cfg.SampleInterval = 8 * time.Second
	c.cfgs["n2"] = cfg
	c.start("n1", "n2")
	c.bootstrap("")
	c.waitStreaming("n2", "n1")
	time.Sleep(3 * time.Second) // what has just changed is looked at often anyway
	c.close("n1")
	c.crash("n1")
	took := c.wait("n2", "the end of the stream", func(s election.MemberStatus) bool {
		c.agents["n2"].LookClosely() // again and again, as a node with each probe that fails
		return !s.Streaming
	})
	if took > 2*time.Second {
		t.Errorf("seen after %v", took)
	}
}
