package proxy_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

const missed = "notifications may have been missed because the primary changed"

// noticed is what a client was told by NOTICE since it was asked last.
func noticed(notices <-chan string) (all []string) {
	for {
		select {
		case n := <-notices:
			all = append(all, n)
		default:
			return all
		}
	}
}

// Whoever listens is told once behind each change that something may have been missed, idle or in
// a transaction, and is notified from then on; nobody else is.
func TestListenersAreToldOfAChange(t *testing.T) {
	r := newRig(t, nil)
	type client struct {
		name         string
		setup, after []string // after: behind each change
		listens      bool

		c       *pgconn.PgConn
		notices <-chan string
	}
	clients := []*client{
		{name: "listens", setup: []string{"LISTEN news", "LISTEN more"}, listens: true},
		{name: "in a block", setup: []string{"LISTEN news", "BEGIN", "SELECT 1"}, listens: true,
			after: []string{"COMMIT", "BEGIN", "SELECT 1"}},
		{name: "does not listen", setup: []string{"SELECT 1"}},
		{name: "listened", setup: []string{"LISTEN news", "UNLISTEN news"}},
		{name: "listened to all", setup: []string{"LISTEN news", "LISTEN more", "UNLISTEN *"}},
		{name: "rolled back", setup: []string{"BEGIN", "LISTEN news", "ROLLBACK"}},
	}
	for _, c := range clients {
		c.c, c.notices = r.connectNoticed("")
		for _, sql := range c.setup {
			exec(t, c.c, sql)
		}
	}
	for _, how := range []string{"a change", "another one", "a broken connection"} {
		if how == "a broken connection" {
			r.line.Cut()
		} else {
			r.change()
		}
		for _, c := range clients {
			exec(t, c.c, "SELECT 1")
			exec(t, c.c, "SELECT 2")
			got := noticed(c.notices)
			switch {
			case !c.listens && len(got) > 0:
				t.Errorf("%s, %s: told %q", how, c.name, got)
			case c.listens && (len(got) != 1 || got[0] != missed):
				t.Errorf("%s, %s: told %q", how, c.name, got)
			}
			for _, sql := range c.after {
				exec(t, c.c, sql)
			}
		}
	}
	listener := hijack(t, clients[0].c)
	exec(t, r.connect(""), "NOTIFY more")
	for typ := byte(0); typ != 'A'; {
		var err error
		if typ, _, err = listener.r.ReadMessage(); err != nil {
			t.Fatal(err)
		}
	}
}

// A listener whose server is lost inside of a large row is told of it behind that row.
func TestListenersAreToldBehindARow(t *testing.T) {
	r := newRig(t, nil)
	w := hijack(t, r.connect(""))
	w.play([]scriptStep{q("LISTEN news"), q("BEGIN"), q("SELECT 1")})
	r.line.CutInside('D', 100000)
	w.send(q("SELECT repeat('x', 300000) FROM generate_series(1, 2)", "SELECT 2").send)
	// It comes behind whatever arrived together with the end of the row, which may be all of it.
	got := ""
	for strings.Count(got, "Z") < 2 || !strings.Contains(got, "N") {
		typ, body, err := w.r.ReadMessage()
		if err != nil {
			t.Fatalf("behind %s: %v", got, err)
		}
		if typ == 'N' && !strings.Contains(string(body), missed) {
			t.Errorf("told %q", body)
		}
		got += string(typ)
	}
	if strings.Count(got, "N") != 1 || !strings.HasPrefix(got, "TD") ||
		strings.ReplaceAll(got, "N", "") != "TDDCZTDCZ" {
		t.Errorf("got %s", got)
	}
}

// What a session has had of a sequence is not carried: the server says so itself (55000), and
// nobody has another session's value, or one of before.
func TestSequenceValuesAreNotCarried(t *testing.T) {
	r := newRig(t, nil)
	c, other := r.connect(""), r.connect("")
	exec(t, c, "CREATE SEQUENCE s")
	exec(t, c, "CREATE TABLE t (id serial, a int)")
	exec(t, c, "SELECT nextval('s')")
	exec(t, other, "SELECT nextval('s')")
	block := r.connect("")
	exec(t, block, "BEGIN")
	exec(t, block, "INSERT INTO t (a) VALUES (1)") // whose id nobody has been shown
	shown := r.connect("")
	exec(t, shown, "SELECT nextval('s')")
	exec(t, shown, "BEGIN")
	exec(t, shown, "SELECT currval('s')")
	r.change()
	for _, sql := range []string{"SELECT currval('s')", "SELECT lastval()"} {
		wantCode(t, c, sql, "55000")
		wantCode(t, other, sql, "55000")
	}
	// What runs again has the values of its own.
	if got := exec(t, block, "SELECT currval('t_id_seq') = max(id) FROM t"); got != "t" {
		t.Errorf("an INSERT that ran again: currval is its id: %s", got)
	}
	exec(t, block, "COMMIT")
	// A value of before that was shown in a transaction is contradicted by none of after it.
	wantCode(t, shown, "SELECT currval('s')", "40001")
	exec(t, shown, "ROLLBACK")
	wantCode(t, shown, "SELECT currval('s')", "55000")

	next := exec(t, c, "SELECT nextval('s')")
	for _, sql := range []string{"SELECT currval('s')", "SELECT lastval()"} {
		if got := exec(t, c, sql); got != next {
			t.Errorf("%s behind nextval: %s, not %s", sql, got, next)
		}
	}
	wantCode(t, other, "SELECT currval('s')", "55000")
	exec(t, c, "SELECT setval('s', 1000)")
	if got := exec(t, c, "SELECT currval('s')"); got != "1000" {
		t.Errorf("currval behind setval: %s", got)
	}
	if got := exec(t, other, "SELECT nextval('s')"); got != "1001" {
		t.Errorf("another session's nextval behind setval: %s", got)
	}
}
