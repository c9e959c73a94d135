package proxy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"holdfast/pgwire"
)

// statement is one statement string of a lost unit of work, as the client sent it.
type statement struct {
	text       string
	conforming bool     // standard_conforming_strings when it was read
	types      []uint32 // the parameter types that its Parse declared; 0 declares none
}

const (
	// catalogRounds bounds how deep views, policies, domains and functions are looked into: each
	// round asks, with one query, for what the texts of the round before refer to.
	catalogRounds = 8
	// catalogNamesMax bounds the names of all rounds together.
	catalogNamesMax = 1024
	// catalogRowsMax bounds the answer to a round; more than this is not looked through.
	catalogRowsMax = 4096
	// answerTTL is how long an answer stands for other sessions that lost the same statements.
	answerTTL = 2 * time.Second
	// answersMax bounds the answers that are kept.
	answersMax = 1024
)

// catalogues asks the catalogues of databases what statements may do (DESIGN.md I20). It has a
// connection of the look-up role to each of a bounded number of databases, made when something is
// asked and closed when nothing is for a while. Safe for concurrent use; questions about the same
// database wait for one another.
type catalogues struct {
	proxy *Proxy
	turns *semaphore.Weighted // as many as connections: one of those not in use can be closed

	mu      sync.Mutex
	at      map[string]*catalogue
	answers map[answerKey]catalogAnswer
}

// catalogue is that of one database.
type catalogue struct {
	lookup *lookup
	turn   chan struct{} // capacity 1: held by whoever asks
	users  int           // guarded by catalogues.mu, as the next one
	used   time.Time
}

type answerKey [sha256.Size]byte

type catalogAnswer struct {
	onlyReads bool
	at        time.Time
}

func newCatalogues(p *Proxy) *catalogues {
	return &catalogues{
		proxy: p, turns: semaphore.NewWeighted(int64(p.cfg.CatalogDatabasesMax)),
		at: make(map[string]*catalogue), answers: make(map[answerKey]catalogAnswer),
	}
}

// onlyReads tells whether all those statements, run in that database, surely wrote nothing that
// running them again would write again. It asks the primary's catalogue, which must be that of the
// very database that the statements ran in, or of one that it was replicated to: what is not there
// was lost with whatever it did. The session must have had no temporary objects. An error means
// that the primary could not be asked now; ask again. What cannot be asked at all may write.
func (p *Proxy) onlyReads(ctx context.Context, pr *Primary, database string, sqls []statement,
) (bool, error) {
	want := catalogWant{namesSettings: true}
	for i := range sqls {
		if !namedSettings(sqls[i].text, sqls[i].conforming) {
			want.namesSettings = false
		}
		if !want.statements(sqls[i].text, sqls[i].conforming) {
			return false, nil
		}
		for _, t := range sqls[i].types {
			want.addType(t)
		}
	}
	if want.isEmpty() {
		return true, nil
	}
	if database == "" {
		return false, nil
	}
	ok, err := p.askCatalogue(ctx, pr, database, keyOf(pr, database, sqls), want)
	if err == nil {
		return ok, nil
	}
	if isServerAway(err) {
		return false, fmt.Errorf("ask the catalogue: %w", err)
	}
	// The role may not connect there, or the server has refused the question: for good.
	p.log.Debug("the catalogue does not answer", zap.Error(err))
	return false, nil
}

// askCatalogue asks, and counts the answers.
func (p *Proxy) askCatalogue(ctx context.Context, pr *Primary, database string, key answerKey,
	want catalogWant,
) (bool, error) {
	ok, err := p.catalogues.ask(ctx, pr, database, key, want)
	label := "may_write"
	switch {
	case err != nil:
		label = "error"
	case ok:
		label = "only_reads"
	}
	p.metrics.catalogAnswers.WithLabelValues(label).Inc()
	return ok, err
}

// keyOf names a question for those who ask the same.
func keyOf(pr *Primary, database string, sqls []statement) answerKey {
	h := sha256.New()
	var n [8]byte
	number := func(v uint64) {
		binary.BigEndian.PutUint64(n[:], v)
		h.Write(n[:])
	}
	text := func(s string) {
		number(uint64(len(s)))
		h.Write([]byte(s))
	}
	number(pr.Epoch)
	text(database)
	for i := range sqls {
		text(sqls[i].text)
		if sqls[i].conforming {
			number(1)
		} else {
			number(0)
		}
		number(uint64(len(sqls[i].types)))
		for _, t := range sqls[i].types {
			number(uint64(t))
		}
	}
	return answerKey(h.Sum(nil))
}

