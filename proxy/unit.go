package proxy

import (
	"hash/crc32"
	"sync"
	"unsafe"

	"holdfast/pgwire"
)

// unit is what is kept of the session's current unit of work, all since its last safe point, so
// that it can be run again on another backend: the client's messages. Of the server's answers
// the session keeps a digest (digest.go). It does no I/O; the owner of the session uses it.
type unit struct {
	bytes []byte // of a pool, mostly
	base  int    // offset of bytes[0] since the last safe point
	whole bool   // bytes has everything since base
	grown int    // bytes that are accounted for: all but the smallest buffers

	// before is the unnamed statement at base, once it was changed behind that; changes tells how
	// often it was.
	before  unnamedStatement
	changes int
}

// journalSizes are those of the journals that are kept for reuse: for the messages of a usual unit
// of work, and for more. What is larger still is made when it is needed.
var journalSizes = [...]int{2 << 10, 8 << 10, 32 << 10, 128 << 10, 512 << 10, 1 << 20}

// journals have the first byte of each, so that nothing has to be made to keep one.
var journals [len(journalSizes)]sync.Pool

// newJournal is an empty buffer for at least n bytes.
func newJournal(n int) []byte {
	for i, size := range journalSizes {
		if n > size {
			continue
		}
		if first, ok := journals[i].Get().(*byte); ok {
			return unsafe.Slice(first, size)[:0]
		}
		return make([]byte, 0, size)
	}
	return make([]byte, 0, n)
}

// freeJournal gives a buffer of newJournal back.
func freeJournal(p []byte) {
	for i, size := range journalSizes {
		if cap(p) == size {
			journals[i].Put(unsafe.SliceData(p))
		}
	}
}

// begin starts a unit at a safe point.
func (u *unit) begin() {
	u.bytes, u.base, u.whole = u.bytes[:0], 0, true
	u.changes = 0
}

// end is the offset behind the last byte.
func (u *unit) end() int { return u.base + len(u.bytes) }

// keep appends messages as long as they fit into most bytes, and returns by how much the memory
// that is accounted for has grown; false if they did not fit.
func (u *unit) keep(p []byte, from, most int) (grown int, ok bool) {
	u.trim(from)
	if len(u.bytes)+len(p) > most {
		grown = -u.grown
		u.drop()
		return grown, false
	}
	if need := len(u.bytes) + len(p); need > cap(u.bytes) {
		larger := newJournal(max(need, min(2*cap(u.bytes), most)))
		larger = append(larger, u.bytes...)
		freeJournal(u.bytes)
		u.bytes = larger
		if n := cap(larger); n > journalSizes[0] {
			grown = n - u.grown
			u.grown = n
		}
	}
	u.bytes = append(u.bytes, p...)
	return grown, true
}

// trim forgets what lies before an offset.
func (u *unit) trim(from int) {
	if n := min(from-u.base, len(u.bytes)); n > 0 && u.whole {
		u.bytes = u.bytes[:copy(u.bytes, u.bytes[n:])]
		u.base += n
	}
}

// drop gives up: what comes is not kept until the next safe point.
func (u *unit) drop() {
	freeJournal(u.bytes)
	u.whole, u.bytes, u.grown = false, nil, 0
}

// rest gives back what a session at a safe point does not need, and returns how much of it was
// accounted for.
func (u *unit) rest() int {
	freeJournal(u.bytes)
	n := u.grown
	u.bytes, u.grown = nil, 0
	return n
}

// since is a copy of the bytes from an offset on; nil if they are not all there.
func (u *unit) since(from int) []byte {
	if !u.whole || from < u.base || from > u.end() {
		return nil
	}
	return append(make([]byte, 0, u.end()-from), u.bytes[from-u.base:]...)
}

// digest stands for what a client was shown of a unit: how much, and two sums of it, which
// processors compute (CRC-32C, and CRC-32 by IEEE). It can be extended at any byte. Errors count by
// their SQLSTATE, since their texts name what differs from server to server; what comes
// asynchronously does not count (protocol-flow, Asynchronous Operations).
type digest struct {
	n    uint64
	a, b uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (d *digest) add(p []byte) {
	d.n += uint64(len(p))
	d.a = crc32.Update(d.a, castagnoli, p)
	d.b = crc32.Update(d.b, crc32.IEEETable, p)
}

// errorSum is what an ErrorResponse counts as.
func errorSum(body []byte) [6]byte {
	sum := [6]byte{pgwire.SrvError}
	copy(sum[1:], pgwire.ErrorCode(body))
	return sum
}

// isAsync tells of messages that may come at any time.
func isAsync(typ byte) bool {
	return typ == pgwire.SrvNotice || typ == pgwire.SrvParameterStatus ||
		typ == pgwire.SrvNotification
}

// shown takes bytes that the client is about to get: messages of one type, or a part of one. start
// tells that they begin with a message.
func (d *digest) shown(typ byte, p []byte, start bool) {
	switch {
	case isAsync(typ):
	case typ != pgwire.SrvError:
		d.add(p)
	case start:
		sum := errorSum(p[pgwire.HeaderLen:])
		d.add(sum[:])
	}
}

// again takes bytes of a unit that is run again, of which the client was shown want the first time.
// It returns how many of them it has had; false if they are not what it was shown.
func (d *digest) again(typ byte, p []byte, start bool, want digest) (had int, same bool) {
	if isAsync(typ) {
		if typ == pgwire.SrvNotice {
			return len(p), true // it may have had it, and needs it once
		}
		return 0, true
	}
	left := want.n - d.n
	switch {
	case typ == pgwire.SrvError:
		had = len(p)
		if start && left < uint64(len(errorSum(nil))) {
			return had, false
		}
		d.shown(typ, p, start)
	default:
		had = int(min(left, uint64(len(p))))
		d.add(p[:had])
	}
	if d.n == want.n && *d != want {
		return had, false
	}
	if had < len(p) {
		d.shown(typ, p[had:], false)
	}
	return had, true
}
