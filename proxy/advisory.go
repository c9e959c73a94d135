package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// lockBook knows which sessions hold session advisory locks, and in which epoch they have them.
// Safe for concurrent use; its lock is taken last.
type lockBook struct {
	mu      sync.Mutex
	holders map[*session]uint64
	changed chan struct{} // closed when a session is not behind any more
}

func newLockBook() lockBook {
	return lockBook{holders: make(map[*session]uint64), changed: make(chan struct{})}
}

// put notes that the session has its locks in that epoch.
func (b *lockBook) put(s *session, epoch uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holders[s] = max(b.holders[s], epoch)
	b.wakeLocked()
}

// drop notes that it has none.
func (b *lockBook) drop(s *session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.holders[s]; !ok {
		return // nearly every session that ends
	}
	delete(b.holders, s)
	b.wakeLocked()
}

func (b *lockBook) wakeLocked() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// behind tells that a session has locks of an older epoch, and not of this one.
func (b *lockBook) behind(epoch uint64) (bool, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.holders {
		if e < epoch {
			return true, b.changed
		}
	}
	return false, b.changed
}

// LocksBehind tells that sessions held session advisory locks in an older epoch and do not have
// them in this one yet: the barrier waits for them.
func (p *Proxy) LocksBehind(epoch uint64) bool {
	behind, _ := p.lockBook.behind(epoch)
	return behind
}

// bookLocks notes whether the session holds locks. The caller holds s.mu.
func (s *session) bookLocks() {
	holds := s.track.locks.mayHold()
	b := s.backend
	switch {
	case holds && b != nil:
		s.hasLocks = true
		s.proxy.lockBook.put(s, b.primary.Epoch)
	case !holds && s.hasLocks:
		s.hasLocks = false
		s.proxy.lockBook.drop(s)
	}
}

// watchLocks looks at an answer of the server, before the flow does, for what it says of the
// session's advisory locks. The caller holds s.mu.
func (s *session) watchLocks(typ byte, body []byte) {
	o := s.flow.current()
	if o == nil || o.internal || !o.cls.has(clsAdvisory|clsOpaque|clsSelfCommit|clsState) {
		return
	}
	var e *effect
	for i := range o.effects {
		if at := &o.effects[i]; at.lock != nil && (o.kind != opQuery || at.at == s.flow.finished) {
			e = at
		}
	}
	switch typ {
	case pgwire.SrvDataRow:
		if e != nil {
			s.track.lockRow(e.lock, body)
			s.bookLocks()
		}
	case pgwire.SrvCommandComplete:
		if e != nil && !isOneRow(body) {
			s.track.lostSight()
			s.bookLocks()
		}
	case pgwire.SrvFunctionCallResponse:
		if o.cls.has(clsAdvisory) {
			s.track.lostSight()
			s.bookLocks()
		}
	case pgwire.SrvError:
		s.lockFailed(o, e, body)
	}
}

// isOneRow tells that a SELECT has returned one row or none: what was seen of it is all.
func isOneRow(body []byte) bool {
	tag, err := pgwire.ParseCommandTag(body)
	return err == nil && (string(tag) == "SELECT 1" || string(tag) == "SELECT 0")
}

// lockFailed takes the error of a statement: locks of the session outlive it.
func (s *session) lockFailed(o *op, e *effect, body []byte) {
	t := &s.track
	switch {
	case e != nil:
		pe, err := pgwire.ParseError(body)
		if err != nil || pe.Code != pgwire.CodeQueryCanceled {
			return // an error that comes instead of the lock
		}
		c := callOf(e.lock)
		c.maybe = true
		t.locks.note(c)
		t.suspectLocks()
	case o.cls.has(clsAdvisory):
		t.lostSight()
	case o.cls.has(clsOpaque | clsSelfCommit):
		t.suspectLocks()
	default:
		return // SET and its kin
	}
	s.bookLocks()
}