// ask answers from what was answered a moment ago, or asks.
func (c *catalogues) ask(ctx context.Context, pr *Primary, database string, key answerKey,
	want catalogWant,
) (bool, error) {
	if v, ok := c.answer(key); ok {
		return v, nil
	}
	v := false
	err := c.with(ctx, pr, database, func(query catalogQuery) (err error) {
		var ok bool
		if v, ok = c.answer(key); ok { // of whoever asked before
			return nil
		}
		if v, err = decideCatalogue(want, query); err == nil {
			c.keep(key, v)
		}
		return err
	})
	return v, err
}

// query asks one question of a database.
func (c *catalogues) query(ctx context.Context, pr *Primary, database, sql string,
) (rows [][][]byte, err error) {
	err = c.with(ctx, pr, database, func(query catalogQuery) (err error) {
		rows, err = query(sql)
		return err
	})
	return rows, err
}

// catalogQuery asks one question of the database that it is for.
type catalogQuery func(sql string) ([][][]byte, error)

// with calls do when nobody else asks that database.
func (c *catalogues) with(ctx context.Context, pr *Primary, database string,
	do func(catalogQuery) error,
) error {
	ctx, end := c.proxy.while(ctx, pr)
	defer end()
	if err := c.turns.Acquire(ctx, 1); err != nil {
		return err
	}
	defer c.turns.Release(1)
	db := c.acquire(database)
	defer c.release(db)
	select {
	case db.turn <- struct{}{}:
		defer func() { <-db.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return do(func(sql string) ([][][]byte, error) { return db.lookup.query(ctx, pr, sql) })
}

func (c *catalogues) answer(key answerKey) (onlyReads, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.answers[key]
	return v.onlyReads, ok && time.Since(v.at) < answerTTL
}

func (c *catalogues) keep(key answerKey, onlyReads bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.answers) >= answersMax {
		clear(c.answers)
	}
	c.answers[key] = catalogAnswer{onlyReads, time.Now()}
}

// acquire returns the database's connection, in place of the one that was not used for the longest
// time if there are too many. The caller has a turn, so that one of them is not in use.
func (c *catalogues) acquire(database string) *catalogue {
	c.mu.Lock()
	defer c.mu.Unlock()
	db := c.at[database]
	if db == nil {
		if len(c.at) >= c.proxy.cfg.CatalogDatabasesMax {
			c.evictLocked()
		}
		db = &catalogue{lookup: newLookup(c.proxy), turn: make(chan struct{}, 1)}
		db.lookup.database, db.lookup.settings = database, catalogSettings()
		c.at[database] = db
	}
	db.users++
	return db
}

func (c *catalogues) release(db *catalogue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	db.users--
	db.used = time.Now()
}

// evictLocked closes the connection that was idle for the longest time.
func (c *catalogues) evictLocked() {
	oldest := ""
	for name, db := range c.at {
		if db.users == 0 && (oldest == "" || db.used.Before(c.at[oldest].used)) {
			oldest = name
		}
	}
	if db := c.at[oldest]; db != nil {
		db.lookup.drop()
		delete(c.at, oldest)
	}
}

// dropIdle closes the connections that nothing was asked over for that long.
func (c *catalogues) dropIdle(idle time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, db := range c.at {
		if db.users == 0 && time.Since(db.used) >= idle {
			db.lookup.drop()
			delete(c.at, name)
		}
	}
}

// forgetOld forgets answers that are out of date.
func (c *catalogues) forgetOld() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, v := range c.answers {
		if time.Since(v.at) >= answerTTL {
			delete(c.answers, key)
		}
	}
}

// drop closes all connections, also under whoever waits for an answer.
func (c *catalogues) drop() {
	c.each((*lookup).drop)
}

// cut closes those that belong to that epoch or an older one.
func (c *catalogues) cut(epoch uint64) {
	c.each(func(l *lookup) { l.cut(epoch) })
}

func (c *catalogues) each(do func(*lookup)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, db := range c.at {
		do(db.lookup)
	}
}

// catalogSettings are those of a connection to which texts are sent, whose encoding is known.
func catalogSettings() []pgwire.Param {
	out := slices.Clone(lookupSettings)
	for i := range out {
		if out[i].Name == "client_encoding" {
			out[i].Value = "UTF8"
		}
	}
	return out
}
