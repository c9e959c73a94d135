package election_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/election"
)

// adoptWriter commits rows on one connection until it is stopped.
type adoptWriter struct {
	stop context.CancelFunc
	done sync.WaitGroup
	n    int
	gap  time.Duration // the longest that a commit took
	err  error
}

// write begins to write to a member as app, by one connection that is never opened anew.
func (c *adoptCluster) write(name string) *adoptWriter {
	c.t.Helper()
	host, port, _ := net.SplitHostPort(c.cfgs[name].Listen)
	ctx, cancel := context.WithCancel(context.Background())
	conn, err := pgconn.Connect(ctx, fmt.Sprintf("host=%s port=%s user=app dbname=postgres "+
		"sslmode=disable", host, port))
	if err != nil {
		c.t.Fatal(err)
	}
	w := &adoptWriter{stop: cancel}
	c.t.Cleanup(cancel)
	w.done.Go(func() {
		defer func() { _ = conn.Close(context.Background()) }()
		for ctx.Err() == nil {
			begin := time.Now()
			_, err := conn.Exec(ctx, fmt.Sprintf("INSERT INTO t VALUES (%d)", w.n+1)).ReadAll()
			if err != nil {
				if ctx.Err() == nil {
					w.err = err
				}
				return
			}
			w.n++
			w.gap = max(w.gap, time.Since(begin))
			time.Sleep(time.Millisecond) // a steady trickle, no flood
		}
	})
	return w
}

// end stops the writer and checks that its connection lived all the time.
func (c *adoptCluster) end(w *adoptWriter) {
	c.t.Helper()
	w.stop()
	w.done.Wait()
	if w.err != nil || w.n < 10 {
		c.t.Errorf("the writer's connection broke after %d commits: %v", w.n, w.err)
	}
	c.t.Logf("%d commits on one connection, the longest took %v", w.n, w.gap)
}

// checkListed compares what changed with what a plan listed.
func (c *adoptCluster) checkListed(name string, p *election.AdoptPlan, before map[string]string) {
	c.t.Helper()
	listed := map[string]bool{}
	for _, ch := range p.Changes {
		if ch.When == election.AdoptNow {
			path, _, _ := strings.Cut(ch.Object, ":")
			listed[path] = true
			if ch.Kind == "alter-system" {
				listed[filepath.Join(c.cfgs[name].DataDir, "postgresql.auto.conf")] = true
			}
			listed[filepath.Dir(path)] = listed[filepath.Dir(path)] || ch.Kind == "file"
		}
	}
	after := c.filesOf(name)
	for _, path := range slices.Sorted(maps.Keys(after)) {
		full := filepath.Join(c.parent(name), path)
		if before[path] != after[path] && !listed[full] {
			c.t.Errorf("%s: %s was changed, and the plan does not list it", name, full)
		}
	}
	for path := range before {
		if after[path] == "" {
			c.t.Errorf("%s: %s is gone", name, path)
		}
	}
}

func (c *adoptCluster) streamsBySlot(name string) bool {
	return c.admin2(name, "SELECT slot_name || ' ' || status FROM pg_stat_wal_receiver") ==
		election.SlotName(name)+" streaming"
}

// admin2 is admin by password, over the agent's own socket or the first one.
func (c *adoptCluster) admin2(name, sql string) string {
	c.t.Helper()
	_, port, _ := net.SplitHostPort(c.cfgs[name].Listen)
	pw, err := os.ReadFile(filepath.Join(c.dir, "secrets", "superuser"))
	if err != nil {
		c.t.Fatal(err)
	}
	b, _ := os.ReadFile(filepath.Join(c.cfgs[name].DataDir, "postmaster.pid"))
	lines := strings.Split(string(b), "\n")
	if len(lines) < 5 {
		c.t.Fatalf("%s does not run", name)
	}
	conn, err := pgconn.Connect(context.Background(), fmt.Sprintf("host=%s port=%s user=postgres "+
		"password=%s dbname=postgres", strings.TrimSpace(lines[4]), port,
		strings.TrimSpace(string(pw))))
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	return c.on(conn, sql)
}

// TestAdoptTakesOverAsItRuns is the whole way: adopt on each host, agents, the first lock, and a
// failover. No server is restarted before that, and a client's connection lives through it.
func TestAdoptTakesOverAsItRuns(t *testing.T) {
	c := newAdoptCluster(t, 3, "n1", "n2")
	pids := map[string]int{"n1": c.pid("n1"), "n2": c.pid("n2")}
	w := c.write("n1")
	for _, name := range []string{"n1", "n2"} {
		before := c.filesOf(name)
		c.checkListed(name, c.adopt(name), before)
		again := c.plan(c.adoption(name))
		if !again.IsDone() {
			t.Errorf("%s: after an adoption the plan is not empty: %+v", name, again)
		}
	}
	if !c.streamsBySlot("n2") {
		t.Error("the adopted standby does not stream by its slot")
	}
	sync := `ANY 1 ("n2","n3")`
	c.start("n1", "n2", "n3")
	for _, name := range []string{"n1", "n2"} {
		role := map[string]string{"n1": "primary", "n2": "standby"}[name]
		c.wait(name, "adopted", func(s election.MemberStatus) bool {
			return string(s.Phase) == role && s.Adopted == role
		})
	}
	c.epoch = 1
	c.commit("n1", c.do("n1", election.Order{Kind: election.OrderBootstrap, SyncNames: sync}))
	c.open("n1")
	c.waitStreaming("n2", "n1")
	c.waitStreaming("n3", "n1") // a clone
	for name, pid := range pids {
		if c.pid(name) != pid {
			t.Errorf("%s was restarted: pid %d, was %d", name, c.pid(name), pid)
		}
		c.wait(name, "adoption over", func(s election.MemberStatus) bool { return s.Adopted == "" })
	}
	if got := c.sql("n1", "SHOW synchronous_standby_names"); got != sync {
		t.Errorf("synchronous_standby_names = %q", got)
	}
	if _, err := os.ReadFile(filepath.Join(c.cfgs["n1"].DataDir,
		"../data.holdfast/before-adopt/pg_hba.conf")); err != nil {
		t.Error(err)
	}
	c.end(w)
	c.failOver(w)
}

// failOver kills the adopted primary, promotes n2, and looks that everything committed is there
// and that the old primary comes back.
func (c *adoptCluster) failOver(w *adoptWriter) {
	c.t.Helper()
	election.KillServerForTest(c.pid("n1"), c.cfgs["n1"].DataDir)
	c.wait("n1", "stopped", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStopped
	})
	c.epoch = 2
	c.do("n2", election.Order{Kind: election.OrderRecruit})
	c.do("n3", election.Order{Kind: election.OrderRecruit})
	c.commit("n2", c.do("n2", election.Order{Kind: election.OrderPromote}))
	c.open("n2")
	n, _ := strconv.Atoi(c.sql("n2", "SELECT count(*) FROM t"))
	if n < w.n {
		c.t.Errorf("%d rows after the failover, %d were committed", n, w.n)
	}
	c.waitStreaming("n1", "n2")
	c.waitStreaming("n3", "n2")
}
