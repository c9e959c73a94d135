package proxy_test

import (
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/proxy"
)

// descriptor finds this process's socket with that address and that peer: one of the proxy's, which
// runs here.
func descriptor(t *testing.T, local func(string) bool, peer string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	text := func(sa unix.Sockaddr, err error) string {
		a, ok := sa.(*unix.SockaddrInet4)
		if err != nil || !ok {
			return ""
		}
		return net.JoinHostPort(net.IP(a.Addr[:]).String(), strconv.Itoa(a.Port))
	}
	for _, e := range entries {
		fd, _ := strconv.Atoi(e.Name())
		if text(unix.Getpeername(fd)) == peer && local(text(unix.Getsockname(fd))) {
			return fd
		}
	}
	t.Fatalf("no socket to %s", peer)
	return -1
}

// What looks after silent peers is set on the sockets themselves, those that were accepted, with
// TLS and without, and those to the server; none is left to a program that would be started.
func TestSocketsHaveTheirOptions(t *testing.T) {
	r, ca := newTLSRig(t, proxy.TLSAllow, func(c *proxy.Config) {
		c.KeepAlive = 25 * time.Second
	})
	r.leadDirect()
	accepted := [][3]int{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 25},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 9}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	}
	server := [][3]int{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	}
	check := func(name string, fd int, options [][3]int) {
		t.Helper()
		for _, o := range options {
			if got, err := unix.GetsockoptInt(fd, o[0], o[1]); err != nil || got != o[2] {
				t.Errorf("%s: option %d of %d is %d, not %d: %v", name, o[1], o[0], got, o[2], err)
			}
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s: outlives an exec: %v", name, err)
		}
		flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("%s: blocks: %v", name, err)
		}
	}
	listens := r.proxy.Addrs()[0].String()
	ours := func(addr string) bool { return addr == listens }
	for name, dsn := range map[string]string{"plain": r.dsn(""), "TLS": r.secure(ca, "")} {
		c := r.connectTo(dsn)
		check(name, descriptor(t, ours, c.Conn().LocalAddr().String()), accepted)
		port := exec(t, c, "SELECT inet_client_port()") // of the proxy's own socket
		to := net.JoinHostPort("127.0.0.1", strconv.Itoa(r.server.Port))
		from := net.JoinHostPort("127.0.0.1", port)
		check(name+" to the server", descriptor(t, func(addr string) bool { return addr == from },
			to), server)
	}
	silent := r.peer(t)
	r.eventually(func() bool { return r.count("connections_total", "") == 3 }, "it is accepted")
	check("silent", descriptor(t, ours, silent.LocalAddr().String()), accepted)
}
