package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/pgwire"
)

// script is one transaction as bytes: what a client sends at once, and how many bytes answer it.
type script struct {
	name string
	// setup is a simple query that each connection runs once, or extended messages; may be nil.
	setup   []byte
	request []byte
	// isBulk tells that bytes count, and not transactions.
	isBulk bool
}

var (
	// preparedSelect is what libpq sends for PQsendQueryPrepared.
	preparedSelect = script{
		name: "prepared select",
		setup: pgwire.AppendSync(pgwire.AppendParse(nil, "s1",
			"SELECT abalance FROM pgbench_accounts WHERE aid = $1", nil)),
		request: pgwire.AppendSync(pgwire.AppendExecute(pgwire.AppendDescribe(
			pgwire.AppendBind(nil, "", "s1", "4711"), 'P', ""), "", 0)),
	}
	// simpleSelect is one simple query.
	simpleSelect = script{
		name: "simple select",
		request: pgwire.AppendQuery(nil,
			"SELECT abalance FROM pgbench_accounts WHERE aid = 4711;"),
	}
)

// errNoAnswer is a server or a proxy that says nothing.
var errNoAnswer = errors.New("nothing came for 10 s")

// clients are connections in a closed loop that one thread drives by epoll. They know how long the
// answer is and count bytes, so that they cost as little as can be; the end of each answer is
// checked. Several goroutines may add clients, then one uses them.
type clients struct {
	mu     sync.Mutex // guards what add changes
	files  []*os.File
	fds    []int
	left   []int   // bytes of the answer still to come
	since  []int64 // when the request was sent
	epoll  int
	script script
	answer int // bytes
	buf    []byte
}

// dial logs in one client.
func dial(ctx context.Context, addr string) (*net.TCPConn, *pgwire.Reader, error) {
	d := net.Dialer{Timeout: 30 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, fmt.Errorf("connect: %w", err)
	}
	_ = conn.SetDeadline(time.Now().Add(60 * time.Second))
	r := pgwire.NewReader(conn, 1<<24)
	_, err = pgwire.Login(conn, r, []pgwire.Param{{Name: "user", Value: benchUser},
		{Name: "database", Value: benchDatabase}}, pgwire.Credentials{Password: benchPassword})
	if err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("log in at %s: %w", addr, err)
	}
	_ = conn.SetDeadline(time.Time{})
	return conn.(*net.TCPConn), r, nil
}

// exchange sends a request and counts the bytes up to its ReadyForQuery.
func exchange(conn net.Conn, r *pgwire.Reader, request []byte) (int, error) {
	if _, err := conn.Write(request); err != nil {
		return 0, err
	}
	for n := 0; ; {
		typ, body, err := r.ReadMessage()
		if err != nil {
			return 0, err
		}
		n += pgwire.HeaderLen + len(body)
		switch typ {
		case pgwire.SrvError:
			e, err := pgwire.ParseError(body)
			if err != nil {
				return 0, err
			}
			return 0, e
		case pgwire.SrvReadyForQuery:
			return n, nil
		}
	}
}

