package proxy_test

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// fallSilent lets a connection's host take nothing any more, as if its cable had been pulled: a
// filter drops what comes for the socket before TCP sees it, so that nothing is acknowledged and
// nothing refused.
func fallSilent(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: 1, Filter: &drop})
	})
	if err != nil || serr != nil {
		t.Fatal(err, serr)
	}
}

// A client whose host vanishes without a word ends: idle by the kernel's probes, in the middle of
// rows by what is not acknowledged. Its server process ends with it.
func TestClientsThatFallSilent(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.KeepAlive, c.Reuse = 2*time.Second, false })
	other := r.connect("")
	for name, last := range map[string]string{
		"idle": "SELECT 'idle, and then silent'",
		"rows": "SELECT repeat('silent', 1000) FROM generate_series(1, 10000000)",
	} {
		t.Run(name, func(t *testing.T) {
			resets := r.count("resets_total", "client_silent")
			w := hijack(t, r.connect(""))
			w.send(pgwire.AppendQuery(nil, last))
			if name == "idle" {
				w.until(1, 20*time.Second)
			} else {
				for range 100 {
					if _, _, err := w.r.ReadMessage(); err != nil {
						t.Fatal(err)
					}
				}
			}
			fallSilent(t, w.c)
			r.eventually(func() bool {
				return r.server.Exec("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' " +
					"AND query LIKE '%silent%'")[0][0] == "0"
			}, "the server process ends")
			if got := r.count("resets_total", "client_silent") - resets; name == "rows" && got != 1 {
				t.Errorf("%v resets were counted", got)
			}
			r.well(t, other)
		})
	}
	r.eventually(func() bool { n, _ := r.proxy.Stats(); return n == 1 }, "the sessions end")
}
