package proxy

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"holdfast/pgwire"
)

// pool keeps server connections that sessions left behind, for logins that ask for the very same:
// they save the server a process and the client the wait for it (DESIGN.md I24). A connection is
// reset when it comes, so that it holds nothing of its former session while it waits, and is given
// away only once the server has confirmed that. Safe for concurrent use; its lock is no session's
// business but at login and at the end.
type pool struct {
	cfg     *Config
	metrics *metrics
	// isOver tells that an epoch is cut or drained.
	isOver func(epoch uint64) bool

	size atomic.Int64 // len(all), for who wants to know only that

	mu     sync.Mutex
	all    map[*spare]struct{}
	ready  map[poolKey][]*spare // the newest last
	owned  map[poolOwner]int
	closed bool
}

// poolKey is what a login and a connection must have in common. The parameters are those of the
// connection's own startup packet, all of them and in their order: that is what RESET goes back to.
// The secret is in it because a role that was dropped and made anew is another one.
type poolKey struct {
	loop          *loop // both sides of a session are on one
	login, secret string
}

// poolOwner is what is counted apart, so that one application does not use up everybody's places.
type poolOwner struct{ database, user string }

// spare is a connection in the pool, and the handler of its socket; the pool's lock guards it.
type spare struct {
	pool   *pool
	key    poolKey
	owner  poolOwner
	b      *backend
	params paramSet
	due    int   // ReadyForQuery that are still to come
	since  int64 // CLOCK_BOOTTIME when it came
	isOut  bool  // given away, or closed
}

// resetQueries undo what a session did. RESET ROLE goes back to a role that ALTER ROLE SET names,
// which the parts that DISCARD ALL is documented to have do not promise. Both are strings of their
// own, since DISCARD ALL refuses to run with others.
var resetQueries = pgwire.AppendQuery(pgwire.AppendQuery(nil, "DISCARD ALL"), "RESET ROLE")

const resetAnswers = 2

func newPool(p *Proxy) *pool {
	return &pool{
		cfg: &p.cfg, metrics: p.metrics,
		isOver: func(epoch uint64) bool { return p.isCut(epoch) || p.isDraining(epoch) },
		all:    make(map[*spare]struct{}), ready: make(map[poolKey][]*spare),
		owned: make(map[poolOwner]int),
	}
}

// put takes over the connection of b, which nobody else uses any more, and resets it; false leaves
// it to the caller. It does not wait.
func (p *pool) put(key poolKey, owner poolOwner, b *backend, params paramSet) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := bootNow()
	why := ""
	switch {
	case p.closed || p.isOver(b.primary.Epoch) || now >= b.primary.Lease.Doubt():
		why = "over"
	case now-b.born >= int64(p.cfg.ReuseLifetime):
		why = "old"
	case len(p.all) >= p.cfg.ReuseMax || p.owned[owner] >= p.cfg.ReuseRoleMax:
		why = "full"
	}
	if why != "" {
		p.metrics.reuse.WithLabelValues(why).Inc()
		return false
	}
	c := &spare{
		pool: p, key: key, owner: owner, b: b, params: params, due: resetAnswers, since: now,
	}
	p.all[c] = struct{}{}
	p.owned[owner]++
	p.changed()
	b.in.begin(nil)
	b.conn.handle(c) // the answers that are due wake it, whatever came before
	if n, _ := b.conn.tryWrite(resetQueries); n < len(resetQueries) {
		p.drop(c, "ended")
	}
	return true
}

