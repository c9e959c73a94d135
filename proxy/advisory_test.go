package proxy_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap/zaptest"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// unlockSQL releases a lock, as lockList writes it, once.
func unlockSQL(lock string) string {
	f := "pg_advisory_unlock"
	if l, ok := strings.CutSuffix(lock, " shared"); ok {
		f, lock = f+"_shared", l
	}
	return "SELECT " + f + "(" + lock + ")"
}

// lockList asks a client's own backend for its locks, in order.
const lockList = `SELECT coalesce(string_agg(l, ';' ORDER BY l), '') FROM (
 SELECT CASE objsubid WHEN 1 THEN ((classid::int8 << 32) | objid::int8)::text
  ELSE classid::int8::bit(32)::int4 || ', ' || objid::int8::bit(32)::int4 END ||
  CASE mode WHEN 'ShareLock' THEN ' shared' ELSE '' END AS l FROM pg_locks
 WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS x`

// counts releases all that the session has and tells how often each could be released.
func counts(t *testing.T, c *pgconn.PgConn) string {
	t.Helper()
	var out []string
	for _, l := range strings.Split(exec(t, c, lockList), ";") {
		if l == "" {
			continue
		}
		n := 0
		for exec(t, c, unlockSQL(l)) == "t" {
			n++
		}
		out = append(out, fmt.Sprintf("%s: %d", l, n))
	}
	return strings.Join(out, "; ")
}

// params runs a statement in the extended protocol with one parameter, as text.
func params(t *testing.T, c *pgconn.PgConn, sql, value string) {
	t.Helper()
	r := c.ExecParams(context.Background(), sql, [][]byte{[]byte(value)}, nil, nil, nil).Read()
	if r.Err != nil {
		t.Fatalf("%s of %s: %v", sql, value, r.Err)
	}
}

// Session advisory locks are there again with their counts (DESIGN 7, DESIGN.md I21).
func TestAdvisoryLocksAreKept(t *testing.T) {
	r := newRig(t, nil)
	holder := r.direct()
	exec(t, holder, "SELECT pg_advisory_lock(99)")
	type check struct {
		name, want string
		c          *pgconn.PgConn
	}
	var checks []check
	for _, tc := range []struct {
		name, want string
		before     []string
	}{
		{"one", "42: 1", []string{"SELECT pg_advisory_lock(42)"}},
		{"thrice", "1: 3", []string{
			"SELECT pg_advisory_lock(1)", "SELECT pg_try_advisory_lock(1); SELECT pg_advisory_lock(1)",
		}},
		{"forms and modes", "-7, 3: 2; 2: 1; 2 shared: 2", []string{
			"SELECT pg_advisory_lock_shared(2)", "SELECT pg_try_advisory_lock_shared(2)",
			"SELECT pg_advisory_lock(2)", "SELECT pg_advisory_lock(-7, 3)",
			"SELECT pg_try_advisory_lock(-7, 3)",
		}},
		{"not constant", "hash: 1", []string{"SELECT pg_advisory_lock(hashtext('job'))"}},
		{"largest", "-9223372036854775808: 1; 9223372036854775807: 1", []string{
			"SELECT pg_advisory_lock(-9223372036854775808)",
			"SELECT pg_advisory_lock(9223372036854775807)",
		}},
		{"transaction", "5: 1", []string{
			"BEGIN", "SELECT pg_advisory_xact_lock(6)", "SELECT pg_advisory_lock(5)", "COMMIT",
		}},
		{"rolled back", "8: 1", []string{"BEGIN", "SELECT pg_advisory_lock(8)", "ROLLBACK"}},
		{"of the transaction only", "", []string{
			"BEGIN", "SELECT pg_advisory_xact_lock(9)", "SELECT pg_try_advisory_xact_lock(10)", "COMMIT",
		}},
		{"released in part", "11: 1", []string{
			"SELECT pg_advisory_lock(11)", "SELECT pg_advisory_lock(11)",
			"SELECT pg_advisory_lock(12)", "SELECT pg_advisory_unlock(11)",
			"SELECT pg_advisory_unlock(12)", "SELECT pg_advisory_unlock(12)",
		}},
		{"discarded", "13: 1", []string{
			"SELECT pg_advisory_lock(13)", "SELECT pg_advisory_lock(13)", "DISCARD ALL",
			"SELECT pg_advisory_lock(13)",
		}},
		{"all discarded", "", []string{"SELECT pg_advisory_lock(14)", "DISCARD ALL"}},
		{"all released", "15: 1", []string{
			"SELECT pg_advisory_lock(16)", "SELECT pg_advisory_unlock_all()",
			"SELECT pg_advisory_lock(15)",
		}},
		{"not called", "17: 1", []string{
			"SELECT pg_advisory_lock(17)", "SELECT pg_advisory_lock(NULL::bigint)",
		}},
		{"not free", "", []string{"SELECT pg_try_advisory_lock(99)"}},
		{"an error behind it", "18: 1", []string{
			"SELECT pg_advisory_lock(18)", "SELECT pg_advisory_lock('x')", "SELECT 1/0",
		}},
		{"other work", "19: 2", []string{
			"SELECT pg_advisory_lock(19)", "DO $$ BEGIN PERFORM 1; END $$", "SET work_mem = '5MB'",
			"SELECT pg_advisory_lock(19)", "CREATE TABLE w (a int)", "DROP TABLE w",
		}},
	} {
		c := r.connect("")
		for _, sql := range tc.before {
			_, _ = tryExec(c, sql)
		}
		want := strings.ReplaceAll(tc.want, "hash", exec(t, c, "SELECT hashtext('job')"))
		checks = append(checks, check{tc.name, want, c})
	}
	_ = holder.Close(context.Background())
	r.change()
	for _, ch := range checks {
		if got := counts(t, ch.c); got != ch.want {
			t.Errorf("%s: %q, want %q", ch.name, got, ch.want)
		}
	}
	if n := r.count("advisory_locks_total", "retaken"); n != 16 {
		t.Errorf("counted %v locks", n)
	}
}

