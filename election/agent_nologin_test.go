package election_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/pgwire"
)

// holdManySubtransactions opens a transaction with more open subtransactions than a snapshot lists
// and returns the highest id that it took.
func (c *agentCluster) holdManySubtransactions(name string) uint64 {
	c.t.Helper()
	busy, err := c.dial(name, "postgres")
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = busy.Close(context.Background()) })
	var b strings.Builder
	b.WriteString("BEGIN; INSERT INTO sub VALUES (0);")
	for i := range 100 {
		fmt.Fprintf(&b, "SAVEPOINT s%d; INSERT INTO sub VALUES (%d);", i, i)
	}
	last, err := strconv.ParseUint(c.on(busy, b.String()+
		"SELECT max(xmin::text::bigint) FROM sub"), 10, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	return last
}

// acknowledge commits a row and waits until a standby has told its primary that it has it.
func (c *agentCluster) acknowledge(primary string, row int, standbys ...string) pgwire.LSN {
	c.t.Helper()
	c.sql(primary, fmt.Sprintf("INSERT INTO t VALUES (%d)", row))
	at, err := pgwire.ParseLSN(c.sql(primary, "SELECT pg_current_wal_flush_lsn()"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, s := range standbys {
		for begin := time.Now(); c.sql(primary, fmt.Sprintf(`SELECT count(*) FROM
			pg_stat_replication WHERE application_name = '%s' AND flush_lsn >= '%s'`, s,
			at)) != "1"; time.Sleep(10 * time.Millisecond) {
			if time.Since(begin) > 20*time.Second {
				c.t.Fatalf("%s has not told that it has %s: %s", s, at, c.serverLog(s))
			}
		}
	}
	return at
}

func (c *agentCluster) waitRecovering(name string) {
	c.t.Helper()
	c.wait(name, "recovering", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseRecovering && s.Problem != "" && s.Timeline == 1
	})
	if conn, err := c.dial(name, "postgres"); err == nil {
		_ = conn.Close(context.Background())
		c.t.Fatalf("%s takes logins: the test shows nothing", name)
	}
}

// withoutLogins is a group of three whose standbys stream and take no logins.
func withoutLogins(t *testing.T, with ...func(*agentCluster)) (c *agentCluster, last uint64) {
	t.Helper()
	c = newAgentCluster(t, 3)
	for _, f := range with {
		f(c)
	}
	c.start("n1", "n2", "n3")
	c.bootstrap("")
	c.open("n1")
	c.sql("n1", "CREATE TABLE sub (i int); CREATE TABLE t (i int)")
	c.waitStreaming("n2", "n1")
	c.waitStreaming("n3", "n1")
	last = c.holdManySubtransactions("n1")
	c.sql("n1", "CHECKPOINT")
	c.acknowledge("n1", 1, "n2", "n3")
	for _, name := range []string{"n2", "n3"} {
		c.sql(name, "CHECKPOINT") // it begins here, with a list of transactions that is too short
		c.do(name, election.Order{Kind: election.OrderRestart})
		c.waitRecovering(name)
	}
	return c, last
}

// TestAgentStandbyWithoutLogins: a standby that lets nobody in, since it began while the primary
// had a transaction with too many open subtransactions, acknowledges commits. It is fenced, tells
// how far it is, and is promoted with every commit that it acknowledged; another one follows it, by
// order or by the lock (DESIGN.md I93).
func TestAgentStandbyWithoutLogins(t *testing.T) {
	for _, how := range []string{"by order", "by the lock", "rewound"} {
		t.Run("the other follows "+how, func(t *testing.T) {
			c, last := withoutLogins(t)
			// More than one file, large records, and a file that is left before it is full.
			c.sql("n1", "INSERT INTO sub SELECT generate_series(1, 300000)")
			c.sql("n1", "SELECT pg_switch_wal()")
			acked := c.acknowledge("n1", 2, "n2", "n3")
			c.epoch = 5
			pid := c.pid("n2")
			res := c.do("n2", election.Order{Kind: election.OrderRecruit, WaitLSN: acked - 8})
			if res.Timeline != 1 || res.LSN < acked {
				t.Errorf("recruited at %s on timeline %d, acknowledged %s", res.LSN, res.Timeline,
					acked)
			}
			if pid == c.pid("n2") {
				t.Error("fenced without a restart: nothing shows that its walreceiver is gone")
			}
			if how == "rewound" { // it gets ahead of the recruit
				c.acknowledge("n1", 3, "n3")
			}
			if n := c.sql("n1", "SELECT count(*) FROM pg_stat_replication "+
				"WHERE application_name = 'n2'"); n != "0" {
				t.Error("the recruit still streams from the old primary")
			}
			if again := c.do("n2", election.Order{Kind: election.OrderRecruit}); again.LSN !=
				res.LSN {
				t.Errorf("asked again it is at %s after %s", again.LSN, res.LSN)
			}
			c.close("n1")
			c.crash("n1")
			p := c.do("n2", election.Order{Kind: election.OrderPromote})
			if p.LSN != res.LSN || p.Timeline != 2 {
				t.Errorf("promoted at %s on timeline %d, recruited at %s", p.LSN, p.Timeline,
					res.LSN)
			}
			// Since those of the open transaction three ids were given out.
			if want := last + 4; p.XidLo != want || p.XidHi < want {
				t.Errorf("the boundary is [%d, %d), the next id was %d", p.XidLo, p.XidHi, want)
			}
			if conn, err := c.dial("n2", "postgres"); err == nil {
				_ = conn.Close(context.Background())
				t.Error("the door is open before the lock names it")
			}
			if how == "by order" {
				c.do("n3", election.Order{Kind: election.OrderFollow, Upstream: c.member("n2")})
				c.waitStreaming("n3", "n2")
			}
			c.commit("n2", p)
			c.open("n2")
			if n := c.sql("n2", "SELECT string_agg(i::text, ',' ORDER BY i) FROM t"); n != "1,2" {
				t.Errorf("the new primary has the rows %s, acknowledged were 1 and 2", n)
			}
			c.waitStreaming("n3", "n2")
			c.acknowledge("n2", 4, "n3")
		})
	}
}
