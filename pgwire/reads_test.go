package pgwire_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"holdfast/pgwire"
)

// describeNeeds prints what a statement refers to.
func describeNeeds(n *pgwire.Needs) string {
	names := func(of []pgwire.Name) string {
		var out []string
		for _, n := range of {
			out = append(out, strings.TrimPrefix(n.Schema+"."+n.Name, "."))
		}
		return strings.Join(out, " ")
	}
	return fmt.Sprintf("%s|%s|%s", names(n.Functions), names(n.Objects),
		strings.Join(n.Operators, " "))
}

// TestNeeds: I17. What PostgreSQL's parser says of thousands of statements is in oracletest.
func TestNeeds(t *testing.T) {
	for sql, want := range map[string]string{
		"SELECT 1":                                   "||",
		"SELECT f(a), S.G() FROM T":                  "f s.g|f a s s.g t|",
		`SELECT "F"(1), pg_catalog.now()`:            "F pg_catalog.now|F pg_catalog pg_catalog.now|",
		"SELECT t.f, (x).g.h FROM s.t":               "f g h t|t t.f x g.h s s.t|",
		"SELECT a::s.ty, date 'x'":                   "ty|a s s.ty date|",
		"SELECT a*-b, a@-b, a!=b, a OPERATOR(s.+) b": "operator|a b operator s|* - @- <> +",
		"SELECT 1 FROM t WHERE a IN (1)":             "|t a|",
		"TABLE t":                                    "|t|",
	} {
		n, ok := pgwire.ReadOnlyIf(pgwire.Needs{}, []byte(sql), true)
		if got := describeNeeds(&n); !ok || got != want {
			t.Errorf("%s\n%v %s, want %s", sql, ok, got, want)
		}
	}
}

// TestNeedsAccumulate: names of several statements are listed once.
func TestNeedsAccumulate(t *testing.T) {
	var n pgwire.Needs
	for _, sql := range []string{"SELECT f(a) FROM t", "SELECT f(b) FROM t;", ";TABLE t;;"} {
		var ok bool
		if n, ok = pgwire.ReadOnlyIf(n, []byte(sql), true); !ok {
			t.Error(sql)
		}
	}
	if got := describeNeeds(&n); got != "f|f a t b|" {
		t.Error(got)
	}
}

// TestReadOnlyIfRefuses what no catalogue can make harmless (I16).
func TestReadOnlyIfRefuses(t *testing.T) {
	for _, sql := range []string{
		"INSERT INTO t VALUES (1)", "SELECT 1 INTO t", "SELECT 1; SELECT 2", "EXECUTE p",
		"WITH x AS (DELETE FROM t) SELECT 1", "LISTEN a", "NOTIFY a", "CALL p()", "DO ''",
		"WITH RECURSIVE x AS (SELECT 1 AS key) SEARCH DEPTH FIRST BY key SET key UPDATE t SET a = 1",
		"DECLARE c CURSOR WITH HOLD FOR SELECT 1", `EXPLAIN ("analyze") DELETE FROM t`,
		"COPY t TO PROGRAM 'x'", "COPY t TO '/x'", "COPY t FROM STDIN", "COPY t TO STDIN",
		"SELECT pg_temp.f()", "SELECT * FROM pg_temp_3.t", `SELECT U&"f"()`, "SELECT é()",
		"SELECT TREAT(1 AS nextval)", "SELECT 0x1f", "SELECT 1a", "SELECT \\gset", "SELECT {",
		"SELECT 'no end", "SELECT (1", "PREPARE TRANSACTION 'x'", "VACUUM",
		"SET CONSTRAINTS ALL IMMEDIATE",
		"SELECT a.b.c.d.e.f.g.h.i", "SELECT " + strings.Repeat("f1(", 10) + manyNames(),
	} {
		if _, ok := pgwire.ReadOnlyIf(pgwire.Needs{}, []byte(sql), true); ok {
			t.Errorf("%q may write", sql)
		}
	}
	for _, sql := range []string{"", ";", "SELECT 'é' -- é", "SELECT $1.f", "COMMIT", "LOCK t",
		"FETCH 1 FROM c", "PREPARE p AS DELETE FROM t", "SHOW a", "SELECT 1 FOR UPDATE"} {
		if _, ok := pgwire.ReadOnlyIf(pgwire.Needs{}, []byte(sql), true); !ok {
			t.Errorf("%q only reads", sql)
		}
	}
}

func manyNames() string {
	var b strings.Builder
	for i := range 600 {
		fmt.Fprintf(&b, "n%d, ", i)
	}
	return b.String()
}

// TestReadOnlyIfBothSettings of standard_conforming_strings: what a constant hides in the one is a
// call in the other.
func TestReadOnlyIfBothSettings(t *testing.T) {
	sql := []byte(`SELECT 'a\', f(1), ''`)
	on, ok := pgwire.ReadOnlyIf(pgwire.Needs{}, sql, true)
	if !ok || len(on.Functions) != 1 {
		t.Errorf("on: %v %+v", ok, on)
	}
	sql = []byte(`SELECT 'a\', f(1), '`)
	off, ok := pgwire.ReadOnlyIf(pgwire.Needs{}, sql, false)
	if !ok || len(off.Functions) != 0 {
		t.Errorf("off: %v %+v", ok, off)
	}
}