// callOf is a call without its result.
func callOf(c *pgwire.AdvisoryCall) lockCall {
	k, known := c.Key()
	if !known {
		k = lockKey{Sub: 1, Shared: c.Shared}
		if c.Pair {
			k.Sub = 2
		}
	}
	return lockCall{op: c.Op, key: k, known: known || c.Op == pgwire.AdvisoryUnlockAll}
}

// lockRow takes the result of a call. These functions are strict: NULL tells that it was not made.
func (t *tracker) lockRow(c *pgwire.AdvisoryCall, body []byte) {
	cols, err := pgwire.ParseDataRow(body)
	if err != nil || len(cols) != 1 {
		t.lostSight()
		return
	}
	v := cols[0]
	isBool := c.Op == pgwire.AdvisoryTryLock || c.Op == pgwire.AdvisoryUnlock
	if v == nil || isBool && (string(v) == "f" || bytes.Equal(v, []byte{0})) {
		return // nothing has changed
	}
	t.locks.note(callOf(c))
	t.suspectLocks()
}

// suspectLocks lets the server be asked for the locks at the next safe point.
func (t *tracker) suspectLocks() {
	t.suspect |= reasonAdvisory
	t.dirty = true
}

// lostSight takes a statement that may have taken and released locks as often as it liked.
func (t *tracker) lostSight() {
	t.locks.vague = true
	t.suspectLocks()
}

// bindLocks fills in the keys that a Bind has as parameters of integer types. What it returns is
// for this portal.
func (s *session) bindLocks(p parsed, stmt, body []byte) parsed {
	if !p.cls.has(clsAdvisory) {
		return p
	}
	p.effects = slices.Clone(p.effects)
	for i := range p.effects {
		e := &p.effects[i]
		if e.lock == nil {
			continue
		}
		c := *e.lock
		for j := range c.Args {
			a := &c.Args[j]
			if a.Param > 0 && isIntegerOID(s.paramType(stmt, a.Param)) {
				a.Value, a.Known = pgwire.ParseBindInteger(body, a.Param)
			}
		}
		e.lock = &c
	}
	return p
}

// paramType is the type that the client gave a parameter of a statement; 0 is none: the server
// takes what the function wants.
func (s *session) paramType(stmt []byte, param int) uint32 {
	var oids []uint32
	if len(stmt) == 0 {
		_, _, oids, _ = pgwire.ParseParse(s.unnamedQ)
	} else if ps := s.track.statements[string(stmt)]; ps != nil {
		oids = ps.oids
	} else if ps := s.parsing(string(stmt)); ps != nil {
		oids = ps.oids
	}
	if param > len(oids) {
		return 0
	}
	return oids[param-1]
}

// parsing is a named statement whose Parse is under way, if it is the only one of that name.
func (s *session) parsing(name string) *prepared {
	for i := s.flow.head; i < len(s.flow.ops); i++ {
		if o := &s.flow.ops[i]; o.kind == opParse && o.name == name {
			return o.stmt
		}
	}
	return nil
}

// isIntegerOID tells of int8, int2, int4, or none (pg_type.dat).
func isIntegerOID(oid uint32) bool { return oid == 0 || oid == 20 || oid == 21 || oid == 23 }

// isAdvisoryFunction tells whether a FunctionCall is one of these functions (pg_proc.dat: 2880 to
// 2892 are those of session locks).
func isAdvisoryFunction(body []byte) bool {
	if len(body) < 4 {
		return false
	}
	oid := uint32(body[0])<<24 | uint32(body[1])<<16 | uint32(body[2])<<8 | uint32(body[3])
	return oid >= 2880 && oid <= 2892
}

// mentionsAdvisory tells that a text that is not read further has the word.
func mentionsAdvisory[T string | []byte](sql T) bool {
	return bytes.Contains(bytes.ToLower([]byte(sql)), []byte("advisory"))
}

