package election_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/election"
)

// syncWriter commits all the time, as clients do, and keeps the longest commit.
type syncWriter struct {
	mu      sync.Mutex
	commits int
	longest time.Duration
	failed  error
	stop    context.CancelFunc
	done    chan struct{}
}

func (c *agentCluster) write(name string) *syncWriter {
	c.t.Helper()
	conn, err := c.dial(name, "postgres")
	if err != nil {
		c.t.Fatal(err)
	}
	c.on(conn, "CREATE TABLE IF NOT EXISTS w (i serial)")
	ctx, stop := context.WithCancel(context.Background())
	w := &syncWriter{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		defer func() { _ = conn.Close(context.Background()) }()
		for ctx.Err() == nil {
			begin := time.Now()
			_, err := conn.Exec(ctx, "INSERT INTO w DEFAULT VALUES").ReadAll()
			w.mu.Lock()
			if err == nil {
				w.commits++
				w.longest = max(w.longest, time.Since(begin))
			} else if ctx.Err() == nil {
				w.failed = errors.Join(w.failed, err)
			}
			w.mu.Unlock()
		}
	}()
	return w
}

// take returns and resets what was counted.
func (w *syncWriter) take() (commits int, longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	commits, longest = w.commits, w.longest
	w.commits, w.longest = 0, 0
	return commits, longest
}

func (w *syncWriter) end() error {
	w.stop()
	<-w.done
	return w.failed
}

// setSync enters rules as the next record.
func (c *agentCluster) setSync(rules ...election.SyncRule) uint64 {
	seq := uint64(0)
	c.src.set(func(s *election.State) {
		if s.Sync != nil {
			seq = s.Sync.Seq
		}
		seq++
		s.Sync = &election.SyncRecord{Seq: seq, Epoch: s.Lock.Epoch, Rules: rules}
	})
	return seq
}

func (c *agentCluster) waitProved(name string, seq uint64) time.Duration {
	c.t.Helper()
	return c.wait(name, "proof of the sync set", func(s election.MemberStatus) bool {
		return s.Sync.Seq == seq && s.Sync.Epoch == c.epoch
	})
}

// staysUnproved tells that the proof is not made for a while.
func (c *agentCluster) staysUnproved(name string, seq uint64, why string) {
	c.t.Helper()
	for range 25 {
		if c.agents[name].Status().Sync.Seq >= seq {
			c.t.Fatalf("the sync set was proved although %s", why)
		}
		// Two attempts and the pauses between them take this long.
		time.Sleep(100 * time.Millisecond)
	}
}

// stopped runs f while a process does not.
func (c *agentCluster) stopped(pid string, f func()) {
	c.t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		c.t.Fatalf("process %q: %v", pid, err)
	}
	if err := signalProcess(n, unix.SIGSTOP); err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = signalProcess(n, unix.SIGCONT) }()
	f()
}

func syncOf(wait int, names ...string) election.SyncRule {
	return election.SyncRule{Wait: wait, Names: names}
}

func newSyncCluster(t *testing.T) *agentCluster {
	t.Helper()
	c := newAgentCluster(t, 3)
	c.start("n1", "n2", "n3")
	c.bootstrap(`ANY 1 ("n2","n3")`)
	c.waitStreaming("n2", "n1")
	c.waitStreaming("n3", "n1")
	c.open("n1")
	return c
}

