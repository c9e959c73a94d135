package proxy

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/pgwire"
)

// TestRestOfTheStateQuestionIsSent (DESIGN.md I31): there was no room for all of the question, and
// the server answers what is in front of it before the rest goes out. The ReadyForQuery that is
// kept back must not keep that rest back, too: both sides would wait for ever.
func TestRestOfTheStateQuestionIsSent(t *testing.T) {
	const sndbuf = 4096
	room := roomOf(t, sndbuf)
	r := newSteady(t, GuardOff)
	setBuf(t, r.back.conn.(*sock).fd, sndbuf)
	second := unix.Timeval{Sec: 5}
	for _, fd := range []int{r.client, r.server} { // a hang is a failure
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &second); err != nil {
			t.Fatal(err)
		}
	}
	query := func(n int) []byte {
		return pgwire.AppendQuery(nil, "SET app.x = '"+strings.Repeat("x", n)+"'")
	}
	set := query(room - len(query(0)) - 64) // all of it, and a part of the question
	r.send(r.client, set)
	awaitUnread(t, r.server, room)
	r.send(r.server, ready("SET", 'I'))
	r.expect(r.client, noReady(ready("SET", 'I')))
	r.expect(r.server, with(set, stateQuestion(false, "app.x")))
	r.send(r.server, stateAnswer())
	r.expect(r.client, pgwire.AppendReadyForQuery(nil, 'I'))
}

func setBuf(t *testing.T, fd, size int) {
	t.Helper()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size); err != nil {
		t.Fatal(err)
	}
}

// roomOf is how much one write puts into an empty socket with such a buffer.
func roomOf(t *testing.T, size int) int {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) }()
	setBuf(t, fds[0], size)
	n, err := unix.Write(fds[0], make([]byte, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// awaitUnread waits until so many bytes are there to be read.
func awaitUnread(t *testing.T, fd, want int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		switch {
		case err != nil:
			t.Fatal(err)
		case n == want:
			return
		case time.Now().After(end):
			t.Fatalf("%d bytes came, want %d: there was more room, or less", n, want)
		}
	}
}
