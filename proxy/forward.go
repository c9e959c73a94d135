package proxy

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"holdfast/pgwire"
)

// What inspect decides about a message of the client.
type forwarding uint8

const (
	forwardIt    forwarding = iota
	forwardGuard            // the message commits; learn the xid first
	forwardStop             // Terminate
)

// relayClient reads from the client and writes to the backend until one of them is lost.
func (s *session) relayClient(ctx context.Context) error {
	for {
		if err := s.signals(); err != nil {
			return err
		}
		if err := s.injectSnapshot(); err != nil {
			return err
		}
		if len(s.in.bytes()) == 0 || s.in.want > len(s.in.bytes()) {
			if err := s.fillClient(); err != nil {
				if errors.Is(err, errWake) {
					continue
				}
				return err
			}
		}
		if err := s.gate(ctx); err != nil {
			if errors.Is(err, errWake) {
				continue
			}
			return err
		}
		if s.hasLostTx() {
			if err := s.answerLost(ctx); err != nil {
				return err
			}
			continue
		}
		if err := s.forward(ctx); err != nil {
			return err
		}
	}
}

// fillClient waits for bytes of the client; errWake means that there is something to look at.
func (s *session) fillClient() error {
	err := s.in.fill()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		_ = s.client.SetReadDeadline(time.Time{})
		return errWake
	case errors.Is(err, io.EOF):
		return errClientGone
	}
	return errClientGone
}

// gate waits until the lease allows what comes next: a new unit of work only before the lease is
// in doubt and while no drain runs, the rest of one until the lease ends (DESIGN.md I3).
func (s *session) gate(ctx context.Context) error {
	var from time.Time
	var moved <-chan struct{}
	for {
		if !from.IsZero() {
			moved = s.proxy.watch.next()
		}
		s.mu.Lock()
		b, start := s.backend, s.flow.isSafePoint()
		ok := b != nil && !s.lost
		closing := s.closing && start
		s.mu.Unlock()
		if closing {
			return errClosing
		}
		if !ok {
			return errBackendLost
		}
		now := bootNow()
		if start && s.proxy.isDraining(b.primary.Epoch) {
			ok = false
		} else if start {
			ok = now < b.primary.Lease.Doubt()
		} else {
			ok = now < b.primary.Lease.Until()
		}
		if ok {
			return nil
		}
		if from.IsZero() {
			from = time.Now()
			s.proxy.metrics.gateClosed.Inc()
			s.proxy.held.Add(1)
			defer s.proxy.held.Add(-1)
			s.proxy.watch.enter()
			defer s.proxy.watch.leave()
			continue // a lease that moved before nobody may have been told of
		}
		if err := s.pause(ctx, b, moved); err != nil {
			return err
		}
		if time.Since(from) > s.proxy.cfg.HoldTimeout {
			// Neither renewed nor replaced: give the backend up and let the hold's rules
			// answer what waits.
			s.lose(b, false)
			return errBackendLost
		}
	}
}

// pause waits until the lease has moved, or somebody calls, and looks after the client.
func (s *session) pause(ctx context.Context, b *backend, moved <-chan struct{}) error {
	t := time.NewTimer(waitTick)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return errClosing
	case <-b.done:
		return errBackendLost
	case <-s.wake:
	case <-moved:
	case <-t.C:
	}
	if probePeer(s.client) == peerGone {
		return errClientGone
	}
	return s.signals()
}

