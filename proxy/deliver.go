package proxy

import (
	"time"

	"holdfast/pgwire"
)

// deliver relays, waiting, until the backend is lost or until is true after a message.
func (b *backend) deliver(s *session, until func() bool) error {
	for !until() {
		if err := b.in.fill(); err != nil {
			return err
		}
		if err := b.awaitLease(s); err != nil {
			return err
		}
		out, err := b.consume(s)
		if len(out) > 0 {
			if _, werr := s.client.Write(out); werr != nil {
				return errClientGone
			}
		}
		b.in.take(b.taken)
		if err != nil {
			return err
		}
		if b.isLast {
			s.interrupt()
		}
	}
	return nil
}

// awaitLease returns when the lease is good, which it nearly always is at once. What was read
// but not relayed under a lease that is never renewed is dropped as if it had not come. The wait
// counts as a hold of the session and ends with its budget.
func (b *backend) awaitLease(s *session) error {
	if bootNow() < b.primary.Lease.Until() {
		return nil
	}
	from := time.Now()
	watch := &s.proxy.watch
	watch.enter()
	defer watch.leave()
	t := time.NewTimer(s.proxy.cfg.HoldTimeout)
	defer t.Stop()
	tick := time.NewTicker(waitTick)
	defer tick.Stop()
	for {
		moved := watch.next()
		if bootNow() < b.primary.Lease.Until() {
			return nil
		}
		if b.isClosed.Load() {
			return errBackendLost
		}
		select {
		case <-tick.C:
		case <-t.C:
			s.mu.Lock()
			s.heldFrom = from
			s.mu.Unlock()
			return errBackendLost
		case <-moved:
		}
	}
}

// consume takes the messages that have arrived and returns the bytes that the client gets; they
// alias the inbox. b.taken is how much of the inbox is thereby dealt with.
func (b *backend) consume(s *session) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data := b.in.bytes()
	pos, out := 0, 0
	var err error
	for pos < len(data) && err == nil {
		n := 0
		if b.passing > 0 {
			n = min(b.passing, len(data)-pos)
			b.passing -= n
			if !b.passHide {
				out = move(data, out, pos, n)
			}
			pos += n
			continue
		}
		var hide bool
		n, hide, err = b.message(s, data[pos:])
		if n == 0 {
			break
		}
		if !hide {
			n += moreOf(data[pos:], n, pgwire.SrvDataRow, pgwire.SrvCopyData)
			out = move(data, out, pos, n)
		}
		pos += n
	}
	if s.watching {
		s.notify()
	}
	if s.onLoop.Load() && s.flow.isSafePoint() {
		s.rest()
	}
	b.isLast = s.closing && s.flow.isSafePoint()
	b.taken = pos
	return data[:out], err
}

// move shifts n bytes at pos down to out, behind those already kept for the client.
func move(data []byte, out, pos, n int) int {
	if out != pos {
		copy(data[out:], data[pos:pos+n])
	}
	return out + n
}

// message takes the message at the start of p; n is 0 if more bytes are needed.
func (b *backend) message(s *session, p []byte) (n int, hide bool, err error) {
	b.in.want = pgwire.HeaderLen
	if len(p) < pgwire.HeaderLen {
		return 0, false, nil
	}
	typ, size, err := pgwire.Header(p)
	if err != nil {
		return 0, false, err
	}
	size += pgwire.HeaderLen
	if size > len(p) && size <= relayBufferBytes {
		b.in.want = size // nothing but whole messages, so that one can be dropped whole
		return 0, false, nil
	}
	b.in.want = 0
	n = min(size, len(p))
	body := p[pgwire.HeaderLen:n]
	if typ == pgwire.SrvError && size == n && b.isFatal(s, body) {
		return 0, true, errBackendLost
	}
	s.watchLocks(typ, body)
	a, err := s.flow.serverMessage(typ, body)
	if err != nil {
		return 0, true, err
	}
	hide = a.hide
	switch typ {
	case pgwire.SrvParameterStatus:
		hide = b.reported(s, body) || hide
	case pgwire.SrvNotice:
		hide = size == n && isFarewell(body)
	case pgwire.SrvDataRow, pgwire.SrvError:
		if o := s.flow.innerOp(a); o {
			b.inner(s, typ, body)
		}
	}
	if a.stmt != nil && typ == pgwire.SrvCommandComplete {
		s.completed(a.stmt, body)
	}
	if a.done != nil {
		s.answered(a.done)
	}
	if a.end {
		hide = s.ended(a, hide)
	}
	if size > n {
		b.passing, b.passHide = size-n, hide
	}
	return n, hide, nil
}

