package proxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"holdfast/pgwire"
)

// What inspect decides about a message of the client.
type forwarding uint8

const (
	forwardIt      forwarding = iota
	forwardGuard              // the message may commit; learn the xid first
	forwardPrepare            // the message needs a statement that is away, or one to be closed
	forwardCopy               // the message waits for what the server makes of a COPY
	forwardStop               // Terminate
)

// clientSide is the handler of a client's connection.
type clientSide session

func (h *clientSide) read() {
	s := (*session)(h)
	switch {
	case !s.onLoop.Load():
	case s.greeting != nil:
		s.greeting.hear(s)
	default:
		s.take()
	}
}

func (h *clientSide) relay(now int64) {
	s := (*session)(h)
	if s.onLoop.Load() && s.greeting != nil {
		s.greeting.answer(s)
		return
	}
	if s.clientFull.Load() {
		s.mu.Lock()
		b := s.backend
		s.mu.Unlock()
		if b != nil {
			s.clientFull.Store(false)
			b.relay(now)
		}
	}
	s.relay(now)
}

// take reads if there is nothing left that could be sent on; true if it found something. While a
// question of ours is open it does not: that the client has left does not undo what it has sent.
func (s *session) take() bool {
	if s.unsent > 0 || !s.in.lacks() || s.isAsking() {
		return false
	}
	err := s.in.fillNow(s.client)
	if err != nil && !errors.Is(err, errAgain) {
		s.mu.Lock()
		s.gone = true
		s.mu.Unlock()
		return true
	}
	return err == nil
}

// What comes after a step of the loop.
type step uint8

const (
	stepNext step = iota
	stepWait      // for bytes, or room for them: the loop will call again
	stepRare      // it takes a goroutine
)

// relay sends on what was taken, on the loop, if that is the owner.
func (s *session) relay(now int64) {
	if !s.onLoop.Load() {
		return
	}
	moved := 0
	for turn := 0; turn < loopTurns && moved < loopBytes; turn++ {
		moved += len(s.in.bytes())
		switch s.step(now) {
		case stepWait:
			if !s.serverFull.Load() || s.unsent > 0 || s.isAsking() || !s.in.lacks() {
				return
			}
			// What was waited for is over, and nothing of the client was read meanwhile.
			s.serverFull.Store(false)
		case stepRare:
			if !s.departed() {
				s.unpark()
			}
			return
		}
		if s.in.lacks() && !s.take() {
			return
		}
		now = bootNow()
	}
	s.loop.yield((*clientSide)(s))
}

// step sends on once.
func (s *session) step(now int64) step {
	s.mu.Lock()
	b, start, asking := s.backend, s.flow.isSafePoint(), s.isAsking()
	switch {
	case b == nil || s.lost || s.gone || start && (s.closing || s.endHeld), s.cameShort(),
		s.lostTx && !s.in.lacks(), s.mustPack():
		s.mu.Unlock()
		return stepRare
	case !asking && s.unsent == 0 && (s.endHeld || s.in.lacks() || s.awaitsSame()):
		s.mu.Unlock()
		return stepWait
	case !s.isOpenGate(b, start, now):
		s.mu.Unlock()
		return stepRare
	}
	s.serverFull.Store(false)
	if asking {
		s.mu.Unlock()
		return s.guardOnHere(b)
	}
	full := s.isFull()
	if s.unsent > 0 || s.passing > 0 && (start || s.discard || full) {
		s.mu.Unlock()
		return s.sent(s.sendRest(b, false))
	}
	if s.flow.asksOutside() || s.flow.awaitsChain() {
		s.serverFull.Store(true) // the server's answer goes on with it
		s.mu.Unlock()
		return stepWait
	}
	if full {
		s.proxy.metrics.limit(limitOutstanding)
		s.serverFull.Store(true) // the server's next answers go on with it
		s.mu.Unlock()
		return stepWait
	}
	rest, n, act, before, err := s.inspectInbox()
	s.mu.Unlock()
	if werr := s.send(b, rest, n, before); werr != nil {
		return stepRare
	}
	switch {
	case err != nil, act == forwardStop:
		return stepRare // the owner finds the same
	case act == forwardGuard && s.unsent == 0:
		return s.guardHere(b)
	case act == forwardPrepare && s.unsent == 0:
		return s.asked(s.prepareAway(b, false))
	case act == forwardCopy:
		s.serverFull.Store(true)
		return stepWait
	}
	return s.sent(nil)
}

