package proxy_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// leave ends a client and returns once its server connection waits for another one, or was closed.
func (r *rig) leave(c *pgconn.PgConn, what string) {
	r.t.Helper()
	before := r.reuses(what)
	if err := c.Close(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	r.eventually(func() bool { return r.reuses(what) > before }, "a connection counts as "+what)
}

// reuses is a counter of reuse_total.
func (r *rig) reuses(what string) float64 {
	r.t.Helper()
	return r.count("reuse_total", what)
}

// spares is how many connections wait for a login.
func (r *rig) spares() float64 { return r.gauge("spare_connections") }

func (r *rig) gauge(name string) float64 {
	r.t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "holdfast_proxy_"+name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	r.t.Fatalf("no metric %s", name)
	return 0
}

// eventually waits for what others do; the time is a bound, no expectation.
func (r *rig) eventually(cond func() bool, what string) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); {
		if time.Now().After(deadline) {
			r.t.Fatalf("it never came to this: %s", what)
		}
		time.Sleep(time.Millisecond) // until it has, or the deadline
	}
}

// again leaves the session behind and logs in anew, in the same server process.
func (r *rig) again(c *pgconn.PgConn, options string) *pgconn.PgConn {
	r.t.Helper()
	pid := exec(r.t, c, "SELECT pg_backend_pid()")
	r.leave(c, "kept")
	c = r.connect(options)
	if now := exec(r.t, c, "SELECT pg_backend_pid()"); now != pid {
		r.t.Fatalf("got process %s, not %s again", now, pid)
	}
	return c
}

