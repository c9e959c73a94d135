package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errAgain tells that a socket is not ready; its loop will call the handler when it is.
var errAgain error = notReady{}

// notReady is a net.Error that passes: crypto/tls goes on after one where any other error of a
// read would end the connection.
type notReady struct{}

func (notReady) Error() string   { return "not ready" }
func (notReady) Timeout() bool   { return true }
func (notReady) Temporary() bool { return true }

// sock is a connected socket on a loop. The relay uses tryRead and tryWrite, which never wait;
// what is rare (login, restore) uses it as a net.Conn and waits. One goroutine at a time reads, and
// one writes; everything else is safe for concurrent use.
type sock struct {
	loop *loop

	mu  sync.Mutex
	fd  int // -1 once closed
	rd  bool
	wr  bool // it may be read, written, as far as known
	hup bool // the peer has ended: a short read does not mean that all was read
	// asked tells that there may be bytes that the peer's host has not acknowledged.
	asked bool
	h     handler
	w     *waiting // nil while nobody ever waited since the relay took over
	// left is called once it is closed; nil mostly.
	left func()
}

// waiting is what a goroutine that waits needs.
type waiting struct {
	rch, wch chan struct{} // capacity 1
	rat, wat time.Time     // deadlines
}

// newSock takes the socket of conn away from Go's poller, which would be woken by each event as
// well. It owns conn, also if it fails.
func newSock(l *loop, conn net.Conn) (*sock, error) {
	defer conn.Close()
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%T is not a socket", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("take over a socket: %w", err)
	}
	c := &sock{loop: l, fd: -1, rd: true, wr: true, asked: true}
	var derr error
	err = raw.Control(func(fd uintptr) {
		c.fd, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, derr); err != nil {
		return nil, fmt.Errorf("take over a socket: %w", err)
	}
	if err := l.add(c); err != nil {
		_ = unix.Close(c.fd)
		return nil, err
	}
	return c, nil
}

// handle sets who is called when the socket becomes ready; nil is nobody.
func (c *sock) handle(h handler) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.h = h
	if h != nil && c.w != nil && c.w.rat.IsZero() && c.w.wat.IsZero() {
		c.w = nil
	}
}

// event takes what the kernel says of the socket, for the loop, and returns whom to call.
func (c *sock) event(mask uint32) handler {
	const end = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	c.mu.Lock()
	c.rd = c.rd || mask&(unix.EPOLLIN|end) != 0
	c.wr = c.wr || mask&(unix.EPOLLOUT|end) != 0
	c.hup = c.hup || mask&end != 0
	if c.w != nil {
		c.w.wake(c.rd, c.wr)
	}
	h := c.h
	c.mu.Unlock()
	return h
}

func (w *waiting) wake(rd, wr bool) {
	if rd {
		select {
		case w.rch <- struct{}{}:
		default:
		}
	}
	if wr {
		select {
		case w.wch <- struct{}{}:
		default:
		}
	}
}

// tryRead reads what is there; errAgain if nothing is, io.EOF at the peer's end.
func (c *sock) tryRead(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return 0, net.ErrClosed
	}
	if !c.rd {
		return 0, errAgain
	}
	n, errno := rawIO(unix.SYS_RECVFROM, c.fd, p)
	switch {
	case errno == unix.EAGAIN:
		c.rd = false
		return 0, errAgain
	case errno != 0:
		return 0, fmt.Errorf("read: %w", errno)
	case n == 0:
		return 0, io.EOF
	}
	if n < len(p) && !c.hup {
		c.rd = false // all was read; what comes is an event of its own
	}
	return n, nil
}

// tryWrite writes what fits; errAgain if that is not everything.
func (c *sock) tryWrite(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return 0, net.ErrClosed
	}
	done := 0
	for done < len(p) {
		if !c.wr {
			return done, errAgain
		}
		n, errno := rawIO(unix.SYS_SENDTO, c.fd, p[done:])
		switch {
		case errno == unix.EAGAIN:
			c.wr = false
		case errno != 0:
			return done, fmt.Errorf("write: %w", errno)
		default:
			done += n
			c.wr, c.asked = done == len(p), true
		}
	}
	return done, nil
}

// Read implements net.Conn: it waits.
func (c *sock) Read(p []byte) (int, error) {
	for {
		if err := c.expired(true); err != nil {
			return 0, err
		}
		n, err := c.tryRead(p)
		if !errors.Is(err, errAgain) {
			return n, err
		}
		c.await(true)
	}
}

