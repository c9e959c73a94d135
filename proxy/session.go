package proxy

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// session is a client's logical connection; it outlives its backends.
//
// While it only relays it is a value on a loop, whose handlers never wait: clientSide reads from
// the client and writes to the backend, serverSide (delivery.go) does the opposite. For what is
// rare (a shut gate, a COMMIT to be guarded, a lost backend) a goroutine that runs serve takes the
// client's side over, and gives it back with park. Whoever has that side is the owner. The owner
// writes to the client itself only while no backend is attached, so the client's stream has one
// writer at any time.
type session struct {
	proxy    *Proxy
	*account // of the client; nobody else's until it has proved who it is
	id       uint32
	pid      uint32 // that the client was given, with the secret of its cancel key
	key      []byte

	loop    *loop
	client  link
	in      inbox      // from the client; the owner's
	conf    bool       // standard_conforming_strings; the owner's, under mu for writing
	setters *settersAt // of its database, once there was a use for them
	blindOf *setters   // what was known when isBlind began
	isBlind bool       // functions may have been called before those were known
	remakes bool       // so may the unit of work have made some

	onLoop     atomic.Bool            // the loop is the owner
	clientFull atomic.Bool            // the backend's bytes wait for room at the client
	serverFull atomic.Bool            // the client's bytes wait for room at the backend
	left       bool                   // its backend was offered to the pool; the owner's
	greeting   *greeting              // its login, while the loop has it; the owner's
	wake       atomic.Pointer[wakeup] // nil while the loop is the owner

	mu      sync.Mutex
	backend *backend // nil while there is none
	opening *backend // being restored, not attached yet
	flow    flow
	track   tracker
	params  paramSet // as last reported to the client

	lost         bool // the backend must not be used any more
	gone         bool // the client cannot be written to
	planned      bool // it was taken away at a safe point by a drain
	missed       bool // tellMissed waits for the rest of a message
	canceled     bool // a cancel request came while there was no backend
	closing      bool // the proxy is shutting down
	watching     bool // the owner waits on wake
	inDoubt      bool // COMMIT was forwarded with its xid known or known to be absent
	noCancel     bool // a COMMIT is about to be forwarded, or outstanding
	cancels      int  // cancel requests on their way to the server
	xid          uint64
	acked        acknowledged
	ackedPrepare bool    // acked is of a PREPARE TRANSACTION
	endHeld      bool    // a ReadyForQuery 'I' waits for the snapshot
	clientQuiet  silence // Proxy.runWatch's own

	hasLocks   bool   // it is in the proxy's lockBook
	kept       func() // ends the connection to a primary where it held locks; nil is none
	lostStatus byte   // the transaction status that the client believes in, if lostTx
	lostTx     bool   // the client's transaction is gone and it was not told yet
	claimed    bool   // it is counted in Proxy.shares
	asksLate   bool   // its server refuses the question for the xid ahead of a COMMIT
	soiled     bool   // its server process cannot be made as new (op.soils)

	last *lastLoss // nil until a backend is lost
	// carry is the session's temporary tables, from the drain of one primary to the next one.
	carry *carry
	// mid tells the owner, who has no backend, that the client has a part of a message.
	mid bool

	// Of the open unit of work: the offset of its first byte, and what the client was shown.
	unitFrom atomic.Int64
	// unitUnnamed is the unnamed statement there, if the unit did not begin at a safe point.
	unitUnnamed unnamedMark
	// chain is of a unit that begins behind a COMMIT AND CHAIN; nil is none.
	chain *chain
	seen  digest
	again *again // the unit is run again; the owner sets and clears it
	tries int    // how often the unit was run again
	// overflowed tells that the unit was too large to be kept.
	overflowed bool

	// The owner's own.
	*work
	unnamed  parsed
	unnamedQ []byte // body of the unnamed Parse, to be parsed again on a new backend

	unnamedAt int  // where the newest change of it is in the journal
	passing   int  // bytes of a message that is relayed as it comes
	discard   bool // they go nowhere: the backend that has the first part is lost
	pushed    int
	unsent    int // bytes at the head of the inbox that were inspected and count as sent
}

