package proxy

import (
	"context"
	"crypto/subtle"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// cancelRequest carries out a cancel request of a client. Like PostgreSQL it never tells whether
// the key was right. An address has as many wrong keys that name this node as it has failed logins.
func (p *Proxy) cancelRequest(ctx context.Context, from netip.Addr, pid uint32, key []byte) {
	isOwn := len(key) > 0 && keyTag(key) == p.tag
	switch {
	case isOwn && p.wrongKeys.isSpent(from):
		p.metrics.cancels.WithLabelValues("dropped").Inc()
	case !p.cancelSession(ctx, pid, key):
		if isOwn {
			p.wrongKeys.failed(from)
		}
		p.relayCancel(ctx, pid, key)
	}
}

// cancelSession is cancelRequest for the sessions of this node; false: it is none of them.
func (p *Proxy) cancelSession(ctx context.Context, pid uint32, key []byte) bool {
	id, ok := cancelIDOf(pid, key)
	if !ok {
		return false
	}
	p.mu.Lock()
	s := p.cancelable[id]
	p.mu.Unlock()
	if s == nil || subtle.ConstantTimeCompare(s.key, key) != 1 {
		return false
	}
	s.mu.Lock()
	b, inDoubt := s.backend, s.inDoubt || s.noCancel
	lost := b == nil || s.lost
	again := !lost && s.again.isOpen()
	served := !lost && !again && s.flow.isServed()
	switch {
	case lost:
		s.canceled = true
	case again:
		s.again.canceled = true
	case served || inDoubt:
	default:
		s.cancels++ // a COMMIT waits until the server has dealt with it
	}
	s.mu.Unlock()
	switch {
	case again:
		// What the client waits for is not what the server works on yet.
		p.metrics.cancels.WithLabelValues("held").Inc()
		s.lose(b, false)
	case lost:
		p.metrics.cancels.WithLabelValues("held").Inc()
		s.notify()
	case served:
		// A server that had been asked nothing else would take no notice of it.
		p.metrics.cancels.WithLabelValues("late").Inc()
	case inDoubt:
		// In synchronous mode a cancel would turn the wait for a standby into an acknowledged
		// commit that no standby has (DESIGN.md I6).
		p.metrics.cancels.WithLabelValues("commit").Inc()
	default:
		ctx, done := context.WithTimeout(ctx, 10*time.Second)
		defer done()
		err := pgwire.SendCancel(ctx, b.primary.Addr, b.pid, []byte(b.key), p.dialCancel)
		if err != nil {
			p.log.Info("cancel request could not be passed on", zap.Error(err))
		}
		p.metrics.cancels.WithLabelValues("relayed").Inc()
		s.mu.Lock()
		s.cancels--
		s.soiled = s.soiled || err != nil // it may come to the server late
		s.mu.Unlock()
		s.notify()
	}
	return true
}
