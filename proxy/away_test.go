package proxy_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
)

// run executes a named prepared statement and returns its only value.
func run(c *pgconn.PgConn, name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	res := c.ExecPrepared(ctx, name, nil, nil, nil).Read()
	if res.Err != nil || len(res.Rows) == 0 {
		return "", res.Err
	}
	return string(res.Rows[0][0]), nil
}

// awayRig is a session that has prepared p under a role that it has only in a transaction, and
// whose primary has changed since.
func awayRig(t *testing.T) (*rig, *pgconn.PgConn) {
	r := newRig(t, nil)
	for _, sql := range []string{"CREATE SCHEMA api", "CREATE TABLE api.items AS SELECT 42 AS a",
		"CREATE ROLE web", "GRANT USAGE ON SCHEMA api TO web", "GRANT SELECT ON api.items TO web",
		"ALTER ROLE app NOINHERIT", "GRANT web TO app"} {
		r.server.ExecIn("app", sql)
	}
	c := r.connect("")
	exec(t, c, "BEGIN")
	exec(t, c, "SELECT set_config('role', 'web', true), set_config('search_path', 'api', true)")
	if _, err := c.Prepare(t.Context(), "p", "SELECT a FROM items", nil); err != nil {
		t.Fatal(err)
	}
	exec(t, c, "COMMIT")
	r.change()
	return r, c
}

func enter(t *testing.T, c *pgconn.PgConn) {
	t.Helper()
	exec(t, c, "BEGIN")
	exec(t, c, "SELECT set_config('role', 'web', true), set_config('search_path', 'api', true)")
}

// A statement that cannot be prepared where the session is restored is prepared where it is used.
func TestStatementThatIsAway(t *testing.T) {
	r, c := awayRig(t)
	if _, err := run(c, "p"); code(err) != "42P01" {
		t.Errorf("outside of the role: %v", err) // as a server says that has it
	}
	var prepared atomic.Int32
	r.line.Watch(func(typ byte, body []byte) bool {
		if typ == 'P' && strings.HasPrefix(string(body), "p\x00") {
			prepared.Add(1)
		}
		return true
	}, nil)
	for range 2 {
		enter(t, c)
		if got, err := run(c, "p"); got != "42" {
			t.Errorf("%q %v", got, err)
		}
		exec(t, c, "COMMIT")
	}
	if n := prepared.Load(); n != 1 {
		t.Errorf("prepared %d times", n)
	}
	r.line.Watch(nil, nil)
	r.change() // it is away once more
	enter(t, c)
	if d, err := c.Prepare(t.Context(), "other", "SELECT 1", nil); err != nil || len(d.Fields) != 1 {
		t.Errorf("%+v %v", d, err)
	}
	if got, err := run(c, "p"); got != "42" {
		t.Errorf("%q %v after another change", got, err)
	}
	r.change() // the transaction is run again, with the statement in it
	if got, err := run(c, "p"); got != "42" {
		t.Errorf("%q %v in a transaction that is run again", got, err)
	}
	exec(t, c, "COMMIT")
}

// Several uses of it in one batch, a Describe first, and a use that fails in the middle of one.
func TestStatementThatIsAwayInPipelines(t *testing.T) {
	_, c := awayRig(t)
	w := hijack(t, c)
	use := func(out []byte) []byte {
		out = pgwire.AppendDescribe(out, 'S', "p")
		out = pgwire.AppendExecute(pgwire.AppendBind(out, "", "p"), "", 0)
		return pgwire.AppendExecute(pgwire.AppendBind(out, "", "p"), "", 0)
	}
	for _, step := range []struct {
		send []byte
		ends int
		want string
	}{
		{pgwire.AppendSync(use(nil)), 1, "E(42P01"},
		{append(pgwire.AppendSync(use(nil)), pgwire.AppendQuery(nil, "SELECT 1")...), 2, "C(SELECT 1)"},
		{pgwire.AppendQuery(nil, "BEGIN"), 1, "ZT"},
		{pgwire.AppendQuery(nil, "SET LOCAL ROLE web"), 1, "ZT"},
		{pgwire.AppendQuery(nil, "SET LOCAL search_path = api"), 1, "ZT"},
		{pgwire.AppendSync(use(nil)), 1, "t T 2 D C(SELECT 1) 2 D C(SELECT 1) ZT"},
		{pgwire.AppendSync(use(nil)), 1, "t T 2 D C(SELECT 1) 2 D C(SELECT 1) ZT"},
		{pgwire.AppendQuery(nil, "COMMIT"), 1, "C(COMMIT)"},
	} {
		w.send(step.send)
		if got := w.until(step.ends, 20*time.Second); !strings.Contains(got, step.want) {
			t.Errorf("%q: told %s, want %s", step.send, got, step.want)
		}
	}
}

