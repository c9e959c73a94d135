package main_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/election"
)

// TestE2EAdoptPatroni goes the way of docs/adopt.md with a real Patroni on its Raft store: while a
// client commits on the primary and another one is logged in at a standby, Patroni is paused and
// stopped, and all three servers are adopted. None is restarted, and nothing differs that the dry
// runs did not list. Then a switchover and the death of the primary leave a client of a proxy its
// session.
func TestE2EAdoptPatroni(t *testing.T) {
	needPatroni(t)
	c := startPatroni(t)
	nodes := c.primaryFirst()
	first := nodes[0]
	c.psql(first, "CREATE ROLE app LOGIN PASSWORD 'app'; CREATE TABLE t (n int PRIMARY KEY); "+
		"GRANT ALL ON t TO app")
	c.awaitReplay(nodes[1], first)
	load := startAdoptLoad(t, first.Postgres, 0)
	reader := connect(t, fmt.Sprintf("postgres://app@%s/postgres?sslmode=disable", nodes[1].Postgres))
	readerPid := queryText(t, reader, "SELECT pg_backend_pid()")
	starts := c.serverStarts()

	c.patronictl("pause", "--wait")
	out, err := c.adopt(first, "--dry-run")
	if err == nil || !strings.Contains(out, "patroni runs (pid ") ||
		!strings.Contains(out, "Patroni answers at ") {
		t.Fatalf("adopting beside Patroni: %v\n%s", err, out)
	}
	c.stop(syscall.SIGTERM)
	logged := c.patroniLogEnds()

	adopted := map[string]adoptedServer{}
	for _, n := range nodes {
		adopted[n.Name] = c.adoptWatched(n, first)
	}
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if st := waitHealthy(t, c.Cluster); st.Primary != first.Name {
		t.Fatalf("primary %q, it was %s", st.Primary, first.Name)
	}
	c.checkTakenOver(nodes, adopted, starts)
	rows := load.end(t, 50)
	if pid := queryText(t, reader, "SELECT pg_backend_pid()"); pid != readerPid {
		t.Errorf("the standby's client is served by pid %s, it was %s", pid, readerPid)
	}
	c.dropLeftSlots(nodes, adopted)
	c.changeUnderLoad(nodes, rows)
	c.checkLogs(logged)
}

// primaryFirst are the nodes, Patroni's leader first.
func (c *realPatroni) primaryFirst() []*holdfast.ClusterNode {
	all := c.members()
	i := slices.IndexFunc(all, patroniMember.isPrimary)
	if i < 0 {
		c.t.Fatalf("Patroni has no primary: %+v", all)
	}
	nodes := slices.Clone(c.Nodes)
	nodes[0], nodes[i] = nodes[i], nodes[0]
	return nodes
}

// serverStarts tells for each node which start of its server runs.
func (c *realPatroni) serverStarts() map[string]string {
	starts := map[string]string{}
	for _, n := range c.Nodes {
		starts[n.Name] = fmt.Sprintf("pid %d, started %s", n.Postmaster(),
			strings.TrimSpace(c.psql(n, "SELECT pg_postmaster_start_time()")))
	}
	return starts
}

// adoptedServer is a server before it was adopted, and what the dry run said.
type adoptedServer struct {
	before adoptSnapshot
	plan   election.AdoptPlan
}

// adoptWatched adopts a server and holds what differs against its dry run.
func (c *realPatroni) adoptWatched(n, primary *holdfast.ClusterNode) adoptedServer {
	c.t.Helper()
	role := "primary"
	if n != primary {
		role = "standby"
		// The primary's own adoption is no difference: what that made comes by replication.
		c.awaitReplay(n, primary)
	}
	before := c.snapshot(n)
	plan := c.checkDryRun(n, role)
	c.checkListed(n.Name+" dry run", before, c.snapshot(n), election.AdoptPlan{})
	out, err := c.adopt(n, "--yes")
	if err != nil {
		c.t.Fatalf("adopt %s: %v\n%s", n.Name, err, out)
	}
	c.t.Log(out)
	c.checkListed(n.Name+" adopt", before, c.snapshot(n), plan, election.AdoptNow)
	return adoptedServer{before, plan}
}

// awaitReplay waits until a standby has all that its primary has now.
func (c *realPatroni) awaitReplay(n, primary *holdfast.ClusterNode) {
	c.t.Helper()
	lsn := strings.TrimSpace(c.psql(primary, "SELECT pg_current_wal_insert_lsn()"))
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if strings.TrimSpace(c.psql(n, "SELECT pg_last_wal_replay_lsn() >= '"+lsn+"'")) == "t" {
			return
		}
		if time.Since(begin) > 30*time.Second {
			c.t.Fatalf("%s does not replay %s", n.Name, lsn)
		}
	}
}

// checkTakenOver looks at all servers once the group has its lock: each runs as it did, and what
// differs was announced.
func (c *realPatroni) checkTakenOver(nodes []*holdfast.ClusterNode,
	adopted map[string]adoptedServer, starts map[string]string,
) {
	c.t.Helper()
	for name, start := range c.serverStarts() {
		if start != starts[name] {
			c.t.Errorf("the server of %s was restarted: %s, it was %s", name, start, starts[name])
		}
	}
	for _, n := range nodes {
		a := adopted[n.Name]
		c.checkListed(n.Name+" take-over", a.before, c.snapshot(n), a.plan, election.AdoptNow,
			election.AdoptTakeover)
	}
	streams := c.psql(nodes[0], "SELECT array_agg(concat_ws(' ', application_name, slot_name, state) "+
		"ORDER BY 1) FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid")
	for _, n := range nodes[1:] {
		want := fmt.Sprintf("%s %s streaming", n.Name, election.SlotName(n.Name))
		if !strings.Contains(streams, want) {
			c.t.Errorf("%s is not among the primary's standbys: %s", want, streams)
		}
	}
}