// sent tells what comes after a write.
func (s *session) sent(err error) step {
	switch {
	case errors.Is(err, errAgain) || s.unsent > 0:
		s.serverFull.Store(true)
		return stepWait
	case err != nil:
		return stepRare
	}
	return stepNext
}

// isOpenGate tells whether the lease allows what comes next: a new unit of work only before the
// lease is in doubt and while no drain runs, the rest of one until the lease ends (DESIGN.md I3).
// The caller holds s.mu.
func (s *session) isOpenGate(b *backend, start bool, now int64) bool {
	if start {
		return !s.proxy.isDraining(b.primary.Epoch) && now < b.primary.Lease.Doubt()
	}
	return now < b.primary.Lease.Until()
}

// relayClient does what the loop could not, and returns nil when there is no more of that.
func (s *session) relayClient(ctx context.Context) error {
	for {
		if err := s.signals(); err != nil {
			return err
		}
		s.stringEnded()
		if s.unsent == 0 && !s.isAsking() {
			if err := s.injectSnapshot(); err != nil {
				return err
			}
			if s.in.lacks() {
				switch err := s.in.fillNow(s.client); {
				case errors.Is(err, errAgain):
					return nil
				case err != nil:
					return errClientGone
				}
			}
		}
		if err := s.gate(ctx); err != nil {
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
	err := s.in.fill(s.client)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		_ = s.client.SetReadDeadline(time.Time{})
		return errWake
	}
	return errClientGone
}

// gate waits until the lease allows what comes next.
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
		isOpen := ok && s.isOpenGate(b, start, bootNow())
		s.mu.Unlock()
		switch {
		case closing:
			return errClosing
		case !ok:
			return errBackendLost
		case isOpen:
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
		if err := s.pause(ctx, moved); err != nil {
			return err
		}
		if time.Since(from) > s.holdTimeout() {
			// Neither renewed nor replaced: give the backend up and let the hold's rules
			// answer what waits.
			s.lose(b, false)
			return errBackendLost
		}
	}
}

// pause waits until the lease has moved, or somebody calls, and looks after the client.
func (s *session) pause(ctx context.Context, moved <-chan struct{}) error {
	t := time.NewTimer(waitTick)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return errClosing
	case <-s.news():
	case <-moved:
	case <-t.C:
	}
	if s.client.probe() == peerGone {
		return errClientGone
	}
	return s.signals()
}

// forward sends what the inbox holds in whole messages, with one write where it can.
func (s *session) forward(ctx context.Context) error {
	s.mu.Lock()
	b := s.backend
	if s.isAsking() {
		s.mu.Unlock()
		return s.guardOn(ctx, b)
	}
	if s.unsent == 0 && s.awaitsSame() {
		s.mu.Unlock()
		return s.awaitBackend(ctx, func() bool { return s.cameShort() || !s.awaitsSame() })
	}
	if s.unsent > 0 || s.passing > 0 {
		s.mu.Unlock()
		return s.sendRest(b, true)
	}
	if s.endHeld {
		// The snapshot comes first: relayClient asks for it, and here its answer is awaited.
		asked := !s.flow.isSafePoint()
		s.mu.Unlock()
		if !asked {
			return nil
		}
		return s.awaitBackend(ctx, func() bool { return !s.endHeld || s.flow.isSafePoint() })
	}
	if waits := func() bool { return s.flow.asksOutside() || s.flow.awaitsChain() }; waits() {
		s.mu.Unlock()
		return s.awaitBackend(ctx, func() bool { return !waits() })
	}
	if s.isFull() {
		s.proxy.metrics.limit(limitOutstanding)
		s.mu.Unlock()
		return s.awaitBackend(ctx, func() bool { return !s.isFull() })
	}
	if s.flow.isSafePoint() && s.proxy.isDraining(b.primary.Epoch) {
		s.mu.Unlock() // Drain has begun since gate looked; it looks at the flow under mu
		return nil
	}
	_, n, act, before, err := s.inspectInbox()
	s.mu.Unlock()
	if werr := s.send(b, 0, n, before); werr != nil {
		return werr
	}
	switch {
	case err == nil && act == forwardGuard:
		return s.guard(ctx, b)
	case s.unsent > 0:
		return nil // the rest of it goes first; what is behind it is found again
	case err != nil:
		return err
	case act == forwardStop:
		return errClientGone
	case act == forwardPrepare:
		return s.prepareAway(b, true)
	case act == forwardCopy:
		return s.awaitBackend(ctx, func() bool { return !s.awaitsCopy() })
	}
	return nil
}

