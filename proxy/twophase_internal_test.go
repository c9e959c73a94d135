package proxy

import (
	"math/rand/v2"
	"testing"

	"holdfast/pgwire"
)

// TestOutcomeOf: what a status of a transaction says about the statement that was to end it.
func TestOutcomeOf(t *testing.T) {
	const commit, prepare = clsCommit, clsCommit | clsPrepares
	const second, undo = clsEnds | clsCommitPrepared, clsEnds | clsRollbackPrepared
	for _, tc := range []struct {
		status     string
		isPrepared bool
		cls        class
		want       outcome
		known      bool
	}{
		{"committed", false, commit, outcomeCommitted, true},
		{"committed", false, 0, outcomeCommitted, true},
		{"committed", false, prepare, outcomeCommitted, true}, // somebody has ended it already
		{"committed", false, second, outcomeCommitted, true},
		{"committed", false, undo, outcomeAborted, true},
		{"aborted", false, commit, outcomeAborted, true},
		{"aborted", false, 0, outcomeAborted, true},
		{"aborted", false, prepare, outcomeAborted, true},
		{"aborted", false, second, outcomeAborted, true},
		{"aborted", false, undo, outcomeCommitted, true},
		{"in progress", true, prepare, outcomeCommitted, true},
		{"in progress", true, second, outcomeAborted, true},
		{"in progress", true, undo, outcomeAborted, true},
		{"in progress", false, commit, outcomeUnknown, false},
		{"in progress", false, prepare, outcomeUnknown, false},
		{"in progress", false, second, outcomeUnknown, false},
		{"in progress", false, undo, outcomeUnknown, false},
		{"", false, second, outcomeUnknown, true}, // nothing is known of it any more
	} {
		if got, known := outcomeOf(tc.status, tc.isPrepared, tc.cls); got != tc.want ||
			known != tc.known {
			t.Errorf("%+v: %v, known %v", tc, got, known)
		}
	}
}

// TestWidenXID: an id gets its epoch back from any other one that is in use, across the wraparound.
func TestWidenXID(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 100000 {
		other := 1<<32 + r.Uint64N(1<<40)
		want := other + r.Uint64N(1<<31-1) - r.Uint64N(1<<31-1)
		if d := int64(want - other); d >= 1<<31 || d <= -1<<31 {
			continue
		}
		if got := widenXID(uint32(want), other); got != want {
			t.Fatalf("%d beside %d: %d", want, other, got)
		}
	}
	if got := widenXID(105, 101); got != 105 { // the newest of those under way is the prepared one
		t.Error(got)
	}
}

// TestGuardedGID: only what surely is the identifier is asked for.
func TestGuardedGID(t *testing.T) {
	for sql, want := range map[string]string{
		"COMMIT PREPARED 'one'":                     "one",
		"rollback prepared 'a b.c-1_/=' ;":          "a b.c-1_/=",
		"COMMIT PREPARED 'it''s'":                   "",
		`COMMIT PREPARED E'a\x41'`:                  "",
		`COMMIT PREPARED 'a\b'`:                     "",
		"COMMIT PREPARED $$one$$":                   "",
		"COMMIT PREPARED $x$one$x$":                 "",
		"COMMIT PREPARED U&'d\\0061t'":              "",
		"COMMIT PREPARED 'gr\u00fcn'":               "",
		"COMMIT PREPARED ''":                        "",
		"COMMIT PREPARED 'one'; SELECT 1":           "",
		"COMMIT PREPARED 'one' -- 'two'":            "one",
		"COMMIT PREPARED 'one'\n'two'":              "onetwo",
		"COMMIT":                                    "",
		"PREPARE TRANSACTION 'one'":                 "",
		"SELECT 'one'":                              "",
		"COMMIT PREPARED '" + longText(200) + "'":   "",
		"ROLLBACK PREPARED '" + longText(199) + "'": longText(199),
	} {
		var scratch []pgwire.Statement
		s := &session{work: &work{guarded: classify(&scratch, []byte(sql), true)}}
		if s.guarded.cls.has(clsMulti) {
			s.guarded.effects = nil // it is not guarded
		}
		if got, ok := s.guardedGID(); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", sql, got, ok)
		}
	}
}

func longText(n int) string {
	out := make([]byte, n)
	for i := range out {
		out[i] = 'x'
	}
	return string(out)
}

// TestIsLostStatus: what a new primary says of a transaction that a client was told of.
func TestIsLostStatus(t *testing.T) {
	for _, tc := range []struct {
		status         string
		prepared, lost bool
	}{
		{"committed", false, false}, {"committed", true, false}, {"", false, false},
		{"aborted", false, true}, {"aborted", true, false}, {"future", false, true},
		{"future", true, true}, {"in progress", true, false},
		{"in progress", false, true}, // its COMMIT PREPARED has not arrived
	} {
		if got := isLostStatus(tc.status, tc.prepared); got != tc.lost {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}