// retakeLocks takes the session's advisory locks on a fresh backend, before anything else may run
// there (DESIGN.md I21).
func (s *session) retakeLocks(ctx context.Context, b *backend, l *loss) error {
	s.mu.Lock()
	held, ok := s.locksToTake(l)
	s.mu.Unlock()
	m := s.proxy.metrics.locks
	if !ok {
		m.WithLabelValues("unknown").Inc()
		return notCarried(errUnmovable(reasonAdvisory.String()))
	}
	s.endKept()
	if len(held) > 0 {
		if l.pid != 0 {
			// It is the same server if the group went back to it: the old backend may have them.
			if err := s.proxy.endBackend(ctx, b.primary, l); err != nil {
				return err
			}
		}
		lost, err := takeLocks(b, held)
		if err != nil {
			return err
		}
		if lost != nil {
			m.WithLabelValues("lost").Inc()
			s.log().Info("session advisory lock was taken by another session meanwhile",
				zap.Uint64("epoch", b.primary.Epoch))
			return notCarried(errLockLost(lockName(*lost)))
		}
		m.WithLabelValues("retaken").Add(float64(len(held)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.track.locks.retaken(held)
	switch {
	case len(held) > 0:
		s.hasLocks = true
		s.proxy.lockBook.put(s, b.primary.Epoch)
	case s.hasLocks:
		s.hasLocks = false
		s.proxy.lockBook.drop(s)
	}
	return nil
}

// loseKeepingLocks is lose for a session that holds locks: the old primary may live, and the
// proxies of other nodes may still use it for a moment. The server is left with the connection, of
// which nobody makes use, until the session takes its locks on the next primary or ends.
func (s *session) loseKeepingLocks(b *backend) {
	if b.isClosed.Swap(true) {
		return
	}
	end := b.conn.closeKeeping()
	s.mu.Lock()
	isMine := s.backend == b
	if isMine {
		s.lost, s.planned = true, s.planned || s.flow.isSafePoint()
		s.kept, end = end, s.kept
	}
	s.mu.Unlock()
	if end != nil {
		end()
	}
	if isMine {
		s.interrupt()
	}
}

// endKept lets the server have the end of a connection that was kept.
func (s *session) endKept() {
	s.mu.Lock()
	end := s.kept
	s.kept = nil
	s.mu.Unlock()
	if end != nil {
		end()
	}
}

// takeLocks takes locks on an idle backend that is not attached, and returns one that another
// session has.
func takeLocks(b *backend, held map[lockKey]lockCount) (*lockKey, error) {
	var keys []lockKey
	for k := range held {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareLocks)
	if err := b.prove(); err != nil {
		return nil, err
	}
	rows, err := pgwire.SimpleQuery(b.conn, b.reader, retakeSQL(keys, held))
	var pe *pgwire.Error
	if errors.As(err, &pe) && !isServerAway(err) {
		return nil, notCarried(fatal(restoreError(pe)))
	}
	if err != nil {
		return nil, fmt.Errorf("take advisory locks: %w", err)
	}
	if len(rows) != len(keys) {
		return nil, errors.New("take advisory locks: unexpected answer")
	}
	for _, row := range rows {
		if len(row) != 2 {
			return nil, errors.New("take advisory locks: unexpected answer")
		}
		i, err := strconv.Atoi(string(row[0]))
		if err != nil || i < 0 || i >= len(keys) {
			return nil, errors.New("take advisory locks: unexpected answer")
		}
		if string(row[1]) != "t" {
			return &keys[i], nil
		}
	}
	return nil, nil
}

func compareLocks(a, b lockKey) int {
	for _, c := range [][2]int64{
		{int64(a.Sub), int64(b.Sub)}, {int64(a.Class), int64(b.Class)},
		{int64(a.Obj), int64(b.Obj)}, {int64(boolInt(a.Shared)), int64(boolInt(b.Shared))},
	} {
		if c[0] != c[1] {
			return int(max(-1, min(1, c[0]-c[1])))
		}
	}
	return 0
}

func boolInt(v bool) int {
	if v {
		return 1
	}
	return 0
}