var dropSlot = regexp.MustCompile(`SELECT pg_drop_replication_slot\('([^']+)'\)`)

// dropLeftSlots drops the slots that Patroni has left as the limits of each dry run tell to; the
// primary's are those of its standbys. Then every server has the slots of the others and no more.
func (c *realPatroni) dropLeftSlots(nodes []*holdfast.ClusterNode,
	adopted map[string]adoptedServer,
) {
	c.t.Helper()
	for i, n := range nodes {
		var left []string
		for _, m := range dropSlot.FindAllStringSubmatch(
			strings.Join(adopted[n.Name].plan.Limits, "\n"), -1) {
			left = append(left, m[1])
			c.psql(n, m[0])
		}
		if i == 0 && len(left) != len(nodes)-1 {
			c.t.Errorf("the dry run of %s names %v, of the standbys' slots", n.Name, left)
		}
		var want []string
		for _, other := range c.Nodes {
			if other != n {
				want = append(want, election.SlotName(other.Name))
			}
		}
		have := strings.Fields(c.psql(n, "SELECT slot_name FROM pg_replication_slots ORDER BY 1"))
		if !slices.Equal(have, want) {
			c.t.Errorf("%s has slots %v, not %v", n.Name, have, want)
		}
	}
}

// changeUnderLoad moves the primary by a switchover and then kills the new one's postmaster, under
// a client that commits through a proxy on one connection, and one that is idle meanwhile.
func (c *realPatroni) changeUnderLoad(nodes []*holdfast.ClusterNode, rows int64) {
	t := c.t
	t.Helper()
	idle := connect(t, fmt.Sprintf("postgres://app:app@%s/postgres", nodes[2].Proxy))
	exec1(t, idle, "SET app.mark = 'kept'")
	load := startAdoptLoad(t, nodes[1].Proxy, rows)
	if err := c.Switchover(t.Context(), nodes[1].Name); err != nil {
		t.Fatal(err)
	}
	if st := waitHealthy(t, c.Cluster); st.Primary != nodes[1].Name {
		t.Fatalf("the primary is %s after a switchover to %s", st.Primary, nodes[1].Name)
	}
	change(t, c.Cluster, (*holdfast.ClusterNode).KillPostmaster)
	st := waitHealthy(t, c.Cluster)
	t.Logf("after the kill: primary %s, epoch %d by %s", st.Primary, st.Epoch, st.Last.Kind)
	rows = load.end(t, rows+50)
	got := queryText(t, idle, "SELECT current_setting('app.mark') || ' ' || count(*) FROM t")
	if want := fmt.Sprintf("kept %d", rows); got != want {
		t.Errorf("the idle session has %q, not %q", got, want)
	}
	if len(st.Problems) > 0 {
		t.Errorf("problems: %v", st.Problems)
	}
	for _, n := range nodes {
		c.checkRows(n, rows)
	}
}

// checkRows waits until a server, asked directly, has so many rows: a standby that runs with less
// of some settings than its new primary would have stopped replaying.
func (c *realPatroni) checkRows(n *holdfast.ClusterNode, rows int64) {
	c.t.Helper()
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		got, err := countRows(c.t.Context(), n)
		if err == nil && got == rows {
			return
		}
		if time.Since(begin) > 20*time.Second {
			c.t.Errorf("%s has %d rows of %d: %v", n.Name, got, rows, err)
			return
		}
	}
}

// countRows asks a server, which may be starting just now.
func countRows(ctx context.Context, n *holdfast.ClusterNode) (rows int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, fmt.Sprintf("postgres://app@%s/postgres?sslmode=disable",
		n.Postgres))
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(ctx) }()
	err = conn.QueryRow(ctx, "SELECT count(*) FROM t").Scan(&rows)
	return rows, err
}

// patroniLogEnds are the sizes of Patroni's logs, in which the servers that it started go on.
func (c *realPatroni) patroniLogEnds() map[string]int64 {
	ends := map[string]int64{}
	for _, n := range c.Nodes {
		info, err := os.Stat(c.patroniLog(n))
		if err != nil {
			c.t.Fatal(err)
		}
		ends[n.Name] = info.Size()
	}
	return ends
}

// checkLogs looks for slots that were missed, in the logs of the servers that Holdfast has started,
// and in Patroni's from its end on.
func (c *realPatroni) checkLogs(from map[string]int64) {
	started := 0
	for _, n := range c.Nodes {
		b, err := os.ReadFile(c.patroniLog(n))
		if err != nil {
			c.t.Fatal(err)
		}
		if line := slotMissing.Find(b[from[n.Name]:]); line != nil {
			c.t.Errorf("log of the server of %s: %s", n.Name, line)
		}
		bad, _, err := slotsMissed(n, 0)
		switch {
		case err == nil:
			started++
		case !errors.Is(err, os.ErrNotExist):
			c.t.Error(err)
		}
		if len(bad) > 0 {
			c.t.Errorf("log of the server of %s, %d times: %s", n.Name, len(bad), bad[0])
		}
	}
	if started < 2 { // the old primary of each of the two changes
		c.t.Errorf("%d servers were started by Holdfast", started)
	}
}
