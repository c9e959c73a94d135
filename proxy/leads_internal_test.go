package proxy

import (
	"testing"

	"holdfast/pgwire"
)

// TestUnitBeginsWithWhatLeads: a unit of work ends while only a message of ours is under way, which
// goes in front of the client's next one. That one begins the next unit: the unit before, an INSERT
// that has failed, must not be run again with it (DESIGN.md I42).
func TestUnitBeginsWithWhatLeads(t *testing.T) {
	s, b, _, _ := relayRig(t)
	s.beginUnit()
	insert := pgwire.AppendQuery(nil, "INSERT INTO t VALUES (1)")
	s.unit.keep(insert, 0, 1<<20)
	s.push(op{kind: opSync, commits: true, start: s.unit.end()})
	s.flow.stale = true
	s.push(op{kind: opClose, internal: true, unnamed: true, leads: true, start: s.unit.end()})
	if s.flow.stale {
		t.Error("it is to be closed once more")
	}
	b.in.begin(pgwire.AppendReadyForQuery(nil, 'I'))
	if _, err := b.consume(s); err != nil {
		t.Fatal(err)
	}
	next := pgwire.AppendParse(nil, "", "SELECT 1", nil)
	s.unit.keep(next, s.unit.base, 1<<20)
	if got := s.unit.since(int(s.unitFrom.Load())); string(got) != string(next) {
		t.Errorf("the unit begins with %q", got)
	}
}
