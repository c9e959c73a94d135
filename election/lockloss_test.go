package election_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"holdfast/election"
)

// lossLease is a lease that a test grants.
type lossLease struct{ epoch, until atomic.Int64 }

func (l *lossLease) newest() (uint64, int64) { return uint64(l.epoch.Load()), l.until.Load() }

func (l *lossLease) grant(epoch uint64, d time.Duration) int64 {
	until := bootTime() + int64(d)
	l.epoch.Store(int64(epoch))
	l.until.Store(until)
	return until
}

// bootTime is CLOCK_BOOTTIME in nanoseconds.
func bootTime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// newLossCluster is one primary whose clients bypass the proxies.
func newLossCluster(t *testing.T, l *lossLease) (*agentCluster, election.Timing) {
	t.Helper()
	timing, err := election.TimingOf(election.ProfileWAN) // its reserve is 2 s
	if err != nil {
		t.Fatal(err)
	}
	c := newAgentCluster(t, 1)
	cfg := c.cfgs["n1"]
	cfg.OnLockLoss, cfg.Timing = election.OnLockLossStop, timing
	cfg.Settings = append(cfg.Settings[:len(cfg.Settings):len(cfg.Settings)],
		"wal_level = logical", "wal_sender_timeout = 0")
	c.cfgs["n1"] = cfg
	c.startLeased(l)
	c.bootstrap("")
	l.grant(1, time.Hour)
	c.open("n1")
	return c, timing
}

func (c *agentCluster) startLeased(l *lossLease) {
	c.t.Helper()
	a, err := election.NewPostgresAgent(c.cfgs["n1"],
		election.AgentDeps{Source: c.src, Log: c.log(), Lease: l.newest})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := a.Start(context.Background()); err != nil {
		c.t.Fatal(err)
	}
	c.agents["n1"] = a
	c.t.Cleanup(func() {
		c.close("n1")
		c.killServer("n1")
	})
}

// endOf runs a statement that never ends by itself, and tells when the server ended it.
func endOf(t *testing.T, conn *pgconn.PgConn) <-chan int64 {
	t.Helper()
	ended := make(chan int64, 1)
	running := make(chan struct{})
	go func() {
		close(running)
		_, err := conn.Exec(context.Background(), "SELECT pg_sleep(600)").ReadAll()
		if err == nil || !strings.Contains(err.Error(), "57P01") {
			t.Errorf("the statement ended with %v", err)
		}
		ended <- bootTime()
	}()
	<-running
	return ended
}

// TestLockLossStops: the primary of an agent whose clients bypass the proxies serves as long as its
// lease, and has no client any more before a promise behind it can have ended. It comes back by an
// order under another epoch, and is left alone then.
func TestLockLossStops(t *testing.T) {
	l := &lossLease{}
	c, timing := newLossCluster(t, l)
	conn, err := c.dial("n1", "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Conn().Close() }()
	ended := endOf(t, conn)
	until := l.grant(1, 1500*time.Millisecond)
	at := <-ended
	reserve := int64(election.LossReserveForTest(timing))
	if at < until || at > until+reserve {
		t.Errorf("ended %s after the lease, within %s is allowed", time.Duration(at-until),
			time.Duration(reserve))
	}
	c.wait("n1", "its end", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStopped
	})
	// The coordinator, once it is there again, starts it under another epoch. Until that is the
	// lock, the agent sees one without a lease.
	c.epoch = 2
	res := c.do("n1", election.Order{Kind: election.OrderStartPrimary})
	pid := c.pid("n1")
	time.Sleep(timing.Interval)
	if now := c.pid("n1"); now != pid || pid == 0 {
		t.Fatalf("postmaster %d, then %d: it was stopped behind its door", pid, now)
	}
	c.commit("n1", res)
	l.grant(2, time.Hour)
	c.open("n1")
	c.sql("n1", "CREATE TABLE again (i int)")
	if now := c.pid("n1"); now != pid {
		t.Errorf("postmaster %d, then %d", pid, now)
	}
}