// TestAgentSyncSet: the agent brings a server under load through the record's rules, and proves
// each (DESIGN.md I42). Commits are held up for moments only.
func TestAgentSyncSet(t *testing.T) {
	c := newSyncCluster(t)
	w := c.write("n1")
	both, one, two := syncOf(1, "n2", "n3"), syncOf(1, "n2"), syncOf(2, "n2", "n3")
	alone := election.SyncRule{}
	for _, step := range []struct {
		name  string
		rules []election.SyncRule
	}{
		{"first", []election.SyncRule{both}},
		{"narrower", []election.SyncRule{both, one}},
		{"wider", []election.SyncRule{one, both}},
		{"more", []election.SyncRule{both, two}},
		{"fewer", []election.SyncRule{two, both}},
		{"degraded", []election.SyncRule{both, alone}},
		{"healed", []election.SyncRule{alone, two}},
		{"degraded again", []election.SyncRule{two, alone}},
		{"healed by one", []election.SyncRule{alone, one}},
	} {
		// Some commits between two steps.
		time.Sleep(200 * time.Millisecond)
		_, _ = w.take()
		took := c.waitProved("n1", c.setSync(step.rules...))
		time.Sleep(100 * time.Millisecond)
		commits, longest := w.take()
		t.Logf("%s: proved in %s; %d commits, the longest %s", step.name, took, commits, longest)
		last := step.rules[len(step.rules)-1]
		if got := c.sql("n1", "SHOW synchronous_standby_names"); got != last.Setting() {
			t.Errorf("%s: the server has %q", step.name, got)
		}
		if commits == 0 {
			t.Errorf("%s: no commits", step.name)
		}
	}
	if got := c.sql("n1", `SELECT string_agg(application_name || sync_priority, ' '
		ORDER BY application_name) FROM pg_stat_replication`); got != "n21 n30" {
		t.Errorf("the walsenders have %q", got)
	}
	if err := w.end(); err != nil {
		t.Error(err)
	}
	// The order of the promotion comes once more, late: its sync set is not put back.
	// (The version of the file tells it, since the agent would correct it at once.)
	before := c.sql("n1", "SHOW holdfast.conf_seq")
	c.late("n1", election.Order{Kind: election.OrderPromote, Epoch: c.epoch,
		SyncNames: both.Setting()})
	if c.sql("n1", "SHOW holdfast.conf_seq") != before {
		t.Error("a late order has put back the sync set of the promotion")
	}
	// A record that is older than what was done does nothing, also after a restart of the agent.
	c.close("n1")
	c.src.set(func(s *election.State) {
		s.Sync = &election.SyncRecord{Seq: 1, Epoch: 1, Rules: []election.SyncRule{both}}
	})
	c.start("n1")
	c.wait("n1", "its place", func(s election.MemberStatus) bool { return s.Streaming || s.Pid != 0 })
	time.Sleep(500 * time.Millisecond) // passes of the reconcile loop, which do nothing
	if got := c.sql("n1", "SHOW synchronous_standby_names"); got != one.Setting() {
		t.Errorf("by an older record the server has %q", got)
	}
}

