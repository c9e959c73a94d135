package election_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// TestAgentRewindWaitsForACheckpoint: until the new primary has a checkpoint on its timeline,
// pg_rewind of 13 to 15 takes the two for one and says "no rewind required"; the old primary would
// follow with what it has too much. It waits (DESIGN 10.11).
func TestAgentRewindWaitsForACheckpoint(t *testing.T) {
	c := newAgentCluster(t, 2)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.sql("n1", "CREATE TABLE t (i int)")
	c.waitStreaming("n2", "n1")
	c.awaitReceived("n1", "n2")
	c.epoch = 2
	c.do("n2", election.Order{Kind: election.OrderRecruit})
	c.sql("n1", "INSERT INTO t VALUES (666)") // nobody else has it
	c.close("n1")
	c.crash("n1")
	checkpointer := c.sql("n2",
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
	c.stopped(checkpointer, func() {
		p := c.do("n2", election.Order{Kind: election.OrderPromote})
		c.commit("n2", p)
		c.sql("n2", "INSERT INTO t VALUES (1)")
		if tl := c.sql("n2", "SELECT timeline_id FROM pg_control_checkpoint()"); tl != "1" {
			t.Fatalf("there is a checkpoint on timeline %s already: it shows nothing", tl)
		}
		c.start("n1")
		c.wait("n1", "a reason to wait", func(s election.MemberStatus) bool {
			return s.Phase != election.PhaseStopped || s.Problem != ""
		})
		s := c.agents["n1"].Status()
		if s.Phase != election.PhaseStopped || !strings.Contains(s.Problem, "no checkpoint") {
			t.Errorf("before the checkpoint it is %s: %s", s.Phase, s.Problem)
		}
	})
	c.waitStreaming("n1", "n2")
	c.awaitReceived("n2", "n1")
	if got := c.sql("n1", "SELECT count(*) FROM t WHERE i = 666"); got != "0" {
		t.Error("it has kept a commit that the new primary does not have")
	}
}

// TestAgentPromotedTwiceHasACheckpoint: the leader that gave the order to promote dies before the
// answer, and the next one gives it again. The old primary's rewind waits for a checkpoint on the
// new timeline (DESIGN 10.11); the one that the server begins by itself is spread over minutes.
func TestAgentPromotedTwiceHasACheckpoint(t *testing.T) {
	c := newAgentCluster(t, 2)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.waitStreaming("n2", "n1")
	// Many pages that a checkpoint has to write.
	c.sql("n1", "CREATE TABLE t AS SELECT i, repeat('x', 500) x FROM generate_series(1, 30000) i")
	c.awaitReceived("n1", "n2")
	c.epoch = 2
	c.do("n2", election.Order{Kind: election.OrderRecruit})
	checkpointer := c.sql("n2",
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
	o := election.Order{V: 1, Kind: election.OrderPromote, Epoch: c.epoch, Members: c.members,
		SyncNames: `ANY 1 ("n1")`}
	c.stopped(checkpointer, func() {
		// It learns that commits wait from the checkpointer only: the order stands still there.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		answer := make(chan error, 1)
		go func() {
			_, err := c.agents["n2"].Do(ctx, o)
			answer <- err
		}()
		electiontest.Wait(t, "a promotion", 30*time.Second, func() bool {
			return c.sql("n2", "SELECT pg_is_in_recovery()") == "f"
		})
		cancel() // the leader dies
		if err := <-answer; err == nil {
			t.Fatal("the first order was answered: it shows nothing")
		}
	})
	c.do("n2", o)
	electiontest.Wait(t, "a checkpoint on the new timeline", 30*time.Second, func() bool {
		return c.sql("n2", "SELECT timeline_id FROM pg_control_checkpoint()") == "2"
	})
}

// TestAgentStopEndsLogicalReceivers: a fast stop waits until each walsender's receiver has all WAL,
// and a logical one that hangs takes none. It is disconnected first (DESIGN 10.11); else
// the stop waits for it for a quarter of its bound.
func TestAgentStopEndsLogicalReceivers(t *testing.T) {
	c := newAgentCluster(t, 1)
	cfg := c.cfgs["n1"]
	cfg.Settings = append(cfg.Settings[:len(cfg.Settings):len(cfg.Settings)],
		"wal_level = logical", "wal_sender_timeout = 0")
	cfg.StopTimeout = 2 * time.Minute
	c.cfgs["n1"] = cfg
	c.start("n1")
	c.bootstrap("")
	c.open("n1")
	c.sql("n1", "CREATE TABLE t (i int)")
	receiver := c.receiveLogical("n1")
	c.sql("n1", "INSERT INTO t SELECT generate_series(1, 100)")
	if err := receiver.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// It confirms nothing of this. Not more than sockets hold: a process that cannot say its last
	// word to its client does not end before the client reads (DESIGN.md, "Not covered").
	c.sql("n1", "INSERT INTO t SELECT generate_series(1, 100)")
	c.epoch = 2
	begin := time.Now()
	if stop := c.do("n1", election.Order{Kind: election.OrderStop}); stop.LSN == 0 {
		t.Errorf("stopped without a shutdown checkpoint: %+v", stop)
	}
	if took := time.Since(begin); took >= cfg.StopTimeout/4 {
		t.Errorf("the stop took %s: the walsender was ended for keeping it waiting", took)
	}
}

// receiveLogical makes a slot and a program that receives from it; it ends with the test.
func (c *agentCluster) receiveLogical(name string) *os.Process {
	c.t.Helper()
	c.sql(name, "SELECT pg_create_logical_replication_slot('logical', 'pgoutput');"+
		"CREATE PUBLICATION all_of_it FOR ALL TABLES")
	return c.receive(name, "superuser", "pg_recvlogical", "-U", "postgres", "-d", "postgres",
		"-S", "logical", "--start", "-f", "/dev/null", "-o", "proto_version=1",
		"-o", "publication_names=all_of_it")
}

// receive runs one of PostgreSQL's receivers, with the password in a file of the secrets, until the
// test ends, and returns once it streams.
func (c *agentCluster) receive(name, secret, program string, args ...string) *os.Process {
	c.t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + program)
	path, err := exec.LookPath(program)
	if err != nil && len(found) > 0 {
		path, err = found[len(found)-1], nil
	}
	if err != nil {
		c.t.Fatal(err)
	}
	pw, err := os.ReadFile(filepath.Join(c.dir, "secrets", secret))
	if err != nil {
		c.t.Fatal(err)
	}
	host, port, _ := strings.Cut(c.member(name).Postgres, ":")
	cmd := exec.CommandContext(context.Background(), path,
		append([]string{"-h", host, "-p", port}, args...)...)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+strings.TrimSpace(string(pw)))
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if c.sql(name, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1" {
			return cmd.Process
		}
		if time.Since(begin) > 10*time.Second {
			c.t.Fatal("nobody receives")
		}
	}
}

// markRewinding makes the record of a member that is down that of one whose rewind was cut off. It
// returns the record's path.
func (c *agentCluster) markRewinding(name string) (record string) {
	c.t.Helper()
	record = c.cfgs[name].DataDir + ".holdfast/agent.json"
	b, err := os.ReadFile(record)
	if err != nil {
		c.t.Fatal(err)
	}
	b = []byte(strings.Replace(string(b), "{", `{"rewinding": true,`, 1))
	if err := os.WriteFile(record, b, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return record
}