// TestLockLossStopsBeforeTheRelease: what a lessee gives up is over for clients that bypass the
// proxies, too, before a voter hears of it. An end of the process itself stops nothing.
func TestLockLossStopsBeforeTheRelease(t *testing.T) {
	l := &lossLease{}
	c, _ := newLossCluster(t, l)
	g := election.LossGate{Agent: c.agents["n1"]}
	conn, err := c.dial("n1", "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Conn().Close() }()
	ended := endOf(t, conn)
	g.Cut(0) // of older epochs
	if c.pid("n1") == 0 || c.sql("n1", "SELECT 1") != "1" {
		t.Fatal("an older epoch's end stopped it")
	}
	g.Cut(1)
	if late, err := c.dial("n1", "postgres"); err == nil {
		_ = late.Close(context.Background())
		t.Error("a client got in after the cut")
	}
	select {
	case <-ended:
	case <-time.After(100 * time.Millisecond): // its answer is on its way
		t.Error("a client was there after the cut")
	}
	c.epoch = 2 // in order: it can be handed over
	if res := c.do("n1", election.Order{Kind: election.OrderStop}); res.LSN == 0 {
		t.Errorf("stopped with %+v", res)
	}
	res := c.do("n1", election.Order{Kind: election.OrderStartPrimary})
	c.commit("n1", res)
	l.grant(2, time.Hour)
	c.open("n1")
	c.close("n1")
	g.Cut(2)
	time.Sleep(time.Second)
	if c.pid("n1") == 0 || c.sql("n1", "SELECT 1") != "1" {
		t.Error("the end of the process stopped PostgreSQL")
	}
}

// TestLockLossOfARestartedNode: a node that has just started finds its server running and has no
// lease yet. That is no loss before one could have been granted.
func TestLockLossOfARestartedNode(t *testing.T) {
	l := &lossLease{}
	c, timing := newLossCluster(t, l)
	c.close("n1")
	l.grant(0, 0)
	c.startLeased(l)
	pid := c.pid("n1")
	time.Sleep(timing.Lease / 2)
	if now := c.pid("n1"); now != pid {
		t.Fatalf("postmaster %d, then %d", pid, now)
	}
	l.grant(1, time.Hour)
	time.Sleep(timing.Lease/2 + time.Second)
	if now := c.pid("n1"); now != pid {
		t.Errorf("postmaster %d, then %d", pid, now)
	}
}

// TestLockLossStopsInOrderWithALogicalReceiver: a logical receiver that confirms nothing keeps the
// server from its last checkpoint. It is disconnected before the stop, as by an order to stop:
// else the clients could not be seen to be gone, and the primary would be crashed at each
// switchover, with no shutdown checkpoint to hand over.
func TestLockLossStopsInOrderWithALogicalReceiver(t *testing.T) {
	t.Cleanup(election.PatientForTest())
	l := &lossLease{}
	c, _ := newLossCluster(t, l)
	c.sql("n1", "CREATE TABLE t (i int)")
	receiver := c.receiveLogical("n1")
	if err := receiver.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	c.sql("n1", "INSERT INTO t SELECT generate_series(1, 100)")
	l.grant(1, 12*time.Second) // a quarter is for the look at the receivers
	election.LossGate{Agent: c.agents["n1"]}.Cut(1)
	c.epoch = 2
	if res := c.do("n1", election.Order{Kind: election.OrderStop}); res.LSN == 0 {
		t.Errorf("stopped with %+v", res)
	}
}

// TestLockLossEndsWalsendersThatHang: behind its last checkpoint a server waits for receivers that
// take nothing any more. Their walsenders are ended in time, and not the server with all of them.
func TestLockLossEndsWalsendersThatHang(t *testing.T) {
	t.Cleanup(election.PatientForTest())
	l := &lossLease{}
	c, _ := newLossCluster(t, l)
	receiver := c.receive("n1", "replication", "pg_receivewal", "-U", "holdfast_replication",
		"-D", t.TempDir())
	if err := receiver.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	c.sql("n1", "CREATE TABLE t (i int)")
	l.grant(1, 12*time.Second)
	election.LossGate{Agent: c.agents["n1"]}.Cut(1)
	c.wait("n1", "its end", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStopped
	})
	if log := c.serverLog("n1"); strings.Contains(log, "received immediate shutdown request") {
		t.Errorf("the server was stopped at once:\n%s", log)
	}
}