// Whatever a session leaves behind, the next one finds a server as after a login of its own.
func TestReuseLeavesNothingBehind(t *testing.T) {
	r := newRig(t, nil)
	r.server.Exec("ALTER ROLE app SET work_mem = '6MB'")
	ctx := context.Background()
	for name, c := range map[string]struct{ leave, look, want string }{
		"setting":  {"SET work_mem = '17MB'", "SHOW work_mem", "6MB"},
		"reported": {"SET TimeZone = 'Asia/Tokyo'", "SHOW TimeZone", "Europe/Berlin"},
		"reset": {"SELECT 1", "SET TimeZone = 'UTC'; RESET TimeZone; SHOW TimeZone",
			"Europe/Berlin"},
		"search_path":   {"SET search_path = pg_temp", "SHOW search_path", "public, pg_catalog"},
		"set_config":    {"SELECT set_config('work_mem', '18MB', false)", "SHOW work_mem", "6MB"},
		"role":          {"SET ROLE clerk", "SELECT current_user", "app"},
		"role shown":    {"SET ROLE clerk", "SHOW role", "none"},
		"authorization": {"SET SESSION AUTHORIZATION app", "SELECT session_user", "app"},
		"guarded commit": {"BEGIN|CREATE TEMP TABLE tt (a int)|COMMIT",
			"SELECT count(*) FROM pg_class WHERE relname = 'tt'", "0"},
		"sql prepared": {"PREPARE p AS SELECT 1",
			"SELECT count(*) FROM pg_prepared_statements", "0"},
		"listen": {"LISTEN news", "SELECT count(*) FROM pg_listening_channels()", "0"},
		"temp table": {"CREATE TEMP TABLE tt (a int)",
			"SELECT count(*) FROM pg_class WHERE relname = 'tt'", "0"},
		"holdable": {"DECLARE h CURSOR WITH HOLD FOR SELECT 1",
			"SELECT count(*) FROM pg_cursors", "0"},
		"advisory": {"SELECT pg_advisory_lock(42)",
			"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "0"},
		"characteristic": {"SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
			"SHOW transaction_read_only", "off"},
	} {
		t.Run(name, func(t *testing.T) {
			const options = "TimeZone=Europe/Berlin search_path='public, pg_catalog'"
			first := r.connect(options)
			for _, sql := range strings.Split(c.leave, "|") {
				exec(t, first, sql)
			}
			second := r.again(first, options)
			if got := exec(t, second, c.look); got != c.want {
				t.Errorf("after %s: %s is %q, not %q", c.leave, c.look, got, c.want)
			}
			if got := second.ParameterStatus("TimeZone"); got != "Europe/Berlin" && name != "reset" {
				t.Errorf("the client was told of TimeZone %q", got)
			}
			r.leave(second, "kept")
		})
	}
	t.Run("protocol prepared", func(t *testing.T) {
		first := r.connect("")
		if _, err := first.Prepare(ctx, "p", "SELECT 1", nil); err != nil {
			t.Fatal(err)
		}
		second := r.again(first, "")
		if _, err := second.Prepare(ctx, "p", "SELECT 2", nil); err != nil {
			t.Errorf("the name is taken: %v", err)
		}
	})
	t.Run("sequence", func(t *testing.T) {
		r.server.Exec("SELECT 1")
		own := r.connect("")
		exec(t, own, "CREATE SEQUENCE s")
		first := r.connect("application_name=sequence")
		exec(t, first, "SELECT nextval('s')")
		wantCode(t, r.again(first, "application_name=sequence"), "SELECT currval('s')", "55000")
	})
}

// A role that ALTER ROLE SET names is what a login begins with, reused or not.
func TestReuseKeepsTheRoleOfTheLogin(t *testing.T) {
	r := newRig(t, nil)
	r.server.Exec("ALTER ROLE app SET role = 'clerk'")
	first := r.connect("")
	want := exec(t, first, "SELECT current_user")
	if want != "clerk" {
		t.Fatalf("a login begins as %q", want)
	}
	exec(t, first, "SET ROLE app")
	if got := exec(t, r.again(first, ""), "SELECT current_user"); got != want {
		t.Errorf("the next login is %q, not %q", got, want)
	}
}

// What a reset does not undo is closed; nothing of it reaches another client.
func TestReuseRefusesWhatAResetLeaves(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.InspectBytesMax = 1024 })
	for _, sql := range []string{
		"SET app.tenant = 'one'",
		"SET app.tenant = 'one'; DISCARD ALL",
		"SELECT set_config('app.tenant', 'one', false)",
		"BEGIN; SET LOCAL app.tenant = 'one'; ROLLBACK",
		"SELECT set_config('app.' || 'tenant', 'one', false)",
		"DO $$BEGIN PERFORM set_config('app.tenant', 'one', false); END$$",
		"LOAD 'plpgsql'",
		"SELECT 1 /* " + strings.Repeat("x", 100000) + " */",
	} {
		c := r.connect("")
		for _, one := range strings.Split(sql, "; ") {
			_, _ = tryExec(c, one) // LOAD is refused, which is as good
		}
		r.leave(c, "unfit")
		if n := r.spares(); n > 0 {
			t.Fatalf("%.40s: the connection was kept", sql)
		}
	}
	c := r.connect("")
	exec(t, c, "BEGIN")
	r.leave(c, "unfit")
}

// Only what asks for the very same, as the very same, gets a connection.
func TestReuseIsForTheSameLogin(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.SecretTTL = time.Nanosecond })
	first := r.connect("application_name=a")
	pid := exec(t, first, "SELECT pg_backend_pid()")
	r.leave(first, "kept")
	for _, options := range []string{
		"", "application_name=b", "application_name=a options='-c work_mem=9MB'",
		"application_name=a dbname=postgres",
	} {
		c := r.connect(options)
		if exec(t, c, "SELECT pg_backend_pid()") == pid {
			t.Errorf("%q got the connection of another login", options)
		}
		want := "4MB"
		if strings.Contains(options, "work_mem") {
			want = "9MB"
		}
		if got := exec(t, c, "SHOW work_mem"); got != want {
			t.Errorf("%q: work_mem is %s", options, got)
		}
	}
	// A password that was changed makes another role of it.
	r.server.Exec("ALTER ROLE app PASSWORD '" + proxytest.Password + "'")
	if c := r.connect("application_name=a"); exec(t, c, "SELECT pg_backend_pid()") == pid {
		t.Error("a connection outlived the secret that it was made with")
	}
	r.server.Exec("ALTER ROLE app NOLOGIN")
	_, err := dial(context.Background(), r.dsn("application_name=a"))
	if code(err) != "28P01" {
		t.Errorf("a role without LOGIN: %v", err)
	}
}