// TestAgentSyncSetIsProved: each part of the proof is waited for, as long as it takes.
func TestAgentSyncSetIsProved(t *testing.T) {
	c := newSyncCluster(t)
	both, one := syncOf(1, "n2", "n3"), syncOf(1, "n3")
	alone := election.SyncRule{}
	c.waitProved("n1", c.setSync(both))
	pid := c.sql("n1", "SELECT pid FROM pg_stat_replication WHERE application_name = 'n2'")
	seq := uint64(0)
	c.stopped(pid, func() {
		seq = c.setSync(both, one)
		c.staysUnproved("n1", seq, "the walsender of n2 has the older setting")
	})
	c.waitProved("n1", seq)
	c.waitProved("n1", c.setSync(one, alone))

	pid = c.sql("n1", "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
	c.stopped(pid, func() {
		seq = c.setSync(alone, one)
		c.staysUnproved("n1", seq, "commits do not wait yet")
	})
	c.waitProved("n1", seq)
	c.waitProved("n1", c.setSync(one, alone))

	pid = c.sql("n3", "SELECT pid FROM pg_stat_wal_receiver")
	c.stopped(pid, func() {
		c.sql("n1", "CREATE TABLE alone (i int)")
		seq = c.setSync(alone, one)
		c.staysUnproved("n1", seq, "n3 lacks what was acknowledged alone")
	})
	c.waitProved("n1", seq)
	c.waitStreaming("n3", "n1")
	if got := c.sql("n3", "SELECT count(*) FROM pg_class WHERE relname = 'alone'"); got != "1" {
		t.Error("proved, but n3 lacks what was acknowledged alone")
	}
}

// isAcknowledged tells that a commit is answered within a second.
func (c *agentCluster) isAcknowledged(name string) bool {
	c.t.Helper()
	conn, err := c.dial(name, "postgres")
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err = conn.Exec(ctx, "SELECT pg_logical_emit_message(true, 'test', '')").ReadAll()
	return err == nil
}

// TestAgentPromotionWaits: a server is no primary before its commits are known to wait. The
// checkpointer tells them to, and may have been busy since the setting was loaded; a server that
// has just started has not been told either (DESIGN.md I42a).
func TestAgentPromotionWaits(t *testing.T) {
	c := newSyncCluster(t)
	c.epoch = 2
	c.do("n3", election.Order{Kind: election.OrderRecruit})
	c.do("n2", election.Order{Kind: election.OrderRecruit})
	c.close("n1") // else they follow once they see the lock, and acknowledge
	c.close("n3")
	promote := election.Order{Kind: election.OrderPromote, SyncNames: `ANY 1 ("n1","n3")`}
	pid := c.sql("n2", "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
	c.stopped(pid, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		o := promote
		o.V, o.Epoch, o.Members = 1, c.epoch, c.members
		res, err := c.agents["n2"].Do(ctx, o)
		if err == nil {
			c.commit("n2", res)
			c.open("n2")
			if c.isAcknowledged("n2") {
				t.Fatal("promoted, and a commit that no standby has is acknowledged")
			}
			t.Fatal("promoted before its commits were known to wait")
		}
		t.Log(err)
	})
	res := c.do("n2", promote)
	// An order of another leader, whose configuration differs, cannot weaken what is answered for.
	other := promote
	other.SyncNames = `ANY 1 ("n1")`
	if _, err := c.tryDo("n2", other); !errors.Is(err, election.ErrAgentRole) {
		t.Errorf("another sync set under the same epoch: %v", err)
	}
	c.commit("n2", res)
	c.open("n2")
	if got := c.sql("n2", "SHOW synchronous_standby_names"); got != promote.SyncNames {
		t.Errorf("the new primary has %q", got)
	}
	if c.isAcknowledged("n2") {
		t.Error("a commit that no standby has is acknowledged")
	}
	c.start("n3")
	c.waitStreaming("n3", "n2")
	c.sql("n2", "CREATE TABLE waited (i int)")

	// In place, with a standby that streams and answers at once.
	start := election.Order{Kind: election.OrderStartPrimary, SyncNames: promote.SyncNames}
	c.commit("n2", c.startXid("n2", start))
	c.open("n2")
	if got := c.sql("n2", "SHOW synchronous_standby_names"); got != promote.SyncNames {
		t.Errorf("the primary has %q after it was taken over", got)
	}
	// A node that has just started may not know the newest lock yet.
	c.src.set(func(s *election.State) { s.Lock.Epoch = 2 })
	c.startXid("n2", start)
}

// startXid starts a primary in place, twice before its door is opened: its boundary is the first
// xid that no client has, not one behind those that the proof of the sync set took (DESIGN.md I77).
func (c *agentCluster) startXid(name string, start election.Order) (res election.OrderResult) {
	c.t.Helper()
	last, err := strconv.ParseUint(c.sql(name,
		"INSERT INTO waited VALUES (1) RETURNING pg_current_xact_id()"), 10, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	for range 2 {
		c.epoch++
		res = c.do(name, start)
		if res.XidLo != last+1 || res.XidHi != last+1 {
			c.t.Errorf("epoch %d: boundary %d to %d, the last xid was %d", c.epoch, res.XidLo,
				res.XidHi, last)
		}
	}
	return res
}

// TestAgentStandbyWaitsBefore: where commits wait, a standby is told so before it is promoted; a
// checkpointer that is busy then holds nothing up (DESIGN.md I42a).
func TestAgentStandbyWaitsBefore(t *testing.T) {
	c := newSyncCluster(t)
	if got := c.sql("n2", "SHOW synchronous_standby_names"); got != "" {
		t.Fatalf("n2 has %q without a record", got)
	}
	c.waitProved("n1", c.setSync(syncOf(1, "n2", "n3")))
	for begin := time.Now(); c.sql("n2", "SHOW synchronous_standby_names") == ""; {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("n2 is not told")
		}
		// One look in between would do; nothing else tells.
		time.Sleep(20 * time.Millisecond)
	}
	// The idle checkpointer had its signal together with the backend; nothing shows it.
	time.Sleep(500 * time.Millisecond)
	c.epoch = 2
	c.close("n1") // else they follow once they see the lock, and acknowledge
	c.close("n3")
	pid := c.sql("n2", "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
	c.stopped(pid, func() {
		c.do("n2", election.Order{Kind: election.OrderRecruit})
		begin := time.Now()
		c.commit("n2", c.do("n2", election.Order{Kind: election.OrderPromote,
			SyncNames: `ANY 1 ("n1","n3")`}))
		t.Logf("promoted in %s", time.Since(begin))
		c.open("n2")
		if c.isAcknowledged("n2") {
			t.Error("a commit that no standby has is acknowledged")
		}
	})
}
