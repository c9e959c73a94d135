package proxy_test

import (
	"sync/atomic"
	"testing"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// farewells counts the FATAL 57P01 that servers say to the sessions of the proxy.
func (r *rig) farewells() *atomic.Int32 {
	n := new(atomic.Int32)
	r.line.Watch(nil, func(typ byte, body []byte) bool {
		if typ == 'E' {
			if e, err := pgwire.ParseError(body); err == nil && e.Code == "57P01" {
				n.Add(1)
			}
		}
		return true
	})
	return n
}

// restarted is a fast shutdown that nobody has announced, and another start of the server.
func (r *rig) restarted() {
	r.t.Helper()
	r.server.Stop("fast")
	r.server.Start()
}

// A fast shutdown tells each session 57P01. The client of one with an open block does not hear of
// it: the block is run again at the next primary, or 40001.
func TestFastShutdownInABlock(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*proxy.Config)
		want   string
		rows   string
	}{
		"run again": {nil, "<nil>", "2"},
		"told":      {noReplay, "40001", "0"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, tc.change)
			idle, working := r.connect(""), r.connect("")
			exec(t, idle, "CREATE TABLE t (a int)")
			exec(t, idle, "BEGIN")
			exec(t, idle, "INSERT INTO t VALUES (1)")
			exec(t, working, "BEGIN")
			exec(t, working, "INSERT INTO t VALUES (2)")
			said := r.farewells()
			sleeps := start(working, "SELECT pg_sleep(1)")
			r.eventually(func() bool { return r.sleepers() == "1" }, "the server works")
			r.restarted()
			if n := said.Load(); n < 2 {
				t.Fatalf("the server has said 57P01 to %d sessions", n)
			}
			next := r.server.NextXID()
			r.lead(next, next)
			if got := code(<-sleeps); got != tc.want {
				t.Errorf("the statement that the server worked on: %s", got)
			}
			if _, err := tryExec(idle, "SELECT 1"); code(err) != tc.want {
				t.Errorf("behind an idle block: %v", err)
			}
			exec(t, idle, "COMMIT")
			exec(t, working, "COMMIT")
			if n := r.rows(); n != tc.rows {
				t.Errorf("%s rows", n)
			}
		})
	}
}

// napping makes each COMMIT behind an INSERT into t sleep as long as there is a row in naps.
func (r *rig) napping() {
	r.t.Helper()
	for _, sql := range []string{
		"CREATE TABLE t (a int)", "CREATE TABLE naps (seconds int)",
		"INSERT INTO naps VALUES (60)", "GRANT ALL ON t, naps TO app",
		`CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM pg_sleep((SELECT coalesce(sum(seconds), 0) FROM naps)); RETURN NULL; END$$`,
		"CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED " +
			"FOR EACH ROW EXECUTE FUNCTION nap()",
	} {
		r.server.ExecIn("app", sql)
	}
}

// A COMMIT that a fast shutdown has rolled back is looked up: it is run again, or 40001.
func TestFastShutdownInsideACommit(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*proxy.Config)
		want   string
		rows   string
	}{
		"run again": {nil, "<nil>", "1"},
		"told":      {noReplay, "40001", "0"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, tc.change)
			r.napping()
			c := r.connect("")
			exec(t, c, "BEGIN")
			exec(t, c, "INSERT INTO t VALUES (1)")
			said := r.farewells()
			done := start(c, "COMMIT")
			r.eventually(func() bool { return r.sleepers() == "1" }, "the server is in COMMIT")
			r.server.ExecIn("app", "DELETE FROM naps")
			r.restarted()
			if said.Load() == 0 {
				t.Fatal("the server has not said 57P01")
			}
			next := r.server.NextXID()
			r.lead(next, next)
			if got := code(<-done); got != tc.want || c.IsClosed() {
				t.Errorf("COMMIT: %s, closed %v", got, c.IsClosed())
			}
			if n := r.count("outcomes_total", "aborted"); n != 1 {
				t.Errorf("looked up as aborted %v times", n)
			}
			if n := r.rows(); n != tc.rows {
				t.Errorf("%s rows", n)
			}
		})
	}
}

// A COMMIT that waits for its standbys is committed at the server already when a fast shutdown ends
// the wait. It is looked up, and answered as committed once it is as durable as it has to be.
func TestFastShutdownWhileACommitWaits(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	exec(t, c, "BEGIN")
	exec(t, c, "INSERT INTO t VALUES (1)")
	r.alter(map[string]string{"synchronous_standby_names": "nobody"}, true)
	r.eventually(func() bool {
		return r.server.Exec("SHOW synchronous_standby_names")[0][0] == "nobody"
	}, "the server asks for a standby")
	done := start(c, "COMMIT")
	r.eventually(func() bool {
		return r.server.Exec("SELECT count(*) FROM pg_stat_activity " +
			"WHERE wait_event = 'SyncRep'")[0][0] == "1"
	}, "the COMMIT waits")
	r.restarted()
	r.server.Exec("ALTER SYSTEM RESET synchronous_standby_names")
	r.server.Exec("SELECT pg_reload_conf()")
	next := r.server.NextXID()
	r.lead(next, next)
	if err := <-done; err != nil || c.IsClosed() {
		t.Errorf("COMMIT: %v, closed %v", err, c.IsClosed())
	}
	if n := r.count("outcomes_total", "committed"); n != 1 {
		t.Errorf("looked up as committed %v times", n)
	}
	if n := r.rows(); n != "1" {
		t.Errorf("%s rows", n)
	}
}