// forward sends what the inbox holds in whole messages, with one write where it can.
func (s *session) forward(ctx context.Context) error {
	if s.passing > 0 {
		return s.pass()
	}
	data := s.in.bytes()
	s.mu.Lock()
	if s.endHeld {
		// The snapshot comes first: relayClient asks for it, and here its answer is awaited.
		asked, b := !s.flow.isSafePoint(), s.backend
		s.mu.Unlock()
		if !asked {
			return nil
		}
		return s.awaitBackend(ctx, b, func() bool { return !s.endHeld })
	}
	if s.flow.isSafePoint() && s.proxy.isDraining(s.backend.primary.Epoch) {
		s.mu.Unlock() // Drain has begun since gate looked; it looks at the flow under mu
		return nil
	}
	before := s.flow
	s.pushed = 0
	if s.flow.idle() {
		s.journal, s.journaled = s.journal[:0], true
	}
	b := s.backend
	n, act, err := 0, forwardIt, error(nil)
	for n < len(data) {
		var size int
		size, act, err = s.inspectNext(data[n:], n)
		if err != nil || size == 0 || act != forwardIt {
			break
		}
		part := min(size, len(data)-n)
		n += part
		s.passing = size - part
	}
	s.mu.Unlock()
	if werr := s.send(b, data[:n], before); werr != nil {
		return werr
	}
	s.in.take(n)
	switch {
	case err != nil:
		return err
	case act == forwardStop:
		return errClientGone
	case act == forwardGuard:
		return s.guardCommit(ctx, b)
	}
	return nil
}

// send writes to the backend and keeps the journal. If no byte left, the messages count as not
// sent, and stay in the inbox.
func (s *session) send(b *backend, p []byte, before flow) error {
	if len(p) == 0 {
		return nil
	}
	n, err := b.conn.Write(p)
	if err != nil {
		if n == 0 {
			s.mu.Lock()
			s.flow.unpush(s.pushed, before)
			s.mu.Unlock()
			s.passing = 0
		} else {
			s.keep(p)
			s.in.take(len(p))
		}
		s.lose(b, false)
		return errBackendLost
	}
	s.keep(p)
	return nil
}

// keep copies what was sent into the journal, as long as it fits.
func (s *session) keep(p []byte) {
	if !s.journaled {
		return
	}
	if len(s.journal)+len(p) > s.proxy.cfg.JournalBytesMax {
		s.journaled = false
		s.journal = nil
		s.proxy.metrics.journalOverflows.Inc()
		return
	}
	s.journal = append(s.journal, p...)
}

// pass relays the rest of a message that was too large to be inspected.
func (s *session) pass() error {
	n := min(s.passing, len(s.in.bytes()))
	b := s.backend
	if s.discard {
		// The backend that has the first part of the message is lost, and the client was told: to
		// another one the rest would be messages of their own.
		s.passing -= n
		s.in.take(n)
		s.discard = s.passing > 0
		return nil
	}
	s.journaled = false
	if _, err := b.conn.Write(s.in.bytes()[:n]); err != nil {
		s.lose(b, false)
		return errBackendLost
	}
	s.passing -= n
	s.in.take(n)
	return nil
}

// inspectNext looks at the message at the start of p, which lies off bytes behind the start of
// what is being sent. size is its whole length, 0 if more bytes are needed to judge it.
func (s *session) inspectNext(p []byte, off int) (size int, act forwarding, err error) {
	if len(p) < pgwire.HeaderLen {
		s.in.want = pgwire.HeaderLen
		return 0, forwardIt, nil
	}
	typ, n, err := pgwire.Header(p)
	if err != nil {
		return 0, forwardIt, fatalProtocol(err)
	}
	size = pgwire.HeaderLen + n
	s.in.want = 0
	body := p[pgwire.HeaderLen:min(size, len(p))]
	if size > len(p) && typ != pgwire.CliCopyData {
		if size <= s.proxy.cfg.InspectBytesMax {
			s.in.want = size
			return 0, forwardIt, nil
		}
		if len(p) < min(size, s.proxy.cfg.InspectBytesMax) {
			s.in.want = s.proxy.cfg.InspectBytesMax
			return 0, forwardIt, nil
		}
	}
	act, err = s.inspect(typ, body, size <= len(p), len(s.journal)+off)
	if err != nil {
		return 0, act, fatalProtocol(err)
	}
	return size, act, nil
}

func fatalProtocol(err error) error {
	var pe *pgwire.Error
	if errors.As(err, &pe) {
		return fatal(pe)
	}
	return err
}

func (s *session) push(o op) {
	if s.flow.push(o) {
		s.pushed++
	}
}