// connectClients logs in n clients that will run the script.
func connectClients(ctx context.Context, addr string, n int, s script) (*clients, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	c := &clients{epoll: ep, script: s, buf: make([]byte, 256<<10)}
	for range n {
		if err := c.add(ctx, addr); err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

func (c *clients) add(ctx context.Context, addr string) error {
	conn, r, err := dial(ctx, addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // the file is a duplicate
	if c.script.setup != nil {
		if _, err := exchange(conn, r, c.script.setup); err != nil {
			return fmt.Errorf("prepare client: %w", err)
		}
	}
	if err := c.learn(conn, r); err != nil {
		return fmt.Errorf("try %s: %w", c.script.name, err)
	}
	if len(r.Buffered()) > 0 {
		return errors.New("prepare client: more bytes than the answer")
	}
	f, err := conn.File()
	if err != nil {
		return err
	}
	fd := int(f.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(len(c.fds))}
	c.files, c.fds = append(c.files, f), append(c.fds, fd)
	c.left, c.since = append(c.left, 0), append(c.since, 0)
	return unix.EpollCtl(c.epoll, unix.EPOLL_CTL_ADD, fd, &ev)
}

// learn runs the script once, so that the client has a server wherever it gets one late, and
// finds out how long the answer is.
func (c *clients) learn(conn net.Conn, r *pgwire.Reader) error {
	n, err := exchange(conn, r, c.script.request)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answer != 0 && c.answer != n {
		return fmt.Errorf("an answer of %d bytes after one of %d", n, c.answer)
	}
	c.answer = n
	return nil
}

// close resets the connections: their ports are free at once. Thousands of ports in TIME-WAIT cost
// the next target's process much of the kernel's time for each connection it makes.
func (c *clients) close() {
	for i, f := range c.files {
		_ = unix.SetsockoptLinger(c.fds[i], unix.SOL_SOCKET, unix.SO_LINGER,
			&unix.Linger{Onoff: 1})
		_ = f.Close()
	}
	_ = unix.Close(c.epoll)
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// run keeps all clients busy for d and then takes the last answers; it returns the latency of
// every transaction, in nanoseconds.
func (c *clients) run(ctx context.Context, d time.Duration) ([]int64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	end := monotonic() + int64(d)
	took := make([]int64, 0, 1<<16)
	open := 0
	for i := range c.fds {
		if err := c.send(i); err != nil {
			return nil, err
		}
		open++
	}
	events := make([]unix.EpollEvent, 256)
	for open > 0 {
		n, err := unix.EpollWait(c.epoll, events, 10000)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 || ctx.Err() != nil {
			return nil, fmt.Errorf("%d clients wait for an answer: %w", open,
				errors.Join(err, ctx.Err(), errNoAnswer))
		}
		for _, e := range events[:n] {
			done, err := c.receive(int(e.Fd))
			if err != nil {
				return nil, err
			}
			if !done {
				continue
			}
			now := monotonic()
			took = append(took, now-c.since[e.Fd])
			if now >= end {
				open--
			} else if err := c.send(int(e.Fd)); err != nil {
				return nil, err
			}
		}
	}
	return took, nil
}

func (c *clients) send(i int) error {
	c.left[i], c.since[i] = c.answer, monotonic()
	n, err := unix.Write(c.fds[i], c.script.request)
	if err != nil || n != len(c.script.request) {
		return fmt.Errorf("send: %d bytes: %w", n, errors.Join(err, io.ErrShortWrite))
	}
	return nil
}

// receive reads once; done tells that the answer is whole.
func (c *clients) receive(i int) (done bool, err error) {
	n, err := unix.Read(c.fds[i], c.buf)
	if err == unix.EAGAIN || err == unix.EINTR {
		return false, nil
	}
	if err != nil || n == 0 {
		return false, fmt.Errorf("receive: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	c.left[i] -= n
	switch {
	case c.left[i] < 0:
		return false, fmt.Errorf("%d bytes more than the answer", -c.left[i])
	case c.left[i] > 0:
		return false, nil
	}
	if n >= 6 && string(c.buf[n-6:n-1]) != "Z\x00\x00\x00\x05" {
		return false, errors.New("the answer does not end as it should")
	}
	return true, nil
}

// paced begins so many transactions per second, on one client after the other, for d or until stop
// is closed. Latency counts from when a transaction was due, so that a stall counts for all that
// it kept waiting.
func (c *clients) paced(ctx context.Context, perSecond int, d time.Duration, stop <-chan struct{},
) ([]int64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin, gap := monotonic(), int64(time.Second)/int64(perSecond)
	var took []int64
	events := make([]unix.EpollEvent, 256)
	for due, open, i := begin, 0, 0; ; {
		isOver := due-begin >= int64(d) || isClosed(stop)
		if isOver && open == 0 {
			return took, ctx.Err()
		}
		for ; !isOver && due <= monotonic() && c.left[i] == 0; due += gap {
			if err := c.send(i); err != nil {
				return nil, err
			}
			c.since[i] = due
			open++
			i = (i + 1) % len(c.fds)
		}
		n, err := c.poll(events, isOver, due)
		if err != nil || ctx.Err() != nil {
			return nil, errors.Join(err, ctx.Err())
		}
		for _, e := range events[:n] {
			done, err := c.receive(int(e.Fd))
			if err != nil {
				return nil, err
			}
			if done {
				open--
				took = append(took, monotonic()-c.since[e.Fd])
			}
		}
	}
}

// poll waits for answers, but not beyond when the next transaction is due.
func (c *clients) poll(events []unix.EpollEvent, isOver bool, due int64) (int, error) {
	timeout := unix.NsecToTimespec(max(0, due-monotonic()))
	if isOver {
		timeout = unix.NsecToTimespec(int64(10 * time.Second))
	}
	fds := []unix.PollFd{{Fd: int32(c.epoll), Events: unix.POLLIN}}
	n, err := unix.Ppoll(fds, &timeout, nil)
	if err == unix.EINTR {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if n == 0 {
		if isOver {
			return 0, errNoAnswer
		}
		return 0, nil
	}
	return unix.EpollWait(c.epoll, events, 0)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