// Spare connections end with their epoch, with a drain, with the lease, with their time, with the
// server's word, when the server is full, and with the proxy.
func TestSpareConnectionsEnd(t *testing.T) {
	for name, end := range map[string]func(r *rig){
		"cut":   func(r *rig) { r.proxy.Cut(r.epoch) },
		"drain": func(r *rig) { r.proxy.Drain(context.Background(), r.epoch) },
		"lease": func(r *rig) { r.lease.Set(0, 0) },
		"close": func(r *rig) { _ = r.proxy.Close() },
		"server": func(r *rig) {
			r.server.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity" +
				" WHERE usename = 'app'")
		},
		"full": func(r *rig) {
			r.server.Exec("ALTER ROLE app CONNECTION LIMIT 1")
			exec(r.t, r.connect("application_name=other"), "SELECT 1")
		},
		"line": func(r *rig) { r.line.Cut() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *proxy.Config) { c.ReuseIdle = time.Hour })
			c := r.connect("")
			pid := exec(t, c, "SELECT pg_backend_pid()")
			r.leave(c, "kept")
			end(r)
			r.eventually(func() bool { return r.spares() == 0 }, "no connection is kept")
			r.eventually(func() bool {
				return len(r.server.Exec("SELECT 1 FROM pg_stat_activity WHERE pid = "+pid)) == 0
			}, "its process has ended")
		})
	}
	t.Run("idle", func(t *testing.T) {
		r := newRig(t, func(c *proxy.Config) { c.ReuseIdle = 100 * time.Millisecond })
		r.leave(r.connect(""), "over")
	})
	t.Run("lifetime", func(t *testing.T) {
		r := newRig(t, func(c *proxy.Config) { c.ReuseLifetime = time.Nanosecond })
		r.leave(r.connect(""), "old")
	})
}

func TestSpareConnectionsAreBounded(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.ReuseRoleMax, c.ReuseIdle = 2, time.Hour })
	var all []*pgconn.PgConn
	for i := range 4 {
		all = append(all, r.connect(fmt.Sprintf("application_name=n%d", i)))
	}
	for i, c := range all {
		r.leave(c, map[bool]string{true: "kept", false: "full"}[i < 2])
	}
	if n := r.spares(); n != 2 {
		t.Errorf("%v connections are kept", n)
	}
}

// A reused connection is a session like any other: it is restored after a change of the primary,
// and its cancel key is its own.
func TestReusedSessionIsCarried(t *testing.T) {
	r := newRig(t, nil)
	first := r.connect("")
	addr, pid, key := r.proxy.Addrs()[0].String(), first.PID(), first.SecretKey()
	c := r.again(first, "")
	exec(t, c, "SET work_mem = '5MB'")
	done := make(chan error, 1)
	go func() {
		_, err := tryExec(c, "SELECT pg_sleep(1)")
		done <- err
	}()
	r.eventually(func() bool { return r.sleepers() == "1" }, "the statement runs")
	var dial net.Dialer // of a session that is over: nobody's
	if err := pgwire.SendCancel(context.Background(), addr, pid, key, dial.DialContext); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("canceled by the key of the session before: %v", err)
	}
	r.change()
	if got := exec(t, c, "SHOW work_mem"); got != "5MB" {
		t.Errorf("work_mem is %q after the change", got)
	}
}

func TestReuseCanBeTurnedOff(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.Reuse = false })
	c := r.connect("")
	pid := exec(t, c, "SELECT pg_backend_pid()")
	_ = c.Close(context.Background())
	r.eventually(func() bool {
		return len(r.server.Exec("SELECT 1 FROM pg_stat_activity WHERE pid = "+pid)) == 0
	}, "the process has ended")
}