// take gives away a connection to pr that is as if it had just been made; nil if there is none.
// The caller owns it.
func (p *pool) take(key poolKey, pr *Primary) (*backend, paramSet) {
	if p.size.Load() == 0 {
		return nil, paramSet{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for list := p.ready[key]; len(list) > 0; list = p.ready[key] {
		c := list[len(list)-1]
		if !p.isGood(c, bootNow()) || c.b.primary.Incarnation != pr.Incarnation ||
			c.b.primary.Epoch != pr.Epoch {
			p.drop(c, "over")
			continue
		}
		p.forget(c)
		c.b.conn.handle(nil)
		p.metrics.reuse.WithLabelValues("reused").Inc()
		c.b.primary = pr
		return c.b, c.params
	}
	return nil, paramSet{}
}

// isGood tells that a connection may be used or kept.
func (p *pool) isGood(c *spare, now int64) bool {
	return !p.isOver(c.b.primary.Epoch) && now < c.b.primary.Lease.Doubt() &&
		now-c.b.born < int64(p.cfg.ReuseLifetime) && now-c.since < int64(p.cfg.ReuseIdle)
}

// forget takes a connection out of the books.
func (p *pool) forget(c *spare) {
	c.isOut = true
	delete(p.all, c)
	if p.owned[c.owner]--; p.owned[c.owner] <= 0 {
		delete(p.owned, c.owner)
	}
	list := p.ready[c.key]
	if i := slices.Index(list, c); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	if len(list) == 0 {
		delete(p.ready, c.key)
	} else {
		p.ready[c.key] = list
	}
	p.changed()
}

func (p *pool) changed() {
	p.size.Store(int64(len(p.all)))
	p.metrics.spare.Set(float64(len(p.all)))
}

// drop closes a connection, politely where the server has answered all that it was asked.
func (p *pool) drop(c *spare, why string) {
	if c.isOut {
		return
	}
	p.forget(c)
	p.metrics.reuse.WithLabelValues(why).Inc()
	c.b.in.release()
	c.b.close(c.due == 0)
}

// cut closes what belongs to that epoch or an older one.
func (p *pool) cut(epoch uint64) {
	p.closeWhere(func(c *spare) bool { return c.b.primary.Epoch <= epoch })
}

// clear closes all, so that the server has room for others.
func (p *pool) clear() { p.closeWhere(func(*spare) bool { return true }) }

// sweep closes what has waited or lived too long, or belongs to a lease that is over. runWatch
// calls it at least once a second.
func (p *pool) sweep() {
	if p.size.Load() > 0 {
		now := bootNow()
		p.closeWhere(func(c *spare) bool { return !p.isGood(c, now) })
	}
}

func (p *pool) closeWhere(is func(*spare) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.all {
		if is(c) {
			p.drop(c, "over")
		}
	}
}

// close closes all and takes nothing any more.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.clear()
}

// relay implements handler: nobody waits for the bytes.
func (c *spare) relay(int64) {}

// read implements handler: it takes what the server says, which is the answer to the reset, news of
// a setting, or its end.
func (c *spare) read() {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	for turn := 0; !c.isOut; turn++ {
		if turn > loopTurns {
			c.pool.drop(c, "ended") // a server that goes on telling while nobody asks
			return
		}
		err := c.b.in.fillNow(c.b.conn)
		if errors.Is(err, errAgain) {
			return
		}
		if err != nil || !wholeMessages(&c.b.in, c.message) {
			c.pool.drop(c, "ended")
		}
	}
}

// wholeMessages gives take the whole messages that there are; false if it does not want one, or
// they are none: then the connection cannot be used again.
func wholeMessages(in *inbox, take func(typ byte, body []byte) bool) bool {
	for p := in.bytes(); len(p) >= pgwire.HeaderLen; p = in.bytes() {
		typ, n, err := pgwire.Header(p)
		if err != nil || n > relayBufferBytes-pgwire.HeaderLen {
			return false
		}
		if n += pgwire.HeaderLen; n > len(p) {
			return true
		}
		if !take(typ, p[pgwire.HeaderLen:n]) {
			return false
		}
		in.take(n)
	}
	return true
}

func (c *spare) message(typ byte, body []byte) bool {
	switch typ {
	case pgwire.SrvParameterStatus:
		name, value, err := pgwire.ParseParameterStatus(body)
		if err != nil || name == "in_hot_standby" { // it is no primary any more, or never was
			return false
		}
		c.params.set(name, value)
		return len(c.params.list) <= c.b.proxy.cfg.ServerParametersMax
	case pgwire.SrvNotice:
		return !isFarewell(body)
	case pgwire.SrvCommandComplete, pgwire.SrvNotification: // up to UNLISTEN
		return c.due > 0
	case pgwire.SrvReadyForQuery:
		st, err := pgwire.ParseReadyForQuery(body)
		if c.due--; err != nil || st != pgwire.TxIdle || c.due < 0 {
			return false
		}
		if c.due == 0 {
			c.pool.metrics.reuse.WithLabelValues("kept").Inc()
			c.pool.ready[c.key] = append(c.pool.ready[c.key], c)
		}
		return true
	}
	return false // an error: it was not reset
}