// Write implements net.Conn: it waits.
func (c *sock) Write(p []byte) (int, error) {
	done := 0
	for {
		if err := c.expired(false); err != nil {
			return done, err
		}
		n, err := c.tryWrite(p[done:])
		done += n
		if !errors.Is(err, errAgain) {
			return done, err
		}
		c.await(false)
	}
}

// expired tells that the deadline has passed.
func (c *sock) expired(read bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.w == nil {
		return nil
	}
	at := c.w.wat
	if read {
		at = c.w.rat
	}
	if !at.IsZero() && !time.Now().Before(at) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// await returns when the socket may be ready, was closed, or has another deadline or reached it.
func (c *sock) await(read bool) {
	c.mu.Lock()
	if c.fd < 0 || read && c.rd || !read && c.wr {
		c.mu.Unlock()
		return
	}
	w := c.waitingLocked()
	ch, at := w.wch, w.wat
	if read {
		ch, at = w.rch, w.rat
	}
	c.mu.Unlock()
	if at.IsZero() {
		<-ch
		return
	}
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-ch:
	case <-t.C:
	}
}

func (c *sock) waitingLocked() *waiting {
	if c.w == nil {
		c.w = &waiting{rch: make(chan struct{}, 1), wch: make(chan struct{}, 1)}
	}
	return c.w
}

// SetDeadline implements net.Conn.
func (c *sock) SetDeadline(t time.Time) error {
	c.setDeadline(t, true, true)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *sock) SetReadDeadline(t time.Time) error {
	c.setDeadline(t, true, false)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *sock) SetWriteDeadline(t time.Time) error {
	c.setDeadline(t, false, true)
	return nil
}

func (c *sock) setDeadline(t time.Time, read, write bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.w == nil && t.IsZero() {
		return
	}
	w := c.waitingLocked()
	if read {
		w.rat = t
	}
	if write {
		w.wat = t
	}
	w.wake(read, write)
}

// Close implements net.Conn.
func (c *sock) Close() error { return c.close(false) }

// reset closes the connection such that nothing that is still in the send buffer can reach the
// peer any more.
func (c *sock) reset() { _ = c.close(true) }

// closeKeeping implements link: it keeps another descriptor of the same socket.
func (c *sock) closeKeeping() (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	kept, err := unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
	_ = c.closeLocked(true)
	if err != nil {
		return nil // out of descriptors: reset
	}
	// Nobody writes any more. What the host has not taken by now must not reach it later.
	if n, err := unix.IoctlGetInt(kept, unix.SIOCOUTQ); err != nil || n > 0 {
		_ = unix.Close(kept)
		return nil
	}
	return func() { _ = unix.Close(kept) }
}

func (c *sock) close(hard bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeLocked(hard)
}

func (c *sock) closeLocked(hard bool) error {
	if c.fd < 0 {
		return net.ErrClosed
	}
	if hard {
		_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER,
			&unix.Linger{Onoff: 1})
	}
	c.loop.remove(c, c.fd)
	err := rawClose(c.fd)
	c.fd = -1
	if c.left != nil {
		c.left()
	}
	if c.w != nil {
		c.w.wake(true, true)
	}
	return err
}

// peek copies what has arrived without taking it.
func (c *sock) peek(p []byte) int {
	n := 0
	c.control(func(fd int) { n = rawPeek(fd, p) })
	return n
}

// isReadable tells that there may be something to read, or an end.
func (c *sock) isReadable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rd
}

// control calls f with the descriptor, unless the socket is closed.
func (c *sock) control(f func(fd int)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return false
	}
	f(c.fd)
	return true
}

// LocalAddr implements net.Conn.
func (c *sock) LocalAddr() net.Addr { return c.addr(unix.Getsockname) }

// RemoteAddr implements net.Conn.
func (c *sock) RemoteAddr() net.Addr { return c.addr(unix.Getpeername) }

func (c *sock) addr(of func(fd int) (unix.Sockaddr, error)) net.Addr {
	var sa unix.Sockaddr
	c.control(func(fd int) { sa, _ = of(fd) })
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: a.Addr[:], Port: a.Port}
	case *unix.SockaddrInet6:
		return &net.TCPAddr{IP: a.Addr[:], Port: a.Port}
	case *unix.SockaddrUnix:
		return &net.UnixAddr{Name: a.Name, Net: "unix"}
	}
	return &net.TCPAddr{}
}
