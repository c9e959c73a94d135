package election_test

import (
	"fmt"
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

	c.growTo("n1", 60)
	c.crash("n1")
	c.wait("n1", "stopped", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStopped
	})
	c.epoch = 2
	c.commit("n1", c.do("n1", election.Order{Kind: election.OrderStartPrimary}))
	c.open("n1")
	c.sql("n1", "INSERT INTO t VALUES (1)")
	if c.agents["n2"].Status().ServerVersion >= 140000 {
		const says = "max_connections is 40 here and 60 on the primary"
		c.wait("n2", says, func(s election.MemberStatus) bool {
			return s.Phase == election.PhaseStandby && strings.Contains(s.Problem, says)
		})
		if c.pid("n2") != first {
			t.Error("it was restarted for nothing")
		}
	}
	c.growTo("n2", 60)
	c.wait("n2", "restarted and in its place", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStandby && s.Pid != 0 && s.Pid != first && s.Streaming &&
			s.Problem == ""
	})
	if got := c.sql("n2", "SHOW max_connections"); got != "60" {
		t.Errorf("the standby has max_connections %s", got)
	}
	electiontest.Wait(t, "the row of the new epoch", 20*time.Second, func() bool {
		return c.sql("n2", "SELECT count(*) FROM t") == "1"
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