// What is answered in the place of a lost server counts: a statement that was prepared together
// with the end of its transaction can be used later, one that was closed can be prepared anew.
func TestStatementsOfAnEndThatWasLost(t *testing.T) {
	for end, executed := range map[string]bool{"ROLLBACK": false, "COMMIT": true} {
		t.Run(end, func(t *testing.T) {
			r := newRig(t, nil)
			c := r.connect("")
			exec(t, c, "CREATE TABLE t (a int)")
			if _, err := c.Prepare(t.Context(), "old", "SELECT 'old'", nil); err != nil {
				t.Fatal(err)
			}
			w := hijack(t, c)
			for _, sql := range []string{"BEGIN", "INSERT INTO t VALUES (1)"} {
				w.send(q(sql).send)
				w.until(1, 20*time.Second)
			}
			cut := make(chan struct{})
			var once sync.Once
			lose := func() bool {
				once.Do(func() { close(cut) })
				return false
			}
			r.line.Watch(func(typ byte, _ []byte) bool {
				return executed || typ != 'C' || lose()
			}, func(typ byte, body []byte) bool {
				return !executed || typ != 'C' || string(body) != "COMMIT\x00" || lose()
			})
			out := pgwire.AppendClose(nil, 'S', "old")
			out = pgwire.AppendParse(out, "end", end, nil)
			out = pgwire.AppendExecute(pgwire.AppendBind(out, "", "end"), "", 0)
			w.send(pgwire.AppendSync(out))
			<-cut
			r.line.Watch(nil, nil)
			r.change()
			if got := w.until(1, 20*time.Second); !strings.Contains(got, "C("+end+") ZI") {
				t.Fatalf("told %s", got)
			}
			w.send(q("BEGIN").send)
			w.until(1, 20*time.Second)
			out = pgwire.AppendParse(nil, "old", "SELECT 'new'", nil)
			out = pgwire.AppendExecute(pgwire.AppendBind(out, "", "old"), "", 0)
			out = pgwire.AppendExecute(pgwire.AppendBind(out, "", "end"), "", 0)
			w.send(pgwire.AppendSync(out))
			if got := w.until(1, 20*time.Second); got != "1 2 D C(SELECT 1) 2 C("+end+") ZI " {
				t.Errorf("told %s", got)
			}
		})
	}
}

// A batch that fails takes what was prepared in it with it; the next one of the same write finds
// the statement nevertheless.
func TestStatementThatIsAwayBehindAnError(t *testing.T) {
	_, c := awayRig(t)
	w := hijack(t, c)
	for _, sql := range []string{"BEGIN", "SET LOCAL ROLE web", "SET LOCAL search_path = api",
		"SAVEPOINT s"} {
		w.send(q(sql).send)
		w.until(1, 20*time.Second)
	}
	use := func(out []byte) []byte {
		return pgwire.AppendSync(pgwire.AppendExecute(pgwire.AppendBind(out, "", "p"), "", 0))
	}
	out := use(pgwire.AppendParse(nil, "x", "SELEC", nil))
	out = append(out, extended("ROLLBACK TO SAVEPOINT s")...)
	w.send(use(out))
	if got := w.until(3, 20*time.Second); !strings.Contains(got, "2 D C(SELECT 1) ZT") {
		t.Errorf("told %s", got)
	}
}

// What the client puts in the place of a statement that is away is what it executes.
func TestStatementThatIsAwayIsReplaced(t *testing.T) {
	_, c := awayRig(t)
	w := hijack(t, c)
	out := pgwire.AppendParse(pgwire.AppendClose(nil, 'S', "p"), "p", "SELECT 'new'", nil)
	out = pgwire.AppendSync(pgwire.AppendExecute(pgwire.AppendBind(out, "", "p"), "", 0))
	w.send(out)
	if got := w.until(1, 20*time.Second); got != "3 1 2 D C(SELECT 1) ZI " {
		t.Errorf("told %s", got)
	}
	w.send(pgwire.AppendSync(pgwire.AppendExecute(pgwire.AppendBind(nil, "", "p"), "", 0)))
	if got := w.until(1, 20*time.Second); got != "2 D C(SELECT 1) ZI " {
		t.Errorf("told %s", got)
	}
}