// Keys that come as parameters, in text and in binary, with a portal that stops behind its row.
func TestAdvisoryLocksOfParametersAreKept(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	ctx := context.Background()
	for _, v := range []string{"1", "2", "2", "2"} {
		params(t, c, "SELECT pg_advisory_lock($1)", v)
	}
	exec(t, c, "BEGIN") // nothing is asked before its end
	for _, v := range []string{"1", "4", "4"} {
		params(t, c, "SELECT pg_try_advisory_lock($1::int8)", v)
	}
	params(t, c, "SELECT pg_advisory_unlock($1)", "2")
	exec(t, c, "COMMIT")
	if _, err := c.Prepare(ctx, "take", "SELECT pg_advisory_lock_shared($1, 8)", nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		res := c.ExecPrepared(ctx, "take", [][]byte{{0, 0, 0, 7}}, []int16{1}, nil).Read()
		if res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	r.change()
	if got, want := counts(t, c), "1: 2; 2: 2; 4: 2; 7, 8 shared: 2"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A lock of which nobody can know how often it was taken is told, unless the configuration says
// to take it once; the detail says why.
func TestAdvisoryLocksThatAreTold(t *testing.T) {
	before := map[string][]string{
		"of rows":     {"SELECT pg_advisory_lock(g) FROM generate_series(21, 22) g"},
		"in DO":       {"DO $$ BEGIN PERFORM pg_advisory_lock(1); END $$"},
		"in DO twice": {"SELECT pg_advisory_lock(2)", "DO $$ BEGIN PERFORM pg_advisory_lock(2); END $$"},
		"in EXECUTE":  {"PREPARE p AS SELECT pg_advisory_lock(3)", "EXECUTE p"},
		"in an error": {"SELECT pg_advisory_lock(4), 1/(oid::int8 - oid::int8) FROM pg_class"},
		"unknown of two": {
			"SELECT pg_advisory_lock(5)", "SELECT pg_advisory_lock(6)",
			"SELECT pg_advisory_lock(length('12345'))",
		},
	}
	for _, mode := range []string{proxy.LocksRestore, proxy.LocksAssume} {
		t.Run(mode, func(t *testing.T) {
			r := newRig(t, func(c *proxy.Config) { c.AdvisoryLocks = mode })
			clients := map[string]*pgconn.PgConn{}
			for name, stmts := range before {
				c := r.connect("")
				for _, sql := range stmts {
					_, _ = tryExec(c, sql)
				}
				if exec(t, c, lockList) == "" {
					t.Fatalf("%s: no lock", name)
				}
				clients[name] = c
			}
			r.change()
			for name, c := range clients {
				_, err := tryExec(c, "SELECT 1")
				switch {
				case mode == proxy.LocksAssume && err != nil:
					t.Errorf("%s: %v, although once is assumed", name, err)
				case mode == proxy.LocksRestore && (code(err) != "57P01" ||
					!strings.Contains(detail(err), "how often")):
					t.Errorf("%s: got %v %q", name, err, detail(err))
				}
			}
		})
	}
}

// Every lock is told if the configuration says so.
func TestAdvisoryLocksAllTold(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.AdvisoryLocks = proxy.LocksEnd })
	c := r.connect("")
	exec(t, c, "SELECT pg_advisory_lock(1)")
	r.change()
	if _, err := tryExec(c, "SELECT 1"); code(err) != "57P01" {
		t.Errorf("got %v", err)
	}
}

