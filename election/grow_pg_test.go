package election_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// TestAgentStandbyGrows: a primary that was started with a greater max_connections makes its
// standby stop replaying, or before 14 end. The agent starts the standby with what its own
// configuration has by now; where that is less as well it says so, and touches nothing. Replay that
// somebody has paused stays so.
func TestAgentStandbyGrows(t *testing.T) {
	c := newAgentCluster(t, 2)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.sql("n1", "CREATE TABLE t (i int)")
	c.waitStreaming("n2", "n1")
	c.awaitReceived("n1", "n2")
	first := c.pid("n2")
	c.sql("n2", "SELECT pg_wal_replay_pause()")
	time.Sleep(5 * time.Second) // more than two passes that look at slots, and at this
	if c.pid("n2") != first || c.sql("n2", "SELECT pg_is_wal_replay_paused()") != "t" {
		t.Error("replay that was paused by hand did not stay so")
	}
	c.sql("n2", "SELECT pg_wal_replay_resume()")

	c.restartPrimaryWith("n1", 60)
	c.sql("n1", "INSERT INTO t VALUES (1)")
	if c.agents["n2"].Status().ServerVersion < 140000 { // it has ended, and is started as it is
		c.growTo("n2", 60)
		c.waitGrown("n2", first, "60", "1")
		return
	}
	stays := func(says string) {
		t.Helper()
		ok := func(s election.MemberStatus) bool {
			return s.Phase == election.PhaseStandby && strings.Contains(s.Problem, says)
		}
		c.wait("n2", says, ok)
		for begin := time.Now(); time.Since(begin) < 3*time.Second; time.Sleep(20 * time.Millisecond) {
			if s := c.agents["n2"].Status(); !ok(s) {
				t.Fatalf("after %v it does not say %q any more: %+v", time.Since(begin), says, s)
			}
		}
		if c.pid("n2") != first {
			t.Error("it was restarted")
		}
	}
	stays("max_connections is 40 here and 60 on the primary")
	c.src.set(func(s *election.State) {
		s.Intent = &election.Intent{Epoch: 3, Kind: election.IntentSwitchover, From: "n1", FromEpoch: 2}
	})
	c.growTo("n2", 60)
	stays("(max_connections 40 -> 60), when the change of the primary is over")
	file := filepath.Join(c.cfgs["n2"].DataDir, "postgresql.conf")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil { // it keeps its owner
			t.Fatal(err)
		}
	}
	write("work_mem = '4 parsecs'\n" + string(good))
	c.src.set(func(s *election.State) { s.Intent = nil })
	stays("would not start: " + file + " line 1: setting could not be applied")
	write("no_such_setting = 1\n" + string(good))
	stays("would not start: " + file + " line 1: unrecognized configuration parameter")
	write(string(good))
	c.waitGrown("n2", first, "60", "1")

	// And once more. The agent is another one by now: it does not remember the first growth.
	second := c.pid("n2")
	c.restartPrimaryWith("n1", 80)
	c.sql("n1", "INSERT INTO t VALUES (2)")
	c.growTo("n2", 80)
	c.waitGrown("n2", second, "80", "2")
}

// restartPrimaryWith crashes the primary, and starts it with another max_connections.
func (c *agentCluster) restartPrimaryWith(name string, connections int) {
	c.t.Helper()
	c.growTo(name, connections)
	c.crash(name)
	c.wait(name, "stopped", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStopped
	})
	c.epoch++
	c.commit(name, c.do(name, election.Order{Kind: election.OrderStartPrimary}))
	c.open(name)
}

// waitGrown waits until the standby was restarted with that max_connections and has all rows.
func (c *agentCluster) waitGrown(name string, first int, connections, rows string) {
	c.t.Helper()
	c.wait(name, "restarted and in its place", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStandby && s.Pid != 0 && s.Pid != first && s.Streaming &&
			s.Problem == ""
	})
	if got := c.sql(name, "SHOW max_connections"); got != connections {
		c.t.Errorf("the standby has max_connections %s", got)
	}
	electiontest.Wait(c.t, "the rows of the new epoch", 20*time.Second, func() bool {
		return c.sql(name, "SELECT count(*) FROM t") == rows
	})
}

// growTo starts the agent with another max_connections; its server goes on.
func (c *agentCluster) growTo(name string, connections int) {
	c.t.Helper()
	c.close(name)
	cfg := c.cfgs[name]
	cfg.Settings = slices.DeleteFunc(slices.Clone(cfg.Settings), func(s string) bool {
		return strings.HasPrefix(s, "max_connections")
	})
	cfg.Settings = append(cfg.Settings, fmt.Sprintf("max_connections = %d", connections))
	c.cfgs[name] = cfg
	c.start(name)
}

// TestAgentRecruitGrowsStandby: the primary was started with more than its standby has, and is lost
// before the standby was restarted. Recruited, it has to be: nobody else resumes its replay, and no
// other member has what was acknowledged.
func TestAgentRecruitGrowsStandby(t *testing.T) {
	c := newAgentCluster(t, 2)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.sql("n1", "CREATE TABLE t (i int)")
	c.waitStreaming("n2", "n1")
	if c.agents["n2"].Status().ServerVersion < 140000 {
		t.Skip("before 14 it does not stop replaying, but ends")
	}
	first := c.pid("n2")
	c.restartPrimaryWith("n1", 60)
	c.waitStreaming("n2", "n1")
	at := c.acknowledge("n1", 1, "n2")
	c.crash("n1")
	c.epoch = 3
	const says = "max_connections is 40 here and 60 on the primary: raise it"
	_, err := c.tryDo("n2", election.Order{Kind: election.OrderRecruit})
	if err == nil || !strings.Contains(err.Error(), says) {
		t.Fatalf("recruited with too little: %v", err)
	}
	if c.pid("n2") != first {
		t.Error("it was restarted for nothing")
	}
	c.growTo("n2", 60)
	res := c.do("n2", election.Order{Kind: election.OrderRecruit})
	if res.LSN < at {
		t.Errorf("recruited at %v, has acknowledged %v", res.LSN, at)
	}
	if got := c.sql("n2", "SELECT count(*) FROM t"); got != "1" {
		t.Errorf("%s rows", got)
	}
	if got := c.sql("n2", "SHOW primary_conninfo"); got != "" {
		t.Errorf("recruited, it streams from %q", got)
	}
	if second := c.pid("n2"); second == first ||
		c.do("n2", election.Order{Kind: election.OrderRecruit}).LSN != res.LSN ||
		c.pid("n2") != second {
		t.Error("recruited again, it is restarted, or is elsewhere")
	}
}
