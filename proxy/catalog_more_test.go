package proxy_test

import (
	"context"
	"slices"
	"strconv"
	"testing"
	"time"

	"holdfast/proxy"
)

// TestOnlyReadsExtensions: what modules bring, by their labels and by our lists.
func TestOnlyReadsExtensions(t *testing.T) {
	r := newRig(t, nil)
	available := make(map[string]bool)
	for _, row := range r.server.Exec("SELECT name FROM pg_available_extensions") {
		available[row[0]] = true
	}
	for extension, sqls := range map[string]struct{ reads, writes []string }{
		"dblink": {
			[]string{"SELECT * FROM orders"},
			[]string{"SELECT * FROM dblink('dbname=app', 'SELECT writes()') AS x (a int)",
				"SELECT dblink_exec('dbname=app', 'DELETE FROM orders')"},
		},
		"tablefunc": {
			[]string{"SELECT normal_rand(1, 1, 1)"},
			[]string{"SELECT * FROM crosstab('SELECT 1, 2, writes()') AS x (a int, b int)"},
		},
		"pg_trgm":   {[]string{"SELECT status % 'x', similarity(status, 'y') FROM orders"}, nil},
		"citext":    {[]string{"SELECT 'A'::citext = 'a', status::citext FROM orders"}, nil},
		"uuid-ossp": {[]string{"SELECT uuid_generate_v4()"}, nil},
		"hstore":    {[]string{"SELECT 'a=>1'::hstore -> 'a'"}, nil},
		"postgres_fdw": {nil, []string{"SELECT * FROM far", "SELECT * FROM orders JOIN far USING (id)",
			"SELECT * FROM far_parent"}},
	} {
		if !available[extension] {
			t.Logf("%s is not available", extension)
			continue
		}
		r.server.ExecIn("app", `DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public;
DROP SCHEMA IF EXISTS other CASCADE;`+catalogSetup+`CREATE EXTENSION "`+extension+`" CASCADE`)
		if extension == "postgres_fdw" {
			r.server.ExecIn("app", `CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw;
CREATE FOREIGN TABLE far (id int) SERVER s;
CREATE TABLE far_parent (id int); CREATE FOREIGN TABLE far_child () INHERITS (far_parent) SERVER s`)
		}
		proxy.ForgetAnswers(r.proxy)
		for _, sql := range sqls.reads {
			if !onlyReads(t, r, sql) {
				t.Errorf("%s: %s only reads", extension, sql)
			}
		}
		for _, sql := range sqls.writes {
			if onlyReads(t, r, sql) {
				t.Errorf("%s: %s may write", extension, sql)
			}
		}
	}
}

// TestOnlyReadsUnwritten: names that casts, operator classes, ranges and declared parameter types
// bring in without being written.
func TestOnlyReadsUnwritten(t *testing.T) {
	r := newRig(t, nil)
	r.server.ExecIn("app", catalogSetup)
	const sql = "SELECT $1 FROM orders"
	oid := r.server.ExecIn("app", "SELECT 'logged'::regtype::oid, 'positive'::regtype::oid")[0]
	for i, want := range []bool{false, true} {
		n, _ := strconv.ParseUint(oid[i], 10, 32)
		pr, _ := r.topo.Current()
		got, err := proxy.OnlyReads(t.Context(), r.proxy, pr, "app",
			proxy.CatalogStatement{Text: sql, Conforming: true, Types: []uint32{uint32(n)}})
		if err != nil || got != want {
			t.Errorf("parameter %d: %v, %v", i, got, err)
		}
	}
	if !onlyReads(t, r, "SELECT * FROM orders") {
		t.Fatal("it only reads")
	}
	// A user's = counts for every statement that may compare: IN has none written.
	r.server.ExecIn("app", `CREATE FUNCTION eq(mood, int) RETURNS boolean LANGUAGE plpgsql AS
 'BEGIN INSERT INTO log VALUES (1); RETURN true; END';
CREATE OPERATOR = (LEFTARG = mood, RIGHTARG = int, FUNCTION = eq)`)
	proxy.ForgetAnswers(r.proxy)
	if onlyReads(t, r, "SELECT * FROM moods WHERE m IN (1)") {
		t.Error("an operator that is not written may write")
	}
	r.server.ExecIn("app", `DROP OPERATOR = (mood, int);
CREATE FUNCTION to_int(pair) RETURNS int LANGUAGE plpgsql AS
 'BEGIN INSERT INTO log VALUES (1); RETURN 1; END';
CREATE CAST (pair AS int) WITH FUNCTION to_int(pair) AS IMPLICIT`)
	proxy.ForgetAnswers(r.proxy)
	if onlyReads(t, r, "SELECT p + 1 FROM moods") {
		t.Error("a cast may write")
	}
}

