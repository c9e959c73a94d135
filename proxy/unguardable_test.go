package proxy_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// unguardable are statements that commit by themselves, and how each is kept at work by a lock: its
// own, or that of the system catalogue that it is about to write.
var unguardable = map[string]struct {
	sql, lock string
	done      string // whether it was done, as a condition
}{
	"VACUUM": {"VACUUM t", "LOCK TABLE t IN ACCESS EXCLUSIVE MODE", "false"},
	"CREATE INDEX": {"CREATE INDEX CONCURRENTLY i ON t (a)",
		"LOCK TABLE t IN ROW EXCLUSIVE MODE", "EXISTS (SELECT FROM pg_index i WHERE i.indisvalid " +
			"AND indexrelid::regclass::text = 'i')"},
	"CREATE DATABASE": {"CREATE DATABASE other", "LOCK TABLE pg_database IN SHARE MODE",
		"EXISTS (SELECT FROM pg_database WHERE datname = 'other')"},
	"DO": {"DO $$BEGIN INSERT INTO done VALUES (1); COMMIT; INSERT INTO t VALUES (1); END$$",
		"LOCK TABLE t IN ACCESS EXCLUSIVE MODE", "false"},
}

// startExtended runs a statement beside the test in the extended protocol.
func startExtended(c *pgconn.PgConn, sql string) <-chan error {
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		done <- c.ExecParams(ctx, sql, nil, nil, nil, nil).Read().Err
	}()
	return done
}

// What cannot be guarded, since it commits by itself, is neither taken for not executed nor run
// again, wherever the server is with it: 08007, and the session goes on (DESIGN 10.15).
func TestUnguardableInFlightIsUnknown(t *testing.T) {
	for name, tc := range unguardable {
		for _, protocol := range []string{"simple", "extended"} {
			if (protocol == "extended") != (name == "VACUUM" || name == "DO") {
				continue // each costs two starts of a server
			}
			t.Run(name+", "+protocol, func(t *testing.T) {
				r := newRig(t, nil)
				r.server.Exec("ALTER ROLE app CREATEDB")
				c := r.connect("")
				exec(t, c, "CREATE TABLE t (a int)")
				exec(t, c, "CREATE TABLE done (a int)")
				var times atomic.Int32
				r.line.Watch(func(typ byte, body []byte) bool {
					if (typ == 'Q' || typ == 'P') && strings.Contains(string(body), tc.sql) {
						times.Add(1)
					}
					return true
				}, nil)
				run := start
				if protocol == "extended" {
					run = startExtended
				}
				// Lost while the server works on it.
				admin := r.superuser()
				exec(t, admin, "BEGIN")
				exec(t, admin, tc.lock)
				done := run(c, tc.sql)
				r.eventually(func() bool {
					return exec(t, admin, "SELECT count(*) FROM pg_locks WHERE NOT granted") == "1"
				}, "the server works on it")
				r.line.Cut()
				if got := code(<-done); got != "08007" || c.IsClosed() || c.TxStatus() != 'I' {
					t.Errorf("got %s, closed %v, status %c", got, c.IsClosed(), c.TxStatus())
				}
				exec(t, admin, "ROLLBACK")
				if v := exec(t, c, "SELECT 1"); v != "1" {
					t.Error(v)
				}
				r.change() // whatever the server was at is over
				if n := times.Load(); n != 1 {
					t.Errorf("sent %d times", n)
				}
				if n := exec(t, c, "SELECT count(*) FROM done"); name == "DO" && n != "1" {
					t.Errorf("what it had committed is there %s times", n)
				}
			})
		}
	}
}

// The same, lost once it was executed and before the client has its answer.
func TestUnguardableThatWasExecutedIsUnknown(t *testing.T) {
	for name, tc := range unguardable {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.server.Exec("ALTER ROLE app CREATEDB")
			c := r.connect("")
			exec(t, c, "CREATE TABLE t (a int)")
			exec(t, c, "CREATE TABLE done (a int)")
			var times atomic.Int32
			var isCut atomic.Bool
			r.line.Watch(func(typ byte, body []byte) bool {
				if typ == 'Q' && strings.Contains(string(body), tc.sql) {
					times.Add(1)
				}
				return true
			}, func(typ byte, _ []byte) bool {
				return typ != 'C' || times.Load() != 1 || isCut.Swap(true)
			})
			_, err := tryExec(c, tc.sql)
			r.line.Watch(nil, nil)
			if code(err) != "08007" || c.IsClosed() {
				t.Errorf("got %v, closed %v", err, c.IsClosed())
			}
			if n := times.Load(); n != 1 {
				t.Errorf("sent %d times", n)
			}
			if tc.done != "false" && exec(t, c, "SELECT "+tc.done) != "t" {
				t.Error("it was not done")
			}
			if n := exec(t, c, "SELECT count(*) FROM done"); name == "DO" && n != "1" {
				t.Errorf("what it has committed is there %s times", n)
			}
		})
	}
}
