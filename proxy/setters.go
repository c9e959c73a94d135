package proxy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	// settersTTL is how long what is known of a database's functions stands before it is asked
	// for again, at the next login.
	settersTTL = time.Minute
	// settersRest is how many times as long as the question took nobody asks it again.
	settersRest = 20
	// settersMax bounds the databases that it is kept of.
	settersMax = 1000
)

// setters are the functions of a database that set something, whatever leads to one of them (other
// functions, tables with triggers, views ...), the names of custom settings that they set, which no
// view lists, and the relations whose rules answer writes with rows. The value is not changed once
// it is published.
type setters struct {
	// names are those of functions and relations. Their bits are what they lead to (reaches), what
	// they lead to in a text that writes (the same, writeShift higher), and the two below. The words
	// of a write are among them.
	names     nameBits
	reaches   reaches // of all of them
	settings  []string
	answering int // how many relations answer (ruled.go)
	// isAll tells that there are too many: each statement that may call one counts as one.
	isAll bool
	at    time.Time
}

const (
	writeShift         = 8
	nameWrites  uint32 = 1 << 16 // a word without one of which a text writes to no relation itself
	nameAnswers uint32 = 1 << 17 // a relation whose rules answer writes
)

// newSetters is what is known of a database without functions that set anything.
func newSetters() *setters {
	s := &setters{at: time.Now()}
	for _, word := range []string{"insert", "update", "delete", "merge", "copy", "truncate",
		"execute", "into", "refresh", "alter"} {
		s.names.add([]byte(word), nameWrites)
	}
	return s
}

// add takes what a function or a relation leads to when it is used, and when it is written to.
func (s *setters) add(name []byte, use, write reaches) {
	s.names.add(name, uint32(use)|uint32(write)<<writeShift)
	s.reaches |= use | write
}

// isEmpty tells that no statement has to be looked through.
func (s *setters) isEmpty() bool { return s.reaches == 0 }

// leadsTo is what a text, in lower case, leads to.
func (s *setters) leadsTo(lower []byte) reaches {
	bits := s.names.in(lower)
	to := reaches(bits)
	if bits&nameWrites != 0 {
		to |= reaches(bits >> writeShift)
	}
	return to
}

// settersAt is what is known of a database, which its sessions share. nil is nothing.
type settersAt struct {
	now    atomic.Pointer[setters]
	asking atomic.Bool
	stale  atomic.Bool  // a function was made, or changed, by way of this proxy
	warned atomic.Bool  // that the database refuses to tell
	rest   atomic.Int64 // until when it is not asked again, by CLOCK_BOOTTIME
}

// setterBook keeps them by database. They are asked for in the background, by the look-up role,
// when a session first has a use for them. Safe for concurrent use.
type setterBook struct {
	mu    sync.Mutex
	known map[string]*settersAt
}

// of is the entry of a database; nil if there are too many already.
func (b *setterBook) of(database string) *settersAt {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := b.known[database]
	if at == nil && len(b.known) < settersMax {
		if b.known == nil {
			b.known = make(map[string]*settersAt)
		}
		at = &settersAt{}
		b.known[database] = at
	}
	return at
}

// settersOf is what is known of a database; what is old is asked for anew meanwhile. It does not
// wait: while nothing is known, statements that may call a function count as ones that set.
func (p *Proxy) settersOf(database string) *settersAt {
	at := p.setters.of(database)
	if at == nil {
		return nil
	}
	if p.ctx == nil || !at.isDue(time.Now()) || bootNow() < at.rest.Load() {
		return at
	}
	pr, _ := p.topo.Current()
	if pr == nil || at.asking.Swap(true) {
		return at
	}
	at.stale.Store(false)
	p.work.Add(1)
	go p.runAskSetters(pr, database, at)
	return at
}

// isDue tells that what is known is old, or may be wrong. nil is always due.
func (at *settersAt) isDue(now time.Time) bool {
	if at == nil {
		return true
	}
	s := at.now.Load()
	return s == nil || at.stale.Load() || now.Sub(s.at) >= settersTTL
}

// restAfter is how long a database is not asked again that took so long to answer, or refuses.
func restAfter(took time.Duration, refused bool) time.Duration {
	if refused {
		return max(settersTTL, settersRest*took)
	}
	return settersRest * took
}

// runAskSetters asks a database for its functions that set settings.
func (p *Proxy) runAskSetters(pr *Primary, database string, at *settersAt) {
	defer p.work.Done()
	defer at.asking.Store(false)
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.DialTimeout)
	defer cancel()
	begun := time.Now()
	found, err := p.findSetters(ctx, pr, database)
	refused := err != nil && !isServerAway(err)
	at.rest.Store(bootNow() + restAfter(time.Since(begun), refused).Nanoseconds())
	if err != nil {
		at.stale.Store(true)
		if !refused {
			p.log.Debug("functions that set something could not be asked for", zap.Error(err))
		} else if !at.warned.Swap(true) {
			p.log.Warn("a database does not tell its functions: each write in it costs a question"+
				" for what the session has set, and custom settings of functions are not carried",
				zap.String("database", database), zap.Error(err))
		}
		return
	}
	at.now.Store(found)
}

// known is what the database has answered; nil before that.
func (at *settersAt) known() *setters {
	if at == nil {
		return nil
	}
	return at.now.Load()
}
