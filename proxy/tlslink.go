package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

const (
	// tlsRecordBytes is how much is encrypted before the socket is looked at again, which is the
	// most that one TLS record carries.
	tlsRecordBytes = 16 << 10
	// tlsPendingMax bounds the ciphertext that waits for room in a socket. Data leaves at most one
	// record there; the rest is for the answers to a peer's key updates.
	tlsPendingMax = 64 << 10
)

// errTLSPending is a peer that asks for answers at the TLS layer and takes none.
var errTLSPending = errors.New("tls: the peer takes nothing")

// tlsLink is a sock with TLS on it, for the relay as well as for goroutines that wait: the waiting
// is the sock's, and tls.Conn is only ever used without. A read that is not ready leaves tls.Conn
// as it was (notReady); a write that is not done would end it, so that ciphertext for which the
// socket has no room waits here, and nothing more is encrypted until it is gone (DESIGN.md A1).
//
// One goroutine at a time reads, and one writes, as of a sock.
type tlsLink struct {
	*sock
	tls  *tls.Conn
	pipe *tlsPipe

	rmu    sync.Mutex
	ahead  [1]byte // what probe has read
	hasOne bool

	h atomic.Pointer[handler]
}

var (
	_ link    = (*tlsLink)(nil)
	_ handler = (*tlsLink)(nil)
)

// newTLSLink runs the handshake, which waits, on a socket of which these bytes were read already.
// It owns c, also if it fails.
func newTLSLink(c *sock, ahead []byte, make func(net.Conn) *tls.Conn) (*tlsLink, error) {
	pipe := &tlsPipe{sock: c, waits: true}
	if len(ahead) > 0 {
		pipe.ahead = bytes.Clone(ahead)
	}
	l := &tlsLink{sock: c, pipe: pipe, tls: make(pipe)}
	if err := l.tls.Handshake(); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("tls handshake: %w", err)
	}
	pipe.waits = false
	l.trim()
	c.handle(l)
	return l, nil
}

// tryRead reads what is there; errAgain if nothing is, io.EOF at the peer's end.
func (l *tlsLink) tryRead(p []byte) (int, error) {
	l.rmu.Lock()
	defer l.rmu.Unlock()
	n := 0
	if l.hasOne && len(p) > 0 {
		p[0], n, l.hasOne = l.ahead[0], 1, false
	}
	for n < len(p) {
		m, err := l.tls.Read(p[n:])
		n += m
		switch {
		case err == nil:
		case n > 0:
			return n, nil // an error that lasts is told again
		case errors.Is(err, errAgain), errors.Is(err, io.EOF):
			return 0, err
		default:
			return 0, fmt.Errorf("read: %w", err)
		}
	}
	return n, nil
}

// tryWrite encrypts and sends what fits; errAgain if that is not everything. What it took is sent
// without another call of it.
func (l *tlsLink) tryWrite(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		if err := l.pipe.flush(); err != nil {
			return done, err
		}
		n, err := l.tls.Write(p[done:min(len(p), done+tlsRecordBytes)])
		done += n
		if err != nil {
			return done, fmt.Errorf("write: %w", err)
		}
	}
	return done, nil
}

// Read implements net.Conn: it waits.
func (l *tlsLink) Read(p []byte) (int, error) {
	for {
		if err := l.expired(true); err != nil {
			return 0, err
		}
		n, err := l.tryRead(p)
		if !errors.Is(err, errAgain) {
			return n, err
		}
		l.await(true)
	}
}

// Write implements net.Conn: it waits until the socket has taken everything.
func (l *tlsLink) Write(p []byte) (int, error) {
	done := 0
	for {
		if err := l.expired(false); err != nil {
			return done, err
		}
		n, err := l.tryWrite(p[done:])
		done += n
		if err == nil {
			err = l.pipe.flush()
		}
		if !errors.Is(err, errAgain) {
			return done, err
		}
		l.await(false)
	}
}

// Close implements net.Conn. The peer is told, if there is room.
func (l *tlsLink) Close() error {
	_ = l.tls.CloseWrite()
	return l.sock.Close()
}

// handle sets who is called when there may be something to read or room to write; nil is nobody.
func (l *tlsLink) handle(h handler) {
	if h == nil {
		l.h.Store(nil)
		return
	}
	l.h.Store(&h)
	l.sock.handle(l) // which lets go of what a goroutine needed to wait
}

// read implements handler: the loop calls it in the place of who uses the link.
func (l *tlsLink) read() {
	_ = l.pipe.flush() // an error is told by the next read or write
	if h := l.h.Load(); h != nil {
		(*h).read()
	}
}

// relay implements handler.
func (l *tlsLink) relay(now int64) {
	if h := l.h.Load(); h != nil {
		(*h).relay(now)
	}
}

