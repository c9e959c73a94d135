package election_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	"holdfast/election"
)

// TestAgentBoundaryOfOpenTransactions: the lower end of the boundary is past every id that the old
// primary gave out and the candidate has heard of: those of a transaction that is open, of its
// subtransactions, also of more than a snapshot lists (64), and on a standby that nobody was
// logged in to and that was restarted since it heard of them (DESIGN 10.12). The newest completed
// id alone, of which snapshots tell, is below all of them.
func TestAgentBoundaryOfOpenTransactions(t *testing.T) {
	for _, subs := range []int{0, 20, 100} {
		t.Run(strconv.Itoa(subs)+" subtransactions", func(t *testing.T) {
			testBoundary(t, subs, false)
		})
	}
	t.Run("a standby that was restarted", func(t *testing.T) { testBoundary(t, 20, true) })
}

func testBoundary(t *testing.T, subs int, isRestarted bool) {
	c := newAgentCluster(t, 2)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.sql("n1", "CREATE TABLE sub (i int)")
	c.waitStreaming("n2", "n1")
	busy, err := c.dial("n1", "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close(context.Background()) }()
	last, err := strconv.ParseUint(c.on(busy, fmt.Sprintf(`BEGIN; INSERT INTO sub VALUES (0);
		DO $$ BEGIN FOR i IN 1..%d LOOP
			BEGIN INSERT INTO sub VALUES (i); EXCEPTION WHEN division_by_zero THEN NULL; END;
		END LOOP; END $$;
		SELECT max(xmin::text::bigint) FROM sub`, subs)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	c.awaitReceived("n1", "n2")
	if isRestarted {
		c.sql("n1", "CHECKPOINT")
		c.awaitReceived("n1", "n2")
		c.sql("n2", "CHECKPOINT")
	}
	c.close("n1")
	c.crash("n1")
	if isRestarted {
		c.close("n2")
		c.crash("n2") // it begins at the checkpoint, behind all that the ids were in
		c.start("n2")
		c.wait("n2", "standby", func(s election.MemberStatus) bool {
			return s.Phase == election.PhaseStandby // it takes logins
		})
	}
	c.epoch = 5
	res := c.do("n2", election.Order{Kind: election.OrderRecruit})
	xmax, err := strconv.ParseUint(c.sql("n2",
		"SELECT pg_snapshot_xmax(pg_current_snapshot())"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if xmax > last {
		t.Fatalf("the snapshot ends at %d, past the open transaction's %d: it shows nothing",
			xmax, last)
	}
	if res.XidLo != last+1 {
		t.Errorf("the boundary begins at %d, the last id that was given out is %d", res.XidLo,
			last)
	}
	if p := c.do("n2", election.Order{Kind: election.OrderPromote}); p.XidLo != last+1 ||
		p.XidHi < p.XidLo {
		t.Errorf("promoted with the boundary [%d, %d), the last id is %d", p.XidLo, p.XidHi, last)
	}
}
