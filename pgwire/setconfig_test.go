package pgwire_test

import (
	"testing"

	"holdfast/pgwire"
)

// bound are the parameters of a statement in these tests; the third one is not known.
func bound(param int) (string, bool) {
	return map[int]string{1: "'one'", 2: "'two'"}[param], param < 3
}

func TestParseSetConfig(t *testing.T) {
	type want struct {
		local bool
		again string // without a value for parameters
		bound string // with them
	}
	set := "SELECT pg_catalog.set_config("
	for sql, want := range map[string]want{
		"SELECT set_config('a.b', 'c', false)": {
			again: set + "'a.b', 'c', false)", bound: set + "'a.b', 'c', false)",
		},
		"select Pg_Catalog . SET_CONFIG ( 'a.b', 'it''s'::text, FALSE ) AS x": {
			again: set + "'a.b', 'it''s', false)", bound: set + "'a.b', 'it''s', false)",
		},
		"SELECT set_config('a', 'b', true) x, set_config('c', 'd', false), set_config('e', 'f', false)": {
			again: set + "'c', 'd', false), pg_catalog.set_config('e', 'f', false)",
			bound: set + "'c', 'd', false), pg_catalog.set_config('e', 'f', false)",
		},
		"SELECT set_config('a', $1, true), set_config('role', $2, true)": {local: true},
		"SELECT set_config('a', $1, false)": {
			bound: set + "'a', 'one', false)",
		},
		"SELECT set_config($2, $1::text, false)": {
			bound: set + "'two', 'one', false)",
		},
		"SELECT set_config($2, 'x', false), set_config('y', $3, true)": {
			bound: set + "'two', 'x', false)",
		},
		"SELECT set_config('a', $3, false)": {},
		"SELECT set_config($3, 'x', false)": {},
		"SELECT set_config('a', 'b', true)": {local: true},
	} {
		calls := pgwire.ParseSetConfig([]byte(sql), true)
		if calls == nil {
			t.Errorf("%s: %+v", sql, calls)
			continue
		}
		again, ok := calls.Again(nil)
		if again != want.again || ok != (want.again != "" || want.local) {
			t.Errorf("%s: again %q, %v", sql, again, ok)
		}
		again, ok = calls.Again(bound)
		if again != want.bound || ok != (want.bound != "" || want.local) {
			t.Errorf("%s: bound %q, %v", sql, again, ok)
		}
	}
	for _, sql := range []string{
		"", "SELECT 1", "SELECT set_config('a', 'b', $3)", "SELECT set_config('a', $1::int, false)",
		"SELECT set_config('a', $0, false)", "SELECT set_config('a', $1:text, false)",
		"SELECT set_config('a' || 'b', 'c', false)", "SELECT set_config('a', 'b' || 'c', false)",
		"SELECT set_config('a', x, false) FROM t", "SELECT set_config('a', 'b', false) FROM t",
		"SELECT set_config('a', 'b', false) WHERE false", "SELECT set_config('a', f(), true)",
		"SELECT set_config('a', 'b', false), f()", "SELECT set_config(E'a', 'b', false)",
		"SELECT mine.set_config('a', 'b', false)", "SELECT set_config('a', NULL, false)",
		"SELECT set_config('a', 'b', false) || f()", "SELECT set_config('a', 'b', false",
		"SELECT set_config('a', 'b', false) INTO x", "SELECT set_config('a', 'b', false) x FROM t",
		"SELECT set_config('a', 5, false)", "SELECT set_config('a', 'b', false) LIMIT 0",
	} {
		if got := pgwire.ParseSetConfig([]byte(sql), true); got != nil {
			t.Errorf("%s: got %+v", sql, got)
		}
	}
	if got := pgwire.ParseSetConfig([]byte(`SELECT set_config('a', 'b\', false)`), false); got != nil {
		t.Errorf("a backslash that escapes: %+v", got)
	}
}

func TestParseBindParam(t *testing.T) {
	msg := "p\x00s\x00" + "\x00\x01\x00\x01" + "\x00\x03" + "\x00\x00\x00\x00" +
		"\xff\xff\xff\xff" + "\x00\x00\x00\x02ab"
	for param, want := range map[int]string{1: "", 2: "NULL", 3: "ab", 4: "none", 0: "none"} {
		v, format, ok := pgwire.ParseBindParam([]byte(msg), param)
		got := string(v)
		switch {
		case !ok:
			got = "none"
		case v == nil:
			got = "NULL"
		}
		if got != want || ok && format != 1 {
			t.Errorf("$%d: %s in format %d, want %s", param, got, format, want)
		}
	}
}
