package proxy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// State that is carried over to another server.
func TestCarriedState(t *testing.T) {
	for name, tc := range map[string]struct {
		options string
		before  []string
		ask     string
		want    string
	}{
		"set_config of a custom setting": {
			"", []string{"SELECT set_config('app.tenant', '42', false)"}, "SHOW app.tenant", "42",
		},
		"set_config in DO": {
			"", []string{"DO $$ BEGIN PERFORM set_config('work_mem', '8MB', false); END $$"},
			"SHOW work_mem", "8MB",
		},
		"set_config in EXECUTE": {
			"", []string{
				"PREPARE sc AS SELECT set_config('temp_buffers', '3MB', false)", "EXECUTE sc",
			}, "SHOW temp_buffers", "3MB",
		},
		"SET and a large statement": {
			"", []string{
				"SET work_mem = '9MB'", "SELECT 1 /* " + strings.Repeat("x", 70000) + " */",
			}, "SHOW work_mem", "9MB",
		},
		"SET in a string that fails": {
			"", []string{"SET work_mem = '9MB'; COMMIT; SELECT 1/0; SET work_mem = '1MB'"},
			"SHOW work_mem", "9MB",
		},
		"UTF8 after LATIN1": {
			"client_encoding=LATIN1", []string{"SET client_encoding = 'UTF8'", "SET app.x = 'é'"},
			"SHOW app.x", "é",
		},
		"LATIN1 after UTF8": {
			"client_encoding=UTF8",
			[]string{"SET client_encoding = 'LATIN1'", "SET app.x = '\xe9'"},
			"SHOW app.x", "\xe9",
		},
		"an advisory lock that was given back": {
			"", []string{"SELECT pg_advisory_lock(7)", "SELECT pg_advisory_unlock(7)"},
			"SELECT 1", "1",
		},
		"a temporary table that was dropped": {
			"", []string{"CREATE TEMP TABLE tt (a int)", "DISCARD TEMP"}, "SELECT 1", "1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			c := r.connect(tc.options)
			for _, s := range tc.before {
				_, _ = tryExec(c, s)
			}
			r.change()
			if got, err := tryExec(c, tc.ask); got != tc.want {
				t.Errorf("%q %v, want %q", got, err, tc.want)
			}
		})
	}
}

// What a function sets is carried, though no text of the client names it (DESIGN.md I23).
func TestSettingsOfFunctionsAreCarried(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, `CREATE FUNCTION become(who text) RETURNS void LANGUAGE plpgsql AS
$$BEGIN PERFORM set_config('app.tenant', who, false); END$$`)
	r.until(func() bool {
		_, _ = tryExec(c, "SELECT 1 + 1") // a use for it
		return proxy.KnowsSetter(r.proxy, "app", "become")
	})
	exec(t, c, "SELECT become('forty-two')")
	r.change()
	if got, err := tryExec(c, "SELECT current_setting('app.tenant', true)"); got != "forty-two" {
		t.Errorf("%q %v", got, err)
	}
}

// until waits for something that comes by itself.
func (r *rig) until(done func() bool) {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); {
		if time.Now().After(end) {
			r.t.Fatal("it has not come")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// State that cannot be carried, or is not known, is told: never dropped silently.
func TestStateThatIsTold(t *testing.T) {
	for name, before := range map[string][]string{
		"advisory lock in DO":      {"DO $$ BEGIN PERFORM pg_advisory_lock(7); END $$"},
		"SET in a large statement": {"SET work_mem = '9MB' /* " + strings.Repeat("x", 70000) + " */"},
		"set_config of an unknown name": {
			"SELECT set_config('app.' || 'tenant', '42', false)",
		},
		"prepared under other rules": {
			"SET standard_conforming_strings = off", `PREPARE p AS SELECT 'a\nb'`,
			"SET standard_conforming_strings = on",
		},
		"locks, then a temporary table that goes": {
			"SELECT pg_advisory_lock(g) FROM generate_series(1, 2) g",
			"CREATE TEMP TABLE tt (a int)", "DISCARD TEMP",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			c := r.connect("")
			for _, s := range before {
				exec(t, c, s)
			}
			r.change()
			if _, err := tryExec(c, "SELECT 1"); code(err) != "57P01" {
				t.Errorf("got %v", err)
			}
		})
	}
}

// More than is kept of a session's settings and channels is told, and no right comes back that
// was given up.
func TestTooManyChannelsAreTold(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	for j := range 21 {
		var b strings.Builder
		for i := range 100 {
			fmt.Fprintf(&b, "LISTEN c%d_%d;", j, i)
		}
		exec(t, c, b.String())
	}
	exec(t, c, "SET ROLE clerk")
	r.change()
	if got, err := tryExec(c, "SELECT current_user"); code(err) != "57P01" {
		t.Errorf("%q %v", got, err)
	}
}

// A role that was set and undone in a transaction is not set because its COMMIT was looked up.
func TestUndoneRoleStaysUndone(t *testing.T) {
	r := newRig(t, nil)
	w := r.inBlock("INSERT INTO t VALUES (0)", "SAVEPOINT a", "SET ROLE clerk", "ROLLBACK TO a")
	_ = executedThenLost(t, r, w, pgwire.AppendQuery(nil, "COMMIT"), committed)
	_ = w.c.SetReadDeadline(time.Now().Add(8 * time.Second))
	w.send(pgwire.AppendQuery(nil, "SELECT 1 FROM t"))
	for {
		typ, body, err := w.r.ReadMessage()
		if err != nil {
			return // told, and ended
		}
		if typ == 'E' {
			if e, _ := pgwire.ParseError(body); e.Code == "42501" {
				t.Fatal("the session goes on as a role that was rolled back")
			}
		}
		if typ == 'Z' {
			return
		}
	}
}
