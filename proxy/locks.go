package proxy

import (
	"fmt"
	"maps"
	"strconv"
	"strings"

	"holdfast/pgwire"
)

// lockKey is a session advisory lock: its key and its mode.
type lockKey = pgwire.AdvisoryKey

// lockCount is how often a session holds a lock: as often it has to be released.
type lockCount struct {
	n int
	// unsure tells that it may be more often: the server tells nobody.
	unsure bool
}

// lockCall is a call that took or released a lock, or may have.
type lockCall struct {
	op    pgwire.AdvisoryOp
	key   lockKey // but for its mode and form, of no use unless known
	known bool
	maybe bool // it was canceled, perhaps too late
}

// isLike tells that the call may be about that lock.
func (c *lockCall) isLike(k lockKey) bool {
	if c.known {
		return c.key == k
	}
	return c.key.Shared == k.Shared && c.key.Sub == k.Sub
}

// lockCallsMax bounds the calls of one unit of work that are followed.
const lockCallsMax = 1024

// lockTable knows the session advisory locks of a session, with their counts (DESIGN.md I21). At
// a safe point, where those of transactions are gone, the server tells which locks there are, but
// not how often each was taken: that follows from the calls, which have to explain what it tells.
// It does no I/O; the session's lock guards it.
type lockTable struct {
	cfg *Config // AdvisoryLocks and AdvisoryLocksMax of it

	// held is as of the start of the unit of work, calls and vague are what the unit did.
	held  map[lockKey]lockCount
	calls []lockCall
	// vague tells that it called a function of these in a way that is not followed.
	vague bool
	many  bool // there are more than are taken again
	// unsure tells that the unit began in the middle of a pipeline, behind calls from which it does
	// not follow what the session held there.
	unsure bool
}

// mayHold tells that there are locks, or may be.
func (t *lockTable) mayHold() bool {
	return len(t.held) > 0 || len(t.calls) > 0 || t.vague || t.many
}

// reason is why the locks cannot be carried; 0 if they can.
func (t *lockTable) reason() reason {
	end, ok := t.end()
	if !ok || t.cfg.AdvisoryLocks == LocksEnd && len(end) > 0 {
		return reasonAdvisory
	}
	return 0
}

// start is what the session held at the start of the unit of work. It must not be changed.
func (t *lockTable) start() map[lockKey]lockCount { return t.held }

// end is what the session holds after what the unit of work has done so far, without the server
// having been asked; false if that does not follow from the calls.
func (t *lockTable) end() (map[lockKey]lockCount, bool) {
	next, open := t.apply()
	ok := len(open) == 0 && !t.vague && !t.many
	for _, c := range next {
		ok = ok && c.n > 0 && (!c.unsure || t.cfg.AdvisoryLocks == LocksAssume)
	}
	return next, ok
}

// surelyStart is start; false if it is not known for sure.
func (t *lockTable) surelyStart() (map[lockKey]lockCount, bool) {
	for _, c := range t.held {
		if c.n < 1 || c.unsure && t.cfg.AdvisoryLocks != LocksAssume {
			return nil, false
		}
	}
	return t.held, !t.many && !t.unsure
}

// unitMoved begins the next unit behind the calls so far: their unit has ended, and the server was
// not asked, since the client had sent more already.
func (t *lockTable) unitMoved() {
	next, open := t.apply()
	if len(open) > 0 || t.vague {
		t.unsure = true
		return
	}
	for _, c := range next {
		if c.n < 1 { // what is given back was taken in a way that is not followed
			t.unsure = true
			return
		}
	}
	if len(t.calls) > 0 && t.calls[0].op == pgwire.AdvisoryUnlockAll {
		t.unsure = false
	}
	t.held, t.calls = next, nil
}

// isFollowed tells that what the session holds by now follows from the calls.
func (t *lockTable) isFollowed() bool {
	next, open := t.apply()
	for _, c := range next {
		if c.n < 1 {
			return false
		}
	}
	return len(open) == 0 && !t.vague && !t.unsure && !t.many
}

// beyond is what of held is not in start, or not as often.
func beyond(held, start map[lockKey]lockCount) map[lockKey]lockCount {
	more := make(map[lockKey]lockCount)
	for k, c := range held {
		if c.n -= start[k].n; c.n > 0 {
			more[k] = c
		}
	}
	return more
}

// note keeps a call that the unit of work made.
func (t *lockTable) note(c lockCall) {
	if len(t.calls) >= lockCallsMax {
		t.calls, t.vague = nil, true
	}
	if !t.vague {
		t.calls = append(t.calls, c)
	}
}

// releasedAll takes DISCARD ALL.
func (t *lockTable) releasedAll() {
	t.calls = append(t.calls[:0], lockCall{op: pgwire.AdvisoryUnlockAll, known: true})
	t.vague, t.many = false, false
}

// retaken makes what a new backend holds the start of what follows.
func (t *lockTable) retaken(held map[lockKey]lockCount) {
	t.held, t.calls, t.vague, t.unsure = held, nil, false, false
}

// apply follows the calls. open are those whose key is not known.
func (t *lockTable) apply() (next map[lockKey]lockCount, open []lockCall) {
	if len(t.held) == 0 && len(t.calls) == 0 {
		return nil, nil
	}
	next = maps.Clone(t.held)
	if next == nil {
		next = make(map[lockKey]lockCount)
	}
	for _, c := range t.calls {
		switch {
		case c.op == pgwire.AdvisoryUnlockAll:
			clear(next)
			open = nil
			continue
		case c.maybe:
			for k, n := range next {
				if c.isLike(k) {
					n.unsure = true
					next[k] = n
				}
			}
			continue
		case !c.known:
			open = append(open, c)
			continue
		}
		n := next[c.key]
		if n.n++; c.op == pgwire.AdvisoryUnlock {
			n.n -= 2
		}
		// Below zero one of open has taken it.
		if next[c.key] = n; n.n == 0 && !n.unsure {
			delete(next, c.key)
		}
	}
	return next, open
}

