package proxytest

import (
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/pgwire"
)

// Line stands between the proxy and the server and can be cut at a message.
type Line struct {
	listener net.Listener
	target   string

	mu sync.Mutex
	// conns are both ends; for those to the proxy: whether they are the proxy's own.
	conns map[net.Conn]*atomic.Bool
	// toServer and toClient are asked before each message is passed on; false cuts the
	// connection there and then.
	toServer, toClient func(typ byte, body []byte) bool
	// insideTyp and insideAt name the message to the client that is cut inside, and where; once.
	insideTyp byte
	insideAt  int
	tap       Tap
	read      atomic.Int64 // bytes of sessions of the proxy
	work      sync.WaitGroup
}

// NewLine listens on a free port; it is closed when the test ends.
func NewLine(t testing.TB, target string) *Line {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &Line{listener: l, target: target, conns: make(map[net.Conn]*atomic.Bool)}
	n.work.Add(1)
	go n.runAccept()
	t.Cleanup(n.Close)
	return n
}

// Addr is where the proxy connects to.
func (l *Line) Addr() string { return l.listener.Addr().String() }

// Close cuts everything and waits.
func (l *Line) Close() {
	_ = l.listener.Close()
	l.Cut()
	l.work.Wait()
}

// Cut resets all connections.
func (l *Line) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if tc, ok := c.(*net.TCPConn); ok {
			_ = tc.SetLinger(0)
		}
		_ = c.Close()
	}
}

// Watch sets the functions that decide about messages; nil passes all.
func (l *Line) Watch(toServer, toClient func(typ byte, body []byte) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.toServer, l.toClient = toServer, toClient
}

// Tap looks at the messages of sessions of the proxy, in both directions.
type Tap struct {
	// Before is asked before a message is passed on: how many of its bytes are, and then the
	// connection is cut; less than none: all, and it is not.
	Before func(toServer bool, typ byte, body []byte) int
	// After is told of a message that was passed on as a whole and that its receiver has, or can
	// read: a cut that comes between the two leaves it out.
	After func(toServer bool, typ byte, body []byte)
}

// Tap sets what looks at messages; the zero Tap does not.
func (l *Line) Tap(t Tap) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tap = t
}

// CutInside ends the connection once n bytes of the next message of that type to the client have
// passed. What has passed arrives.
func (l *Line) CutInside(typ byte, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.insideTyp, l.insideAt = typ, n
}

// isInside tells that the message is the one to be cut inside.
func (l *Line) isInside(typ byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.insideAt == 0 || l.insideTyp != typ {
		return false
	}
	l.insideTyp = 0
	return true
}

// Arrived is how many bytes have come from sessions of the proxy behind their first packet: also
// those of a message that is not there as a whole, and those that were not read yet.
func (l *Line) Arrived() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.read.Load()
	for c, ours := range l.conns {
		if ours != nil && !ours.Load() {
			n += unread(c)
		}
	}
	return n
}

// unread is how many bytes of a connection the host keeps.
func unread(c net.Conn) int64 {
	n := 0
	if tc, ok := c.(*net.TCPConn); ok {
		if raw, err := tc.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
		}
	}
	return int64(n)
}

// counted counts what is read.
type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (l *Line) runAccept() {
	defer l.work.Done()
	for {
		c, err := l.listener.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", l.target)
		if err != nil {
			_ = c.Close()
			continue
		}
		ours := new(atomic.Bool)
		l.mu.Lock()
		l.conns[c], l.conns[s] = ours, nil
		l.mu.Unlock()
		l.work.Add(2)
		go l.runCopy(c, s, true, ours)
		go l.runCopy(s, c, false, ours)
	}
}

// runCopy passes messages on; the first packet of a client has no type. A connection of the proxy's
// own, for the catalogue, comes when it likes: nothing is asked about its messages.
func (l *Line) runCopy(from, to net.Conn, toServer bool, ours *atomic.Bool) {
	defer l.work.Done()
	defer func() {
		l.mu.Lock()
		delete(l.conns, from)
		l.mu.Unlock()
		_ = from.Close()
		_ = to.Close()
	}()
	if toServer {
		var n [4]byte
		if _, err := io.ReadFull(from, n[:]); err != nil {
			return
		}
		rest := make([]byte, int(n[2])<<8+int(n[3])-4)
		if _, err := io.ReadFull(from, rest); err != nil {
			return
		}
		ours.Store(bytes.Contains(rest, []byte("holdfast_lookup")))
		if _, err := to.Write(append(n[:], rest...)); err != nil {
			return
		}
	}
	in := io.Reader(from)
	if toServer && !ours.Load() {
		in = counted{from, &l.read}
	}
	r := pgwire.NewReader(in, 1<<30)
	for {
		typ, body, err := r.ReadMessage()
		if err != nil {
			return
		}
		l.mu.Lock()
		ask, tap := l.toClient, l.tap
		if toServer {
			ask = l.toServer
		}
		l.mu.Unlock()
		if ask != nil && !ours.Load() && !ask(typ, body) {
			if tc, ok := to.(*net.TCPConn); ok {
				_ = tc.SetLinger(0)
			}
			return
		}
		msg := pgwire.AppendMessage(nil, typ, body)
		if !toServer && !ours.Load() && l.isInside(typ) {
			_, _ = to.Write(msg[:l.insideAt])
			return
		}
		if tap.Before != nil && !ours.Load() {
			if n := tap.Before(toServer, typ, body); n >= 0 {
				_, _ = to.Write(msg[:n])
				return
			}
		}
		if _, err := to.Write(msg); err != nil {
			return
		}
		if tap.After != nil && !ours.Load() {
			tap.After(toServer, typ, body)
		}
	}
}
