package pgwire_test

import (
	"slices"
	"testing"

	"holdfast/pgwire"
)

// TestParseSetters: DESIGN.md of the proxy, I23.
func TestParseSetters(t *testing.T) {
	type s = pgwire.Setters
	for body, want := range map[string]s{
		"SELECT 1": {}, "": {}, "UPDATE t SET a = 1; UPDATE ONLY t AS x SET (a, b) = (1, 2)": {},
		"INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 1":       {},
		"BEGIN SET TRANSACTION READ ONLY; SET CONSTRAINTS ALL DEFERRED; END": {},
		"ALTER TABLE t SET (a = 1); ALTER ROLE x SET work_mem = 1":           {},
		"BEGIN SET work_mem = 1; END":                                        {Sets: true},
		"SET LOCAL work_mem = 1":                                             {Local: true},
		"BEGIN -- it\n SET /* x */ ROLE a; END":                              {Sets: true},
		"IF a THEN SET SESSION AUTHORIZATION b; ELSE RESET ALL; END IF":      {Sets: true},
		"<<a>> SET x = 1": {Sets: true},
		"BEGIN ATOMIC SELECT set_config('a.b', $1, true); END": {
			Names: []string{"a.b"}, Local: true,
		},
		"PERFORM set_config('work_mem', (SELECT f(1, true)), no)": {Sets: true},
		"PERFORM set_config('work_mem', x, is_local => true)":     {Local: true},
		"PERFORM set_config(n, v, false)": {
			Sets: true, Passes: true,
		},
		"PERFORM pg_catalog.\"set_config\"($1::text, $2, true)": {
			Local: true, Passes: true,
		},
		"PERFORM set_config(NEW.name, 'a', true)": {
			Local: true, Passes: true,
		},
		"PERFORM set_config('app.' || n, v, false)": {
			Sets: true, Computes: true,
		},
		"PERFORM set_config(f(n), v, true)": {
			Local: true, Computes: true,
		},
		"PERFORM set_config(E'a.b', v, true)": {
			Local: true, Computes: true,
		},
		"PERFORM set_config('a.b'": {
			Names: []string{"a.b"}, Sets: true, Computes: true,
		},
		"EXECUTE 'SET LOCAL a.b = ' || quote_literal(x)": {
			Names: []string{"a.b"}, Local: true,
		},
		"EXECUTE format('SET %I = %L', a, b)": {
			Sets: true, Computes: true,
		},
		"EXECUTE 'SET LOCAL app.' || a": {
			Local: true, Computes: true,
		},
		"EXECUTE $x$SET search_path = a$x$":                                 {Sets: true},
		"UPDATE pg_settings SET setting = '1' WHERE name = 'x'":             {Sets: true},
		"update only pg_catalog.pg_settings set setting = '1'":              {Sets: true},
		"SELECT set_config FROM t; SELECT 'reset', 'set'; a := pg_settings": {},
		"RAISE 'set up is done'; RAISE 'reset was asked for'; RAISE 'set'":  {},
		"EXECUTE 'RESET ' || a":                                             {Sets: true},
		"EXECUTE 'reset role'": {
			Sets: true,
		},
		"EXECUTE 'SET ' || a":              {Sets: true, Computes: true},
		"EXECUTE 'SET TIME ZONE 1'":        {Sets: true},
		"EXECUTE 'SET x TO 1'":             {Sets: true},
		"EXECUTE 'SET SESSION ROLE ' || a": {Sets: true},
	} {
		got := pgwire.ParseSetters([]byte(body), true)
		if !slices.Equal(got.Names, want.Names) {
			t.Errorf("%s: names %q, want %q", body, got.Names, want.Names)
		}
		got.Names, want.Names = nil, nil
		if got.Sets != want.Sets || got.Local != want.Local || got.Passes != want.Passes ||
			got.Computes != want.Computes {
			t.Errorf("%s: %+v, want %+v", body, got, want)
		}
	}
	names := pgwire.AppendNameConstants(nil,
		[]byte("f('App.x', 'y', a.b, $$c.d$$, 'a b.c', 'd.e')"), true, 1)
	if !slices.Equal(names, []string{"app.x"}) {
		t.Errorf("%q", names)
	}
}
