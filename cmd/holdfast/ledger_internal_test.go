package main

import (
	"fmt"
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

// TestLedgerKinds: each write is counted with those of its kind, by what its client was told.
func TestLedgerKinds(t *testing.T) {
	var l Ledger
	l.SettleCode(l.BeginKind("b"), OutcomeAcknowledged, "", "")
	l.SettleCode(l.BeginKind("b"), OutcomeAcknowledged, "", "") // is lost
	l.SettleCode(l.BeginKind("b"), OutcomeRefused, "40001", "")
	l.SettleCode(l.BeginKind("b"), OutcomeRefused, "40001", "") // is there
	l.SettleCode(l.BeginKind("b"), OutcomeInDoubt, "08007", "") // is there
	l.SettleCode(l.BeginKind("b"), OutcomeInDoubt, "connection lost", "")
	l.SettleCode(l.BeginRowless("a"), OutcomeAcknowledged, "", "")
	l.BeginRowless("a")
	l.Settle(l.Begin(), OutcomeAcknowledged, "")
	got := l.Check(1, 10, []LedgerRow{{1, 1}, {4, 1}, {5, 1}, {9, 1}})
	want := []LedgerKind{
		{Kind: "a", Acknowledged: 1, InDoubt: 1, RefusedBy: map[string]int64{},
			DoubtBy: map[string]int64{"pending": 1}},
		{Kind: "b", Acknowledged: 2, Refused: 2, InDoubt: 2, InDoubtThere: 1, Wrong: 2,
			RefusedBy: map[string]int64{"40001": 2},
			DoubtBy:   map[string]int64{"08007": 1, "connection lost": 1}},
	}
	if !reflect.DeepEqual(got.Kinds, want) {
		t.Errorf("kinds =\n%+v, want\n%+v", got.Kinds, want)
	}
	if got.Lost != 1 || got.Ghosts != 1 || got.Acknowledged != 4 {
		t.Errorf("the sum: %+v", got)
	}
}

// TestLedgerNamesAreBounded: a name too many is counted with others and breaks nothing.
func TestLedgerNamesAreBounded(t *testing.T) {
	var l Ledger
	for i := range 1000 {
		l.SettleCode(l.BeginKind("kind"), OutcomeRefused, fmt.Sprint(i), "")
	}
	k := l.Check(1, 1001, nil).Kinds[0]
	var sum int64
	for _, n := range k.RefusedBy {
		sum += n
	}
	if sum != 1000 || k.RefusedBy["others"] < 700 || k.RefusedBy["7"] != 1 {
		t.Errorf("%d in %d names, others %d", sum, len(k.RefusedBy), k.RefusedBy["others"])
	}
}

// TestLedgerRangesAddUp: what is checked piece by piece is what is checked at once.
func TestLedgerRangesAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l Ledger
		n := rapid.Int64Range(1, 40).Draw(t, "writes")
		var rows []LedgerRow
		for range n {
			id := l.BeginKind(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "kind"))
			o := Outcome(rapid.IntRange(1, 3).Draw(t, "outcome"))
			l.SettleCode(id, o, rapid.SampledFrom([]string{"x", "y"}).Draw(t, "code"), "")
			if there := rapid.Int64Range(0, 2).Draw(t, "there"); there > 0 {
				rows = append(rows, LedgerRow{id, there})
			}
		}
		at := rapid.Int64Range(1, n+1).Draw(t, "cut")
		part := func(from, to int64) LedgerReport {
			var some []LedgerRow
			for _, r := range rows {
				if r.ID >= from && r.ID < to {
					some = append(some, r)
				}
			}
			return l.Check(from, to, some)
		}
		var sum LedgerReport
		sum.Add(part(1, at))
		sum.Add(part(at, n+1))
		if whole := part(1, n+1); !reflect.DeepEqual(sum, whole) {
			t.Fatalf("parts give\n%+v, the whole\n%+v", sum, whole)
		}
	})
}