// TestOnlyReadsWithoutAnAnswer: what cannot be asked may write; who cannot be asked now is asked
// again.
func TestOnlyReadsWithoutAnAnswer(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.CatalogDatabasesMax = 2 })
	r.server.Exec("CREATE DATABASE closed")
	r.server.Exec("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
	pr, _ := r.topo.Current()
	sql := proxy.CatalogStatement{Text: "SELECT now()", Conforming: true}
	for database, want := range map[string]bool{"app": true, "postgres": true, "template1": true,
		"closed": false, "no such": false, "": false} {
		got, err := proxy.OnlyReads(t.Context(), r.proxy, pr, database, sql)
		if err != nil || got != want {
			t.Errorf("%q: %v, %v", database, got, err)
		}
		if n := proxy.CatalogConnections(r.proxy); n > 2 {
			t.Errorf("%d databases", n)
		}
	}
	proxy.DropIdle(r.proxy)
	if n := proxy.CatalogConnections(r.proxy); n != 0 {
		t.Errorf("%d databases are idle and kept", n)
	}
	r.server.Kill()
	proxy.ForgetAnswers(r.proxy)
	if got, err := proxy.OnlyReads(t.Context(), r.proxy, pr, "app", sql); err == nil || got {
		t.Errorf("with no server: %v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := proxy.OnlyReads(ctx, r.proxy, pr, "app", sql); err == nil || got {
		t.Errorf("with no time: %v, %v", got, err)
	}
}

// TestOnlyReadsHostileNames: what a database's users name things, and what the database sets,
// changes neither the question nor the answer.
func TestOnlyReadsHostileNames(t *testing.T) {
	r := newRig(t, nil)
	r.server.ExecIn("app", catalogSetup+`
CREATE FUNCTION public.length(text) RETURNS int LANGUAGE sql AS 'SELECT 0';
CREATE FUNCTION public.eq(oid, int) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE OPERATOR public.>= (LEFTARG = oid, RIGHTARG = int, FUNCTION = public.eq);
CREATE TABLE public.pg_proc (oid oid);
ALTER ROLE holdfast_lookup SET search_path = public, pg_catalog;
ALTER DATABASE app SET standard_conforming_strings = off;
CREATE FUNCTION public."x'y\z"() RETURNS int LANGUAGE sql AS 'DELETE FROM log RETURNING 1'`)
	for sql, want := range map[string]bool{
		`SELECT "x'y\z"()`: false, `SELECT "x'y\\z", "'); DROP"`: true, "SELECT writes()": false,
		"SELECT abs(id) FROM orders": true, "SELECT * FROM v_writes": false,
	} {
		if got := onlyReads(t, r, sql); got != want {
			t.Errorf("%s: %v", sql, got)
		}
	}
}

// TestSettingNamesOfADatabase: I18.
func TestSettingNamesOfADatabase(t *testing.T) {
	r := newRig(t, nil)
	want := []string{"a.c", "app.atomic", "app.dyn", "app.locale", "app.tenant", "app.x"}
	atomic := `
CREATE FUNCTION atomic(x text) RETURNS text LANGUAGE sql
 BEGIN ATOMIC SELECT set_config('app.atomic', x, false); END;`
	if !r.hasStandardBodies() {
		want, atomic = slices.Delete(want, 1, 2), ""
	}
	r.server.ExecIn("app", catalogSetup+`
CREATE FUNCTION tenant(x text) RETURNS void LANGUAGE plpgsql AS
 $$BEGIN PERFORM set_config('app.tenant', x, false); SET LOCAL app.locale TO 'de'; END$$;
CREATE FUNCTION dynamic(x text) RETURNS void LANGUAGE plpgsql AS
 $$BEGIN EXECUTE format('SET app.dyn = %L', x); UPDATE orders SET status = 1; END$$;`+atomic)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	pr, _ := r.topo.Current()
	got, err := proxy.SettingNames(ctx, r.proxy, pr, "app")
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}
