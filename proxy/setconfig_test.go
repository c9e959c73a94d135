package proxy_test

import (
	"bytes"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/proxy"
)

// isSnapshot tells of the question for the state of a session.
func isSnapshot(body []byte) bool { return bytes.Contains(body, []byte("pg_listening_channels")) }

// TestKnownSettersInFlight: the server is lost before it could be asked what set_config has set.
// Where the statement or its parameters tell, the session goes on with that; elsewhere it is told.
func TestKnownSettersInFlight(t *testing.T) {
	r := newRig(t, nil)
	for name, tc := range map[string]struct {
		sql    string
		params []string
		want   string // empty: told
	}{
		"constants": {"SELECT set_config('app.a', 'it''s', false)", nil, "it's"},
		"value":     {"SELECT set_config('app.a', $1, false)", []string{`o'n \ €`}, `o'n \ €`},
		"cast":      {"SELECT set_config('app.a', $1::text, false)", []string{"x"}, "x"},
		"name":      {"SELECT set_config($1, $2, false)", []string{"App.A", "y"}, "y"},
		"two": {
			"SELECT set_config('app.b', '', true), set_config('app.a', $1, false)", []string{"2"}, "2",
		},
		"empty":       {"SELECT set_config('app.a', $1, false)", []string{""}, ""},
		"not a value": {"SELECT set_config('app.a', $1 || 'x', false)", []string{"x"}, "told"},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.connect("")
			exec(t, c, "SELECT set_config('app.a', 'before', false)")
			r.line.Watch(nil, cutBehindEnd())
			res := runWith(t, c, tc.sql, tc.params)
			r.line.Watch(nil, nil)
			if res.Err != nil {
				t.Fatal(res.Err)
			}
			got := c.ExecParams(t.Context(), "SELECT current_setting('app.a')", nil, nil, nil, nil).Read()
			switch {
			case tc.want == "told" && code(got.Err) == "57P01":
			case tc.want == "told" || got.Err != nil:
				t.Errorf("%v, want %s", got.Err, tc.want)
			case string(got.Rows[0][0]) != tc.want:
				t.Errorf("it is %q, want %q", got.Rows[0][0], tc.want)
			}
		})
	}
}

// cutBehindEnd ends the connection, once, at the first message behind a ReadyForQuery: there the
// answer to the question for the session's state begins.
func cutBehindEnd() func(byte, []byte) bool {
	var isEnd, isCut atomic.Bool
	return func(typ byte, _ []byte) bool {
		return !isEnd.Swap(typ == 'Z') || isCut.Swap(true)
	}
}

func runWith(t *testing.T, c *pgconn.PgConn, sql string, params []string) *pgconn.Result {
	t.Helper()
	var values [][]byte
	for _, p := range params {
		values = append(values, []byte(p))
	}
	return c.ExecParams(t.Context(), sql, values, nil, nil, nil).Read()
}

// TestLocalSettingsAskNothing: what ends with its transaction costs no question behind it, once
// the name of a custom setting is known; and a new server has what is left of that one.
func TestLocalSettingsAskNothing(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	r.until(func() bool { return proxy.KnowsSetters(r.proxy, "app") }) // else any call may set
	var asked atomic.Int32
	r.line.Watch(func(_ byte, body []byte) bool {
		if isSnapshot(body) {
			asked.Add(1)
		}
		return true
	}, nil)
	run := func() {
		exec(t, c, "BEGIN")
		exec(t, c, "SET LOCAL statement_timeout = '1min'")
		exec(t, c, "SET LOCAL ROLE app")
		exec(t, c, "SET LOCAL app.tenant = 'one'")
		runWith(t, c, "SELECT set_config('app.user', $1, true)", []string{"two"})
		runWith(t, c, "SELECT set_config($1, $2, true)", []string{"app.third", "three"})
		if got := exec(t, c, "SELECT current_setting('app.user')||current_setting('app.third')"); got !=
			"twothree" {
			t.Fatalf("set is %s", got)
		}
		exec(t, c, "COMMIT")
	}
	run()
	if n := asked.Load(); n != 1 {
		t.Fatalf("%d questions when the names were new", n)
	}
	for range 3 {
		run()
	}
	exec(t, c, "SET statement_timeout = '2min'")
	if n := asked.Load(); n != 2 {
		t.Errorf("%d questions in all", n)
	}
	left := "SELECT current_setting('app.tenant', true) || ':' || current_setting('app.third', true)" +
		" || current_setting('statement_timeout') || current_user"
	want := exec(t, c, left)
	r.line.Watch(nil, nil)
	r.line.Cut()
	if got := exec(t, c, left); got != want || want != ":2minapp" {
		t.Errorf("a new server has %q, the old one had %q", got, want)
	}
}