// verify takes the locks that the server tells of at a safe point, and ends the unit of work.
func (t *lockTable) verify(now map[lockKey]struct{}) {
	next, open := t.apply()
	for len(open) > 0 {
		like := open[0]
		rest := open[:0:0]
		takes, gives := 0, 0
		for _, c := range open {
			switch {
			case !like.isLike(c.key):
				rest = append(rest, c)
			case c.op == pgwire.AdvisoryUnlock:
				gives++
			default:
				takes++
			}
		}
		attribute(next, now, &like, takes, gives)
		open = rest
	}
	held, total := make(map[lockKey]lockCount, len(now)), 0
	for k := range now {
		c, known := next[k]
		// What the calls do not explain was taken by a function, or another way.
		c.unsure = (c.unsure || !known || c.n < 0 || t.vague) && t.cfg.AdvisoryLocks != LocksAssume
		c.n = max(c.n, 1)
		held[k] = c
		total += c.n
	}
	t.many = total > t.cfg.AdvisoryLocksMax
	t.held, t.calls, t.vague, t.unsure = held, nil, false, false
}

// attribute finds out which locks of one mode and form were taken and released by calls whose keys
// are not known, from what the server tells behind them. Where more than one answer is possible
// the counts are unsure.
func attribute(next map[lockKey]lockCount, now map[lockKey]struct{}, like *lockCall,
	takes, gives int,
) {
	var came, kept, gone []lockKey
	given, single, isBelow := 0, true, false
	for k := range now {
		if _, had := next[k]; !had && like.isLike(k) {
			came = append(came, k)
		}
	}
	for k, c := range next {
		if !like.isLike(k) {
			continue
		}
		single = single && c.n == 1 && !c.unsure
		isBelow = isBelow || c.n < 0
		if _, has := now[k]; has {
			kept = append(kept, k)
			continue
		}
		gone = append(gone, k)
		given += c.n
	}
	add := func(k lockKey, n int) {
		c := next[k]
		c.n += n
		next[k] = c
	}
	switch {
	case isBelow:
		unsure(next, append(came, kept...))
	case gives == 0 && len(gone) == 0 && len(came) == takes: // each of them was new
		for _, k := range came {
			add(k, 1)
		}
	case gives == 0 && len(gone) == 0 && len(came)+len(kept) == 1: // no other one there
		add(append(came, kept...)[0], takes)
	case takes == 0 && len(came) == 0 && given == gives: // those that are gone took all
	case takes == 0 && len(came)+len(gone) == 0 && len(kept) == 1 && next[kept[0]].n > gives:
		add(kept[0], -gives)
	case takes == gives && len(came)+len(gone)+len(kept) == 0:
	case takes == 1 && gives == 1 && len(came)+len(gone) == 0 && single: // the same one
	default:
		unsure(next, append(came, kept...))
	}
}

func unsure(next map[lockKey]lockCount, keys []lockKey) {
	for _, k := range keys {
		c := next[k]
		c.unsure = true
		next[k] = c
	}
}

// lockSQL asks for the session's advisory locks.
const lockSQL = ` UNION ALL SELECT 'k', pg_catalog.concat_ws(' ', classid, objid, objsubid), mode` +
	` FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory'` +
	` AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()`

// parseLockRow reads a row of lockSQL.
func parseLockRow(key, mode string) (k lockKey, ok bool) {
	parts := strings.Fields(key)
	if len(parts) != 3 {
		return k, false
	}
	var n [3]uint64
	for i, s := range parts {
		v, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return k, false
		}
		n[i] = v
	}
	return lockKey{
		Class: uint32(n[0]), Obj: uint32(n[1]), Sub: uint8(n[2]), Shared: mode == "ShareLock",
	}, true
}

// retakeSQL takes the locks, in their order, as often as they are held, and tells of each whether
// it was free. It waits for nobody. Numbers are written such that no operator is looked up.
func retakeSQL(keys []lockKey, held map[lockKey]lockCount) string {
	return callLocksSQL("pg_catalog.pg_try_advisory_lock", keys, held)
}

// callLocksSQL calls one of the functions, or its form for shared locks, for each of the keys as
// often as held says, and tells of each whether all calls were true.
func callLocksSQL(name string, keys []lockKey, held map[lockKey]lockCount) string {
	var b strings.Builder
	for i, k := range keys {
		if i > 0 {
			b.WriteString(" UNION ALL ")
		}
		f := name
		if k.Shared {
			f += "_shared"
		}
		args := fmt.Sprintf("'%d'::pg_catalog.int8", int64(uint64(k.Class)<<32|uint64(k.Obj)))
		if k.Sub == 2 {
			args = fmt.Sprintf("'%d'::pg_catalog.int4, '%d'::pg_catalog.int4", int32(k.Class),
				int32(k.Obj))
		}
		fmt.Fprintf(&b, "(SELECT %d, pg_catalog.bool_and(%s(%s))"+
			" FROM pg_catalog.generate_series(1, %d))", i, f, args, held[k].n)
	}
	return b.String()
}

// lockName names a lock for people, as the client wrote it.
func lockName(k lockKey) string {
	name := strconv.FormatInt(int64(uint64(k.Class)<<32|uint64(k.Obj)), 10)
	if k.Sub == 2 {
		name = fmt.Sprintf("(%d, %d)", int32(k.Class), int32(k.Obj))
	}
	if k.Shared {
		name += " (shared)"
	}
	return name
}
