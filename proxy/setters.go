package proxy

import (
	"bytes"
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
	// settersMax bounds the databases that it is kept of.
	settersMax = 64
)

// setters are the functions of a database that set custom settings, which no view lists, the names
// of those, and the relations whose rules answer writes with rows. The value is not changed once it
// is published.
type setters struct {
	functions [][]byte // in lower case
	makers    [][]byte // those that may make a temporary table or a cursor WITH HOLD
	settings  []string
	answering [][]byte // in lower case (ruled.go)
	at        time.Time
}

// settersAt is what is known of a database, which its sessions share. nil is nothing.
type settersAt struct {
	now    atomic.Pointer[setters]
	asking atomic.Bool
	stale  atomic.Bool // a function was made, or changed, by way of this proxy
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
// wait: what a first statement sets may go unnoticed, and is asked for with the next snapshot.
func (p *Proxy) settersOf(database string) *settersAt {
	at := p.setters.of(database)
	if at == nil {
		return nil
	}
	s := at.now.Load()
	if s != nil && time.Since(s.at) < settersTTL && !at.stale.Load() || p.ctx == nil {
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

// runAskSetters asks a database for its functions that set settings.
func (p *Proxy) runAskSetters(pr *Primary, database string, at *settersAt) {
	defer p.work.Done()
	defer at.asking.Store(false)
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.DialTimeout)
	defer cancel()
	found, err := p.findSetters(ctx, pr, database)
	if err != nil {
		p.log.Debug("functions that set settings could not be asked for", zap.Error(err))
		if isServerAway(err) {
			at.stale.Store(true) // who has this entry asks again; a refusal stands until then
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

// calledIn tells that a text names one of the setters, and notes in e what they set, and what the
// functions that it names may make. One that is called by another function, or by a trigger, is not
// seen; what that sets is asked for with the next snapshot all the same.
func (at *settersAt) calledIn(sql string, e *effect) bool {
	known := at.known()
	if known == nil || len(known.makers)+len(known.functions) == 0 {
		return false
	}
	lower := lowered([]byte(sql))
	e.makes = names(lower, known.makers)
	if !names(lower, known.functions) {
		return false
	}
	e.names = known.settings
	return true
}

// lowered is a text in lower case as the server makes names of it: bytes beyond ASCII stay, and so
// does the place of each.
func lowered(sql []byte) []byte {
	out := make([]byte, len(sql))
	for i, c := range sql {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		out[i] = c
	}
	return out
}

// names tells that a text, in lower case, has one of the names in it, as a whole word.
func names(sql []byte, of [][]byte) bool {
	for _, name := range of {
		for at := 0; len(name) > 0; at++ {
			i := bytes.Index(sql[at:], name)
			if i < 0 {
				break
			}
			at += i
			if !joinsWord(sql, at-1) && !isWord(sql, at+len(name)) {
				return true
			}
		}
	}
	return false
}

// isWord tells that there is a character of a word.
func isWord(sql []byte, at int) bool {
	if at < 0 || at >= len(sql) {
		return false
	}
	c := sql[at]
	return c == '_' || c >= 0x80 || c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
}

// joinsWord tells that there is one which belongs to what follows: not that of an escape, as in
// E'\nf()'.
func joinsWord(sql []byte, at int) bool {
	return isWord(sql, at) && (at == 0 || sql[at-1] != '\\')
}

// mentionsRoutine tells that a text has the word FUNCTION, PROCEDURE, ROUTINE or RULE, or one for
// what may depend on them.
func mentionsRoutine(sql []byte) bool {
	sql = bytes.ToLower(sql)
	for _, word := range []string{"function", "procedure", "routine", "rule", "view"} {
		if bytes.Contains(sql, []byte(word)) {
			return true
		}
	}
	return false
}
