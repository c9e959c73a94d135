package proxy

import (
	"runtime/debug"
	"sync"
	"time"
)

const (
	// leaseTick is the pause between two looks at a lease for which somebody waits.
	leaseTick = 5 * time.Millisecond
	// watchTick is the longest pause while nobody waits.
	watchTick = time.Second
	// lateTick is the pause between two looks at bytes that do not arrive.
	lateTick = 50 * time.Millisecond
	// lateLooks is how often the sessions are looked at after the end of a lease: the gate is
	// shut, so that nothing comes after what was under way.
	lateLooks = 20
	// waitTick is how often a session that waits for its lease looks after its client.
	waitTick = 250 * time.Millisecond
)

// leaseWatch lets sessions wait until a lease has moved. One goroutine of the proxy looks at the
// clock for all of them: when the processor is scarce, thousands that look for themselves would
// starve the very renewals that they wait for. Safe for concurrent use.
type leaseWatch struct {
	mu      sync.Mutex
	moved   chan struct{}
	waiting int
	began   chan struct{} // capacity 1: somebody began to wait
}

func newLeaseWatch() leaseWatch {
	return leaseWatch{moved: make(chan struct{}), began: make(chan struct{}, 1)}
}

// enter makes the proxy look often, until leave.
func (w *leaseWatch) enter() {
	w.mu.Lock()
	w.waiting++
	w.mu.Unlock()
	select {
	case w.began <- struct{}{}:
	default:
	}
}

func (w *leaseWatch) leave() {
	w.mu.Lock()
	w.waiting--
	w.mu.Unlock()
}

// next is closed when a lease has moved after this call; look at the lease between the two.
func (w *leaseWatch) next() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.moved
}

// wake wakes all who wait.
func (w *leaseWatch) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting > 0 {
		close(w.moved)
		w.moved = make(chan struct{})
	}
}

// pause is how long nothing has to be looked at, if something else is to be in the time due.
func (w *leaseWatch) pause(due time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting > 0 {
		return leaseTick
	}
	return min(watchTick, max(leaseTick, due))
}

// runWatch looks at the lease and at bytes that do not arrive, until the proxy ends.
func (p *Proxy) runWatch() {
	defer close(p.watchDone)
	type view struct {
		pr           *Primary
		doubt, until int64
	}
	var last view
	late := 0
	silent := time.Now()
	due := leaseTick
	for {
		t := time.NewTimer(p.watch.pause(due))
		select {
		case <-p.ctx.Done():
			t.Stop()
			p.pool.close()
			return
		case <-p.watch.began:
		case <-t.C:
		}
		t.Stop()
		due = watchTick
		if pr, _ := p.topo.Current(); pr != nil {
			v := view{pr, pr.Lease.Doubt(), pr.Lease.Until()}
			if v != last {
				if old := last.pr; old != nil && pr.Epoch > old.Epoch {
					p.noteLoss(old, pr, last.until)
				}
				last, late = v, 0
				p.watch.wake()
			}
			// Where commits wait for standbys, late bytes can do nothing that is acknowledged:
			// the session waits for its answer until the lease is renewed, or the epoch cut.
			if pr.SyncQuorum == 0 && late < lateLooks {
				due = time.Duration(v.until - bootNow() + int64(p.cfg.LeaseGrace/2))
			}
			if due <= 0 {
				late++
				due = lateTick
				p.resetLate(pr.Epoch)
			}
		}
		p.pool.sweep()
		p.prewarm.sweep()
		p.catalogues.dropIdle(catalogIdle)
		p.trim(time.Now())
		if time.Since(silent) >= p.cfg.KeepAlive {
			silent = time.Now()
			p.resetSilent()
			p.catalogues.forgetOld()
		}
		due = min(due, p.cfg.KeepAlive-time.Since(silent))
	}
}

// backends are the connections of a session to a server, attached or not yet.
func (s *session) backends() [2]*backend {
	s.mu.Lock()
	defer s.mu.Unlock()
	return [2]*backend{s.backend, s.opening}
}

// resetLate resets the connections of an epoch, or an older one, whose bytes have not all reached
// the primary's host by now: with its lease over, they must not reach it later (DESIGN.md I3).
func (p *Proxy) resetLate(epoch uint64) {
	for _, s := range p.all() {
		for _, b := range s.backends() {
			if b == nil || b.primary.Epoch > epoch {
				continue
			}
			if st, ok := b.conn.sendState(); ok && st.queued > 0 {
				p.giveUp(s, b, "lease_end")
			}
		}
	}
}

// giveUp resets one connection to a server; the session holds.
func (p *Proxy) giveUp(s *session, b *backend, why string) {
	p.metrics.resets.WithLabelValues(why).Inc()
	s.lose(b, false)
	b.close(false) // where it is not attached
}

// silence is since when (bootNow) a peer's host has not answered; zero: it has, or was not asked.
type silence int64

// isOver takes the state of now and tells that nothing was acknowledged for that long.
func (q *silence) isOver(st sendState, now int64, bound time.Duration) bool {
	since := now - int64(*q)
	switch {
	case !st.asking:
		*q = 0
	case *q == 0 || int64(st.ackAge) < since:
		*q = silence(now) // not from the last acknowledgement: there may have been nothing to answer
	default:
		return since >= int64(bound)
	}
	return false
}

// resetSilent ends connections whose peer's host has acknowledged nothing for a whole KeepAlive
// though bytes are under way: keepalive probes are not sent then. A peer that is only slow
// acknowledges, and is waited for.
func (p *Proxy) resetSilent() {
	bound := p.cfg.KeepAlive * 9 / 10 // a tick may come early by the timer's slack
	for _, s := range p.all() {
		st, ok := s.client.sendState()
		if ok && s.clientQuiet.isOver(st, bootNow(), bound) {
			p.metrics.resets.WithLabelValues("client_silent").Inc()
			s.client.reset()
			s.notify()
		}
		trimTLS(s.client)
		for _, b := range s.backends() {
			if b == nil {
				continue
			}
			trimTLS(b.conn)
			st, ok := b.conn.sendState()
			if ok && b.quiet.isOver(st, bootNow(), bound) {
				p.giveUp(s, b, "backend_silent")
			}
		}
	}
}

const (
	// trimAfter is how many logins leave memory behind that is worth to be given back.
	trimAfter = 200
	// trimQuiet is how long nobody has logged in then.
	trimQuiet = 5 * time.Second
)

// trim gives memory back to the system once a wave of logins is over: a login takes some forty
// times what the session needs that comes of it, and sessions that only relay allocate nothing, so
// that Go's collector would not look again for minutes.
func (p *Proxy) trim(now time.Time) {
	switch n := p.logins.Load(); {
	case n != p.trimSeen:
		p.trimSeen, p.trimSince = n, now
	case n-p.trimmed >= trimAfter && now.Sub(p.trimSince) >= trimQuiet:
		p.trimmed = n
		debug.FreeOSMemory()
	}
}
