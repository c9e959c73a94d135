package proxy_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// hasStandardBodies tells that functions may have a body of the SQL standard, as from 14 on.
func (r *rig) hasStandardBodies() bool {
	r.t.Helper()
	v, err := strconv.Atoi(exec(r.t, r.superuser(), "SHOW server_version_num"))
	if err != nil {
		r.t.Fatal(err)
	}
	return v >= 140000
}

// What a function sets is carried, however it is reached: called by another function, by a trigger
// of a table that is written to, a partition's, a foreign key's, a view's or a default's; also if
// it sets no custom setting, or one whose name its caller gives (DESIGN.md I23).
func TestSettingsOfReachedFunctionsAreCarried(t *testing.T) {
	const become = `CREATE FUNCTION become() RETURNS int LANGUAGE plpgsql AS
$$BEGIN PERFORM set_config('app.tenant', '42', false); RETURN 1; END$$;`
	const trigger = `CREATE FUNCTION trig() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM set_config('app.tenant', '42', false); RETURN NEW; END$$;`
	for name, tc := range map[string]struct {
		setup, reach, call, ask, want string
	}{
		"a setting that is not custom": {
			`CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS
			 $$BEGIN PERFORM set_config('work_mem', '7MB', false); RETURN 1; END$$`,
			"f", "SELECT f()", "SHOW work_mem", "7MB",
		},
		"SET that is not custom": {
			`CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS
			 $$BEGIN SET work_mem = '7MB'; RETURN 1; END$$`,
			"f", "SELECT f()", "SHOW work_mem", "7MB",
		},
		"SET ROLE": {
			`CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS
			 $$BEGIN SET ROLE clerk; RETURN 1; END$$`,
			"f", "SELECT f()", "SELECT current_user", "clerk",
		},
		"a name that the caller gives": {
			`CREATE FUNCTION f(n text, v text) RETURNS text LANGUAGE sql AS
			 $$SELECT set_config(n, v, false)$$`,
			"f", "SELECT f('app.tenant', '42')", "SHOW app.tenant", "42",
		},
		"called by another function": {
			become + `CREATE FUNCTION outer1() RETURNS int LANGUAGE sql AS 'SELECT become()';
			 CREATE FUNCTION outer2() RETURNS int LANGUAGE plpgsql AS
			 'BEGIN RETURN Outer1(); END'`,
			"outer2", "SELECT outer2()", "SHOW app.tenant", "42",
		},
		"a body of the standard's": {
			become + `CREATE FUNCTION outer1() RETURNS int LANGUAGE sql RETURN become() + 1`,
			"outer1", "SELECT outer1()", "SHOW app.tenant", "42",
		},
		"a trigger": {
			trigger + `CREATE TABLE tt (a int);
			 CREATE TRIGGER t BEFORE INSERT ON tt FOR EACH ROW EXECUTE FUNCTION trig()`,
			"tt", "INSERT INTO tt VALUES (1)", "SHOW app.tenant", "42",
		},
		"a trigger of a partition": {
			trigger + `CREATE TABLE tt (a int) PARTITION BY LIST (a);
			 CREATE TABLE t1 PARTITION OF tt FOR VALUES IN (1);
			 CREATE TRIGGER t BEFORE INSERT ON t1 FOR EACH ROW EXECUTE FUNCTION trig()`,
			"tt", "INSERT INTO tt VALUES (1)", "SHOW app.tenant", "42",
		},
		"a trigger behind a foreign key": {
			`CREATE FUNCTION trig() RETURNS trigger LANGUAGE plpgsql AS
			 $$BEGIN PERFORM set_config('app.tenant', '42', false); RETURN OLD; END$$;
			 CREATE TABLE tt (a int PRIMARY KEY);
			 CREATE TABLE t1 (a int REFERENCES tt ON DELETE CASCADE);
			 INSERT INTO tt VALUES (1); INSERT INTO t1 VALUES (1);
			 CREATE TRIGGER t BEFORE DELETE ON t1 FOR EACH ROW EXECUTE FUNCTION trig()`,
			"tt", "DELETE FROM tt", "SHOW app.tenant", "42",
		},
		"a trigger behind a view": {
			trigger + `CREATE TABLE tt (a int); CREATE VIEW v AS SELECT * FROM tt;
			 CREATE TRIGGER t BEFORE INSERT ON tt FOR EACH ROW EXECUTE FUNCTION trig()`,
			"v", "INSERT INTO v VALUES (1)", "SHOW app.tenant", "42",
		},
		"a view": {
			become + `CREATE VIEW v AS SELECT become() AS b`,
			"v", "SELECT * FROM v", "SHOW app.tenant", "42",
		},
		"a default": {
			become + `CREATE TABLE tt (a int, b int DEFAULT become())`,
			"tt", "INSERT INTO tt (a) VALUES (1)", "SHOW app.tenant", "42",
		},
		"a constraint": {
			become + `CREATE TABLE tt (a int CHECK (a = become()))`,
			"tt", "INSERT INTO tt VALUES (1)", "SHOW app.tenant", "42",
		},
		"a function that writes where a trigger is": {
			trigger + `CREATE TABLE tt (a int);
			 CREATE TRIGGER t BEFORE INSERT ON tt FOR EACH ROW EXECUTE FUNCTION trig();
			 CREATE FUNCTION fill() RETURNS void LANGUAGE sql AS 'INSERT INTO tt VALUES (1)'`,
			"fill", "SELECT fill()", "SHOW app.tenant", "42",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			c := r.connect("")
			if strings.Contains(tc.setup, " RETURN become()") && !r.hasStandardBodies() {
				t.Skip("PostgreSQL 13 has no such functions")
			}
			exec(t, c, tc.setup)
			r.until(func() bool {
				_, _ = tryExec(c, "SELECT 1 + 1") // a use for it
				return proxy.KnowsSetter(r.proxy, "app", tc.reach)
			})
			exec(t, c, tc.call)
			r.change()
			if got, err := tryExec(c, tc.ask); got != tc.want {
				t.Errorf("%q %v, want %q", got, err, tc.want)
			}
		})
	}
}

