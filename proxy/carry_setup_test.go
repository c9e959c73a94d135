package proxy_test

import (
	"strings"
	"testing"
	"time"

	"holdfast/proxy"
)

// State that is carried over to another server where roles and databases have settings of their
// own, and what only a superuser can do.
func TestCarriedBesideSettings(t *testing.T) {
	for name, tc := range map[string]struct {
		setup  []string // by a superuser
		before []string
		after  []string // by a superuser, before the change
		ask    string
		want   string
	}{
		"no role, where the login has one": {
			setup:  []string{"ALTER ROLE app SET role = 'clerk'"},
			before: []string{"SET ROLE NONE"},
			ask:    "SELECT current_user", want: "app",
		},
		"the role of the login": {
			setup: []string{"ALTER ROLE app SET role = 'clerk'"},
			ask:   "SELECT current_user", want: "clerk",
		},
		"the role of the login, which others do not get any more": {
			setup: []string{"ALTER ROLE app SET role = 'clerk'"},
			after: []string{"ALTER ROLE app RESET role"},
			ask:   "SELECT current_user", want: "clerk",
		},
		"no role, where later logins have one": {
			after: []string{"ALTER ROLE app SET role = 'clerk'"},
			ask:   "SELECT current_user", want: "app",
		},
		"no role behind SET SESSION AUTHORIZATION": {
			setup:  []string{"ALTER ROLE app SUPERUSER", "ALTER ROLE app SET role = 'clerk'"},
			before: []string{"SET SESSION AUTHORIZATION clerk"},
			ask:    "SELECT session_user || ' ' || current_setting('role')", want: "clerk none",
		},
		"a role behind SET SESSION AUTHORIZATION": {
			setup:  []string{"ALTER ROLE app SUPERUSER", "ALTER ROLE app SET role = 'clerk'"},
			before: []string{"SET SESSION AUTHORIZATION clerk", "SET ROLE clerk"},
			ask:    "SELECT session_user || ' ' || current_setting('role')", want: "clerk clerk",
		},
		"the role of the login behind DISCARD ALL": {
			setup:  []string{"ALTER ROLE app SET role = 'clerk'"},
			before: []string{"SET ROLE NONE", "DISCARD ALL"},
			ask:    "SELECT current_user", // which it is differs between versions
		},
		"a library": {
			setup:  []string{"ALTER ROLE app SUPERUSER"},
			before: []string{"LOAD 'auto_explain'", "DISCARD ALL"},
			ask:    "SELECT count(*) > 0 FROM pg_settings WHERE name ~ '^auto_explain'", want: "t",
		},
		"a library of a transaction that was undone": {
			setup:  []string{"ALTER ROLE app SUPERUSER"},
			before: []string{"BEGIN", "LOAD 'auto_explain'", "ROLLBACK"},
			ask:    "SELECT count(*) > 0 FROM pg_settings WHERE name ~ '^auto_explain'", want: "t",
		},
		"a setting of a library": {
			setup: []string{"ALTER ROLE app SUPERUSER"},
			before: []string{"LOAD 'auto_explain'",
				"SET auto_explain.log_min_duration = '7min'"},
			ask: "SHOW auto_explain.log_min_duration", want: "7min",
		},
		"the threshold of pg_trgm": {
			setup:  []string{"CREATE EXTENSION pg_trgm"},
			before: []string{"SELECT set_limit(0.75)"},
			ask:    "SELECT show_limit()", want: "0.75",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			for _, sql := range tc.setup {
				r.server.ExecIn("app", sql)
			}
			c := r.connect("")
			for _, sql := range tc.before {
				exec(t, c, sql)
			}
			for _, sql := range tc.after {
				r.server.ExecIn("app", sql)
			}
			was := exec(t, c, tc.ask)
			r.change()
			if got, err := tryExec(c, tc.ask); got != was || tc.want != "" && was != tc.want {
				t.Errorf("%q %v, before %q, want %q", got, err, was, tc.want)
			}
		})
	}
}

// A setting that a function may set, and that was never set, is as unknown on the new server.
func TestSettingThatWasNeverSet(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	for _, name := range []string{"become", "audit"} {
		exec(t, c, "CREATE FUNCTION "+name+`(x text) RETURNS void LANGUAGE plpgsql AS
$$BEGIN PERFORM set_config('app.`+name+`', x, false); END$$`)
	}
	r.until(func() bool {
		_, _ = tryExec(c, "SELECT 1 + 1") // a use for it
		return proxy.KnowsSetter(r.proxy, "app", "audit")
	})
	exec(t, c, "SELECT become('me')")
	exec(t, c, "SET app.gone = 'x'")
	exec(t, c, "RESET app.gone")
	const ask = "SELECT concat_ws('/', current_setting('app.become', true)," +
		" coalesce(current_setting('app.audit', true), 'never')," +
		" coalesce(current_setting('app.gone', true), 'never'))"
	const want = "me/never/"
	if got := exec(t, c, ask); got != want {
		t.Fatalf("%q before the change", got)
	}
	r.change()
	if got, err := tryExec(c, ask); got != want {
		t.Errorf("%q %v, want %q", got, err, want)
	}
}

// A transaction that was found committed has set what the session may not set: the client is told
// of the commit, and that the session ends.
func TestCommittedSettingThatCannotComeBack(t *testing.T) {
	r := newRig(t, nil)
	for _, sql := range []string{"CREATE ROLE boss SUPERUSER", "GRANT boss TO app"} {
		r.server.ExecIn("app", sql)
	}
	admin := r.connect("")
	exec(t, admin, "CREATE TABLE t (a int)")
	c := r.connect("")
	for _, sql := range []string{"BEGIN", "INSERT INTO t VALUES (1)", "SET LOCAL ROLE boss",
		"SET log_statement = 'none'", "RESET ROLE"} {
		exec(t, c, sql)
	}
	cut := make(chan struct{})
	r.line.Watch(nil, func(typ byte, body []byte) bool {
		if typ == 'C' && string(body) == "COMMIT\x00" {
			close(cut)
			return false
		}
		return true
	})
	w := hijack(t, c)
	w.send(q("COMMIT").send)
	<-cut
	r.line.Watch(nil, nil)
	r.change()
	got := w.rest(20 * time.Second)
	if !strings.Contains(got, "C(COMMIT)") || !strings.Contains(got, "57P01") {
		t.Errorf("told %s", got)
	}
}

// Names of roles are bytes, whatever encoding the server's own connections have.
func TestRoleOutsideASCII(t *testing.T) {
	r := newRig(t, nil)
	r.server.Exec("ALTER ROLE holdfast_lookup SET client_encoding = 'LATIN1'")
	r.server.Exec(`CREATE ROLE "müller" LOGIN IN ROLE app PASSWORD 'secret'`)
	r.server.Exec(`GRANT CONNECT ON DATABASE app TO "müller"`)
	c := r.connect("user=müller password=secret")
	if got := exec(t, c, "SELECT current_user"); got != "müller" {
		t.Errorf("logged in as %s", got)
	}
}
