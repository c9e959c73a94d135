package proxy

import "errors"

// send writes the first n bytes of the inbox to the backend and keeps the journal. What there is
// no room for counts as sent, and goes with sendRest. If no byte could leave any more but for the
// first rest, which belong to what was sent before, the messages count as not sent, and stay in the
// inbox. Behind them goes a question of ours, if one was recorded, which is not kept.
func (s *session) send(b *backend, rest, n int, before flow) error {
	if n == 0 {
		return nil
	}
	ahead := s.takeAhead()
	p := s.in.bytes()[:n+ahead]
	done, err := b.conn.tryWrite(p)
	if err != nil && !errors.Is(err, errAgain) {
		if done <= rest {
			s.mu.Lock()
			s.flow.unpush(s.pushed, before)
			s.inDoubt = s.inDoubt && s.flow.isCommitting()
			s.mu.Unlock()
			s.in.shorten(ahead)
			if rest < n {
				s.passing = 0 // what was inspected behind it is not sent
			}
			s.passing += rest - done
			s.keep(p[:done])
			s.in.take(done)
		} else {
			s.keep(p[:n])
			s.in.take(n + ahead)
		}
		s.lose(b, false)
		return errBackendLost
	}
	s.keep(p[:n])
	s.in.take(done)
	s.unsent = n + ahead - done
	return nil
}

// sendRest writes what was inspected already: what there was no room for, or the rest of a message
// that is too large to be inspected as a whole. Unless it may wait, errAgain tells that there is no
// room still.
func (s *session) sendRest(b *backend, wait bool) error {
	n, rest := s.unsent, &s.unsent
	if n == 0 {
		if s.in.lacks() { // the owner looked before it waited at the gate
			return nil
		}
		n, rest = min(s.passing, len(s.in.bytes())), &s.passing
		if s.discard {
			// The backend that has the first part of the message is lost, and the client was told:
			// to another one the rest would be messages of their own.
			s.passing -= n
			s.in.take(n)
			s.discard = s.passing > 0
			return nil
		}
		if s.again != nil {
			n = min(n, s.again.left)
		}
	}
	write := b.conn.tryWrite
	if wait {
		write = b.conn.Write
	}
	done, err := write(s.in.bytes()[:n])
	if rest == &s.passing {
		s.keep(s.in.bytes()[:done])
	}
	*rest -= done
	s.in.take(done)
	if err == nil || errors.Is(err, errAgain) {
		return err
	}
	s.lose(b, false)
	return errBackendLost
}

// sendInner writes a query of our own.
func (s *session) sendInner(b *backend, out []byte, before flow) error {
	_, err := s.sendOwn(b, out, before, true)
	return err
}

// sendOwn writes messages of our own, for which before was the flow. n is 0 if an error tells that
// they count as not sent. Unless it may wait, errAgain tells that sendOurs has to send what there
// was no room for; out is not to be changed until then.
func (s *session) sendOwn(b *backend, out []byte, before flow, wait bool) (n int, err error) {
	write := b.conn.tryWrite
	if wait {
		write = b.conn.Write
	}
	n, err = write(out)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, errAgain):
		s.ours = out[n:]
		return len(out), err
	case n == 0:
		s.mu.Lock()
		s.flow.unpush(s.pushed, before)
		s.mu.Unlock()
	}
	s.lose(b, false)
	return n, errBackendLost
}

// sendOurs writes what is left of messages of our own.
func (s *session) sendOurs(b *backend, wait bool) error {
	if len(s.ours) == 0 {
		return nil
	}
	write := b.conn.tryWrite
	if wait {
		write = b.conn.Write
	}
	n, err := write(s.ours)
	s.ours = s.ours[n:]
	if err == nil || errors.Is(err, errAgain) {
		return err
	}
	s.lose(b, false)
	return errBackendLost
}

// keep copies what was sent into the journal, as long as it fits.
func (s *session) keep(p []byte) {
	if s.again != nil {
		s.again.left -= len(p)
	}
	if s.work == nil || !s.unit.whole {
		return // of what is sent behind a safe point nothing is kept
	}
	if s.unitFrom.Load() > int64(s.unit.base) {
		s.mu.Lock()
		s.followUnit()
		s.mu.Unlock()
	}
	grown, ok := s.unit.keep(p, s.unit.base, s.journalBytesMax())
	if !s.proxy.journaled(grown) && ok {
		s.proxy.journaled(-s.unit.grown)
		s.unit.drop()
		ok = false
	}
	if !ok {
		s.proxy.metrics.journalOverflows.Inc()
		s.mu.Lock()
		s.overflowed = true
		s.mu.Unlock()
	}
}
