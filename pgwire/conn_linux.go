package pgwire

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// SetKeepAlive makes the kernel look after a silent peer: first after idle, then three times at
// a third of it. A connection that is no TCP socket is left alone.
func SetKeepAlive(conn net.Conn, idle time.Duration) {
	tc, ok := conn.(*net.TCPConn)
	if !ok || idle <= 0 {
		return
	}
	_ = tc.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: idle, Interval: max(time.Second, idle/3), Count: 3,
	})
}

// SetUserTimeout bounds how long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT, tcp(7)).
func SetUserTimeout(conn net.Conn, d time.Duration) {
	tc, ok := conn.(*net.TCPConn)
	if !ok || d <= 0 {
		return
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT,
			int(d.Milliseconds()))
	})
}
