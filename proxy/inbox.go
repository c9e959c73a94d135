package proxy

import (
	"bytes"
	"encoding/binary"
	"net"
	"sync"

	"holdfast/pgwire"
)

// link is a connection as sessions use it. A goroutine may wait in the methods of net.Conn; the
// relay calls tryRead and tryWrite from the handler, on a loop.
type link interface {
	net.Conn
	// tryRead reads what is there; errAgain if nothing is.
	tryRead(p []byte) (int, error)
	// tryWrite writes what fits; errAgain if that is not everything.
	tryWrite(p []byte) (int, error)
	// handle sets whom the loop calls when there may be something to read or room to write.
	handle(h handler)
	// reset closes such that nothing that was not sent yet can reach the peer any more.
	reset()
	probe() peerState
	sendState() (st sendState, ok bool)
	// closeKeeping closes for all uses, but leaves the peer without the end of the connection until
	// the function that it returns is called; nil if there was something to send, which is reset.
	closeKeeping() (end func())
}

const (
	// relayBufferBytes is the size of the buffers that bytes pass through.
	relayBufferBytes = 16 << 10
	// bulkBufferBytes is that of streams, which fill the small ones.
	bulkBufferBytes = 64 << 10
)

var (
	bufferPool = sync.Pool{New: func() any { return newBuffer(relayBufferBytes) }}
	bulkPool   = sync.Pool{New: func() any { return newBuffer(bulkBufferBytes) }}
)

func newBuffer(size int) *[]byte {
	b := make([]byte, size)
	return &b
}

// inbox is the bytes that arrived on a connection and were not taken yet. It holds a buffer only
// while there are such bytes: a waiting session costs none. One goroutine at a time uses an inbox.
type inbox struct {
	pooled *[]byte
	buf    []byte
	r, w   int
	// want is how many bytes the message at r has, if they are to be in the buffer at once.
	want int
	// bulk tells that the last read filled its buffer.
	bulk bool
}

// begin empties the inbox but for bytes that were read ahead during the login.
func (in *inbox) begin(ahead []byte) {
	*in = inbox{}
	if len(ahead) > 0 {
		in.room(len(ahead))
		in.w = copy(in.buf, ahead)
	}
}

// prepend puts bytes before those that were not taken yet.
func (in *inbox) prepend(p []byte) {
	rest := in.bytes()
	all := make([]byte, 0, len(p)+len(rest))
	all = append(append(all, p...), rest...)
	in.recycle()
	in.buf, in.r, in.w, in.want = all, 0, len(all), 0
}

func (in *inbox) bytes() []byte { return in.buf[in.r:in.w] }

// lacks tells that nothing can be done without more bytes.
func (in *inbox) lacks() bool { return in.r == in.w || in.want > in.w-in.r }

// spare is how many bytes fit behind those that are there.
func (in *inbox) spare() int { return len(in.buf) - in.w }

// extend puts bytes behind those that are there, and there is room for; shorten takes them back.
func (in *inbox) extend(p []byte) { in.w += copy(in.buf[in.w:], p) }

func (in *inbox) shorten(n int) { in.w -= n }

// take drops the first n bytes; the last byte gives the buffer back.
func (in *inbox) take(n int) {
	in.r += n
	if in.r == in.w {
		in.release()
	}
}

func (in *inbox) release() {
	in.recycle()
	in.buf, in.r, in.w, in.want = nil, 0, 0, 0
}

func (in *inbox) recycle() {
	switch {
	case in.pooled == nil:
	case len(*in.pooled) == relayBufferBytes:
		bufferPool.Put(in.pooled)
	default:
		bulkPool.Put(in.pooled)
	}
	in.pooled = nil
}

// room makes space for at least one more byte, and for want bytes in all.
func (in *inbox) room(want int) {
	if in.buf == nil && want <= bulkBufferBytes {
		if in.bulk || want > relayBufferBytes {
			in.pooled = bulkPool.Get().(*[]byte)
		} else {
			in.pooled = bufferPool.Get().(*[]byte)
		}
		in.buf = *in.pooled
		return
	}
	if in.bulk && in.pooled != nil && len(in.buf) < bulkBufferBytes && want <= bulkBufferBytes {
		larger := bulkPool.Get().(*[]byte)
		in.w = copy(*larger, in.buf[in.r:in.w])
		in.recycle()
		in.pooled, in.buf, in.r = larger, *larger, 0
		return
	}
	if want <= len(in.buf) && in.w < len(in.buf) {
		return
	}
	if want <= len(in.buf) && in.r > 0 {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
		return
	}
	grown := make([]byte, max(want, 2*len(in.buf)))
	w := copy(grown, in.buf[in.r:in.w])
	in.recycle()
	in.buf, in.r, in.w = grown, 0, w
}

// fill waits for more bytes of its connection and appends them. io.EOF is the peer's end.
func (in *inbox) fill(from link) error { return in.read(from, true) }

// fillNow appends what has arrived; errAgain if nothing has.
func (in *inbox) fillNow(from link) error { return in.read(from, false) }

func (in *inbox) read(from link, wait bool) error {
	if in.r > 0 && in.want > len(in.buf)-in.r {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	in.room(max(in.want, 1))
	var n int
	var err error
	if wait {
		n, err = from.Read(in.buf[in.w:])
	} else {
		n, err = from.tryRead(in.buf[in.w:])
	}
	in.w += n
	in.bulk = in.w == len(in.buf)
	if n > 0 {
		return nil
	}
	if in.r == in.w {
		in.release()
	}
	return err
}

// moreOf is the size of the whole messages that follow one of n bytes at the start of p, if that
// and they are of the same type, which is one of types. They mean what it means, so that nothing is
// to be learnt from each: rows, and data of COPY.
func moreOf(p []byte, n int, types ...byte) int {
	typ := p[0]
	if bytes.IndexByte(types, typ) < 0 {
		return 0
	}
	at := n
	for len(p)-at >= pgwire.HeaderLen && p[at] == typ {
		size := int(binary.BigEndian.Uint32(p[at+1:]))
		if size < 4 || size >= len(p)-at {
			break // the rest is to come, or it is a mistake
		}
		at += 1 + size
	}
	return at - n
}
