package proxy

import (
	"maps"
	"math/rand/v2"
	"testing"

	"holdfast/pgwire"
)

// lockModel is a server's own table of a session's locks, and what the proxy sees of its changes.
type lockModel struct {
	r     *rand.Rand
	real  map[lockKey]int
	table lockTable
}

// call is one successful call; hidden tells that its key is not read from the text.
func (m *lockModel) call(op pgwire.AdvisoryOp, k lockKey, hidden bool) {
	if op == pgwire.AdvisoryUnlock {
		if m.real[k] == 0 {
			return // it says false, which changes nothing
		}
		if m.real[k]--; m.real[k] == 0 {
			delete(m.real, k)
		}
	} else {
		m.real[k]++
	}
	m.table.note(lockCall{op: op, key: k, known: !hidden})
}

func (m *lockModel) safePoint() {
	now := make(map[lockKey]struct{})
	for k := range m.real {
		now[k] = struct{}{}
	}
	m.table.verify(now)
}

// TestLockCounts: whatever calls there were, a count is either right or known to be unsure; and it
// is right whenever all keys were read.
func TestLockCounts(t *testing.T) {
	keys := []lockKey{
		{Obj: 1, Sub: 1}, {Obj: 2, Sub: 1}, {Obj: 1, Sub: 1, Shared: true}, {Class: 1, Obj: 2, Sub: 2},
	}
	exact, unsure := 0, 0
	for seed := range 20000 {
		r := rand.New(rand.NewPCG(uint64(seed), 7))
		m := lockModel{r: r, real: map[lockKey]int{}, table: lockTable{cfg: locking(1000)}}
		hides := r.IntN(3) // never, sometimes, always
		for range r.IntN(8) {
			for range r.IntN(4) {
				op := pgwire.AdvisoryLock
				if r.IntN(2) == 0 {
					op = pgwire.AdvisoryUnlock
				}
				m.call(op, keys[r.IntN(len(keys))], hides == 2 || hides == 1 && r.IntN(2) == 0)
			}
			m.checkEnd(t, seed)
			m.safePoint()
			for k, c := range m.table.held {
				if c.unsure {
					unsure++
				} else if exact++; c.n != m.real[k] {
					t.Fatalf("seed %d: %s is held %d times, taken for %d", seed, lockName(k),
						m.real[k], c.n)
				}
				if c.unsure && hides == 0 {
					t.Fatalf("seed %d: %s is unsure although all keys were read", seed, lockName(k))
				}
			}
			if len(m.table.held) != len(m.real) {
				t.Fatalf("seed %d: held %v, want %v", seed, m.table.held, m.real)
			}
		}
	}
	t.Logf("%d counts exact, %d unsure", exact, unsure)
	if exact < unsure {
		t.Error("most counts are unsure")
	}
}

// checkEnd: what is known without the server is right.
func (m *lockModel) checkEnd(t *testing.T, seed int) {
	t.Helper()
	end, ok := m.table.end()
	if !ok {
		return
	}
	got := make(map[lockKey]int)
	for k, c := range end {
		got[k] = c.n
	}
	if !maps.Equal(got, m.real) {
		t.Fatalf("seed %d: end %v, want %v", seed, got, m.real)
	}
}

// What is not followed makes counts unsure, and only of what is still there.
func TestLocksOutOfSight(t *testing.T) {
	k, other := lockKey{Obj: 1, Sub: 1}, lockKey{Obj: 2, Sub: 1}
	now := map[lockKey]struct{}{k: {}}
	tab := lockTable{cfg: locking(3)}
	tab.vague = true
	if tab.reason() == 0 {
		t.Error("an open unit that may have taken locks is carried")
	}
	tab.verify(now)
	if tab.reason() == 0 || !tab.held[k].unsure {
		t.Error("taken out of sight, and the count is sure")
	}
	tab.cfg.AdvisoryLocks = LocksAssume
	if tab.reason() != 0 {
		t.Error("assume: the session is told")
	}
	tab.cfg.AdvisoryLocks = LocksRestore
	tab.verify(nil)
	if tab.reason() != 0 || tab.mayHold() {
		t.Error("gone, and not forgotten")
	}
	tab.verify(map[lockKey]struct{}{other: {}})
	if !tab.held[other].unsure {
		t.Error("a lock that no call explains is sure")
	}
	tab.verify(nil)
	tab.note(lockCall{op: pgwire.AdvisoryLock, key: k, known: true})
	tab.verify(now)
	if tab.start()[k] != (lockCount{n: 1}) {
		t.Errorf("taken once, held %v", tab.start())
	}
	tab.note(lockCall{op: pgwire.AdvisoryLock, key: k, known: true, maybe: true})
	tab.verify(now)
	if !tab.held[k].unsure {
		t.Error("a canceled call that may have taken it once more is sure")
	}
	tab.verify(nil)
	for range 4 {
		tab.note(lockCall{op: pgwire.AdvisoryLock, key: k, known: true})
	}
	tab.verify(now)
	if tab.reason() == 0 {
		t.Error("more locks than are kept are carried")
	}
	tab.cfg.AdvisoryLocks = LocksEnd
	tab.verify(map[lockKey]struct{}{})
	if tab.reason() != 0 {
		t.Error("end: a session without locks is told")
	}
	for range lockCallsMax + 1 {
		tab.note(lockCall{op: pgwire.AdvisoryLock, key: k, known: true})
	}
	if len(tab.calls) > lockCallsMax || tab.reason() == 0 {
		t.Error("more calls than are followed")
	}
}

// locking is a configuration with that room for locks.
func locking(most int) *Config {
	cfg := DefaultConfig()
	cfg.AdvisoryLocksMax = most
	return &cfg
}

// TestLocksToTakeOfNone: the session has no lock any more, and the unit that is run again began
// with one.
func TestLocksToTakeOfNone(t *testing.T) {
	k := lockKey{Class: 1, Obj: 2}
	s := &session{track: newTracker("app", locking(3))}
	l := &loss{redo: redo{messages: []byte("Q"), locks: lockTable{
		cfg: locking(3), held: map[lockKey]lockCount{k: {n: 1}},
	}}}
	if !l.redo.isPossible() {
		t.Fatal("nothing is run again")
	}
	if held, ok := s.locksToTake(l); !ok || held[k].n != 1 {
		t.Errorf("%v, %v", held, ok)
	}
}
