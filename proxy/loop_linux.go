package proxy

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// This file and sock_linux.go are the only ones that know how readiness is learnt.

const (
	// loopEvents is how many events are taken from the kernel at once.
	loopEvents = 256
	// loopTurns is how often one handler reads in a row before the others get their turn, and
	// loopBytes after how many bytes they get it earlier: some tens of microseconds of a stream.
	loopTurns = 4
	loopBytes = 64 << 10
	// loopStride is how many handlers read before the clock is read for all of them: what they
	// write leaves that much later than the clock says, some tenths of a millisecond.
	loopStride = 16
)

// handler is called on its loop when there may be something to do; it never waits.
type handler interface {
	// read takes what has arrived.
	read()
	// relay writes it; now is CLOCK_BOOTTIME, read after read returned.
	relay(now int64)
}

// loop is one goroutine that waits for the readiness of many sockets and calls their handlers.
// Sockets are registered edge-triggered, once, for their life. Whoever made the loop calls run in
// a goroutine and ends it with stop.
type loop struct {
	epoll, wake int // descriptors

	mu      sync.Mutex
	socks   []*sock // by descriptor
	posted  []handler
	rung    bool // wake was written to, and not read since
	asleep  bool // run waits, or is about to: who posts has to ring
	stopped bool

	// The loop goroutine's own.
	again   []handler // those that gave way to others
	turn    []handler
	many    bool // there was more than one event at a time
	batch   [loopEvents]unix.EpollEvent
	batched [loopEvents]*sock
}

func newLoop() (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epoll)
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wake)}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &ev); err != nil {
		_, _ = unix.Close(epoll), unix.Close(wake)
		return nil, fmt.Errorf("watch an eventfd: %w", err)
	}
	return &loop{epoll: epoll, wake: wake}, nil
}

// run calls handlers until stop.
func (l *loop) run() {
	for l.wait() {
		for turn := l.turn; len(turn) > 0; {
			n := min(loopStride, len(turn))
			for _, h := range turn[:n] {
				h.read()
			}
			now := bootNow()
			for _, h := range turn[:n] {
				h.relay(now)
			}
			turn = turn[n:]
		}
		clear(l.turn)
		l.turn = l.turn[:0]
	}
	_ = unix.Close(l.wake)
	_ = unix.Close(l.epoll)
}

// wait leaves in turn who is to be called; false after stop.
func (l *loop) wait() bool {
	n, err := l.poll()
	if err != nil && !errors.Is(err, unix.EINTR) {
		panic(fmt.Sprintf("proxy: epoll_wait: %v", err)) // EBADF, EFAULT, EINVAL: our own mistake
	}
	n = max(n, 0)
	l.many = n > 1
	l.mu.Lock()
	l.asleep = false
	for i := range n {
		l.batched[i] = nil
		if fd := int(l.batch[i].Fd); fd == l.wake {
			var b [8]byte
			_, _ = unix.Read(l.wake, b[:])
			l.rung = false
		} else if fd < len(l.socks) {
			l.batched[i] = l.socks[fd] // a socket of that number that is newer looks in vain
		}
	}
	l.turn = append(l.turn, l.posted...)
	clear(l.posted)
	l.posted = l.posted[:0]
	stopped := l.stopped
	l.mu.Unlock()
	for i := range n {
		if c := l.batched[i]; c != nil {
			if h := c.event(l.batch[i].Events); h != nil {
				l.turn = append(l.turn, h)
			}
		}
	}
	l.turn = append(l.turn, l.again...) // last: they have had a turn
	clear(l.again)
	l.again = l.again[:0]
	return !stopped
}

// poll waits for events, unless there is something to do already. The call that returns at once
// is hidden from Go's scheduler, which costs more than it; it is tried where it is likely to find
// something.
func (l *loop) poll() (int, error) {
	l.mu.Lock()
	busy := len(l.again) > 0 || len(l.posted) > 0 || l.stopped
	l.asleep = !busy
	l.mu.Unlock()
	if busy || l.many {
		n, err := epollNow(l.epoll, l.batch[:])
		if n != 0 || err != nil || busy {
			return n, err
		}
	}
	return unix.EpollWait(l.epoll, l.batch[:], -1)
}

// post makes the loop call h soon. Safe for concurrent use, also by a handler.
func (l *loop) post(h handler) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.posted = append(l.posted, h)
	l.ringLocked()
}

func (l *loop) ringLocked() {
	if l.rung || l.stopped || !l.asleep {
		return
	}
	l.rung = true
	_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// yield makes the loop call h after everybody else who is ready; for handlers.
func (l *loop) yield(h handler) { l.again = append(l.again, h) }

// stop ends run. Nobody uses a socket of the loop any more.
func (l *loop) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ringLocked()
	l.stopped = true
}

// add registers a socket.
func (l *loop) add(c *sock) error {
	fd := c.fd
	l.mu.Lock()
	for len(l.socks) <= fd {
		l.socks = append(l.socks, make([]*sock, max(64, len(l.socks)))...)
	}
	l.socks[fd] = c
	l.mu.Unlock()
	ev := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd),
	}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		l.remove(c, fd)
		return fmt.Errorf("watch a socket: %w", err)
	}
	return nil
}

// remove forgets a socket; closing the descriptor takes it out of the kernel's set.
func (l *loop) remove(c *sock, fd int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.socks[fd] == c {
		l.socks[fd] = nil
	}
}
