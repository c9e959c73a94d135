package election_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// lostWAL is a primary whose standby was away for so long that its slot is lost and the WAL gone.
func lostWAL(t *testing.T, settings ...string) *agentCluster {
	t.Helper()
	c := newAgentCluster(t, 2)
	for name, cfg := range c.cfgs {
		cfg.Settings = append(cfg.Settings[:len(cfg.Settings):len(cfg.Settings)],
			"max_slot_wal_keep_size = 16MB", "wal_keep_size = 0", "min_wal_size = 32MB",
			"max_wal_size = 32MB")
		if name == "n2" {
			cfg.Settings = append(cfg.Settings, settings...)
		}
		c.cfgs[name] = cfg
	}
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.sql("n1", "CREATE TABLE t (i int)")
	c.waitStreaming("n2", "n1")
	c.awaitReceived("n1", "n2")
	c.close("n2")
	c.crash("n2")
	first := c.sql("n1", "SELECT pg_walfile_name(pg_current_wal_lsn())")
	has := "SELECT count(*) FROM pg_ls_waldir() WHERE name = '" + first + "'"
	for begin := time.Now(); c.sql("n1", has) != "0"; {
		c.sql("n1", "INSERT INTO t VALUES (1)")
		c.sql("n1", "SELECT pg_switch_wal()")
		c.sql("n1", "CHECKPOINT")
		if time.Since(begin) > 60*time.Second {
			t.Fatalf("the WAL stays: slots %s", c.sql("n1",
				"SELECT string_agg(slot_name || ' ' || wal_status, ', ') FROM pg_replication_slots"))
		}
	}
	return c
}

// TestAgentLostSlot: a standby that was away for more than max_slot_wal_keep_size needs WAL that is
// gone. Its slot is made anew, and it clones anew by itself; its old data is kept.
func TestAgentLostSlot(t *testing.T) {
	c := lostWAL(t)
	kept := c.cfgs["n2"].DataDir + ".lost-0" // of a primary that lost commits
	if err := os.Mkdir(kept, 0o700); err != nil {
		t.Fatal(err)
	}
	c.start("n2")
	c.waitStreaming("n2", "n1")
	c.awaitReceived("n1", "n2")
	const rows = "SELECT count(*) FROM t"
	if n1, n2 := c.sql("n1", rows), c.sql("n2", rows); n1 != n2 {
		t.Errorf("n1 has %s rows, n2 %s", n1, n2)
	}
	old, _ := filepath.Glob(c.cfgs["n2"].DataDir + ".[lr]*")
	if len(old) != 1 || old[0] != kept {
		t.Errorf("there is %v, want what was lost before alone", old)
	}
	electiontest.Wait(t, "its slot in use", 20*time.Second, func() bool { // for good, and not lost
		return c.sql("n1", "SELECT (wal_status <> 'lost') || ' ' || active FROM "+
			"pg_replication_slots WHERE slot_name = 'holdfast_n2'") == "true true"
	})
}

// TestAgentLostSlotWithArchive: with a restore_command the agent does not know whether the WAL
// comes. It says what to do, and that works.
func TestAgentLostSlotWithArchive(t *testing.T) {
	c := lostWAL(t, "restore_command = 'false'")
	c.start("n2")
	c.wait("n2", "a word of what to do", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStandby && strings.Contains(s.Problem, "holdfast reinit n2")
	})
	if _, err := os.Stat(c.cfgs["n2"].DataDir + ".lost-1"); err == nil {
		t.Error("it was cloned anew")
	}
	c.do("n2", election.Order{Kind: election.OrderReinit})
	c.waitStreaming("n2", "n1")
}
