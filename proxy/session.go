package proxy

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// session is a client's logical connection; it outlives its backends.
//
// Its owner is the goroutine that runs serve: it reads from the client, writes to the backend,
// and does everything that is rare. While a backend is attached a second goroutine (deliver.go)
// reads from the backend and writes to the client. The owner writes to the client itself only
// while that goroutine is not running, so the client's stream has one writer at any time.
type session struct {
	proxy *Proxy
	log   *zap.Logger
	id    uint32
	key   []byte // cancel key given to the client

	client net.Conn
	in     inbox // from the client; the owner's
	login  []pgwire.Param
	user   string
	cred   pgwire.Credentials
	conf   bool // standard_conforming_strings; the owner's, under mu for writing

	wake chan struct{} // capacity 1: the deliverer has news for a waiting owner

	mu      sync.Mutex
	backend *backend // nil while there is none
	opening *backend // being restored, not attached yet
	flow    flow
	track   tracker
	params  map[string]string // as last reported to the client

	lost        bool     // the backend must not be used any more
	planned     bool     // it was taken away at a safe point by a drain
	canceled    bool     // a cancel request came while there was no backend
	closing     bool     // the proxy is shutting down
	watching    bool     // the owner waits on wake
	inDoubt     bool     // COMMIT was forwarded with its xid known or known to be absent
	noCancel    bool     // a COMMIT is about to be forwarded, or outstanding
	cancels     int      // cancel requests on their way to the server
	resent      *backend // which of the session's statements run on, though it is not attached
	xid         uint64
	endHeld     bool          // a ReadyForQuery 'I' waits for the snapshot
	rows        [][3]string   // of an internal query
	rowsCut     bool          // there were more
	inner       *pgwire.Error // its error
	fatal       *pgwire.Error // a FATAL of the server that was not passed on yet
	clientQuiet silence       // Proxy.runWatch's own

	heldFrom   time.Time // since when the lost backend's answers were kept back; zero: not
	lostStatus byte      // the transaction status that the client believes in, if lostTx
	lostTx     bool      // the client's transaction is gone and it was not told yet

	// Of the backend that was lost last.
	lostEpoch   uint64
	lostPID     uint32
	lostStarted string
	lostMid     bool // the client has a part of a message

	// The owner's own.
	scratch   []pgwire.Statement
	journal   []byte
	journaled bool // journal has every byte since the flow was last idle
	out       []byte
	unnamed   parsed
	unnamedQ  []byte // body of the unnamed Parse, to be parsed again on a new backend
	portal    parsed
	portals   map[string]parsed
	passing   int  // bytes of a message that is relayed as it comes
	discard   bool // they go nowhere: the backend that has the first part is lost
	pushed    int
	guarded   class // of the Query that waits in guardCommit
}

// serve runs the session until the client or the proxy ends it. It owns client.
func (s *session) serve(ctx context.Context) {
	defer s.finish()
	for {
		err := s.relayClient(ctx)
		s.stopBackend()
		switch {
		case errors.Is(err, errBackendLost):
			if err = s.recover(ctx); err == nil {
				continue
			}
		case errors.Is(err, errClosing):
			err = s.leave(ctx, s.takeLoss(), err)
		}
		s.sayGoodbye(err)
		return
	}
}

// sayGoodbye tells the client why the session ends, where there is somebody to tell.
func (s *session) sayGoodbye(err error) {
	var pe *pgwire.Error
	switch {
	case errors.Is(err, errClientGone):
		s.log.Debug("client is gone")
		return
	case errors.Is(err, errClosing):
		pe = fatal(pgwire.NewError(pgwire.CodeAdminShutdown,
			"terminating connection because the proxy is shutting down"))
	case errors.As(err, &pe):
		s.log.Info("session ended", zap.String("sqlstate", pe.Code), zap.Error(err))
	default:
		s.log.Info("session ended", zap.Error(err))
		return
	}
	s.proxy.metrics.sessionErrors.WithLabelValues(pe.Code).Inc()
	_ = s.client.SetWriteDeadline(time.Now().Add(time.Second))
	_ = s.writeClient(pgwire.AppendError(nil, pe))
}

func (s *session) finish() {
	s.stopBackend()
	s.in.release()
	_ = s.client.Close()
	s.proxy.remove(s)
}

// interrupt makes the owner look at the flags.
func (s *session) interrupt() {
	_ = s.client.SetReadDeadline(time.Unix(1, 0))
	s.notify()
}

// notify wakes the owner where it waits for the deliverer.
func (s *session) notify() {
	select {
	case s.wake <- struct{}{}:
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

// stopBackend ends the attached backend and waits for its deliverer.
func (s *session) stopBackend() {
	s.mu.Lock()
	b := s.backend
	polite := b != nil && s.flow.isSafePoint() && !s.lost
	s.mu.Unlock()
	if b == nil {
		return
	}
	b.close(polite)
	<-b.done
	s.mu.Lock()
	s.backend = nil
	s.lostEpoch, s.lostPID, s.lostStarted = b.primary.Epoch, b.pid, b.started
	s.lostMid = b.passing > 0 && !b.passHide
	s.mu.Unlock()
}

// attach starts relaying to and from b. The owner calls it with no backend attached.
func (s *session) attach(b *backend) error {
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
	s.inDoubt, s.noCancel, s.inner = false, false, nil
	s.mu.Unlock()
	b.relayFromHere()
	go b.runDeliver(s)
	return nil
}

// writeClient writes the owner's own messages; only while no deliverer runs.
func (s *session) writeClient(p []byte) error {
	if len(p) == 0 {
		return nil
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
	case s.closing && (s.backend == nil || s.flow.isSafePoint()):
		return errClosing
	case s.lost || s.backend == nil:
		return errBackendLost
	}
	return nil
}

// isOpen tells that a unit of work of the epoch is open, for Drain.
func (s *session) isOpen(epoch uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.backend
	if b == nil {
		b = s.resent
	} else if s.lost {
		return false
	}
	return b != nil && b.primary.Epoch <= epoch && !s.flow.isSafePoint()
}
