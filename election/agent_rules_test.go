package election_test

import (
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"holdfast/election"
	"holdfast/pgwire"
)

// TestAgentRecruitReplaysWhatItHas: after a crash a standby's receive position is unknown and its
// replay lags what it had acknowledged. It answers for its position only once it has replayed the
// WAL that it has (DESIGN 10.5).
func TestAgentRecruitReplaysWhatItHas(t *testing.T) {
	c := newAgentCluster(t, 2)
	cfg := c.cfgs["n2"]
	cfg.Settings = append(slices.Clone(cfg.Settings), "recovery_min_apply_delay = 4s")
	c.cfgs["n2"] = cfg
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.waitStreaming("n2", "n1")
	c.sql("n1", "CREATE TABLE late (i int)")
	end, err := pgwire.ParseLSN(c.sql("n1", "SELECT pg_current_wal_flush_lsn()"))
	if err != nil {
		t.Fatal(err)
	}
	c.awaitReceived("n1", "n2") // and flushed: as a synchronous standby it would have acknowledged
	c.close("n1")
	c.close("n2")
	c.crash("n1") // nobody sends it again
	c.crash("n2")
	c.start("n2")
	c.epoch = 5
	if res := c.do("n2", election.Order{Kind: election.OrderRecruit}); res.LSN < end {
		t.Errorf("recruited at %v, it had acknowledged %v", res.LSN, end)
	}
}

// TestAgentStopsForALockOnly: an intent names another member, and may come to nothing. The primary
// serves on, and what the group asks of it is done, until another lock is entered (DESIGN.md I12).
func TestAgentStopsForALockOnly(t *testing.T) {
	c := newAgentCluster(t, 2)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.waitStreaming("n2", "n1")
	pid := c.pid("n1")
	c.src.set(func(s *election.State) {
		s.LastEpoch = 2
		s.Intent = &election.Intent{Epoch: 2, Kind: election.IntentFailover, From: "n1",
			FromEpoch: s.Lock.Epoch, To: "n2"}
		s.Sync = &election.SyncRecord{Seq: 1, Epoch: s.Lock.Epoch,
			Rules: []election.SyncRule{syncOf(1, "n2")}}
	})
	c.waitProved("n1", 1) // so its agent has seen the intent, too
	c.sql("n1", "CREATE TABLE served (i int)")
	if now := c.pid("n1"); now != pid {
		t.Errorf("postmaster %d, before the intent %d", now, pid)
	}
}

// TestAgentCrashEndsTheServer: when a backend is killed the server ends with it and stays down
// until it is ordered to start. By itself it would open its door at once, and give out again the
// transaction ids of what was lost (DESIGN 10.8).
func TestAgentCrashEndsTheServer(t *testing.T) {
	c := newAgentCluster(t, 1)
	c.start("n1")
	c.bootstrap("")
	c.open("n1")
	conn, err := c.dial("n1", "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Conn().Close() }()
	backend, err := strconv.Atoi(c.on(conn, "SELECT pg_backend_pid()"))
	if err != nil {
		t.Fatal(err)
	}
	if err := signalProcess(backend, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.wait("n1", "the server's end", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStopped
	})
}

// TestAgentStopsAnEndingServer: a postmaster removes its file before it exits. Whoever looks in
// between sees a server that stops, which is no reason to refuse the order to stop it.
func TestAgentStopsAnEndingServer(t *testing.T) {
	c := newAgentCluster(t, 1)
	c.start("n1")
	c.bootstrap("")
	c.open("n1")
	if err := os.Remove(c.cfgs["n1"].DataDir + "/postmaster.pid"); err != nil {
		t.Fatal(err)
	}
	c.epoch = 2
	if res := c.do("n1", election.Order{Kind: election.OrderStop}); res.LSN == 0 {
		t.Errorf("stopped with %+v", res)
	}
	c.wait("n1", "its end", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStopped
	})
}
