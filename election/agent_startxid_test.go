package election_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/election"
)

// openXidCluster is one primary, with settings, that has a client with an open transaction: a crash
// loses its id, of which no WAL tells, and the next start gives it out again.
func openXidCluster(t *testing.T, settings ...string) (c *adoptCluster, open uint64) {
	t.Helper()
	c = &adoptCluster{agentCluster: newAgentCluster(t, 1)}
	cfg := c.cfgs["n1"]
	cfg.Settings = append(slices.Clone(cfg.Settings), settings...)
	c.cfgs["n1"] = cfg
	c.start("n1")
	c.bootstrap("")
	c.open("n1")
	c.sql("n1", "CREATE TABLE t (i int)")
	client, err := c.dial("n1", "postgres")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(context.Background()) })
	return c, c.xid(c.on(client, "BEGIN; SELECT pg_current_xact_id()"))
}

// startXidCluster is that after the crash. The agent is not there any more.
func startXidCluster(t *testing.T) (c *adoptCluster, lost uint64) {
	t.Helper()
	c, lost = openXidCluster(t)
	c.close("n1")
	c.crash("n1")
	return c, lost
}

func (c *agentCluster) xid(text string) uint64 {
	c.t.Helper()
	xid, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	return xid
}

// takeAgain commits as somebody else, and checks that this has the id of what was lost.
func (c *agentCluster) takeAgain(lost uint64, sql func(string) string) {
	c.t.Helper()
	got := c.xid(sql("INSERT INTO t VALUES (1) RETURNING pg_current_xact_id()"))
	if got != lost {
		c.t.Fatalf("the id %d is given out, %d was lost: it shows nothing", got, lost)
	}
}

// bySocket runs SQL as the superuser, whom a closed door lets in, as it does background workers.
func (c *adoptCluster) bySocket(sql string) string { return c.admin2("n1", sql) }

