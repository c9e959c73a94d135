package proxy

import (
	"testing"

	"holdfast/pgwire"
)

// What may leave something that a reset does not undo is seen whatever way it is called.
func TestSoilsOtherWays(t *testing.T) {
	s, b, _, _ := relayRig(t)
	b.primary.Lease = far{}
	send := func(typ byte, body []byte) bool {
		s.soiled = false
		if _, err := s.inspect(typ, body, true, 0); err != nil {
			t.Fatal(err)
		}
		return s.soiled
	}
	for _, sql := range []string{
		"EXPLAIN ANALYZE EXECUTE p", "CREATE TEMP TABLE x AS EXECUTE p",
		"EXPLAIN (ANALYZE) CREATE TEMP TABLE x AS execute p",
	} {
		if !send(pgwire.CliQuery, []byte(sql+"\x00")) {
			t.Errorf("%s: what p does is not known", sql)
		}
	}
	for _, sql := range []string{"EXPLAIN SELECT 1", "CREATE TEMP TABLE x AS SELECT 1"} {
		if send(pgwire.CliQuery, []byte(sql+"\x00")) {
			t.Errorf("%s: it does nothing", sql)
		}
	}
	// set_config('app.tenant', 'one', false), which has oid 2077.
	if !send(pgwire.CliFunctionCall, []byte{0, 0, 8, 29}) {
		t.Error("a function that is called by its oid does nothing")
	}
}
