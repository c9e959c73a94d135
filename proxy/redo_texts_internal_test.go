package proxy

import (
	"testing"

	"holdfast/pgwire"
)

// TestTextsFollowAllOfAString: a string gives names other texts behind what has to be asked about,
// too.
func TestTextsFollowAllOfAString(t *testing.T) {
	r := redo{names: map[string]*prepared{"s": {sql: "SELECT 1", conf: true}}}
	use := pgwire.AppendExecute(pgwire.AppendBind(nil, "", "s"), "", 0)
	for sql, isKnown := range map[string]bool{
		"SELECT f()": true,
		"DEALLOCATE s; PREPARE s AS INSERT INTO t VALUES (1)":             false,
		"SELECT f(); DEALLOCATE s; PREPARE s AS INSERT INTO t VALUES (1)": false,
		"SELECT f(); DEALLOCATE ALL":                                      false,
	} {
		got, ok := r.textsOf(append(pgwire.AppendQuery(nil, sql), use...), true, true, r.canGoOn)
		if ok != isKnown {
			t.Errorf("%s: %v, known %t", sql, got, ok)
		}
	}
}
