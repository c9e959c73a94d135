package pgwire_test

import (
	"testing"

	"holdfast/pgwire"
)

func TestHasParameter(t *testing.T) {
	for sql, want := range map[string]bool{
		"INSERT INTO t VALUES ($1)": true, "SELECT 1+$22": true, "$1": true, "": false,
		"INSERT INTO t VALUES ('$1')": false, "SELECT a$1 FROM t": false, `SELECT "$1"`: false,
		"SELECT $$ $1 $$": false, "SELECT 1 -- $1": false, "SELECT /* $1 */ 1": false,
		"SELECT $x$ $1 $x$, $1": true, "SELECT '": false, "SELECT E'\\'$1', $2": true,
	} {
		if got := pgwire.HasParameter([]byte(sql), true); got != want {
			t.Errorf("%s: %v", sql, got)
		}
	}
	// Which it is depends on how a backslash is read.
	const text = `SELECT '\', $1, '`
	if !pgwire.HasParameter([]byte(text), true) || pgwire.HasParameter([]byte(text), false) {
		t.Error("standard_conforming_strings makes no difference")
	}
}
