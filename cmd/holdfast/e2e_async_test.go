package main_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/election"
)

// TestE2ESyncOff: commits wait for nobody. The primary is lost with a commit that no standby has:
// somebody is promoted all the same, the session that was told of the commit is ended and told
// that it is lost, a session that lost nothing goes on, and the old primary reports what it gave
// up.
func TestE2ESyncOff(t *testing.T) {
	c := startSyncCluster(t, election.SyncOff)
	makeDatabase(t, c)
	st := waitHealthy(t, c)
	if st.Sync != nil && (st.Sync.Mode != election.SyncOff || st.Sync.Wait != 0) {
		t.Errorf("the sync set is %+v", st.Sync)
	}
	primary := c.Node(st.Primary)
	other := standbysOf(c, st.Primary)[0]
	loser, keeper := connect(t, e2eDSN(other)), connect(t, e2eDSN(other))
	exec1(t, loser, "CREATE TABLE s (i int)")
	exec1(t, loser, "CREATE TABLE kept (i int)")
	exec1(t, keeper, "INSERT INTO kept VALUES (1)")
	secret, err := c.Secret("superuser")
	if err != nil {
		t.Fatal(err)
	}
	watch := connect(t, fmt.Sprintf("postgres://postgres:%s@%s/postgres", secret, primary.Proxy))
	waitStreamed(t, watch)
	// A standby that merely hangs would find the commit in its socket later: it must be given up.
	thaw := freeze(t, standbysOf(c, st.Primary))
	waitUntilText(t, watch, "SELECT count(*) FROM pg_stat_replication", "0", 30*time.Second)
	// That longest of all waits of another mode must not come.
	if took, err := insert(t, loser, 1, time.Minute); err != nil || took > time.Second {
		t.Fatalf("a commit took %v without standbys: %v", took, err)
	}
	xid := queryText(t, loser, "SELECT xmin FROM s")
	if err := primary.KillNode(t.Context()); err != nil {
		t.Fatal(err)
	}
	thaw()
	after, err := c.WaitEpoch(t.Context(), st.Epoch, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if after.Primary == st.Primary || after.Last.Kind != "failover" {
		t.Errorf("a %s to %s", after.Last.Kind, after.Primary)
	}
	t.Logf("%s %s -> %s: %s; %s", after.Last.Kind, after.Last.From, after.Last.To,
		after.Last.Cause, phasesOf(after.Last))
	checkTold(t, other, loser, xid)
	if got := queryText(t, keeper, "SELECT concat((SELECT count(*) FROM s), ' ', "+
		"(SELECT count(*) FROM kept))"); got != "0 1" {
		t.Errorf("there are %s rows of the lost and the kept commit", got)
	}
	if err := primary.Start(); err != nil {
		t.Fatal(err)
	}
	checkLost(t, memberOf(t, waitHealthy(t, c), primary.Name), xid)
	checkWhole(t, c)
}

// waitStreamed waits until both standbys have applied all that was committed.
func waitStreamed(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	lsn := queryText(t, conn, "SELECT pg_current_wal_lsn()")
	waitUntilText(t, conn, "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= '"+lsn+
		"'", "2", 30*time.Second)
}

func waitUntilText(t *testing.T, conn *pgx.Conn, sql, want string, limit time.Duration) {
	t.Helper()
	for begin := time.Now(); ; {
		got := queryText(t, conn, sql)
		if got == want {
			return
		}
		if time.Since(begin) > limit {
			t.Fatalf("%s is %s after %v, not %s", sql, got, limit, want)
		}
		waitUntil(t, time.Now().Add(100*time.Millisecond))
	}
}

// checkTold asks something in the session that lost a commit: it must hear of that, and nothing
// else of it may reach the new primary.
func checkTold(t *testing.T, n *holdfast.ClusterNode, conn *pgx.Conn, xid string) {
	t.Helper()
	_, err := insert(t, conn, 2, time.Minute)
	if sqlState(err) != "08006" || !strings.Contains(err.Error(), "a commit of this session is lost") {
		t.Errorf("the session that lost transaction %s was told: %v", xid, err)
	}
	t.Logf("told: %v", err)
	lost, err := metricOf(t.Context(), new(net.Dialer).DialContext, n,
		"holdfast_proxy_lost_commits_total")
	if err != nil || lost != 1 {
		t.Errorf("the proxy counts %d lost commits: %v", lost, err)
	}
}

// checkLost reads the report of the member that gave the transaction up.
func checkLost(t *testing.T, m holdfast.MemberStatus, xid string) {
	t.Helper()
	if m.Lost == nil || m.Lost.Commits != 1 {
		t.Fatalf("status of %s tells of %+v, not of one lost transaction", m.Name, m.Lost)
	}
	text, err := os.ReadFile(m.Lost.File)
	if err != nil {
		t.Fatal(err)
	}
	var r election.LostReport
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, id := range r.XIDs {
		ids = append(ids, fmt.Sprint(id))
	}
	if r.Commits != 1 || !slices.Equal(ids, []string{xid}) || len(r.Segments) == 0 ||
		r.Problem != "" {
		t.Errorf("the report does not tell of transaction %s and keep its WAL: %s", xid, text)
	}
	t.Logf("report: %s", text)
}
