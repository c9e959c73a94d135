package proxy

import (
	"errors"
	"slices"
	"time"

	"holdfast/pgwire"
)

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
	t := time.NewTimer(s.holdTimeout())
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
			s.losing().heldFrom = from
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
	w := window{data: b.in.bytes(), pos: b.kept}
	var err error
	for w.pos < len(w.data) && err == nil {
		var n int
		n, err = b.next(s, &w)
		if n == 0 {
			break
		}
	}
	s.seen.add(w.data[w.summed:w.out])
	if b.in.want > 0 {
		b.in.want += b.kept
	}
	if s.watching || s.again.isOpen() && s.flow.awaitsClient() {
		s.notify()
	}
	if s.onLoop.Load() && s.flow.isSafePoint() {
		s.rest()
	}
	b.isLast = s.closing && s.flow.isSafePoint()
	b.taken = w.pos - b.kept
	if s.missed && b.passing == 0 && err == nil && !s.again.isOpen() {
		s.missed = false
		return appendMissed(slices.Clone(w.data[:w.out])), nil
	}
	return w.data[:w.out], err
}

// window is the inbox while it is taken: what the client gets is moved together at its start.
type window struct {
	data   []byte
	pos    int // what was looked at
	out    int // what the client gets
	summed int // how much of that the digest has
}

// show moves n bytes at pos to those for the client.
func (w *window) show(n int) { w.out = move(w.data, w.out, w.pos, n) }

// next takes a message, or some of the same kind, or a part of one; n is 0 if more bytes are
// needed.
func (b *backend) next(s *session, w *window) (n int, err error) {
	start, hide := b.passing == 0, b.passHide
	if start {
		n, hide, err = b.message(s, w.data[w.pos:])
		if n == 0 {
			return 0, err
		}
		if !hide {
			n += moreOf(w.data[w.pos:], n, pgwire.SrvDataRow, pgwire.SrvCopyData)
		}
	} else {
		n = min(b.passing, len(w.data)-w.pos)
		b.passing -= n
	}
	if !hide {
		if b.kept > 0 && isAsync(b.typ) {
			b.showBefore(s, w, n)
			return n, err
		}
		if !b.giveKept(s, w) || !b.show(s, w, n, start) {
			s.again.failed = true
			return n, errBackendLost
		}
	}
	if hide && (b.keep || b.over || b.give) && !b.giveKept(s, w) {
		s.again.failed = true
		return n, errBackendLost
	}
	b.give = false
	w.pos += n
	b.keepBack(w, n)
	if b.over {
		b.over = false
		return n, s.unitEnded(w)
	}
	return n, err
}

// show gives the client n bytes at pos, and the digest; where a unit is run again, only what the
// client has not had. False tells that it had something else.
func (b *backend) show(s *session, w *window, n int, start bool) bool {
	p := w.data[w.pos : w.pos+n]
	switch {
	case s.again.isOpen() && s.again.loss.cutMessage && isAsync(b.typ):
		// The client has a part of a message, and gets nothing before the rest of it.
	case s.again.isOpen():
		a := s.again
		had, same := s.seen.again(b.typ, p, start, a.want)
		if !same {
			return false
		}
		a.verified = s.seen.n >= a.want.n
		if a.verified {
			s.proxy.metrics.replays.WithLabelValues("same").Inc()
			s.notify() // what the client has sent meanwhile waits for it
		}
		w.out = move(w.data, w.out, w.pos+had, n-had)
		w.summed = w.out
	case b.typ == pgwire.SrvError || isAsync(b.typ):
		s.seen.add(w.data[w.summed:w.out])
		s.seen.shown(b.typ, p, start)
		w.show(n)
		w.summed = w.out
	default:
		w.show(n)
	}
	return true
}

