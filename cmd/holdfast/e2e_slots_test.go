package main_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/config"
	"holdfast/election"
)

// slotName is the failover slot of the test, plainSlot one that is to end with its primary.
const slotName, plainSlot = "orders", "plain"

// slotRun is what a consumer of changes was given, next to what was written.
type slotRun struct {
	operator
	dsn     string
	written int

	mu      sync.Mutex  // guards what follows, the consumer's
	got     map[int]int // how often each row was delivered
	lastErr error
}

// TestE2ESlots takes a logical slot through a switchover and a kill of the postmaster: its consumer
// goes on and misses nothing, the old primaries take copies again, and no server's log speaks of a
// slot that does not exist.
func TestE2ESlots(t *testing.T) {
	binary := buildBinary(t)
	c := newCluster(t, holdfast.ClusterConfig{
		Binary: binary, Prefix: "holdfast-e2e", Settings: []string{"wal_level = logical"},
	})
	if v := programVersion(t, c); v < 17 {
		t.Skipf("PostgreSQL %d copies no logical slots to standbys, 17 and newer do", v)
	}
	for _, n := range c.Nodes {
		if err := n.Configure(func(cfg *config.Config) {
			cfg.Synchronous.DegradeAfter = syncDelay
		}); err != nil {
			t.Fatal(err)
		}
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	waitHealthy(t, c)
	secret, err := c.Secret("superuser")
	if err != nil {
		t.Fatal(err)
	}
	r := &slotRun{
		operator: operator{t: t, binary: binary, c: c}, got: map[int]int{},
		dsn: fmt.Sprintf("postgres://postgres:%s@%s/postgres", secret, c.Node("node2").Proxy),
	}
	r.begin()
	ctx, cancel := context.WithCancel(t.Context())
	var consumer sync.WaitGroup
	consumer.Go(func() { r.consume(ctx) })
	defer consumer.Wait()
	defer cancel()
	for _, sub := range []struct {
		name string
		test func(*testing.T)
	}{
		{"switchover", r.testSwitchover},
		{"failover", r.testFailover},
		{"back again", r.testBack},
		{"consumers wait for standbys", r.testStandbyAway},
		{"incomplete copy", r.testIncomplete},
		{"logs", r.testLogs},
	} {
		if !t.Run(sub.name, func(t *testing.T) { r.t = t; sub.test(t) }) {
			for _, n := range c.Nodes {
				t.Logf("log of the server of %s ends with:\n%s", n.Name, tailOf(serverLog(n), 2500))
			}
			return
		}
	}
}

// programVersion is the major version of the cluster's PostgreSQL.
func programVersion(t *testing.T, c *holdfast.Cluster) int {
	t.Helper()
	out, err := c.Output(t.Context(), "postgres", "--version")
	m := regexp.MustCompile(`\(PostgreSQL\) (\d+)`).FindStringSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("postgres --version: %v %q", err, out)
	}
	v, _ := strconv.Atoi(m[1])
	return v
}

func serverLog(n *holdfast.ClusterNode) string {
	b, _ := os.ReadFile(serverLogPath(n))
	return string(b)
}

func tailOf(text string, n int) string { return text[max(0, len(text)-n):] }

// sql runs statements in a session of its own through a proxy and returns the first column.
func (r *slotRun) sql(text string) []string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.dsn)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, text, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		r.t.Fatalf("%s: %v", text, err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		return fmt.Sprint(firstOf(row.Values())), nil
	})
	if err != nil {
		r.t.Fatalf("%s: %v", text, err)
	}
	return out
}

func firstOf(values []any, err error) any {
	if err != nil || len(values) == 0 {
		return err
	}
	return values[0]
}

func (r *slotRun) begin() {
	r.sql("CREATE TABLE orders (id int)")
	r.sql("SELECT pg_create_logical_replication_slot('" + slotName +
		"', 'test_decoding', false, false, true)")
	r.sql("SELECT pg_create_logical_replication_slot('" + plainSlot + "', 'test_decoding')")
	r.write(10)
}

func (r *slotRun) write(n int) {
	r.t.Helper()
	r.sql(fmt.Sprintf("INSERT INTO orders SELECT generate_series(%d, %d)", r.written+1,
		r.written+n))
	r.written += n
}

var decoded = regexp.MustCompile(`^table public.orders: INSERT: id\[integer\]:(\d+)$`)

