package proxy

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"holdfast/pgwire"
)

// acceptor is a listening socket on a loop, and its handler. What is set on it once (keepalive, no
// Nagle) the kernel gives to each connection; Go's listener would do so with nine system calls.
type acceptor struct {
	proxy *Proxy
	sock  *sock

	mu     sync.Mutex
	closed bool
	retry  *time.Timer // after an error that may pass
}

const (
	// acceptTurns is how many clients are taken before others have their turn.
	acceptTurns = 16
	// acceptPause is the pause after an error, which mostly means that no descriptor is left.
	acceptPause = 50 * time.Millisecond
)

// newAcceptor takes the socket of l away from Go's poller.
func newAcceptor(p *Proxy, l net.Listener) (*acceptor, error) {
	if l.Addr().Network() == "tcp" {
		defer l.Close() // one of a Unix socket would take its name with it
	}
	sc, ok := l.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%T is not a socket", l)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("take over a listener: %w", err)
	}
	a := &acceptor{proxy: p, sock: &sock{loop: p.loops[0], fd: -1, rd: true}}
	var derr error
	err = raw.Control(func(fd uintptr) {
		a.sock.fd, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, derr); err != nil {
		return nil, fmt.Errorf("take over a listener: %w", err)
	}
	if l.Addr().Network() == "tcp" {
		setAccepted(a.sock.fd, p.cfg.KeepAlive)
	}
	a.sock.h = a
	if err := a.sock.loop.add(a.sock); err != nil {
		_ = unix.Close(a.sock.fd)
		return nil, err
	}
	p.work.Add(1)
	a.sock.loop.post(a) // who came before it was watched
	return a, nil
}

// setAccepted makes the kernel look after a silent client, first after idle, then three times at a
// third of it, and send at once.
func setAccepted(fd int, idle time.Duration) {
	seconds := func(d time.Duration) int { return int(max(1, (d+time.Second-1)/time.Second)) }
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, seconds(idle))
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, seconds(idle/3))
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

// close stops listening.
func (a *acceptor) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	a.closed = true
	if a.retry != nil {
		a.retry.Stop()
	}
	_ = a.sock.Close()
	a.proxy.work.Done()
}

// read implements handler.
func (a *acceptor) read() {}

// relay implements handler: it takes clients.
func (a *acceptor) relay(int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range acceptTurns {
		if a.closed {
			return
		}
		fd := -1
		err := error(unix.EBADF)
		a.sock.control(func(on int) {
			fd, err = rawAccept(on)
		})
		switch {
		case err == nil:
			a.proxy.arrive(fd)
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		default:
			a.proxy.metrics.limit(limitAccept)
			a.proxy.log.Warn("accept failed", zap.Error(err))
			a.retry = time.AfterFunc(acceptPause, func() { a.sock.loop.post(a) })
			return
		}
	}
	a.sock.loop.yield(a)
}

// arrive takes a new connection.
func (p *Proxy) arrive(fd int) {
	c := &sock{loop: p.anyLoop(), fd: fd, wr: true} // the loop says when it can be read
	p.metrics.connections.Inc()
	if p.conns.Add(1) > p.connsMax() {
		// No more than a word for one who may never say what it wants.
		p.conns.Add(-1)
		p.metrics.refused.WithLabelValues("connections").Inc()
		_, _ = c.tryWrite(pgwire.AppendError(nil, errTooManySessions()))
		_ = unix.Close(fd)
		return
	}
	if !p.takeShare(c) {
		p.conns.Add(-1)
		p.metrics.refused.WithLabelValues("connections_per_address").Inc()
		_, _ = c.tryWrite(pgwire.AppendError(nil, errTooManyOfAddress()))
		_ = unix.Close(fd)
		return
	}
	p.work.Add(1)
	a := &arrival{proxy: p, conn: c, until: time.Now().Add(p.cfg.StartupTimeout)}
	c.h = a
	a.late = time.AfterFunc(p.cfg.StartupTimeout, func() {
		if a.end() {
			p.metrics.limit(limitStartup)
		}
	})
	p.arrivals.add(a)
	if err := c.loop.add(c); err != nil {
		p.log.Warn("client cannot be served", zap.Error(err))
		a.end()
	}
}

// arrival is a client that has said nothing yet, and the handler of its socket. It costs no
// goroutine until it has.
type arrival struct {
	proxy *Proxy
	conn  *sock
	until time.Time // when it has to be logged in
	late  *time.Timer
}

// arrivals are those of a proxy. Safe for concurrent use.
type arrivals struct {
	mu  sync.Mutex
	all map[*arrival]struct{}
}

func (l *arrivals) add(a *arrival) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = make(map[*arrival]struct{})
	}
	l.all[a] = struct{}{}
}

// remove is true for the first who asks: it owns the connection.
func (l *arrivals) remove(a *arrival) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.all[a]
	delete(l.all, a)
	return ok
}

// close ends all of them.
func (l *arrivals) close() {
	l.mu.Lock()
	all := l.all
	l.all = nil
	l.mu.Unlock()
	for a := range all {
		a.drop()
	}
}

// end ends a client that says nothing; false if it is gone, or has said something.
func (a *arrival) end() bool {
	if !a.proxy.arrivals.remove(a) {
		return false
	}
	a.drop()
	return true
}

func (a *arrival) drop() {
	a.late.Stop()
	_ = a.conn.Close()
	a.proxy.clientDone()
}

// read implements handler.
func (a *arrival) read() {}

// relay implements handler: the client has said something, or is gone.
func (a *arrival) relay(int64) {
	if !a.conn.isReadable() || !a.proxy.arrivals.remove(a) {
		return
	}
	a.late.Stop()
	a.conn.handle(nil)
	if !a.proxy.admitNow(a.conn, a.until) {
		go a.proxy.runClient(a.conn, a.until)
	}
}