// probe looks at a connection by reading a byte ahead: that a socket is readable says nothing of
// data, since TLS has messages of its own. Whoever reads calls it.
func (l *tlsLink) probe() peerState {
	st := l.sock.probe()
	l.rmu.Lock()
	defer l.rmu.Unlock()
	if st == peerGone || l.hasOne {
		return max(st, peerReadable)
	}
	n, err := l.tls.Read(l.ahead[:])
	switch l.hasOne = n > 0; {
	case l.hasOne:
		return peerReadable
	case errors.Is(err, errAgain):
		return peerQuiet
	}
	return peerGone
}

// sendState counts the ciphertext that the socket has not taken as well.
func (l *tlsLink) sendState() (sendState, bool) {
	st, ok := l.sock.sendState()
	st.queued += l.pipe.waiting()
	return st, ok
}

// peerTLS is what the handshake has shown.
func (l *tlsLink) peerTLS() tls.ConnectionState { return l.tls.ConnectionState() }

// tlsTrimBytes is the size up to which a buffer of crypto/tls stays.
const tlsTrimBytes = 2 << 10

// trim gives back buffers that crypto/tls keeps for the life of a connection: as large as the
// largest record that ever came, up to 17 KiB, which most idle sessions would hold for nothing.
func (l *tlsLink) trim() {
	l.rmu.Lock()
	defer l.rmu.Unlock()
	for _, at := range tlsBuffers {
		b := (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(l.tls), at))
		if b.Len() == 0 && b.Cap() > tlsTrimBytes {
			*b = bytes.Buffer{} // decrypted bytes of the old one keep its memory
		}
	}
}

// trimTLS is trim of a connection that has TLS.
func trimTLS(c link) {
	if l, ok := c.(*tlsLink); ok {
		l.trim()
	}
}

// tlsBuffers are the places of the buffers in tls.Conn, which offers no way to them. A release of
// Go that names them otherwise keeps its memory (TestTLSBuffersAreFound tells).
var tlsBuffers = func() (at []uintptr) {
	for _, name := range []string{"rawInput", "hand"} {
		f, ok := reflect.TypeFor[tls.Conn]().FieldByName(name)
		if ok && f.Type == reflect.TypeFor[bytes.Buffer]() {
			at = append(at, f.Offset)
		}
	}
	return at
}()

// tlsPipe is what tls.Conn reads ciphertext from and writes it to. It never waits, but during the
// handshake.
type tlsPipe struct {
	sock  *sock
	waits bool // the handshake runs, in one goroutine

	// The reader's.
	ahead  []byte // read before TLS began
	pooled *[]byte
	r, w   int

	mu      sync.Mutex
	pending []byte // ciphertext that the socket had no room for
}

// Read implements net.Conn; errAgain if nothing is there.
func (t *tlsPipe) Read(p []byte) (int, error) {
	if len(t.ahead) > 0 {
		n := copy(p, t.ahead)
		t.ahead = t.ahead[n:]
		return n, nil
	}
	if t.r == t.w {
		if err := t.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, (*t.pooled)[t.r:t.w])
	if t.r += n; t.r == t.w {
		t.release()
	}
	return n, nil
}

// fill reads into a buffer, which it keeps only if there was something.
func (t *tlsPipe) fill() (err error) {
	if t.pooled == nil {
		t.pooled = bufferPool.Get().(*[]byte)
	}
	t.r = 0
	if t.waits {
		t.w, err = t.sock.Read(*t.pooled)
	} else {
		t.w, err = t.sock.tryRead(*t.pooled)
	}
	if t.w == 0 {
		t.release()
		if err == nil {
			err = io.ErrNoProgress
		}
		return err
	}
	return nil
}

func (t *tlsPipe) release() {
	bufferPool.Put(t.pooled)
	t.pooled, t.r, t.w = nil, 0, 0
}

// Write takes everything, or ends the connection.
func (t *tlsPipe) Write(p []byte) (int, error) {
	if t.waits {
		return t.sock.Write(p)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	done := 0
	if len(t.pending) == 0 {
		n, err := t.sock.tryWrite(p)
		if err == nil {
			return n, nil
		}
		if !errors.Is(err, errAgain) {
			return n, err
		}
		done = n
	}
	if len(t.pending)+len(p)-done > tlsPendingMax {
		return done, errTLSPending
	}
	t.pending = append(t.pending, p[done:]...)
	return len(p), nil
}

// flush sends what waits; errAgain if something still does.
func (t *tlsPipe) flush() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.pending) == 0 {
		return nil
	}
	n, err := t.sock.tryWrite(t.pending)
	t.pending = t.pending[n:]
	if len(t.pending) == 0 {
		t.pending = nil
	}
	return err
}

func (t *tlsPipe) waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.pending)
}

// Close implements net.Conn; the link closes the socket.
func (t *tlsPipe) Close() error { return nil }

// LocalAddr implements net.Conn.
func (t *tlsPipe) LocalAddr() net.Addr { return t.sock.LocalAddr() }

// RemoteAddr implements net.Conn.
func (t *tlsPipe) RemoteAddr() net.Addr { return t.sock.RemoteAddr() }

// SetDeadline implements net.Conn; the deadlines are the socket's.
func (t *tlsPipe) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (t *tlsPipe) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (t *tlsPipe) SetWriteDeadline(time.Time) error { return nil }
