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

// TestWhatLeadsIsNotInFlight: a backend is lost that has had a Close, or a Parse, of ours alone,
// which goes in front of a message of the client that was not sent yet. Nothing of the client is in
// flight then, whether that was answered or not: it is sent to the next backend (DESIGN.md I35).
func TestWhatLeadsIsNotInFlight(t *testing.T) {
	parse := pgwire.AppendParse(nil, "", "SELECT 1", nil)
	for name, tc := range map[string]struct {
		answers string
		sent    []byte // of the client, behind what leads
		before  []byte // in the same batch
		want    int
	}{
		"Close alone":           {"", nil, nil, 0},
		"its answer has come":   {"3", nil, nil, 0},
		"a message behind it":   {"", parse, nil, 1},
		"both answered":         {"31", parse, nil, 1},
		"a message ahead of it": {"1", nil, parse, 1},
		"the batch has ended":   {"3", pgwire.AppendSync(nil), nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := inspectRig('I')
			s.proxy.cfg.ReplayAttemptsMax = 0 // what is in flight is told 40001
			if tc.before != nil {
				s.ask(t, tc.before)
			}
			s.push(op{kind: opClose, internal: true, unnamed: true, leads: true})
			if tc.sent != nil {
				s.ask(t, tc.sent)
			}
			feed(t, &s.flow, tc.answers)
			if got := s.judgeAll('I'); len(got) != tc.want {
				t.Errorf("%d batches are in flight, want %d", len(got), tc.want)
			}
		})
	}
	s := inspectRig('I')
	before := s.flow
	s.push(op{kind: opClose, internal: true, unnamed: true, leads: true})
	s.flow.unpush(1, before)
	s.ask(t, parse)
	if got := s.judgeAll('I'); len(got) != 1 {
		t.Errorf("%d batches are in flight behind a Close that was not sent", len(got))
	}
}
