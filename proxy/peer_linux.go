package proxy

import (
	"time"

	"golang.org/x/sys/unix"
)

// peerState is what can be said of a connection without reading from it.
type peerState uint8

const (
	peerQuiet peerState = iota
	peerReadable
	peerGone
)

// probe looks at a connection without reading from it.
func (c *sock) probe() peerState {
	st := peerGone
	c.control(func(fd int) {
		st = peerQuiet
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
		if n, err := unix.Poll(p, 0); err != nil || n == 0 {
			return
		}
		switch {
		case p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0:
			st = peerGone
		case p[0].Revents&unix.POLLIN != 0:
			st = peerReadable
		}
	})
	return st
}

// sendState is what the kernel says of bytes that were sent, or are to be.
type sendState struct {
	// queued are the bytes that the peer's host has not taken.
	queued int
	// asking tells that several retransmissions or window probes have had no answer; a single
	// one may go without, since the kernel limits the rate of such answers.
	asking bool
	// ackAge is how long ago the peer's host acknowledged anything.
	ackAge time.Duration
}

// sendState asks the kernel; ok is false where it cannot be asked. A host that is alive answers
// also when its process reads nothing: its window is zero, and probes of it are acknowledged.
// TCP_USER_TIMEOUT (tcp(7)) does not tell such a peer from one that is gone.
func (c *sock) sendState() (st sendState, ok bool) {
	open := c.control(func(fd int) {
		if ok = !c.asked; ok {
			return // the usual case: nothing was written since all was acknowledged
		}
		n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		if err != nil || n == 0 {
			ok = err == nil
			c.asked = !ok
			return
		}
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			ok = true
			// A retransmission into a window that has closed is answered, though it does not
			// count as delivered: what was acknowledged after it was sent tells.
			again := info.Retransmits > 1 && info.Last_ack_recv > info.Last_data_sent
			st = sendState{
				queued: n, asking: again || info.Probes > 1,
				ackAge: time.Duration(info.Last_ack_recv) * time.Millisecond,
			}
		}
	})
	return st, ok && open
}

// quietFor is how long ago the peer has last sent anything; 0 where the kernel does not tell (Unix
// sockets).
func quietFor(l link) (d time.Duration) {
	c, ok := l.(*sock)
	if t, isTLS := l.(*tlsLink); isTLS {
		c, ok = t.sock, true
	}
	if !ok {
		return 0
	}
	c.control(func(fd int) {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			d = time.Duration(info.Last_data_recv) * time.Millisecond
		}
	})
	return d
}
