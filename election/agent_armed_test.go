package election_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/election"
)

// startupProcess is the process that replays WAL, which cannot be asked for while nobody gets in.
func (c *agentCluster) startupProcess(name string) int {
	c.t.Helper()
	// A process has its title a moment after its start.
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(time.Millisecond) {
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			title, _ := os.ReadFile(dir + "/cmdline")
			stat, _ := os.ReadFile(dir + "/stat")
			_, rest, _ := strings.Cut(string(stat), ") ")
			f := strings.Fields(rest)
			if strings.HasPrefix(string(title), "postgres: "+name) && len(f) > 1 &&
				strings.Contains(string(title), " startup ") && f[1] == strconv.Itoa(c.pid(name)) {
				pid, _ := strconv.Atoi(filepath.Base(dir))
				return pid
			}
		}
	}
	c.t.Fatalf("%s has no startup process", name)
	return 0
}

// armPromotion has a promotion of a standby begin that goes off only when the function that it
// returns is called: its startup process is as one that still replays.
func (c *agentCluster) armPromotion(name string) (goesOn func()) {
	c.t.Helper()
	pid := c.startupProcess(name)
	if err := signalProcess(pid, unix.SIGSTOP); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := c.agents[name].Do(ctx, election.Order{V: 1, Kind: election.OrderPromote,
		Epoch: c.epoch, Members: c.members})
	if err == nil {
		c.t.Fatal("it was promoted: the test shows nothing")
	}
	if _, err := os.Stat(c.cfgs[name].DataDir + "/promote"); err != nil {
		c.t.Fatal("the promotion did not begin")
	}
	return func() { _ = signalProcess(pid, unix.SIGCONT) }
}

// staysStandby fails if the member's server begins a timeline.
func (c *agentCluster) staysStandby(name string) {
	c.t.Helper()
	for begin := time.Now(); time.Since(begin) < time.Second; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(c.cfgs[name].DataDir + "/pg_wal/00000002.history"); err == nil {
			c.t.Fatalf("%s promotes itself under an overtaken epoch: %s", name, c.serverLog(name))
		}
	}
}

// TestAgentPromotionIsCalledOff: a promotion that was asked of a standby by signal goes off when
// its replay gets to the end, which may be after its order and its epoch. The next epoch's recruit
// order and follow order, and its lock, end it: else a member that has answered where it is begins
// a timeline of the number that the one promoted has (DESIGN.md I98).
func TestAgentPromotionIsCalledOff(t *testing.T) {
	for _, how := range []string{"recruit", "follow", "lock"} {
		t.Run("by "+how, func(t *testing.T) {
			c, _ := withoutLogins(t)
			acked := c.acknowledge("n1", 2, "n2", "n3")
			c.epoch = 5
			c.do("n2", election.Order{Kind: election.OrderRecruit})
			goesOn := c.armPromotion("n2")
			defer goesOn()
			c.epoch = 6
			if how == "recruit" {
				res := c.do("n2", election.Order{Kind: election.OrderRecruit})
				if res.Timeline != 1 || res.LSN < acked {
					t.Errorf("recruited at %s on timeline %d", res.LSN, res.Timeline)
				}
				goesOn()
				c.staysStandby("n2")
			}
			c.do("n3", election.Order{Kind: election.OrderRecruit})
			c.close("n1")
			c.crash("n1")
			p := c.do("n3", election.Order{Kind: election.OrderPromote})
			if how == "follow" {
				c.do("n2", election.Order{Kind: election.OrderFollow, Upstream: c.member("n3")})
				goesOn()
				c.waitStreaming("n2", "n3")
			}
			c.commit("n3", p)
			c.open("n3")
			if how == "lock" {
				pid := c.pid("n2")
				for begin := time.Now(); c.pid("n2") == pid; time.Sleep(10 * time.Millisecond) {
					if time.Since(begin) > 15*time.Second {
						t.Fatal("the server with the promotion runs on")
					}
				}
				goesOn()
			}
			c.waitStreaming("n2", "n3")
			c.acknowledge("n3", 3, "n2")
			if s := c.serverLog("n2"); strings.Contains(s, "archive recovery complete") {
				t.Errorf("it was promoted: %s", s)
			}
			if lost, _ := filepath.Glob(c.cfgs["n2"].DataDir + ".lost-*"); len(lost) != 0 {
				t.Error("it was cloned")
			}
		})
	}
}