// consume reads from the slot until ctx ends, as a consumer does that keeps what it got before it
// confirms it. What fails while the primary changes is asked again.
func (r *slotRun) consume(ctx context.Context) {
	for ctx.Err() == nil {
		err := r.consumeOnce(ctx)
		r.mu.Lock()
		r.lastErr = err
		r.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func (r *slotRun) consumeOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	ask := func(sql string) ([]string, error) {
		rows, err := conn.Query(ctx, sql, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowTo[string])
	}
	upTo, err := ask("SELECT pg_current_wal_flush_lsn()::text")
	if err != nil {
		return err
	}
	data, err := ask("SELECT data FROM pg_logical_slot_peek_changes('" + slotName +
		"', NULL, NULL)")
	if err != nil {
		return err
	}
	r.mu.Lock()
	for _, line := range data {
		if m := decoded.FindStringSubmatch(line); m != nil {
			id, _ := strconv.Atoi(m[1])
			r.got[id]++
		}
	}
	r.mu.Unlock()
	_, err = ask("SELECT end_lsn::text FROM pg_replication_slot_advance('" + slotName + "', '" +
		upTo[0] + "')")
	return err
}

// check waits until the consumer was given all that was written.
func (r *slotRun) check() {
	r.t.Helper()
	begin := time.Now()
	for {
		missing, twice := []int{}, 0
		r.mu.Lock()
		for id := 1; id <= r.written; id++ {
			if r.got[id] == 0 {
				missing = append(missing, id)
			} else if r.got[id] > 1 {
				twice++
			}
		}
		err := r.lastErr
		r.mu.Unlock()
		if len(missing) == 0 {
			r.t.Logf("%d rows written, all delivered after %.1f s, %d of them again", r.written,
				time.Since(begin).Seconds(), twice)
			return
		}
		if time.Since(begin) > 40*time.Second {
			r.t.Fatalf("rows that the slot did not deliver: %v (%v)",
				missing[:min(len(missing), 20)], err)
		}
		waitUntil(r.t, time.Now().Add(50*time.Millisecond))
	}
}

// ready waits, with some work for the slot, until all standbys could go on with it.
func (r *slotRun) ready() {
	r.t.Helper()
	begin := time.Now()
	last := ""
	for time.Since(begin) < time.Minute {
		st, err := r.c.Status(r.t.Context())
		if err == nil {
			for _, l := range st.LogicalSlots {
				if l.Slot == slotName {
					if last = l.String(); len(l.Ready) == 2 {
						r.t.Logf("ready after %.1f s: %s", time.Since(begin).Seconds(), last)
						return
					}
				}
			}
		}
		r.write(1)
		waitUntil(r.t, time.Now().Add(500*time.Millisecond))
	}
	r.t.Fatalf("the standbys do not get the slot: %s", last)
}

// other is a standby's node.
func (r *slotRun) other() *holdfast.ClusterNode {
	st := waitHealthy(r.t, r.c)
	return standbysOf(r.c, st.Primary)[0]
}

// testSwitchover asks at once, when the copies may not be complete, and the coordinator may not
// have heard of the slot: the request waits for both.
func (r *slotRun) testSwitchover(t *testing.T) {
	to := r.other()
	begin := time.Now()
	r.write(20)
	r.must(to, "switchover", "--to", to.Name)
	t.Logf("switchover after %.1f s", time.Since(begin).Seconds())
	r.write(20)
	r.check()
	out := r.must(to, "history", "--limit", "1")
	if !strings.Contains(out, "logical slot "+plainSlot+" is lost: it was no failover slot") ||
		strings.Contains(out, "slot "+slotName+" is lost") {
		t.Errorf("history does not tell what became of the slots:\n%s", out)
	}
	waitHealthy(t, r.c)
	r.ready()
}

func (r *slotRun) testFailover(t *testing.T) {
	st := waitHealthy(t, r.c)
	r.write(20)
	if err := r.c.Node(st.Primary).KillPostmaster(); err != nil {
		t.Fatal(err)
	}
	after, err := r.c.WaitEpoch(t.Context(), st.Epoch, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %s -> %s: slots %q", after.Last.Kind, after.Last.From, after.Last.To,
		after.Last.Slots)
	if after.Last.Kind != "failover" {
		t.Errorf("a %s instead of a failover", after.Last.Kind)
	}
	r.write(20)
	r.check()
	waitHealthy(t, r.c)
	r.ready()
}

// testBack goes to each member once more, so that each has been a primary and a standby by turns.
func (r *slotRun) testBack(t *testing.T) {
	for _, n := range r.c.Nodes {
		if st := waitHealthy(t, r.c); st.Primary == n.Name {
			continue
		}
		r.write(10)
		r.must(n, "switchover", "--to", n.Name, "--dry-run")
		r.must(n, "switchover", "--to", n.Name)
		r.write(10)
		r.check()
		waitHealthy(t, r.c)
		r.ready()
	}
	for _, n := range r.c.Nodes {
		held := r.onServer(n, `SELECT coalesce(string_agg(slot_name, ' '), '')
			FROM pg_replication_slots WHERE slot_type = 'physical'
			AND coalesce(xmin, catalog_xmin) IS NOT NULL AND pg_is_in_recovery()`, "")
		if held != "" {
			t.Errorf("slots of the standby %s keep the horizon of a time as a primary: %s", n.Name,
				held)
		}
	}
}

// anything is the wish for any answer that is not empty.
const anything = "*"

// onServer asks a member's server itself, by its private socket, until it answers what is wanted
// or ten seconds have passed.
func (r *slotRun) onServer(n *holdfast.ClusterNode, sql, want string) string {
	r.t.Helper()
	secret, err := r.c.Secret("superuser")
	if err != nil {
		r.t.Fatal(err)
	}
	_, port, _ := strings.Cut(n.Postgres, ":")
	conn := connect(r.t, fmt.Sprintf("host=%s port=%s user=postgres password=%s dbname=postgres",
		filepath.Join(n.DataDir+".holdfast", "run"), port, secret))
	for begin := time.Now(); ; {
		got := queryText(r.t, conn, sql)
		if got == want || want == anything && got != "" ||
			time.Since(begin) > 10*time.Second {
			return got
		}
		waitUntil(r.t, time.Now().Add(100*time.Millisecond))
	}
}

// testStandbyAway freezes a standby: the consumer is not given what that one, which might be
// promoted, does not have; once the group waits for it no more, the consumer does not either.
func (r *slotRun) testStandbyAway(t *testing.T) {
	st := waitHealthy(t, r.c)
	var want []string
	for _, n := range standbysOf(r.c, st.Primary) {
		want = append(want, election.SlotName(n.Name))
	}
	names := strings.Join(want, ",")
	if got := r.onServer(r.c.Node(st.Primary), "SHOW synchronized_standby_slots", names); got !=
		names {
		t.Errorf("consumers wait for %q, not for %q", got, names)
	}
	away := standbysOf(r.c, st.Primary)[:1]
	thaw := freeze(t, away)
	defer thaw()
	r.write(5)
	begin := time.Now()
	r.check()
	took := time.Since(begin)
	t.Logf("changes came after %.1f s without %s", took.Seconds(), away[0].Name)
	if took < time.Second {
		t.Errorf("the consumer was ahead of %s, which might have been promoted", away[0].Name)
	}
	thaw()
	waitHealthy(t, r.c)
	r.ready()
}

// testIncomplete makes a slot of which a standby can have no copy, since its process that copies
// slots stands still: a switchover is refused with the reason. With the operator's consent it is
// done, and either the slot goes on by then or the history tells that it is lost.
func (r *slotRun) testIncomplete(t *testing.T) {
	to := r.other()
	pid, err := strconv.Atoi(r.onServer(to, "SELECT coalesce(max(pid)::text, '') FROM "+
		"pg_stat_activity WHERE backend_type = 'slotsync worker'", anything))
	if err != nil {
		t.Fatalf("%s has no process that copies slots: %v", to.Name, err)
	}
	if err := signalProcess(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn := sync.OnceFunc(func() { _ = signalProcess(pid, syscall.SIGCONT) })
	defer goOn()
	r.sql("SELECT pg_create_logical_replication_slot('idle', 'test_decoding', false, false, true)")
	r.write(1)
	waitUntil(t, time.Now().Add(2*time.Second)) // until the leader has heard of the slot
	const why = "the logical slot idle would be lost"
	for _, args := range [][]string{
		{"switchover", "--to", to.Name, "--dry-run"}, {"switchover", "--to", to.Name},
	} {
		if out, err := r.run(to, args...); err == nil || !strings.Contains(out, why) {
			t.Errorf("%v is not refused with the slot's name: %v\n%s", args, err, out)
		}
	}
	goOn()
	r.must(to, "switchover", "--to", to.Name, "--accept-slot-loss")
	r.write(5)
	r.check()
	isLost := strings.Contains(r.must(to, "history", "--limit", "1"), "logical slot idle is lost")
	isThere := r.onServer(to, "SELECT count(*)::text FROM pg_replication_slots "+
		"WHERE slot_name = 'idle'", "1") == "1"
	if isLost == isThere {
		t.Errorf("the slot is lost by the history: %v; it is there: %v", isLost, isThere)
	}
	waitHealthy(t, r.c)
	r.ready()
}

// testLogs looks into the logs of all servers.
func (r *slotRun) testLogs(t *testing.T) {
	checkServerLogs(t, r.c)
	bad := []string{`same name slot`, `requires "?wal_level"? >=`}
	for _, n := range r.c.Nodes {
		lines := strings.Split(serverLog(n), "\n")
		if len(lines) < 10 {
			t.Errorf("the log of %s has %d lines", n.Name, len(lines))
		}
		for _, b := range bad {
			re := regexp.MustCompile(b)
			if i := slices.IndexFunc(lines, re.MatchString); i >= 0 {
				t.Errorf("log of %s: %s", n.Name, lines[i])
			}
		}
	}
}
