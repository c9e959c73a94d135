package proxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// relayBufferBytes is the size of the buffers that bytes pass through.
const relayBufferBytes = 16 << 10

var bufferPool = sync.Pool{New: func() any {
	b := make([]byte, relayBufferBytes)
	return &b
}}

// inbox is the bytes that arrived on a connection and were not taken yet. It holds a buffer only
// while there are such bytes: a waiting session costs none. This file is the only one that knows
// how readiness is learnt. One goroutine at a time uses an inbox.
type inbox struct {
	conn   net.Conn
	raw    syscall.RawConn // nil if the connection is no socket
	pooled *[]byte
	buf    []byte
	r, w   int

	// want is how many bytes the message at r has, if they are to be in the buffer at once.
	want int
	read func(fd uintptr) bool
	n    int
	err  error
}

// attach makes the inbox read from conn; bytes that were read ahead during the login come first.
func (in *inbox) attach(conn net.Conn, ahead []byte) {
	*in = inbox{conn: conn}
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			in.raw = raw
			in.read = in.readReady
		}
	}
	if len(ahead) > 0 {
		in.room(len(ahead))
		in.w = copy(in.buf, ahead)
	}
}

func (in *inbox) bytes() []byte { return in.buf[in.r:in.w] }

// take drops the first n bytes; the last byte gives the buffer back.
func (in *inbox) take(n int) {
	in.r += n
	if in.r == in.w {
		in.release()
	}
}

func (in *inbox) release() {
	if in.pooled != nil {
		bufferPool.Put(in.pooled)
	}
	in.pooled, in.buf, in.r, in.w, in.want = nil, nil, 0, 0, 0
}

// room makes space for at least one more byte, and for want bytes in all.
func (in *inbox) room(want int) {
	if in.buf == nil && want <= relayBufferBytes {
		in.pooled = bufferPool.Get().(*[]byte)
		in.buf = *in.pooled
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
	if in.pooled != nil {
		bufferPool.Put(in.pooled)
		in.pooled = nil
	}
	in.buf, in.r, in.w = grown, 0, w
}

// fill waits for more bytes and appends them. io.EOF is the peer's end.
func (in *inbox) fill() error {
	if in.r > 0 && in.want > len(in.buf)-in.r {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	if in.raw == nil {
		in.room(max(in.want, 1))
		n, err := in.conn.Read(in.buf[in.w:])
		in.w += n
		if n > 0 {
			return nil
		}
		return err
	}
	in.n, in.err = 0, nil
	if err := in.raw.Read(in.read); err != nil {
		if in.r == in.w {
			in.release()
		}
		return err
	}
	if in.err != nil {
		if in.r == in.w {
			in.release()
		}
		return in.err
	}
	in.w += in.n
	return nil
}

// readReady is called when the socket may be readable; false waits for it.
func (in *inbox) readReady(fd uintptr) bool {
	in.room(max(in.want, 1))
	for {
		n, err := unix.Read(int(fd), in.buf[in.w:])
		switch {
		case err == nil && n > 0:
			in.n = n
			return true
		case err == nil:
			in.err = io.EOF
			return true
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if in.r == in.w {
				in.release()
			}
			return false
		default:
			in.err = err
			return true
		}
	}
}