// TestAgentPromotedTwice: two members are promoted at one position under one epoch after the other,
// and begin timelines of one number; no lock named the first. Its timeline is not taken for that
// of the lock's holder, neither by the agent nor by pg_rewind (DESIGN.md I98).
func TestAgentPromotedTwice(t *testing.T) {
	c := newAgentCluster(t, 3)
	c.start("n1", "n2", "n3")
	c.bootstrap("")
	c.open("n1")
	c.sql("n1", "CREATE TABLE t (i int)")
	c.waitStreaming("n2", "n1")
	c.waitStreaming("n3", "n1")
	c.acknowledge("n1", 1, "n2", "n3")
	c.close("n1")
	c.crash("n1")
	var at [2]string
	for i, name := range []string{"n2", "n3"} {
		c.epoch++
		c.do(name, election.Order{Kind: election.OrderRecruit})
		p := c.do(name, election.Order{Kind: election.OrderPromote})
		c.sql(name, fmt.Sprintf("INSERT INTO t VALUES (%d)", 100+i))
		at[i] = fmt.Sprintf("timeline %d at %s", p.Timeline, p.LSN)
		if name == "n3" {
			c.commit(name, p)
		}
	}
	if at[0] != at[1] {
		t.Fatalf("promoted to %s and to %s: the test shows nothing", at[0], at[1])
	}
	c.waitStreaming("n2", "n3")
	c.acknowledge("n3", 2, "n2")
	if rows := c.sql("n2", "SELECT string_agg(i::text, ',' ORDER BY i) FROM t"); rows != "1,2,101" {
		t.Errorf("it has the rows %s, the primary 1,2,101", rows)
	}
}

// TestAgentClonesNoLiveServer: a standby whose recovery before a rewind lets nobody in is stopped
// before its directory is replaced: a postmaster would go on in the one that was put aside.
func TestAgentClonesNoLiveServer(t *testing.T) {
	cfg := func(c *agentCluster) {
		n3 := c.cfgs["n3"]
		n3.StartTimeout = 3 * time.Second
		c.cfgs["n3"] = n3
	}
	c, _ := withoutLogins(t, cfg)
	c.close("n3")
	c.crash("n3")
	c.epoch = 5
	c.do("n2", election.Order{Kind: election.OrderRecruit})
	c.close("n1")
	c.crash("n1")
	c.commit("n2", c.do("n2", election.Order{Kind: election.OrderPromote}))
	c.open("n2")
	c.markRewinding("n3")
	c.start("n3")
	c.waitStreaming("n3", "n2")
	if _, err := os.Stat(c.cfgs["n3"].DataDir + ".lost-5/postmaster.pid"); err == nil {
		t.Error("a live server's directory was put aside")
	}
}

// TestAgentFenceStartsAgain: the fence of a standby that takes no logins stops it. An order that
// ends in the middle leaves it started, without an upstream: in maintenance nobody else would start
// it.
func TestAgentFenceStartsAgain(t *testing.T) {
	c, _ := withoutLogins(t)
	c.src.set(func(s *election.State) { s.Maintenance = &election.Maintenance{Since: time.Now()} })
	c.epoch = 5
	was := c.pid("n2")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with the server
		for ; isRunning(was); time.Sleep(time.Millisecond) {
		}
		cancel()
	}()
	_, err := c.agents["n2"].Do(ctx, election.Order{V: 1, Kind: election.OrderRecruit,
		Epoch: c.epoch, Members: c.members})
	if err == nil {
		t.Fatal("the order did not end in the middle: the test shows nothing")
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if pid := c.pid("n2"); pid != 0 && pid != was && isRunning(pid) {
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatal("the standby was left down")
		}
	}
	acked := c.acknowledge("n1", 2, "n3")
	if res := c.do("n2", election.Order{Kind: election.OrderRecruit}); res.LSN >= acked ||
		res.LSN == 0 {
		t.Errorf("it is at %s, and had no upstream before %s", res.LSN, acked)
	}
}

// TestAgentPromotionBySQLIsCalledOff: so is one that was asked for by SQL, whose startup process
// has not got to it.
func TestAgentPromotionBySQLIsCalledOff(t *testing.T) {
	c := newAgentCluster(t, 2)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.sql("n1", "CREATE TABLE t (i int)")
	c.waitStreaming("n2", "n1")
	acked := c.acknowledge("n1", 1, "n2")
	c.epoch = 5
	c.do("n2", election.Order{Kind: election.OrderRecruit})
	goesOn := c.armPromotion("n2")
	defer goesOn()
	c.epoch = 6
	res := c.do("n2", election.Order{Kind: election.OrderRecruit})
	if res.Timeline != 1 || res.LSN < acked {
		t.Errorf("recruited at %s on timeline %d", res.LSN, res.Timeline)
	}
	goesOn()
	c.staysStandby("n2")
	if p := c.do("n2", election.Order{Kind: election.OrderPromote}); p.Timeline != 2 {
		t.Errorf("promoted to timeline %d", p.Timeline)
	}
}
