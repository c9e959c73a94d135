package proxy

import (
	"maps"
	"slices"

	"holdfast/pgwire"
)

// A unit of work that is run again begins with the session advisory locks of its start, and takes
// and gives back the others itself. Whether it will be run again is known only once its outcome
// was looked up; until then the session has those of the start and those of the end, so that
// nobody else gets one of either.

// locksToTake are the locks that a new backend is to have at first; false if they are not known.
// The caller holds s.mu.
func (s *session) locksToTake(l *loss) (map[lockKey]lockCount, bool) {
	held, ok := s.track.locks.end()
	if !l.redo.isPossible() {
		return held, ok
	}
	start, sure := l.redo.locks.surelyStart()
	if !ok {
		l.redo.locksVague = true // what the unit did to them is known once it was run again
		return start, sure
	}
	if held == nil {
		held = make(map[lockKey]lockCount)
	}
	for k, c := range start {
		if held[k].n < c.n {
			held[k] = c
		}
	}
	return held, sure
}

// rewindLocks leaves a backend that is not attached the locks of the start of what is run again.
func (s *session) rewindLocks(b *backend, l *loss) error {
	if l.redo.begun {
		return s.settleLocks(b, l)
	}
	return s.keepLocks(b, l.redo.locks.start())
}

// settleLocks leaves it those of the unit's end.
func (s *session) settleLocks(b *backend, l *loss) error {
	if !l.redo.isPossible() {
		return nil
	}
	end, _ := l.redo.locks.end()
	return s.keepLocks(b, end)
}

// keepLocks gives back what the session has beyond those locks.
func (s *session) keepLocks(b *backend, want map[lockKey]lockCount) error {
	s.mu.Lock()
	more := beyond(s.track.locks.start(), want)
	s.track.locks.retaken(maps.Clone(want))
	s.mu.Unlock()
	if len(more) == 0 {
		return nil
	}
	keys := slices.SortedFunc(maps.Keys(more), compareLocks)
	sql := callLocksSQL("pg_catalog.pg_advisory_unlock", keys, more)
	errs, _, err := b.exchange(pgwire.AppendQuery(nil, sql), 1, b.note)
	if err != nil || len(errs) > 0 {
		return errBackendLost // another backend has none of them yet
	}
	return nil
}

// isPossible tells that the unit may be run again, as far as its messages go.
func (r *redo) isPossible() bool { return r.messages != nil && !r.isOff && r.done == 0 }