// A session with more locks than are kept is told.
func TestTooManyAdvisoryLocksAreTold(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.AdvisoryLocksMax = 2 })
	few, many := r.connect(""), r.connect("")
	for range 3 {
		exec(t, few, "SELECT pg_advisory_lock(1)")
		exec(t, many, "SELECT pg_advisory_lock(2)")
	}
	exec(t, few, "SELECT pg_advisory_unlock(1)")
	r.change()
	if got := counts(t, few); got != "1: 2" {
		t.Errorf("two: %s", got)
	}
	if _, err := tryExec(many, "SELECT 1"); code(err) != "57P01" {
		t.Errorf("three: got %v", err)
	}
}

func detail(err error) string {
	if pe, ok := err.(*pgconn.PgError); ok {
		return pe.Detail
	}
	return ""
}

// A lock that another session has by now is told, with its name, and what else was taken is free.
func TestAdvisoryLockLostToAnother(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "SELECT pg_advisory_lock(3, -4)")
	exec(t, c, "SELECT pg_advisory_lock(1)")
	r.proxy.Cut(r.epoch)
	r.server.Kill()
	r.server.Start()
	thief := r.direct()
	exec(t, thief, "SELECT pg_advisory_lock(3, -4)")
	next := r.server.NextXID()
	r.lead(next, next)
	_, err := tryExec(c, "SELECT 1")
	if code(err) != "57P01" || !c.IsClosed() || !strings.Contains(detail(err), "lock (3, -4) was") {
		t.Errorf("got %v %q, closed %v", err, detail(err), c.IsClosed())
	}
	if n := r.count("advisory_locks_total", "lost"); n != 1 {
		t.Errorf("counted %v", n)
	}
	for range 100 {
		if exec(t, thief, "SELECT pg_try_advisory_lock(1)") == "t" {
			return
		}
		time.Sleep(20 * time.Millisecond) // the backend that had it is ending
	}
	t.Error("a lock of a session that ended is held")
}

