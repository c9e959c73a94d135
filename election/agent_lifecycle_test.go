package election_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/pgwire"
)

// TestAgentBootstrapCloneFailover goes through the whole life of three members: bootstrap behind
// the closed door, clones, kill -9 of the postmaster, recruiting, promotion with its boundary,
// following, and the rewind of the old primary.
func TestAgentBootstrapCloneFailover(t *testing.T) {
	c := newAgentCluster(t, 3)
	c.start("n1", "n2", "n3")
	c.wait("n1", "empty", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseEmpty
	})
	c.epoch = 1
	boot := c.do("n1", election.Order{Kind: election.OrderBootstrap})
	if boot.XidLo != boot.XidHi || boot.Timeline != 1 || boot.Incarnation == "" {
		t.Fatalf("bootstrap: %+v", boot)
	}
	if conn, err := c.dial("n1", "postgres"); err == nil {
		_ = conn
		t.Fatal("a client came in over TCP before the lock was committed")
	} else if !strings.Contains(err.Error(), "28000") {
		t.Fatalf("closed door: %v", err)
	}
	c.commit("n1", boot)
	c.open("n1")
	c.waitStreaming("n2", "n1")
	c.waitStreaming("n3", "n1")
	c.sql("n1", "CREATE TABLE t(i int); INSERT INTO t SELECT generate_series(1, 100)")
	if got := c.sql("n1", "SELECT count(*) FROM pg_stat_replication"); got != "2" {
		t.Fatalf("%s standbys stream", got)
	}
	t.Run("lookup", func(t *testing.T) { c.testLookup() })

	// An open transaction, of which the standby has seen the xid, is above the snapshot's xmax.
	busy, err := c.dial("n1", "postgres")
	if err != nil {
		t.Fatal(err)
	}
	xid := c.on(busy, "BEGIN; INSERT INTO t VALUES (0); SELECT pg_current_xact_id()")
	c.sql("n1", "INSERT INTO t VALUES (101)")
	// Nothing waits for the standbys here: that they have the row must be seen before the kill.
	c.awaitReceived("n1", "n2", "n3")
	begin := time.Now()
	c.crash("n1")
	c.wait("n1", "stopped", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStopped
	})
	t.Logf("death seen after %v", time.Since(begin))
	_ = busy.Conn().Close()
	t.Logf("open xid %s", xid)
	c.failOver(xid)

	// The old primary, which had WAL that nobody else got, rejoins by itself.
	c.waitStreaming("n1", "n2")
	if got := c.sql("n1", "SELECT count(*) FROM t"); got != "101" {
		t.Errorf("rejoined member has %s rows", got)
	}
	if _, err := os.Stat(filepath.Join(c.dir, "n1", "data.lost-2")); err == nil {
		t.Error("the old primary was cloned, a rewind was expected")
	}
	for _, n := range []string{"n1", "n2", "n3"} {
		c.wait(n, "two slots and no problem", func(s election.MemberStatus) bool {
			return len(s.Slots) == 2 && s.Problem == "" && s.Timeline == 2
		})
	}
}

// awaitReceived waits until the standbys have what the primary has written by now.
func (c *agentCluster) awaitReceived(primary string, standbys ...string) {
	c.t.Helper()
	lsn, err := pgwire.ParseLSN(c.sql(primary, "SELECT pg_current_wal_insert_lsn()"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, n := range standbys {
		c.wait(n, "the WAL", func(s election.MemberStatus) bool { return s.LSN >= lsn })
	}
}

func (c *agentCluster) testLookup() {
	conn, err := c.dial("n1", "holdfast_lookup")
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = conn.Conn().Close() }()
	if got := c.on(conn, "SELECT holdfast.user_secret('postgres')"); !strings.HasPrefix(got,
		"SCRAM-SHA-256$") {
		c.t.Errorf("user_secret: %q", got)
	}
	if got := c.on(conn, "SELECT holdfast.user_secret('pg_monitor') IS NULL"); got != "t" {
		c.t.Error("user_secret of a role without login is not NULL")
	}
	victim, err := c.dial("n1", "postgres")
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = victim.Conn().Close() }()
	pid := c.on(victim, "SELECT pg_backend_pid()")
	start := c.on(victim,
		"SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
	c.on(conn, "SELECT holdfast.end_backend("+pid+", '2020-01-01')")
	if got := c.on(victim, "SELECT 1"); got != "1" {
		c.t.Error("end_backend ended a backend of another start time")
	}
	if got := c.on(conn, "SELECT holdfast.end_backend("+pid+", '"+start+"')"); got != "t" {
		c.t.Errorf("end_backend: %q", got)
	}
	if got := c.sql("n1", "SELECT count(*) FROM pg_stat_activity WHERE pid = "+pid); got != "0" {
		c.t.Error("end_backend left the backend")
	}
}

// failOver recruits n2 and n3, promotes n2 and commits it under epoch 2.
func (c *agentCluster) failOver(openXid string) {
	t := c.t
	t.Helper()
	c.epoch = 2
	begin := time.Now()
	r3 := c.do("n3", election.Order{Kind: election.OrderRecruit})
	r2 := c.do("n2", election.Order{Kind: election.OrderRecruit})
	t.Logf("recruited in %v: %+v", time.Since(begin), r2)
	if r3.Timeline != 1 || r2.LSN == 0 || r2.XidLo == 0 {
		t.Fatalf("recruit: %+v %+v", r2, r3)
	}
	if _, err := c.tryDo("n2", election.Order{Kind: election.OrderFollow, Epoch: 1,
		Upstream: c.member("n1")}); !errors.Is(err, election.ErrAgentStaleEpoch) {
		t.Errorf("order of an older epoch: %v", err)
	}
	if got := c.sql("n2", "SHOW primary_conninfo"); got != "" {
		t.Errorf("recruited, but primary_conninfo = %q", got)
	}
	begin = time.Now()
	p := c.do("n2", election.Order{Kind: election.OrderPromote, SyncNames: "ANY 1 (n1, n3)"})
	t.Logf("promoted in %v: %+v (open xid %s)", time.Since(begin), p, openXid)
	if p.Timeline != 2 || p.XidLo == 0 || p.XidLo != p.XidHi || p.LSN < r2.LSN-1<<24 {
		t.Fatalf("promote: %+v", p)
	}
	if again := c.do("n2", election.Order{Kind: election.OrderPromote,
		SyncNames: "ANY 1 (n1, n3)"}); !reflect.DeepEqual(again, p) {
		t.Errorf("promoted again: %+v, was %+v", again, p)
	}
	c.do("n3", election.Order{Kind: election.OrderFollow, Upstream: c.member("n2")})
	c.commit("n2", p)
	c.waitStreaming("n3", "n2")
	if got := c.sql("n2", "INSERT INTO t VALUES (102) RETURNING 1; DELETE FROM t WHERE i = 102;"+
		"SELECT count(*) FROM t"); got != "101" {
		t.Errorf("the new primary has %s rows", got)
	}
	lo := c.sql("n2", "SELECT pg_xact_status('"+openXid+"'::xid8)")
	t.Logf("status of the open xid: %q", lo)
}
