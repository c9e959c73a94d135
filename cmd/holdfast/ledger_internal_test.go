package main

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

func TestLedgerCheck(t *testing.T) {
	var l Ledger
	settle := func(o Outcome) int64 {
		id := l.Begin()
		if o != OutcomePending {
			l.Settle(id, o, "why")
		}
		return id
	}
	acked, lost := settle(OutcomeAcknowledged), settle(OutcomeAcknowledged)
	refused, ghost := settle(OutcomeRefused), settle(OutcomeRefused)
	doubtThere, doubtGone := settle(OutcomeInDoubt), settle(OutcomeInDoubt)
	doubled, pending := settle(OutcomeAcknowledged), settle(OutcomePending)
	_, _, _ = lost, refused, doubtGone
	rows := []LedgerRow{{acked, 1}, {ghost, 1}, {doubtThere, 1}, {doubled, 2}, {pending, 1},
		{99, 1}}
	got := l.Check(1, 100, rows)
	want := LedgerReport{Acknowledged: 3, Refused: 2, InDoubt: 2, Pending: 1, Lost: 1,
		Doubled: 1, Ghosts: 1, Foreign: 1, InDoubtThere: 2}
	if len(got.Examples) != 4 {
		t.Errorf("examples: %q", got.Examples)
	}
	got.Examples = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Check =\n%+v, want\n%+v", got, want)
	}
	if got.Wrong() != 4 {
		t.Errorf("Wrong = %d, want 4", got.Wrong())
	}
	if got := l.SettledBelow(0); got != pending {
		t.Errorf("SettledBelow = %d, want %d", got, pending)
	}
	l.Settle(pending, OutcomeInDoubt, "")
	if got := l.SettledBelow(3); got != pending+1 {
		t.Errorf("SettledBelow = %d, want %d", got, pending+1)
	}
}

func TestLedgerRefusesASecondOutcome(t *testing.T) {
	var l Ledger
	id := l.Begin()
	l.Settle(id, OutcomeRefused, "")
	defer func() {
		if recover() == nil {
			t.Error("a write was settled twice")
		}
	}()
	l.Settle(id, OutcomeAcknowledged, "")
}

// TestLedgerFindsEveryBrokenPromise changes a database that keeps all promises in one place and
// expects exactly that to be found; without a change nothing may be.
func TestLedgerFindsEveryBrokenPromise(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l Ledger
		outcomes := rapid.SliceOfN(rapid.IntRange(1, 3), 1, 40).Draw(t, "outcomes")
		there := map[int64]int64{}
		for _, o := range outcomes {
			id := l.Begin()
			l.Settle(id, Outcome(o), "")
			if Outcome(o) == OutcomeAcknowledged ||
				Outcome(o) == OutcomeInDoubt && rapid.Bool().Draw(t, "there") {
				there[id] = 1
			}
		}
		check := func() LedgerReport {
			var rows []LedgerRow
			for id, n := range there {
				if n > 0 {
					rows = append(rows, LedgerRow{id, n})
				}
			}
			return l.Check(1, int64(len(outcomes))+1, rows)
		}
		if r := check(); r.Wrong() != 0 {
			t.Fatalf("a right database is called wrong: %+v", r)
		}
		id := int64(rapid.IntRange(1, len(outcomes)).Draw(t, "changed"))
		switch Outcome(outcomes[id-1]) {
		case OutcomeAcknowledged:
			there[id] = int64(rapid.SampledFrom([]int{0, 2}).Draw(t, "count"))
		case OutcomeRefused:
			there[id] = 1
		case OutcomeInDoubt:
			there[id] = 2
		case OutcomePending:
		}
		if r := check(); r.Wrong() != 1 {
			t.Fatalf("one broken promise counts %d: %+v", r.Wrong(), r)
		}
	})
}