func TestReadOnlyIfDoesNotAllocate(t *testing.T) {
	n := pgwire.Needs{Functions: make([]pgwire.Name, 0, 8), Objects: make([]pgwire.Name, 0, 8)}
	sql := []byte("SELECT (1), 'x', ($1), (NULL)")
	if a := testing.AllocsPerRun(100, func() {
		_, _ = pgwire.ReadOnlyIf(n, sql, true)
	}); a > 0 {
		t.Errorf("%v allocations", a)
	}
}

// TestReadOnlyIfIsLinear: hostile texts of a megabyte take no longer than others. Nothing is
// measured: what grows with the square of the length takes hours, and the time-out of the tests
// tells it.
func TestReadOnlyIfIsLinear(t *testing.T) {
	for _, part := range []string{"a", "a.", "f(", "+-", "'f(", "$a$", "a b ", "\"", "/*", "(x).f "} {
		sql := append([]byte("SELECT "), bytes.Repeat([]byte(part), 1<<20/len(part))...)
		_, _ = pgwire.ReadOnlyIf(pgwire.Needs{}, sql, true)
		_, _ = pgwire.NamesIn(pgwire.Needs{}, sql, true)
		_ = pgwire.AppendSettingNames(nil, sql, true)
	}
}

// TestNamesIn: names of a body, whatever its statements are.
func TestNamesIn(t *testing.T) {
	n, ok := pgwire.NamesIn(pgwire.Needs{}, []byte(
		"BEGIN PERFORM f(1); x := s.g(a); RETURN QUERY SELECT * FROM t; END"), true)
	if got := describeNeeds(&n); !ok || !strings.HasPrefix(got, "f s.g|") {
		t.Error(ok, got)
	}
	for _, body := range []string{"BEGIN EXECUTE 'x'; END", "BEGIN OPEN c FOR EXECUTE x; END", "'"} {
		if _, ok := pgwire.NamesIn(pgwire.Needs{}, []byte(body), true); ok {
			t.Errorf("%s may run anything", body)
		}
	}
}

// TestSettingNames: DESIGN.md of the proxy, I23.
func TestSettingNames(t *testing.T) {
	for text, want := range map[string][]string{
		"BEGIN SET app.tenant = 5; SET LOCAL b.c TO 'x'; END":       {"app.tenant", "b.c"},
		"PERFORM set_config('App.Tenant', x, true)":                 {"app.tenant"},
		"SELECT pg_catalog . set_config ( 'a.b' , 'c', false)":      {"a.b"},
		"EXECUTE 'SET app.x = ' || quote_literal(y)":                {"app.x"},
		"EXECUTE format($f$SET SESSION a.b.c = %L$f$, x)":           {"a.b.c"},
		`SET "A"."b" = 1; SET session.user_id = 1`:                  {"a.b", "session.user_id"},
		"SET work_mem = 1; UPDATE t SET a = 1; -- SET x.y = 1":      nil,
		"PERFORM set_config('app.' || x, y, true); SET a. = 1":      nil,
		"SET a.b = 1; SET a.b = 2; SET a . /* x */ c = 3":           {"a.b", "a.c"},
		"set_config('bad name.x', 1, true), set_config('.a', 1, 1)": nil,
	} {
		if got := pgwire.AppendSettingNames(nil, []byte(text), true); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// FuzzReads: the readers of names are total, and do not depend on a comment behind.
func FuzzReads(f *testing.F) {
	for _, s := range []string{"SELECT f(t.a)::b, (x).y + 1 FROM s.t FOR UPDATE",
		"EXPLAIN (A) (SELECT 1)",
		"COPY (SELECT 1) TO STDOUT", "SET a.b = 1", "DO $$SELECT 'dblink('''$$", "a@-/*", "U&\"x\"("} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, sql []byte, conforming bool) {
		n, ok := pgwire.ReadOnlyIf(pgwire.Needs{}, sql, conforming)
		if names, all := pgwire.NamesIn(pgwire.Needs{}, sql, conforming); ok && all {
			for _, f := range n.Functions {
				if !slices.Contains(names.Functions, f) {
					t.Errorf("%q: NamesIn lacks %v", sql, f)
				}
			}
		}
		_ = pgwire.ParseSetters(sql, conforming, nil)
		_ = pgwire.AppendNameConstants(nil, sql, conforming, 9)
		if !ok {
			return
		}
		longer := append(bytes.Clone(sql), "\n-- f("...)
		m, ok := pgwire.ReadOnlyIf(pgwire.Needs{}, longer, conforming)
		if !ok || describeNeeds(&m) != describeNeeds(&n) {
			t.Errorf("%q: with a comment %v %s", sql, ok, describeNeeds(&m))
		}
	})
}
