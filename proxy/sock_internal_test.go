package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSockWaits(t *testing.T) {
	a, b := sockPair(t)
	var wg sync.WaitGroup
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // more than the kernel takes
	wg.Go(func() {
		if n, err := a.Write(want); n != len(want) || err != nil {
			t.Errorf("wrote %d: %v", n, err)
		}
		_ = a.Close()
	})
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d: %v", len(got), len(want), err)
	}
	wg.Wait()
}

func TestSockDeadlines(t *testing.T) {
	a, b := sockPair(t)
	_ = a.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	_ = a.SetReadDeadline(time.Time{})
	for name, stop := range map[string]func(){
		"a deadline that has passed": func() { _ = a.SetDeadline(time.Unix(1, 0)) },
		"the other end":              func() { _ = b.Close() },
		"this end":                   func() { _ = a.Close() },
	} {
		done := make(chan error)
		go func() {
			_, err := a.Read(make([]byte, 1))
			done <- err
		}()
		stop()
		if err := <-done; err == nil {
			t.Errorf("%s did not end a read", name)
		}
		_ = a.SetDeadline(time.Time{})
	}
	if _, err := a.tryWrite([]byte{1}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write to a closed socket: %v", err)
	}
	if _, ok := a.sendState(); ok || a.probe() != peerGone {
		t.Error("a closed socket has a state")
	}
}

// counter is a handler that reads all there is.
type counter struct {
	c    *sock
	got  int
	end  error
	done chan struct{}
}

func (h *counter) relay(int64) {}

func (h *counter) read() {
	var buf [64]byte
	for h.end == nil {
		n, err := h.c.tryRead(buf[:])
		h.got += n
		if errors.Is(err, errAgain) {
			return
		}
		if h.end = err; err != nil {
			close(h.done)
		}
	}
}

// The end of a peer may come with its last bytes, as one event, or while they are read: the
// handler must hear of it, though it reads no more after a short read.
func TestSockHearsOfTheEnd(t *testing.T) {
	for _, n := range []int{0, 1, 63, 64, 65, 4096} {
		for range 50 {
			a, b := sockPair(t)
			h := &counter{c: b, done: make(chan struct{})}
			b.handle(h)
			if _, err := a.Write(make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			_ = a.Close()
			select {
			case <-h.done:
			case <-time.After(10 * time.Second):
				t.Fatalf("no end behind %d bytes", n)
			}
			if h.got != n || !errors.Is(h.end, io.EOF) {
				t.Errorf("%d bytes of %d, %v", h.got, n, h.end)
			}
		}
	}
}

// A descriptor's number is used again at once: who had it before must not be called, or close it.
func TestSockNumbersAreReused(t *testing.T) {
	a, b := sockPair(t)
	l := a.loop
	fd := b.fd
	_ = b.Close()
	_ = a.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if fds[0] != fd && fds[1] != fd { // somebody else may have been faster
		if err := unix.Dup3(fds[1], fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fds[1])
		fds[1] = fd
	}
	c, d := &sock{loop: l, fd: fds[0], rd: true, wr: true},
		&sock{loop: l, fd: fds[1], rd: true, wr: true}
	for _, s := range []*sock{c, d} {
		if err := l.add(s); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
	if err := b.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	l.remove(b, fd)
	h := &counter{c: d, done: make(chan struct{})}
	d.handle(h)
	_, _ = c.Write([]byte("x"))
	_ = c.Close()
	<-h.done
	if h.got != 1 {
		t.Errorf("%d bytes", h.got)
	}
}

// posts counts how often it was called.
type posts struct {
	n    int
	want int
	done chan struct{}
}

func (p *posts) relay(int64) {}

func (p *posts) read() {
	if p.n++; p.n == p.want {
		close(p.done)
	}
}

func TestLoopLosesNoPost(t *testing.T) {
	a, _ := sockPair(t)
	const each, who = 2000, 8
	p := &posts{want: each * who, done: make(chan struct{})}
	for range who {
		go func() {
			for range each {
				a.loop.post(p)
			}
		}()
	}
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Fatal("posts were lost")
	}
}
