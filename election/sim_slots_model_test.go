package election_test

import (
	"strings"
	"testing"

	"holdfast/election"
)

// simWAL is a WAL of so many entries on timeline 1, then so many on 2, and so on.
func simWAL(counts ...int) []uint64 {
	var out []uint64
	for i, count := range counts {
		for range count {
			out = append(out, uint64(i+1)<<32|uint64(len(out)))
		}
	}
	return out
}

// TestSlotsModel looks what the simulation excuses: WAL that a standby needs may be gone only if
// the slot was made, or moved, when it was gone already.
func TestSlotsModel(t *testing.T) {
	const removed = "pg3 has removed WAL that pg2 needs, in spite of its slot"
	// In each, pg3 was rewound to 210 entries of which pg2 has 180, and pg2 to 190 of pg1 since.
	for _, c := range []struct {
		name    string
		pg1     []uint64 // the history that pg2 goes back to
		pg2     []uint64 // what it has then got of pg3
		changes func(pg3 *simSlots)
		want    string
	}{
		{"made too late for one with a longer WAL of another history", simWAL(180, 0, 99),
			simWAL(180, 0, 10), nil, ""},
		{"has got to where the slot begins", simWAL(180, 0, 99), simWAL(180, 0, 30), nil, ""},
		{"has got there, and what follows is removed", simWAL(180, 0, 99), simWAL(180, 0, 35),
			func(s *simSlots) { s.oldest = 216 }, removed},
		{"goes back in the same history, and the slot was moved too far", simWAL(180, 0, 99),
			simWAL(180, 0, 32), func(s *simSlots) {
				s.at["pg2"], s.late["pg2"], s.oldest = 215, false, 215
			}, removed},
		{"goes back in another history", simWAL(180, 0, 32, 0, 10), simWAL(180, 0, 32),
			func(s *simSlots) { s.at["pg2"], s.late["pg2"], s.oldest = 215, false, 215 }, ""},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			w := newSimWorld(1, bugNone)
			pg1, pg2, pg3 := w.nodes["pg1"], w.nodes["pg2"], w.nodes["pg3"]
			pg1.pg.wal, pg2.pg.wal, pg3.pg.wal = c.pg1, simWAL(180, 70), simWAL(180, 0, 30)
			pg3.resetSlotsLocked(100)
			pg3.ensureSlotsLocked()
			pg3.pg.phase = election.PhasePrimary
			w.state.Lock = &election.Lock{Holder: "pg3"}
			pg3.pg.wal = append(pg3.pg.wal, simWAL(180, 0, 90)[210:]...)
			pg3.checkpointLocked(true)
			if pg3.pg.slots.oldest != 210 {
				t.Fatalf("WAL is kept from %d on", pg3.pg.slots.oldest)
			}
			if c.changes != nil {
				c.changes(&pg3.pg.slots)
			}
			pg2.pg.wal = commonPrefix(c.pg2, pg1.pg.wal)
			pg2.wentBackLocked(pg1)
			pg2.pg.wal, pg2.pg.phase, pg2.pg.upstream = c.pg2, election.PhaseStandby, "pg3"
			pg3.catchUpLocked()
			w.checkSlotsLocked(pg3)
			if got := strings.Join(w.violations, "; "); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
