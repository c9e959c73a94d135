package pgwire_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"holdfast/pgwire"
)

// TestParseSetters: DESIGN.md of the proxy, I23. The arguments are n and V.
func TestParseSetters(t *testing.T) {
	for body, want := range map[string]string{
		"SELECT 1": "", "": "", "UPDATE t SET a = 1; UPDATE ONLY t AS x SET (a, b) = (1, 2)": "",
		"INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 1":       "",
		"BEGIN SET TRANSACTION READ ONLY; SET CONSTRAINTS ALL DEFERRED; END": "",
		"ALTER TABLE t SET (a = 1); ALTER ROLE x SET work_mem = 1":           "",
		"BEGIN SET work_mem = 1; END":                                        "sets",
		"SET LOCAL work_mem = 1":                                             "local",
		"BEGIN -- it\n SET /* x */ ROLE a; END":                              "sets",
		"IF a THEN SET SESSION AUTHORIZATION b; ELSE RESET ALL; END IF":      "sets",
		"<<a>> SET x = 1": "sets",
		"BEGIN ATOMIC SELECT set_config('a.b', $1, true); END":                "local a.b",
		"PERFORM set_config('work_mem', (SELECT f(1, true)), no)":             "sets",
		"PERFORM set_config('work_mem', x, is_local => true)":                 "local",
		"PERFORM set_config('work_mem', x, NOT true)":                         "sets",
		"PERFORM set_config('work_mem', x, a OR true)":                        "sets",
		"PERFORM set_config(n, v, false)":                                     "sets passes",
		"PERFORM pg_catalog.\"set_config\"($1::text, $2, true)":               "local passes",
		"PERFORM set_config(NEW.name, 'a', true)":                             "local computes",
		"PERFORM set_config('app.' || n, v, false)":                           "sets computes",
		"PERFORM set_config(f(n), v, true)":                                   "local computes",
		"PERFORM set_config(E'a.b', v, true)":                                 "local computes",
		"PERFORM set_config('a.b'":                                            "sets computes a.b",
		"DECLARE k text := 'a.k'; BEGIN PERFORM set_config(k, v, false); END": "sets a.k",
		"DECLARE k text := f(); BEGIN PERFORM set_config(k, v, false); END":   "sets computes",
		"EXECUTE 'SET LOCAL a.b = ' || quote_literal(x)":                      "local a.b",
		"EXECUTE format('SET %I = %L', a, b)":                                 "sets computes",
		"EXECUTE 'SET LOCAL app.' || a":                                       "local computes",
		"EXECUTE $x$SET search_path = a$x$":                                   "sets",
		"EXECUTE 'SELECT set_config(''a.b'', ''1'', false)'":                  "sets a.b",
		"UPDATE pg_settings SET setting = '1' WHERE name = 'x'":               "sets",
		"update only pg_catalog.pg_settings set setting = '1'":                "sets",
		"SELECT set_config FROM t; SELECT 'reset', 'set'; a := pg_settings":   "",
		"RAISE 'set up is done'; RAISE 'reset was asked for'; RAISE 'set'":    "",
		"EXECUTE 'UPDATE ' || t || ' SET ' || c; EXECUTE a || ' SET a = 1'":   "",
		"EXECUTE 'RESET ' || a":                                               "sets",
		"EXECUTE 'reset role'":                                                "sets",
		"EXECUTE 'RESET ALL;'":                                                "sets",
		"EXECUTE 'RESET app.x'":                                               "sets",
		"EXECUTE format('RESET %I', a)":                                       "sets",
		"EXECUTE 'RESET TIME ZONE'":                                           "sets",
		"EXECUTE 'SET ' || a":                                                 "sets computes",
		"EXECUTE 'SET TIME ZONE 1'":                                           "sets",
		"EXECUTE 'SET x TO 1'":                                                "sets",
		"EXECUTE 'SET SESSION ROLE ' || a":                                    "sets",
		"EXECUTE format('SET SCHEMA %L', a)":                                  "sets",
		"EXECUTE 'SET NAMES ''x'''":                                           "sets",
		"EXECUTE 'SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY'":      "sets",
	} {
		s := pgwire.ParseSetters([]byte(body), true, []string{"n", "v"})
		got := ""
		for _, f := range []struct {
			is   bool
			name string
		}{
			{s.Sets, "sets"}, {s.Local, "local"}, {s.Passes, "passes"}, {s.Computes, "computes"},
		} {
			if f.is {
				got += " " + f.name
			}
		}
		for _, name := range s.Names {
			got += " " + name
		}
		if want != "" {
			want = " " + want
		}
		if got != want {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
	// It takes no longer for what opens and does not end.
	_ = pgwire.ParseSetters(bytes.Repeat([]byte("set_config("), 100000), true, nil)
}

// TestParseGiven: what a text gives to a function that passes it on.
func TestParseGiven(t *testing.T) {
	isGiver := func(name string) bool { return name == "give" || name == "Quoted" }
	for text, want := range map[string]string{
		"SELECT 1": "[]", "SELECT give('App.X', 'y')": "[app.x]",
		"SELECT give('app.x', 'a.b'), other('c.d')": "[app.x a.b]",
		"SELECT give($1, $2)":                       "[] params",
		"SELECT s.give ( name => 'a.b' , v => $1)":  "[a.b]",
		"SELECT give(name, 'x')":                    "[] other",
		"SELECT give('app.' || x, 'y')":             "[] other",
		"SELECT give($1, 'acme'), 'acme.example'":   "[] params",
		"SELECT give('a.b'::text, 1)":               "[a.b]",
		"SELECT give((SELECT 'a.b'), 1)":            "[] other",
		"DO 'BEGIN PERFORM give(''a.b'', 1); END'":  "[] other",
		"SELECT give('a.b', 1), give(x, 1)":         "[a.b] other", "SELECT give": "[] other",
		"SELECT give('a.b'": "[] other",
	} {
		g := pgwire.ParseGiven([]byte(text), true, []string{"arg"}, isGiver)
		got := fmt.Sprint(g.Names)
		if g.Params {
			got += " params"
		}
		if g.Other {
			got += " other"
		}
		if got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	_ = pgwire.ParseGiven(bytes.Repeat([]byte("give("), 100000), true, nil, isGiver)
	names := pgwire.AppendNameConstants(nil,
		[]byte("f('App.x', 'y', a.b, $$c.d$$, 'a b.c', 'd.e')"), true, 1)
	if !slices.Equal(names, []string{"app.x"}) {
		t.Errorf("%q", names)
	}
}
