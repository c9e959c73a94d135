package proxy

import (
	"errors"
	"io"
	"slices"
	"sync"

	"go.uber.org/zap"
)

// delivery is what the relay from a backend to its client keeps between two calls.
type delivery struct {
	in       inbox // from the backend
	taken    int   // bytes of in that are dealt with once out is written
	passing  int   // bytes of a message larger than the relay's buffer
	passHide bool
	typ      byte   // of the message that is taken
	over     bool   // it ends a unit of work
	keep     bool   // it is to be kept back
	give     bool   // what is kept back comes before what is behind it
	kept     int    // bytes at the start of in that are kept back until the unit ends
	keptDone []byte // what was kept back when the backend was lost
	isLast   bool   // what was taken ends the last unit of work of a proxy that is closing

	mu      sync.Mutex // held while the loop delivers; the rest is guarded by it
	out     []byte     // for the client, which had no room; part of in
	end     error      // what comes behind out
	filled  bool       // in has bytes that were not looked at
	parked  bool       // a goroutine waits for the lease
	stopped bool
}

// serverSide is the handler of a backend's connection.
type serverSide backend

func (h *serverSide) read() {
	b := (*backend)(h)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.take()
}

func (h *serverSide) relay(now int64) {
	b := (*backend)(h)
	b.relay(now)
	if s := b.session; s.serverFull.Load() {
		s.relay(now)
	}
}

// take reads; true if there is something to deliver. The caller holds b.mu.
func (b *backend) take() bool {
	if b.stopped || b.parked || len(b.out) > 0 {
		return false
	}
	if b.filled {
		return true
	}
	err := b.in.fillNow(b.conn)
	if err != nil && !errors.Is(err, errAgain) {
		b.lost(b.session, err)
	}
	b.filled = err == nil
	return b.filled
}

// relay delivers what was taken, on the loop. Reading, the clock and writing come in this order
// (DESIGN.md I3). What a client is slow to take waits for it, whatever happens to the lease.
func (b *backend) relay(now int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.session
	if len(b.out) > 0 && !b.stopped && !b.deliverOut(s) {
		return
	}
	moved := 0
	for turn := 0; turn < loopTurns && moved < loopBytes; turn++ {
		if !b.filled {
			if !b.take() {
				return
			}
			now = bootNow()
		}
		if b.stopped || b.parked {
			return
		}
		if now >= b.primary.Lease.Until() {
			b.parked = true
			s.proxy.work.Add(1)
			go b.runParked(s)
			return
		}
		b.filled = false
		b.out, b.end = b.consume(s)
		moved += len(b.out)
		if !b.deliverOut(s) {
			return
		}
	}
	s.loop.yield((*serverSide)(b))
}

// deliverOut writes to the client what it is to get; false if nothing more can be done now. The
// caller holds b.mu.
func (b *backend) deliverOut(s *session) bool {
	n, err := s.client.tryWrite(b.out)
	b.out = b.out[n:]
	switch {
	case errors.Is(err, errAgain):
		s.clientFull.Store(true)
		return false
	case err != nil:
		b.clientGone(s)
		return false
	}
	b.out = nil
	b.in.take(b.taken)
	if b.end != nil {
		b.lost(s, b.end)
		return false
	}
	if b.isLast {
		s.notify()
	}
	return true
}

// tell gives the client a message of our own behind what the attached backend has sent. The owner
// calls it; it does not wait.
func (s *session) tell(p []byte) error {
	s.mu.Lock()
	b := s.backend
	s.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return errBackendLost
	}
	if len(b.out) == 0 {
		b.taken, b.end, b.isLast = 0, nil, false
	}
	b.out = append(slices.Clone(b.out), p...)
	if !b.deliverOut(s) && !b.stopped {
		s.loop.post((*serverSide)(b)) // it may have become writable before anybody was told
	}
	return nil
}

// lost ends the delivery; the caller holds b.mu.
func (b *backend) lost(s *session, err error) {
	b.stopped = true
	b.saveKept()
	b.in.release()
	s.mu.Lock()
	s.lost = true
	s.mu.Unlock()
	if !errors.Is(err, io.EOF) && !errors.Is(err, errBackendLost) {
		s.log().Debug("backend lost", zap.Error(err))
	}
	b.close(false)
	s.interrupt()
}

// saveKept keeps what was kept back beyond the inbox. The caller holds b.mu.
func (b *backend) saveKept() {
	if b.kept == 0 {
		return
	}
	p := b.in.bytes()
	if len(b.out) > 0 {
		p = p[b.taken:]
	}
	b.keptDone, b.kept = slices.Clone(p[:b.kept]), 0
}

// clientGone ends the delivery to a client that cannot be written to; the caller holds b.mu.
func (b *backend) clientGone(s *session) {
	b.out = nil
	s.mu.Lock()
	s.gone = true
	s.mu.Unlock()
	b.lost(s, errBackendLost)
}

// detach ends the delivery and gives the client what is left of it, which was read and judged
// while the lease was good. An error tells that the client is gone. The owner calls it.
func (b *backend) detach(s *session) error {
	b.conn.handle(nil)
	b.mu.Lock()
	b.stopped = true
	out := b.out
	b.saveKept()
	b.out = nil
	b.mu.Unlock()
	s.clientFull.Store(false)
	defer b.in.release()
	return s.writeClient(out)
}

// runParked waits for the lease in the place of the loop.
func (b *backend) runParked(s *session) {
	defer s.proxy.work.Done()
	err := b.awaitLease(s)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parked = false
	if err != nil {
		if !b.stopped {
			b.lost(s, err)
		}
		return
	}
	s.loop.post((*serverSide)(b))
}
