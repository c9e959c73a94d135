package proxy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
)

// A commit that a client was told of, and that is lost with the server's unwritten WAL, is told:
// the session does not go on as if it were there (DESIGN 10.18).
func TestLostAcknowledgedCommitIsTold(t *testing.T) {
	for name, write := range map[string]func(*testing.T, *pgconn.PgConn){
		"transaction": func(t *testing.T, c *pgconn.PgConn) {
			for _, sql := range []string{"BEGIN", "INSERT INTO t VALUES (1)", "COMMIT"} {
				exec(t, c, sql)
			}
		},
		"statement": func(t *testing.T, c *pgconn.PgConn) { exec(t, c, "INSERT INTO t VALUES (1)") },
		"string": func(t *testing.T, c *pgconn.PgConn) {
			exec(t, c, "INSERT INTO t VALUES (1); UPDATE t SET a = a")
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.server.Exec("ALTER SYSTEM SET wal_writer_delay = '10s'")
			r.server.Stop("fast")
			r.server.Start()
			r.lead(0, 0)
			c, other := r.connect(""), r.connect("")
			exec(t, c, "CREATE TABLE t (a int)")
			exec(t, other, "INSERT INTO t VALUES (0)")
			r.server.Exec("CHECKPOINT")
			exec(t, c, "SET synchronous_commit = off")
			write(t, c)
			r.change()
			if n := exec(t, other, "SELECT count(*) FROM t WHERE a = 1"); n != "0" {
				t.Fatalf("the server has written its WAL all the same: %s rows", n)
			}
			_, err := tryExec(c, "SELECT 1")
			if code(err) != "08006" || !strings.Contains(err.Error(), "commit of this session is lost") {
				t.Errorf("got %v", err)
			}
			if n := r.count("lost_commits_total", ""); n != 1 {
				t.Errorf("counted %v", n)
			}
		})
	}
}

// So is one whose answer came from a lookup, at the first loss of its backend: the next one takes
// the commit away.
func TestLostCommitThatWasLookedUp(t *testing.T) {
	r := newRig(t, nil)
	r.server.Exec("ALTER SYSTEM SET wal_writer_delay = '10s'")
	r.server.Stop("fast")
	r.server.Start()
	r.lead(0, 0)
	c, other := r.connect(""), r.connect("")
	exec(t, c, "CREATE TABLE t (a int)")
	r.server.Exec("CHECKPOINT")
	exec(t, c, "SET synchronous_commit = off")
	exec(t, c, "BEGIN")
	exec(t, c, "INSERT INTO t VALUES (1)")
	w := hijack(t, c)
	got := executedThenLost(t, r, w, pgwire.AppendQuery(nil, "COMMIT"), committed)
	if !strings.Contains(got, "C(COMMIT)") {
		t.Fatalf("got %s", got)
	}
	r.change()
	if n := exec(t, other, "SELECT count(*) FROM t"); n != "0" {
		t.Fatalf("the server has written its WAL all the same: %s rows", n)
	}
	w.send(pgwire.AppendQuery(nil, "SELECT 1"))
	if got := w.rest(20 * time.Second); !strings.Contains(got, "E(08006") {
		t.Errorf("got %s", got)
	}
	if n := r.count("lost_commits_total", ""); n != 1 {
		t.Errorf("counted %v", n)
	}
}

// NOTIFY takes its transaction id inside COMMIT: a NULL id before proves nothing, and what was
// notified is not notified again (DESIGN 10.14).
func TestNotifyIsNotRepeated(t *testing.T) {
	r := newRig(t, nil)
	direct := r.direct()
	exec(t, direct, "LISTEN news")
	listener := hijack(t, direct)
	c := r.connect("")
	exec(t, c, "BEGIN")
	exec(t, c, "NOTIFY news, 'once'")
	w := hijack(t, c)
	got := executedThenLost(t, r, w, pgwire.AppendQuery(nil, "COMMIT"), committed)
	if !strings.Contains(got, "E(08007") {
		t.Errorf("got %s", got)
	}
	time.Sleep(200 * time.Millisecond) // a second one would have come by then
	listener.send(pgwire.AppendQuery(nil, "SELECT 1"))
	if got := listener.until(1, 8*time.Second); strings.Count(got, "A ") != 1 {
		t.Errorf("the listener got %s", got)
	}
}