// unitEnded takes the end of a unit of work at the server, which may be that of the first of a
// chain of blocks; the caller holds s.mu.
func (s *session) unitEnded(w *window) error {
	if s.again.isOpen() {
		s.again.failed = true // it came to an end before it came to where it had been
		return errBackendLost
	}
	w.summed = w.out
	s.seen, s.tries = digest{}, 0
	s.track.renamed = nil
	s.noteChain()
	for i := s.flow.head; i < len(s.flow.ops); i++ {
		if o := &s.flow.ops[i]; !o.internal || o.leads {
			s.chain.startsAt(s, o)
			s.unitFrom.Store(int64(o.start)) // the client has not waited
			s.unitUnnamed = s.flow.unnamed
			s.track.locks.unitMoved()
			break
		}
	}
	return nil
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
	if most := judgeable(typ, p, size); most > len(p) {
		b.in.want = most // nothing but whole messages, so that one can be dropped whole
		return 0, false, nil
	}
	b.in.want = 0
	n = min(size, len(p))
	body := p[pgwire.HeaderLen:n]
	if typ == pgwire.SrvError && (b.isFatal(s, body, size > n) || s.aheadFailed(body)) {
		return 0, true, errBackendLost
	}
	s.watchLocks(typ, body)
	// Behind serverMessage the question is gone, if there is no Sync.
	b.innerFailed = b.innerFailed || typ == pgwire.SrvError && s.flow.isInner()
	a, err := s.flow.serverMessage(typ, body)
	if err != nil {
		return 0, true, err
	}
	b.typ, b.give, hide = typ, a.give, a.hide
	switch typ {
	case pgwire.SrvParameterStatus:
		if hide = b.reported(s, body) || hide; s.hasTooManyParams() {
			return n, true, s.tooManyParams()
		}
	case pgwire.SrvNotification:
		if b.pid != s.pid {
			renamed(body, s.pid, b.pid)
		}
	case pgwire.SrvNotice:
		hide = size == n && isFarewell(body)
	case pgwire.SrvDataRow, pgwire.SrvError:
		if o := s.flow.innerOp(a); o && !s.flow.isAhead() {
			b.inner(s, typ, body)
		}
	case pgwire.SrvFunctionCallResponse:
		if hide {
			err = s.tookXID(body)
		}
	}
	if err != nil {
		return 0, true, err
	}
	if a.stmt != nil && typ != pgwire.SrvEmptyQuery {
		s.executed(a.stmt, typ, body)
	}
	if a.done != nil {
		s.answered(a.done)
	}
	if a.end {
		hide = s.ended(a, hide)
		b.over = s.flow.status == pgwire.TxIdle || a.chains && s.beginsChain()
	}
	if a.keep && size == n {
		hide, b.keep = true, true
	}
	if size > n {
		b.passing, b.passHide = size-n, hide
	}
	return n, hide, nil
}

// keepBack moves the message that is kept back behind the n bytes that were just taken: it stays
// at the start of what is not dealt with.
func (b *backend) keepBack(w *window, n int) {
	if b.kept > 0 {
		copy(w.data[w.pos-b.kept:w.pos], w.data[w.pos-n-b.kept:w.pos-n])
	}
	if b.keep {
		b.keep, b.kept = false, n
	}
}

// giveKept gives the client what was kept back: the row description of a Query that was executed
// without an error, or its completion before the end of its unit of work.
func (b *backend) giveKept(s *session, w *window) bool {
	kept, typ := b.kept, b.typ
	b.kept = 0
	if kept == 0 || typ == pgwire.SrvError { // it failed after all
		return true
	}
	w.pos -= kept
	b.typ = pgwire.SrvCommandComplete
	same := b.show(s, w, kept, true)
	b.typ = typ
	w.pos += kept
	return same
}

// showBefore gives the client n bytes at pos and goes on keeping back what came before them.
func (b *backend) showBefore(s *session, w *window, n int) {
	kept := slices.Clone(w.data[w.pos-b.kept : w.pos])
	b.show(s, w, n, true)
	w.pos += n
	copy(w.data[w.pos-len(kept):w.pos], kept)
}