// isFatal takes an ErrorResponse that ends the backend. It is kept back: whether the server, or
// only this session, was told to end is not known yet.
func (b *backend) isFatal(s *session, body []byte) bool {
	e, err := pgwire.ParseError(body)
	if err != nil || (e.Severity != "FATAL" && e.Severity != "PANIC") {
		return false
	}
	s.fatal = e
	return true
}

// isFarewell tells that a notice only announces the end of the backend, which the client is to
// outlive: a crash of another process makes the postmaster send it.
func isFarewell(body []byte) bool {
	e, err := pgwire.ParseError(body)
	return err == nil && (e.Code == pgwire.CodeCrashShutdown || e.Code == pgwire.CodeAdminShutdown)
}

// reported notes a ParameterStatus; true hides one that the client knows already.
func (b *backend) reported(s *session, body []byte) bool {
	name, value, err := pgwire.ParseParameterStatus(body)
	if err != nil {
		return false
	}
	if name == "in_hot_standby" {
		return true // the client is told of no standby
	}
	s.reported(name, value)
	return false
}

// inner keeps the answer to a query of our own.
func (b *backend) inner(s *session, typ byte, body []byte) {
	if typ == pgwire.SrvError {
		s.inner, _ = pgwire.ParseError(body)
		return
	}
	cols, err := pgwire.ParseDataRow(body)
	if err != nil || len(s.rows) >= innerRowsMax {
		s.rowsCut = true
		return
	}
	var row [3]string
	for i := 0; i < min(len(cols), 3); i++ {
		row[i] = string(cols[i])
	}
	s.rows = append(s.rows, row)
}

// innerRowsMax bounds the answer to a query of our own.
const innerRowsMax = 2000

// innerOp tells whether a message belongs to a query of our own.
func (f *flow) innerOp(a answer) bool {
	o := f.current()
	return o != nil && o.internal || a.done != nil && a.done.internal || a.hide
}

// reported notes a parameter of the server; the caller holds s.mu.
func (s *session) reported(name, value string) {
	s.params.set(name, value)
	if name == "standard_conforming_strings" {
		s.conf = value == "on"
	}
}

// completed takes CommandComplete of a statement; the caller holds s.mu.
func (s *session) completed(o *op, body []byte) {
	if o.internal {
		return
	}
	at := 0
	if o.kind == opQuery {
		at = s.flow.finished - 1 // the statements of a string complete in turn
	}
	for i := range o.effects {
		if o.effects[i].at == at {
			s.track.succeeded(&o.effects[i])
		}
	}
	if !o.cls.has(clsCommit | clsRollback | clsRollbackTo | clsEnds | clsOpaque) {
		return
	}
	tag, err := pgwire.ParseCommandTag(body)
	if err != nil {
		return
	}
	isRollback := string(tag) == "ROLLBACK"
	switch {
	case o.cls.has(clsOpaque):
		s.track.largeStatement(string(tag))
	case o.cls.has(clsRollbackTo):
		s.track.rolledBackTo()
		return
	case !o.cls.has(clsCommit | clsRollback): // a string, whose effects have said it
	case isRollback:
		s.track.rolledBack()
	default:
		s.track.committed()
	}
	s.flow.rolledBack = isRollback
	if o.cls.has(clsCommit) {
		s.inDoubt, s.noCancel = false, false
	}
}

// answered takes an operation that the server confirmed; the caller holds s.mu.
func (s *session) answered(o *op) {
	if o.internal || o.name == "" {
		return
	}
	switch o.kind {
	case opParse:
		s.track.prepare(o.name, o.stmt)
	case opClose:
		s.track.forget(o.name)
	}
}

// ended takes ReadyForQuery; true keeps it from the client. The caller holds s.mu.
func (s *session) ended(a answer, hide bool) bool {
	if a.done.snapshot {
		if s.inner == nil {
			s.track.applySnapshot(s.rows, s.rowsCut)
			s.bookLocks()
		} else {
			s.track.unmovable |= reasonSettings // the server could not say what there is
		}
		s.track.dirty = false
		s.rows, s.inner = nil, nil
		held := s.endHeld
		s.endHeld = false
		s.notify()   // the client's next messages wait for it
		return !held // it stands for the one that was kept back
	}
	if a.done.internal && !a.done.showEnd {
		return true
	}
	if a.done.cls.has(clsCommit) || s.flow.head == len(s.flow.ops) {
		s.inDoubt, s.noCancel = false, false
	}
	if a.done.cls.has(clsMulti) && a.done.cls.has(clsState) {
		s.track.dirty = true // some of it may have been done and undone
	}
	s.track.batchEnded(s.flow.status, s.flow.rolledBack)
	s.flow.rolledBack = false
	if s.track.dirty && s.flow.isSafePoint() && !hide {
		s.endHeld = true
		s.interrupt()
		return true
	}
	return hide
}
