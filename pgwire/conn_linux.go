package pgwire

import (
	"net"
	"time"
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