// errTooManyParams is a server that is given up as one that is lost: PostgreSQL has about 15.
var errTooManyParams = errors.New("server reports too many parameters")

// hasTooManyParams tells so; in_hot_standby, which is shown to nobody, is not among them.
func (s *session) hasTooManyParams() bool {
	return len(s.params.list) > s.proxy.cfg.ServerParametersMax
}

func (s *session) tooManyParams() error {
	s.proxy.metrics.limit(limitParameters)
	return errTooManyParams
}

// reported notes a ParameterStatus; true hides it from the client.
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

// isOurs tells that the server works on a question of our own.
func (f *flow) isOurs() bool {
	o := f.current()
	return o != nil && o.internal
}

// isInner tells that it works on a message about our own statement.
func (f *flow) isInner() bool { return f.isOurs() && !f.current().endsBatch() }

// innerOp tells whether a message belongs to a query of our own.
func (f *flow) innerOp(a answer) bool {
	return f.isOurs() || a.done != nil && a.done.internal || a.hide
}

// reported notes a parameter of the server; the caller holds s.mu.
func (s *session) reported(name, value string) {
	s.params.set(name, value)
	if name == "standard_conforming_strings" {
		s.conf = value == "on"
	}
}

// executed takes a statement that has ended, or the part of one that a row limit asked for. The
// caller holds s.mu.
func (s *session) executed(o *op, typ byte, body []byte) {
	if typ == pgwire.SrvCommandComplete {
		s.completed(o, body)
	} else {
		s.suspended(o)
	}
}

// suspended takes a portal that may go on: what it has called up to now may have set something.
func (s *session) suspended(o *op) {
	for _, e := range o.effects {
		if e.cls.has(clsState | clsAdvisory) {
			e.lock = nil // how often it was called is not known
			s.track.succeeded(&e)
		}
	}
}

// completed takes CommandComplete of a statement; the caller holds s.mu.
func (s *session) completed(o *op, body []byte) {
	if o.isOurCommit() {
		s.commitAnswered(o.cls)
	}
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
	if o.cls.has(clsSelfCommit) {
		s.track.changedTables()
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
	if o.commits {
		s.commitAnswered(o.cls)
	}
}

// answered takes an operation that the server confirmed; the caller holds s.mu.
func (s *session) answered(o *op) {
	if o.internal && o.stmt != nil {
		o.stmt.away = false
	}
	if o.internal || o.name == "" {
		return
	}
	switch o.kind {
	case opParse:
		if !s.track.prepare(o.name, o.stmt) {
			s.proxy.metrics.limit(limitPrepared)
		}
	case opClose:
		s.track.forget(o.name)
	}
}

// ended takes ReadyForQuery; true keeps it from the client. The caller holds s.mu.
func (s *session) ended(a answer, hide bool) bool {
	if a.done.snapshot {
		return s.stateTold()
	}
	if hide {
		if a.done.commits {
			s.commitAnswered(0) // a COMMIT of ours that failed, and has not ended its block
		}
		return true
	}
	isLast := s.flow.head == len(s.flow.ops) || s.flow.isStateNext()
	if a.done.commits || isLast || s.inDoubt && !s.flow.isCommitting() {
		s.commitAnswered(0) // a COMMIT that failed is over with its batch, whatever comes behind it
	}
	if a.done.cls.has(clsMulti) && a.done.cls.has(clsState) {
		s.track.dirty = true // some of it may have been done and undone
	}
	s.track.batchEnded(s.flow.status, s.flow.rolledBack)
	s.flow.rolledBack = false
	if s.remakes && s.flow.status == pgwire.TxIdle {
		s.remade()
	}
	if s.flow.isStateNext() {
		return s.awaitsState()
	}
	if s.track.dirty && s.flow.isSafePoint() {
		s.endHeld = true
		s.interrupt()
		return true
	}
	return false
}
