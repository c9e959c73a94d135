package proxy

import (
	"errors"
	"fmt"
	"os"
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
	epoll, wake int      // descriptors
	file        *os.File // of epoll, which Go's poller watches

	mu      sync.Mutex
	socks   []*sock // by descriptor
	posted  []handler
	rung    bool // wake was written to, and not read since
	asleep  bool // run waits, or is about to: who posts has to ring
	stopped bool

	// The loop goroutine's own.
	again   []handler // those that gave way to others
	turn    []handler
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
	if err := unix.SetNonblock(epoll, true); err != nil { // else os takes it for one that blocks
		_, _ = unix.Close(epoll), unix.Close(wake)
		return nil, fmt.Errorf("watch an epoll instance: %w", err)
	}
	return &loop{epoll: epoll, wake: wake, file: os.NewFile(uintptr(epoll), "epoll")}, nil
}

// run calls handlers until stop. It does so inside of one call that waits for the epoll instance
// by Go's poller: a thread that waited in epoll_wait itself would keep its place in Go's scheduler,
// and the runtime's monitor would wake up, a thousand times a second, to take it away.
func (l *loop) run() {
	raw, err := l.file.SyscallConn()
	if err == nil {
		err = raw.Read(l.turns)
	}
	if err != nil {
		panic(fmt.Sprintf("proxy: wait for an epoll instance: %v", err)) // our own mistake
	}
	_ = unix.Close(l.wake)
	_ = l.file.Close()
}

// turns calls handlers until nobody is ready; true after stop.
func (l *loop) turns(uintptr) bool {
	for more := true; more; {
		var stopped bool
		if stopped, more = l.wait(); stopped {
			return true
		}
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
		more = more || l.isBusy()
	}
	return false
}

// isBusy tells that somebody is to be called without an event; else whoever posts has to ring.
func (l *loop) isBusy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	busy := len(l.again) > 0 || len(l.posted) > 0 || l.stopped
	l.asleep = !busy
	return busy
}

// wait leaves in turn who is to be called; more tells that there are further events.
func (l *loop) wait() (stopped, more bool) {
	n, err := epollNow(l.epoll, l.batch[:])
	if err != nil && !errors.Is(err, unix.EINTR) {
		panic(fmt.Sprintf("proxy: epoll_wait: %v", err)) // EBADF, EFAULT, EINVAL: our own mistake
	}
	n = max(n, 0)
	l.mu.Lock()
	l.asleep = false
	for i := range n {
		l.batched[i] = nil
		if fd := int(l.batch[i].Fd); fd == l.wake {
			rawHush(l.wake)
			l.rung = false
		} else if fd < len(l.socks) {
			l.batched[i] = l.socks[fd] // a socket of that number that is newer looks in vain
		}
	}
	l.turn = append(l.turn, l.posted...)
	clear(l.posted)
	l.posted = l.posted[:0]
	stopped = l.stopped
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
	return stopped, n == len(l.batch)
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
	rawRing(l.wake)
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
	err := rawEpollAdd(l.epoll, fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET)
	if err != nil {
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