// A name of a setting that the caller gives comes from a constant or from a parameter; one that is
// put together may be any, which is told. What is local costs no question.
func TestNamesThatCallersGive(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, `CREATE FUNCTION give(n text, v text) RETURNS text LANGUAGE sql AS
		'SELECT set_config(n, v, false)';
		CREATE FUNCTION via(v text) RETURNS text LANGUAGE sql AS $$SELECT give('app.via', v)$$;
		CREATE FUNCTION made(n text, v text) RETURNS text LANGUAGE sql AS
		$$SELECT set_config('app.' || n, v, false)$$`)
	r.until(func() bool {
		_, _ = tryExec(c, "SELECT 1 + 1")
		return proxy.KnowsSetter(r.proxy, "app", "via")
	})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	res := c.ExecParams(ctx, "SELECT give($1, $2)", [][]byte{[]byte("App.Bound"), []byte("1")},
		nil, nil, nil).Read()
	if res.Err != nil {
		t.Fatal(res.Err)
	}
	exec(t, c, "SELECT give('app.constant', '2')")
	exec(t, c, "SELECT via('3')")
	r.change()
	for name, want := range map[string]string{"bound": "1", "constant": "2", "via": "3"} {
		if got, err := tryExec(c, "SHOW app."+name); got != want {
			t.Errorf("%s: %q %v, want %q", name, got, err, want)
		}
	}
	exec(t, c, "SELECT made('put', '4')")
	r.change()
	if got, err := tryExec(c, "SHOW app.put"); code(err) != "57P01" {
		t.Errorf("%q %v, want to be told", got, err)
	}
}

// What a function sets is carried too if it is called before anybody has asked the database for
// its functions.
func TestSettingsOfFunctionsNobodyKnows(t *testing.T) {
	r := newRig(t, nil)
	r.server.ExecIn("app", `CREATE FUNCTION wm() RETURNS text LANGUAGE sql AS
		$$SELECT set_config('work_mem', '7MB', false)$$`)
	c := r.connect("")
	exec(t, c, "SELECT wm()")
	r.change()
	if got, err := tryExec(c, "SHOW work_mem"); got != "7MB" {
		t.Errorf("%q %v", got, err)
	}
}

// What a session calls before its functions are known is asked for when they are: custom settings
// too, by the SQL command EXECUTE, and in a transaction that ends meanwhile; functions that a
// transaction makes are known when it has committed, to sessions that are there already.
func TestSettingsOfFunctionsThatAreNew(t *testing.T) {
	r := newRig(t, nil)
	const become = `CREATE FUNCTION %s() RETURNS text LANGUAGE sql AS
		$$SELECT set_config('app.%[1]s', '42', false)$$`
	r.server.ExecIn("app", fmt.Sprintf(become, "first")+";"+fmt.Sprintf(become, "second"))
	c, prepares, there := r.connect(""), r.connect(""), r.connect("")
	exec(t, c, "BEGIN")
	exec(t, c, "SELECT first()")
	exec(t, c, "COMMIT")
	exec(t, prepares, "PREPARE p AS SELECT second()")
	exec(t, prepares, "EXECUTE p")
	r.until(func() bool { return proxy.KnowsSetter(r.proxy, "app", "second") })
	exec(t, c, "SELECT 1") // the next best statement
	exec(t, prepares, "SELECT 1")
	maker := r.connect("")
	exec(t, maker, "BEGIN")
	exec(t, maker, fmt.Sprintf(become, "third"))
	exec(t, maker, "SELECT third()")
	exec(t, maker, "COMMIT")
	r.until(func() bool { return proxy.KnowsSetter(r.proxy, "app", "third") })
	exec(t, maker, "SELECT 1")
	exec(t, there, "SELECT third()")
	r.change()
	for name, conn := range map[string]*pgconn.PgConn{
		"first": c, "second": prepares, "third": there, "third ": maker,
	} {
		if got, err := tryExec(conn, "SHOW app."+name); got != "42" {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
}

// A portal that may go on has called what it calls.
func TestSettingsOfSuspendedPortals(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, `CREATE FUNCTION wm() RETURNS text LANGUAGE sql AS
		$$SELECT set_config('work_mem', '7MB', false)$$`)
	r.until(func() bool {
		_, _ = tryExec(c, "SELECT 1 + length('')")
		return proxy.KnowsSetter(r.proxy, "app", "wm")
	})
	conn := hijack(t, c)
	b := pgwire.AppendParse(nil, "", "SELECT wm() FROM generate_series(1, 3)", nil)
	b = pgwire.AppendSync(pgwire.AppendExecute(pgwire.AppendBind(b, "", ""), "", 1))
	conn.send(b)
	conn.until(1, 20*time.Second)
	r.change()
	conn.send(pgwire.AppendQuery(nil, "SELECT 1/(current_setting('work_mem') = '7MB')::int"))
	if got := conn.until(1, 20*time.Second); !strings.Contains(got, "C(SELECT 1)") {
		t.Errorf("%q", got)
	}
}