// TestAgentStartAfterOneByHand: where somebody else started the server after a crash, an id that a
// client's COMMIT had may be another's by now. The boundary says that nothing is known of it
// (DESIGN.md I99), whether that server still runs or is down again.
func TestAgentStartAfterOneByHand(t *testing.T) {
	for _, isDown := range []bool{false, true} {
		t.Run(fmt.Sprintf("down again %v", isDown), func(t *testing.T) {
			c, lost := startXidCluster(t)
			dir := c.cfgs["n1"].DataDir
			start := []string{"pg_ctl", "start", "-s", "-w", "-D", dir, "-l", c.dir + "/log"}
			if err := os.Chmod(c.dir, 0o777); err != nil {
				t.Fatal(err)
			}
			// A server is not started beside what is left of another, nor by PostgreSQL's programs
			// as long as a zombie has the pid of the file.
			for _, id := range c.segments {
				for !election.FreeSegmentForTest(id) {
					time.Sleep(10 * time.Millisecond)
				}
			}
			locks, _ := filepath.Glob(dir + ".holdfast/run/.s.PGSQL.*.lock")
			for _, file := range append(locks, filepath.Join(dir, "postmaster.pid")) {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
			defer func() {
				if b, err := os.ReadFile(c.dir + "/log"); err == nil && t.Failed() {
					t.Logf("%s", b)
				}
			}()
			adoptRun(t, start...)
			c.takeAgain(lost, func(sql string) string { return c.sql("n1", sql) })
			if isDown {
				adoptRun(t, "pg_ctl", "stop", "-s", "-w", "-D", dir)
			}
			c.start("n1")
			c.epoch = 2
			for range 2 { // the second from what was written down
				res := c.do("n1", election.Order{Kind: election.OrderStartPrimary})
				if res.XidLo != 0 || res.XidHi <= lost {
					t.Errorf("epoch %d: boundary %d to %d, but %d was lost, and is another's now",
						c.epoch, res.XidLo, res.XidHi, lost)
				}
				c.epoch++
			}
			c.close("n1")
			c.crash("n1") // behind the closed door
			c.start("n1")
			res := c.do("n1", election.Order{Kind: election.OrderStartPrimary})
			if res.XidLo != 0 || res.XidHi <= lost {
				t.Errorf("after another crash: boundary %d to %d", res.XidLo, res.XidHi)
			}
			// Once the door was open under that, the next crash has an exact boundary again.
			c.commit("n1", res)
			c.open("n1")
			last := c.xid(c.sql("n1", "INSERT INTO t VALUES (1) RETURNING pg_current_xact_id()"))
			c.crash("n1")
			c.wait("n1", "stopped", func(s election.MemberStatus) bool {
				return s.Phase == election.PhaseStopped
			})
			c.epoch++
			res = c.do("n1", election.Order{Kind: election.OrderStartPrimary})
			if res.XidLo != last+1 || res.XidHi != last+1 {
				t.Errorf("boundary %d to %d, the last id was %d", res.XidLo, res.XidHi, last)
			}
		})
	}
}

// TestAgentStartXidBehindTheDoor: a closed door does not keep background workers from committing
// as soon as the server has recovered. The boundary is the id that it opened with, as long as
// pg_control has it.
func TestAgentStartXidBehindTheDoor(t *testing.T) {
	t.Run("as it opened", func(t *testing.T) {
		c, lost := startXidCluster(t)
		c.start("n1")
		lo, hi := election.StartXidForTest(t, c.agents["n1"], func() {
			c.takeAgain(lost, c.bySocket)
		})
		if lo != lost || hi != lost {
			t.Errorf("boundary %d to %d, but %d was lost, and is a worker's now", lo, hi, lost)
		}
	})
	t.Run("after a checkpoint", func(t *testing.T) {
		c, lost := startXidCluster(t)
		c.start("n1")
		lo, hi := election.StartXidForTest(t, c.agents["n1"], func() {
			c.takeAgain(lost, c.bySocket)
			c.bySocket("CHECKPOINT")
		})
		if lo != 0 || hi <= lost {
			t.Errorf("boundary %d to %d, but %d was lost, and is a worker's now", lo, hi, lost)
		}
	})
}

// TestAgentBoundaryOfARunningServerOutlivesACrash: a boundary that is written down while the server
// runs on stands for the starts after a crash, too. Ids of which no WAL is on disk would be given
// out again below it then, and a COMMIT that was lost be found.
func TestAgentBoundaryOfARunningServerOutlivesACrash(t *testing.T) {
	c, lost := openXidCluster(t, "wal_writer_delay = 10s")
	c.epoch = 2
	res := c.do("n1", election.Order{Kind: election.OrderStartPrimary}) // back, after a switchover
	if res.XidLo <= lost {
		t.Fatalf("boundary %d to %d, though %d is known to be aborted", res.XidLo, res.XidHi, lost)
	}
	c.close("n1")
	c.crash("n1")
	c.start("n1")
	c.epoch = 3
	res = c.do("n1", election.Order{Kind: election.OrderStartPrimary})
	again := c.xid(c.bySocket("INSERT INTO t VALUES (1) RETURNING pg_current_xact_id()"))
	if again < res.XidLo {
		t.Errorf("the id %d is given out again, below the boundary %d", again, res.XidLo)
	}
}

// TestAgentServedIsKnownAfterAnUpgrade: the record of an older release does not tell which start
// has been served; the door's next look adds it.
func TestAgentServedIsKnownAfterAnUpgrade(t *testing.T) {
	c := newAgentCluster(t, 1)
	c.start("n1")
	c.bootstrap("")
	c.open("n1")
	c.close("n1")
	file := c.cfgs["n1"].DataDir + ".holdfast/agent.json"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Replace(string(b), `"served"`, `"served_not"`, 1)
	if old == string(b) {
		t.Fatalf("the record does not tell which start is served: %s", b)
	}
	if err := os.WriteFile(file, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start("n1")
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), `"served"`) {
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatal("the record still does not tell which start is served")
		}
	}
	c.crash("n1")
	c.epoch = 2
	c.wait("n1", "stopped", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStopped
	})
	if res := c.do("n1", election.Order{Kind: election.OrderStartPrimary}); res.XidLo == 0 {
		t.Errorf("boundary %d to %d", res.XidLo, res.XidHi)
	}
}