// inspectInbox records the messages at the head of the inbox, n bytes, in the flow, which was
// before. The first rest bytes of them belong to a message of which a part was sent already. act is
// about the message behind them. The caller holds s.mu.
func (s *session) inspectInbox() (rest, n int, act forwarding, before flow, err error) {
	data := s.in.bytes()
	if s.again != nil {
		data = data[:min(len(data), s.again.left)]
	}
	before = s.flow
	s.pushed = 0
	s.equip()
	rest = min(s.passing, len(data))
	s.passing -= rest
	n = rest
	if s.flow.isSafePoint() {
		s.beginUnit()
	}
	for n < len(data) && s.passing == 0 && !s.flow.awaitsChain() {
		var size int
		size, act, err = s.inspectNext(data[n:], n)
		if err != nil || size == 0 || act != forwardIt {
			break
		}
		part := min(size, len(data)-n)
		s.passing = size - part
		n += part + moreOf(data[n:], part, pgwire.CliCopyData)
	}
	if err == nil && act == forwardIt {
		s.askBehind(n)
	}
	return rest, n, act, before, err
}

// awaitsSame tells that all of a unit of work was sent again, and that it is not known yet whether
// it comes to what the client was shown: nothing new goes before that. The caller holds s.mu and is
// the owner.
func (s *session) awaitsSame() bool {
	a := s.again
	if a == nil || a.left > 0 {
		return false
	}
	if a.verified {
		s.again = nil
		return false
	}
	return true
}

// beginUnit starts a unit of work; the caller holds s.mu and is the owner.
func (s *session) beginUnit() {
	s.settleUnnamed()
	s.unit.begin()
	s.unitFrom.Store(0)
	s.seen, s.flow.done, s.overflowed = digest{}, 0, false
	s.track.renamed = nil
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
	if !isClientMessage(typ) {
		return 0, forwardIt, fatalProtocol(errClientMessage(typ)) // the rest is not waited for
	}
	size = pgwire.HeaderLen + n
	s.in.want = 0
	body := p[pgwire.HeaderLen:min(size, len(p))]
	if isSmall(typ) {
		// Never larger than what is inspected, so that what is guarded is there as a whole.
		switch {
		case n+4 > smallMessageMax: // the length counts itself
			return 0, forwardIt, fatalProtocol(errClientLength(typ, n))
		case size > len(p):
			s.in.want = size
			return 0, forwardIt, nil
		}
	}
	if size > len(p) && typ != pgwire.CliCopyData {
		if size <= s.proxy.cfg.InspectBytesMax {
			s.in.want = size
			return 0, forwardIt, nil
		}
		if len(p) < min(size, s.proxy.cfg.InspectBytesMax) {
			s.in.want = s.proxy.cfg.InspectBytesMax
			return 0, forwardIt, nil
		}
		if typ == pgwire.CliQuery || typ == pgwire.CliParse {
			s.proxy.metrics.limit(limitInspect)
		}
	}
	if s.backend != nil && s.backend.isOld {
		act, err = s.inCopy(typ)
	}
	if err == nil && act == forwardIt {
		act, err = s.inspect(typ, body, size <= len(p), s.unit.end()+off)
	}
	if err != nil {
		return 0, act, fatalProtocol(err)
	}
	return size, act, nil
}

// isFull tells that nothing more is to be sent now; s.mu is held.
func (s *session) isFull() bool { return s.flow.isFull(s.proxy.cfg.OutstandingMax) }

// smallMessageMax bounds messages that have no text of the client's choice in them, as the server
// does from 14 on (PQ_SMALL_MESSAGE_LIMIT).
const smallMessageMax = 10000

func isSmall(typ byte) bool {
	switch typ {
	case pgwire.CliExecute, pgwire.CliDescribe, pgwire.CliClose, pgwire.CliSync, pgwire.CliFlush,
		pgwire.CliCopyDone, pgwire.CliTerminate:
		return true
	}
	return false
}

func errClientLength(typ byte, n int) error {
	return pgwire.NewError(pgwire.CodeProtocolViolation,
		fmt.Sprintf("invalid length %d of frontend message type %d", n, typ))
}

func fatalProtocol(err error) error {
	var pe *pgwire.Error
	if errors.As(err, &pe) {
		return fatal(pe)
	}
	return err
}

func (s *session) push(o op) {
	s.soiled = s.soiled || o.soils()
	s.chain.startsAt(s, &o)
	if s.flow.push(o) {
		s.pushed++
	}
}
