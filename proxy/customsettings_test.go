package proxy_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/proxy"
)

// unreadSetup makes functions of which the proxy cannot read what they set: compiled ones, of which
// only one does, and ones that make a name or a command of what they are given.
const unreadSetup = `
CREATE FUNCTION hidden(text, text, bool) RETURNS text LANGUAGE internal VOLATILE
 AS 'set_config_by_name';
CREATE FUNCTION clean() RETURNS int LANGUAGE internal VOLATILE AS 'pg_backend_pid';
CREATE FUNCTION steady() RETURNS int LANGUAGE internal STABLE AS 'pg_backend_pid';
CREATE FUNCTION dyn(k text, v text) RETURNS void LANGUAGE plpgsql AS
 $$BEGIN PERFORM set_config('app.' || k, v, false); END$$;
CREATE FUNCTION runs(command text) RETURNS void LANGUAGE plpgsql AS $$BEGIN EXECUTE command; END$$;
CREATE FUNCTION wrap() RETURNS trigger LANGUAGE plpgsql AS
 $$BEGIN PERFORM hidden('app.' || NEW.k, 'w', false); RETURN NEW; END$$;
CREATE TABLE wrapped (k text); GRANT ALL ON wrapped TO app;
CREATE TRIGGER t BEFORE INSERT ON wrapped FOR EACH ROW EXECUTE FUNCTION wrap();
CREATE SCHEMA other; GRANT USAGE ON SCHEMA other TO app;
CREATE FUNCTION other.aside() RETURNS int LANGUAGE internal VOLATILE AS 'pg_backend_pid';
CREATE EXTENSION pgcrypto`

// What a function sets that nobody can read is told, unless the owner vouches for it; then it is
// asked for under the names that he gives (DESIGN.md I46).
func TestSettingsOfFunctionsThatCannotBeRead(t *testing.T) {
	calls := map[string]string{
		"hidden": "SELECT hidden('app.' || 'x', '1', false)",
		"clean":  "SELECT clean()",
		"steady": "SELECT steady()",
		"dyn":    "SELECT dyn('x', '2')",
		"runs":   "SELECT runs('SET app.x = ' || 3)",
		"wrap":   "INSERT INTO wrapped VALUES ('x')",
		"aside":  "SELECT other.aside()",
		"crypt":  "SELECT gen_random_bytes(4)",
		"none":   "SELECT 1",
	}
	type result map[string]string // "" is kept with nothing set; 57P01 is told
	for name, tc := range map[string]struct {
		names, harmless []string
		want            result
	}{
		"nobody vouches": {nil, nil, result{
			"hidden": "57P01", "clean": "57P01", "dyn": "57P01", "wrap": "57P01", "aside": "57P01",
			"runs": "", "steady": "", "crypt": "", "none": "",
		}},
		"names alone": {[]string{"App.X"}, nil, result{
			"hidden": "57P01", "clean": "57P01", "dyn": "57P01", "wrap": "57P01", "aside": "57P01",
			"runs": "3", "steady": "", "crypt": "", "none": "",
		}},
		"the trigger": {[]string{"app.x"}, []string{"public.wrap"}, result{
			"hidden": "57P01", "clean": "57P01", "dyn": "57P01", "wrap": "w", "aside": "57P01",
		}},
		"a schema": {[]string{"app.y", "app.x"}, []string{"public.*"}, result{
			"hidden": "1", "clean": "", "dyn": "2", "wrap": "w", "aside": "57P01", "runs": "3",
		}},
		"functions": {nil, []string{"public.clean", "other.aside"}, result{
			"hidden": "57P01", "clean": "", "aside": "", "dyn": "57P01",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *proxy.Config) {
				c.CustomSettings, c.HarmlessFunctions = tc.names, tc.harmless
			})
			r.server.ExecIn("app", unreadSetup)
			sessions := make(map[string]*pgconn.PgConn)
			for f := range tc.want {
				sessions[f] = r.connect("")
			}
			r.until(func() bool {
				for _, c := range sessions {
					_, _ = tryExec(c, "SELECT 1 + 1") // a use for it
				}
				return proxy.KnowsSetters(r.proxy, "app")
			})
			for f, c := range sessions {
				exec(t, c, "SELECT 1") // nothing is open of before that was known
				exec(t, c, calls[f])
			}
			told := 0
			for _, i := range r.proxy.Sessions() {
				if !i.Survives {
					told++
					if !strings.Contains(i.Why, "settings whose names are not known") || i.Statement == "" {
						t.Errorf("shown as %q, %q", i.Why, i.Statement)
					}
				}
			}
			r.change()
			for f, c := range sessions {
				got, err := tryExec(c, "SELECT coalesce(current_setting('app.x', true), '')")
				if err != nil {
					got = code(err)
				}
				if got != tc.want[f] {
					t.Errorf("%s: %q %v, want %q", f, got, err, tc.want[f])
				}
				if tc.want[f] == "57P01" {
					told--
				}
			}
			if told != 0 {
				t.Errorf("%+d sessions are shown to end than do", told)
			}
		})
	}
}

// A connection on which a configured name was found set is not reused: as an empty value, the name
// stays there for the next one.
func TestConfiguredSettingIsNotLeftBehind(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.CustomSettings, c.HarmlessFunctions = []string{"app.x"}, []string{"public.*"}
	})
	r.server.ExecIn("app", unreadSetup)
	c := r.connect("")
	r.until(func() bool {
		_, _ = tryExec(c, "SELECT 1 + 1")
		return proxy.KnowsSetters(r.proxy, "app")
	})
	for _, call := range []string{"SELECT hidden('app.x', '1', false)", "SELECT clean()"} {
		c := r.connect("")
		exec(t, c, call)
		pid := exec(t, c, "SELECT pg_backend_pid()")
		closeConn(c)
		r.eventually(func() bool {
			return r.count("reuse_total", "kept")+r.count("reuse_total", "unfit") > 0
		}, "it is looked at")
		c = r.connect("")
		got := exec(t, c, "SELECT coalesce(current_setting('app.x', true), 'never')")
		if got != "never" {
			t.Errorf("%s: the next one finds %q (pid %s)", call, got, pid)
		}
		closeConn(c)
	}
}
