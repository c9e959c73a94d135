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
	functions wordSet // whose settings outlive the transaction
	locals    wordSet // whose settings do not
	givers    wordSet // of those above, whose callers give the name
	computers wordSet // of those above, that put the name together
	makers    wordSet // those that may make a temporary table or a cursor WITH HOLD
	settings  []string
	answering wordSet // (ruled.go)
	// isAll tells that there are too many: each statement that may call one counts as one.
	isAll bool
	at    time.Time
	took  time.Duration
}

// isEmpty tells that no statement has to be looked through.
func (s *setters) isEmpty() bool {
	return !s.isAll && s.functions.len()+s.locals.len()+s.makers.len() == 0
}

// settersAt is what is known of a database, which its sessions share. nil is nothing.
type settersAt struct {
	now    atomic.Pointer[setters]
	asking atomic.Bool
	stale  atomic.Bool // a function was made, or changed, by way of this proxy
	warned atomic.Bool // that the database refuses to tell
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
	s := at.now.Load()
	if p.ctx == nil || s != nil && !s.isDue(at.stale.Load(), time.Since(s.at)) {
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

// isDue tells that what is known is to be asked for again, age after it was.
func (s *setters) isDue(isStale bool, age time.Duration) bool {
	return age >= settersRest*s.took && (isStale || age >= settersTTL)
}

// runAskSetters asks a database for its functions that set settings.
func (p *Proxy) runAskSetters(pr *Primary, database string, at *settersAt) {
	defer p.work.Done()
	defer at.asking.Store(false)
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.DialTimeout)
	defer cancel()
	found, err := p.findSetters(ctx, pr, database)
	if err != nil {
		if isServerAway(err) {
			p.log.Debug("functions that set something could not be asked for", zap.Error(err))
			at.stale.Store(true) // who has this entry asks again
		} else if !at.warned.Swap(true) {
			p.log.Warn("a database does not tell its functions: each write in it costs a question"+
				" for what the session has set", zap.String("database", database), zap.Error(err))
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