// lastLoss is what is known of the backend that was lost last, or is about to be.
type lastLoss struct {
	epoch    uint64
	pid      uint32
	started  string
	mid      bool // the client has a part of a message
	kept     []byte
	fatal    *pgwire.Error // a FATAL of the server that was not passed on yet
	heldFrom time.Time     // since when its answers were kept back; zero: not
	heardAt  int64         // bootNow when the session may have read last; 0: ask the kernel

	// restless is how often in a row one was lost at once after it was attached, at restoredAt. The
	// owner's own.
	restless   int
	restoredAt time.Time
}

// losing is where to note what is known of a loss. The caller holds s.mu.
func (s *session) losing() *lastLoss {
	if s.last == nil {
		s.last = &lastLoss{}
	}
	return s.last
}

// serve does what the loop cannot, and ends when the session is the loop's again, or is over.
func (s *session) serve(ctx context.Context) {
	s.mu.Lock()
	s.equip()
	s.mu.Unlock()
	for {
		err := s.relayClient(ctx)
		if err == nil {
			s.park()
			return
		}
		switch {
		case errors.Is(err, errPack):
			if err = s.pack(ctx); err == nil {
				continue
			}
		case errors.Is(err, errClientGone):
			s.leaveBehind()
		}
		violates, err := s.awaitAnswers(ctx, err)
		if gone := s.stopBackend(); gone != nil {
			err = gone
		}
		switch {
		case errors.Is(err, errBackendLost):
			if err = s.recover(ctx); err == nil {
				continue
			}
		case errors.Is(err, errClosing), violates:
			err = s.leave(ctx, s.takeLoss(), err)
		}
		s.sayGoodbye(err)
		s.finish()
		return
	}
}

// wakeup has capacity 1: there is news for an owner that waits. One that was given back may still
// be rung by somebody late; so whoever waits looks whether there is any.
type wakeup chan struct{}

var wakeups = sync.Pool{New: func() any { w := make(wakeup, 1); return &w }}

// attend prepares for an owner that waits. Once others know the session, the caller holds s.mu, as
// for onLoop: whoever holds it sees both change together.
func (s *session) attend() { s.wake.Store(wakeups.Get().(*wakeup)) }

// news is for the owner, if that is a goroutine.
func (s *session) news() <-chan struct{} { return *s.wake.Load() }

// park makes the loop the owner. The caller must not use s any more.
func (s *session) park() {
	s.mu.Lock()
	if s.flow.isSafePoint() && s.unsent == 0 && s.passing == 0 {
		s.rest()
	}
	w := s.wake.Swap(nil)
	s.onLoop.Store(true)
	s.mu.Unlock()
	wakeups.Put(w)
	s.loop.post((*clientSide)(s)) // what became ready meanwhile, and flags that were set
}

// unpark makes a new goroutine the owner; only the loop calls it, as the owner.
func (s *session) unpark() {
	s.serverFull.Store(false)
	s.handOver(func() { s.serve(s.proxy.ctx) })
}

// log is the log of the session. It is made when there is something to say: kept, it would cost
// each idle session more than its sockets.
func (s *session) log() *zap.Logger { return s.proxy.log.With(zap.Uint32("session_id", s.id)) }

// sayGoodbye tells the client why the session ends, where there is somebody to tell.
func (s *session) sayGoodbye(err error) {
	var pe *pgwire.Error
	switch {
	case errors.Is(err, errClientGone):
		if s.proxy.log.Core().Enabled(zap.DebugLevel) { // a log is made for it
			s.log().Debug("client is gone")
		}
		return
	case errors.Is(err, errClosing):
		pe = fatal(pgwire.NewError(pgwire.CodeAdminShutdown,
			"terminating connection because the proxy is shutting down"))
	case errors.As(err, &pe):
		s.log().Info("session ended", zap.String("sqlstate", pe.Code), zap.Error(err))
	default:
		s.log().Info("session ended", zap.Error(err))
		return
	}
	s.proxy.metrics.sessionErrors.WithLabelValues(pe.Code).Inc()
	_ = s.client.SetWriteDeadline(time.Now().Add(goodbyeTime))
	_ = s.writeClient(pgwire.AppendError(nil, pe))
}

func (s *session) finish() {
	_ = s.stopBackend()
	s.mu.Lock()
	s.rest()
	s.mu.Unlock()
	s.endKept()
	s.endCarry()
	s.in.release()
	_ = s.client.Close()
	s.proxy.remove(s)
	s.proxy.accounts.release(s.account)
	s.proxy.clientDone()
}

