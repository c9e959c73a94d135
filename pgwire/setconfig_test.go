package pgwire_test

import (
	"testing"

	"holdfast/pgwire"
)

func TestParseSetConfig(t *testing.T) {
	for sql, want := range map[string]pgwire.SetConfigCalls{
		"SELECT set_config('a.b', 'c', false)": {
			Text: "SELECT pg_catalog.set_config('a.b', 'c', false)",
		},
		"select Pg_Catalog . SET_CONFIG ( 'a.b', 'it''s', FALSE ) AS x": {
			Text: "SELECT pg_catalog.set_config('a.b', 'it''s', false)",
		},
		"SELECT set_config('a', 'b', true) x, set_config('c', 'd', false), set_config('e', 'f', false)": {
			Text: "SELECT pg_catalog.set_config('c', 'd', false), " +
				"pg_catalog.set_config('e', 'f', false)",
		},
		"SELECT set_config('a', $1, true), set_config('role', $2, true)": {Local: true},
		"SELECT set_config('a', $1, false)":                              {},
		"SELECT set_config('a', 'b', true)":                              {Local: true},
	} {
		got := pgwire.ParseSetConfig([]byte(sql), true)
		if got == nil || *got != want {
			t.Errorf("%s: got %+v, want %+v", sql, got, want)
		}
	}
	for _, sql := range []string{
		"", "SELECT 1", "SELECT set_config('a', 'b', $3)", "SELECT set_config($1, 'b', false)",
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
			t.Errorf("%s: got %+v", sql, *got)
		}
	}
	if got := pgwire.ParseSetConfig([]byte(`SELECT set_config('a', 'b\', false)`), false); got != nil {
		t.Errorf("a backslash that escapes: %+v", *got)
	}
}
