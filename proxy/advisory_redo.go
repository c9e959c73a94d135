package proxy

import (
	"slices"

	"holdfast/pgwire"
)

// rewindLocks makes the session's advisory locks on a backend that is not attached those of the
// start of the unit of work, which is run again and takes the others itself: they are taken at
// first, lest another session takes them before, and given back here.
func (s *session) rewindLocks(b *backend, l *loss) error {
	s.mu.Lock()
	start := l.redo.locks.start()
	more := beyond(s.track.locks.start(), start)
	s.track.locks.retaken(start)
	s.mu.Unlock()
	if len(more) == 0 {
		return nil
	}
	var keys []lockKey
	for k := range more {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareLocks)
	sql := callLocksSQL("pg_catalog.pg_advisory_unlock", keys, more)
	if _, _, err := b.exchange(pgwire.AppendQuery(nil, sql), 1, b.note); err != nil {
		return errBackendLost
	}
	return nil
}

// isPossible tells that the unit may be run again, as far as its messages go.
func (r *redo) isPossible() bool { return r.messages != nil && !r.isOff && r.done == 0 }