// A transaction that is lost leaves its session's locks, taken and released in it, as they were:
// they outlive a rollback.
func TestAdvisoryLocksOfALostTransaction(t *testing.T) {
	r := newRig(t, noReplay)
	c, d := r.connect(""), r.connect("")
	exec(t, c, "SELECT pg_advisory_lock(1)")
	for _, sql := range []string{
		"BEGIN", "SELECT pg_advisory_lock(2)", "SELECT pg_advisory_lock(2)",
		"SELECT pg_advisory_unlock(1)", "SELECT pg_advisory_xact_lock(3)",
	} {
		exec(t, c, sql)
	}
	for _, sql := range []string{"BEGIN", "SELECT pg_advisory_lock(length('1234'))"} {
		exec(t, d, sql)
	}
	r.change()
	wantCode(t, c, "SELECT 1", "40001")
	exec(t, c, "ROLLBACK")
	if got := counts(t, c); got != "2: 2" {
		t.Errorf("held: %q", got)
	}
	if _, err := tryExec(d, "SELECT 1"); code(err) != "57P01" {
		t.Errorf("an unknown key in an open transaction: got %v", err)
	}
}

// The group may go back to the same server, on which the session's old backend still has the
// locks; and a connection that only breaks leaves one too.
func TestAdvisoryLocksOfABackendThatLives(t *testing.T) {
	r := newRig(t, noReplay)
	c := r.connect("")
	exec(t, c, "SELECT pg_advisory_lock(1)")
	old := exec(t, c, "SELECT pg_backend_pid()")
	done := start(c, "SELECT pg_sleep(30)") // meanwhile it does not notice that its client is gone
	sleeps := "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = " + old
	for r.server.Exec(sleeps)[0][0] != "t" {
		time.Sleep(5 * time.Millisecond)
	}
	r.proxy.Cut(r.epoch)
	if got := r.server.Exec("SELECT count(*) FROM pg_locks WHERE pid = " + old +
		" AND locktype = 'advisory'")[0][0]; got != "1" {
		t.Fatalf("the old backend has %s locks", got)
	}
	r.lead(0, 0)
	if got := code(<-done); got != "08007" {
		t.Errorf("in flight: %s", got)
	}
	if got := counts(t, c); got != "1: 1" {
		t.Errorf("held: %q", got)
	}
}

// direct is a connection to the server itself, past the proxy.
func (r *rig) direct() *pgconn.PgConn {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := dial(ctx, fmt.Sprintf("host=127.0.0.1 port=%d user=app dbname=app "+
		"password='%s' sslmode=disable", r.server.Port, proxytest.Password))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// newProxy is another proxy before the same server, of another node of the group.
func (r *rig) newProxy(topo proxy.Topology) *proxy.Proxy {
	r.t.Helper()
	cfg := proxy.DefaultConfig()
	cfg.Listen = []string{"127.0.0.1:0"}
	cfg.LookupPassword = proxytest.Password
	cfg.ShutdownTimeout = time.Second
	p, err := proxy.New(cfg, proxy.Deps{Topology: topo, Log: zaptest.NewLogger(r.t)})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := p.Start(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = p.Close() })
	return p
}

// Where the calls in front of a unit, in its pipeline, do not tell what the session held there, the
// session is told: neither is the unit run again, nor does it go on with other counts.
func TestLocksThatAreVagueInAPipelineAreTold(t *testing.T) {
	r := newRig(t, nil)
	admin := r.connect("")
	exec(t, admin, "CREATE TABLE t (a int)")
	exec(t, admin, "CREATE FUNCTION takes() RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_lock(5)'")
	for name, calls := range map[string][]string{
		"over rows":           {"SELECT pg_advisory_lock(g) FROM generate_series(1, 2) AS g"},
		"an expression":       {"SELECT pg_advisory_lock(3 + 4)"},
		"given back, not had": {"SELECT takes()", "SELECT pg_advisory_unlock(5)"},
	} {
		t.Run(name, func(t *testing.T) {
			w := hijack(t, r.connect(""))
			w.play([]scriptStep{q(append(calls, "BEGIN", "INSERT INTO t VALUES (1)")...)})
			r.line.Cut()
			got := w.play([]scriptStep{q("SELECT 1")})
			if !isTold(got) {
				t.Errorf("got %q", got)
			}
		})
	}
}
