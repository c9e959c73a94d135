package proxy

import (
	"sync"

	"holdfast/pgwire"
)

// work is what a session needs only while it is at work. One that waits at a safe point has none.
// The owner uses it.
type work struct {
	scratch []pgwire.Statement
	unit    unit
	out     []byte
	portal  parsed // the unnamed one
	portals map[string]parsed
	guarded parsed // what the message does that waits in guard

	missing string // the statement that the message at the head of the inbox needs, and that is away
	asking  asking
	ours    []byte // what there was no room for of messages of our own
	ahead   []byte // a question that goes behind what is sent next

	// Of an internal query, guarded by the session's mu.
	rows    [][3]string
	rowsCut bool          // there were more
	inner   *pgwire.Error // its error
	state   stateAsked
}

var works = sync.Pool{New: func() any { return &work{portal: opaque} }}

// workBytesMax is what a buffer may have to be kept for other sessions.
const workBytesMax = 4 << 10

// equip gives the session what it works with. The caller holds s.mu and is the owner.
func (s *session) equip() {
	if s.work == nil {
		s.work = works.Get().(*work)
	}
}

// rest gives back what a session at a safe point does not need. The caller holds s.mu and is the
// owner.
func (s *session) rest() {
	s.flow.rest()
	w := s.work
	if w == nil {
		return
	}
	s.settleUnnamed()
	s.unitFrom.Store(0) // offsets of this journal
	s.work = nil
	s.proxy.journaled(-w.unit.rest())
	clear(w.scratch)
	spare := unnamedStatement{body: w.unit.before.body[:0]}
	*w = work{scratch: w.scratch[:0], out: w.out[:0], portal: opaque, unit: unit{before: spare}}
	if cap(w.out) > workBytesMax {
		w.out = nil
	}
	if cap(spare.body) > workBytesMax {
		w.unit.before.body = nil
	}
	if cap(w.scratch) > 16 {
		w.scratch = nil
	}
	works.Put(w)
}