// interrupt makes the owner look at the flags, also where it waits for the client.
func (s *session) interrupt() {
	if !s.onLoop.Load() {
		_ = s.client.SetReadDeadline(time.Unix(1, 0))
	}
	s.notify()
}

// notify makes the owner look at the flags, which the caller has set before.
func (s *session) notify() {
	w := s.wake.Load()
	if w == nil || s.onLoop.Load() {
		s.loop.post((*clientSide)(s)) // or a goroutine is about to begin, and looks at them first
		return
	}
	select {
	case *w <- struct{}{}:
	default:
	}
}

// lose marks the backend as lost and closes it such that nothing more can leave or arrive.
func (s *session) lose(b *backend, polite bool) {
	s.mu.Lock()
	if s.backend != b || b == nil {
		s.mu.Unlock()
		return
	}
	s.lost = true
	s.planned = s.planned || polite
	s.mu.Unlock()
	b.close(polite)
	s.interrupt()
}

// stopBackend ends the attached backend. What was on its way to the client gets there first; an
// error tells that the client is gone.
func (s *session) stopBackend() error {
	s.mu.Lock()
	b := s.backend
	polite := b != nil && s.flow.isSafePoint() && !s.lost
	s.mu.Unlock()
	if b == nil {
		return nil
	}
	b.close(polite)
	err := b.detach(s)
	s.mid = false
	if s.unsent > 0 { // they count as sent
		s.in.take(s.unsent)
		s.unsent = 0
	}
	s.mu.Lock()
	s.backend = nil
	l := s.losing()
	l.epoch, l.pid, l.started = b.primary.Epoch, b.pid, b.started
	l.mid = b.passing > 0 && !b.passHide
	if l.kept, l.heardAt = b.keptDone, 0; s.mayRead() {
		l.heardAt = bootNow()
	}
	s.mu.Unlock()
	return err
}

// attach starts relaying to and from b, once begin was called with s.mu held. The owner calls it
// with no backend attached.
func (s *session) attach(b *backend, begin func()) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		b.close(true)
		return errClosing
	}
	if s.proxy.isCut(b.primary.Epoch) {
		s.mu.Unlock()
		b.close(false)
		return errBackendLost
	}
	s.backend, s.opening = b, nil
	s.lost, s.planned, s.canceled = false, false, false
	s.inDoubt, s.noCancel = false, false
	if s.work != nil {
		s.inner, s.asking, s.ours = nil, askingNothing, nil
	}
	b.session = s
	s.track.loggedIn(b.role)
	b.isOld = isOldServer(s.params.value("server_version"))
	b.relayFromHere()
	b.filled = len(b.in.bytes()) > 0
	begin()
	s.mu.Unlock()
	b.conn.handle((*serverSide)(b))
	s.loop.post((*serverSide)(b))
	return nil
}

// writeClient writes the owner's own messages; only while no backend is attached.
func (s *session) writeClient(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if s.mid {
		return errCutMessage()
	}
	if _, err := s.client.Write(p); err != nil {
		return errClientGone
	}
	return nil
}

// signals looks at what others want of the owner. With no backend attached there is nothing.
func (s *session) signals() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gone:
		return errClientGone
	case s.closing && (s.backend == nil || s.flow.isSafePoint()):
		return errClosing
	case s.lost || s.backend == nil:
		return errBackendLost
	case s.cameShort():
		s.again.failed = true
		return errBackendLost
	case s.mustPack():
		return errPack
	}
	return nil
}

// awaitsDrain tells Drain that a unit of work of the epoch is open, or that the session has
// temporary tables, which it is told to pack.
func (s *session) awaitsDrain(epoch uint64) bool {
	s.mu.Lock()
	b := s.backend
	awaits, ask := b != nil && !s.lost && b.primary.Epoch <= epoch, false
	if awaits && s.flow.isSafePoint() && !s.endHeld {
		awaits = s.mayCarry()
		ask = awaits && s.carry == nil
	}
	if ask {
		s.carry = &carry{}
	}
	s.mu.Unlock()
	if ask {
		s.interrupt()
	}
	return awaits
}
