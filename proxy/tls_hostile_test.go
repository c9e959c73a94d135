package proxy_test

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// captured keeps what a TLS client would send, and sends nothing.
type captured struct {
	net.Conn
	sent []byte
}

func (c *captured) Write(p []byte) (int, error) {
	c.sent = append(c.sent, p...)
	return len(p), nil
}

func (c *captured) Read([]byte) (int, error) { return 0, io.EOF }

// Peers that begin with TLS and do not go on, or go on with something else, get no further than
// the time for a login, and others notice nothing.
func TestTLSBrokenPeers(t *testing.T) {
	r, ca := newTLSRig(t, proxy.TLSRequire, func(c *proxy.Config) {
		c.StartupTimeout = 2 * time.Second
	})
	well := r.connectTo(r.secure(ca, ""))
	c := &captured{}
	_ = tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"postgresql"}}).
		Handshake()
	hello := c.sent
	if len(hello) < 100 {
		t.Fatalf("a hello of %d bytes", len(hello))
	}
	bad := append([]byte(nil), hello...)
	for i := 5; i < len(bad); i++ {
		bad[i] ^= 0x5a
	}
	ssl := pgwire.AppendSSLRequest(nil)
	for name, bytes := range map[string][]byte{
		"one byte":                {0x16},
		"half a hello":            hello[:len(hello)/2],
		"a hello and silence":     hello,
		"nonsense in a record":    bad,
		"a record that is a lie":  {0x16, 3, 1, 0xff, 0xff, 1},
		"a request and silence":   ssl,
		"a request and nonsense":  append(append([]byte(nil), ssl...), "GET / HTTP/1.1\r\n\r\n"...),
		"http":                    []byte("GET / HTTP/1.1\r\n\r\n"),
		"a hello behind a hello":  append(append([]byte(nil), hello...), hello...),
		"requests without an end": append(append(append(ssl[:8:8], ssl...), ssl...), ssl...),
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", r.proxy.Addrs()[0].String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write(bytes); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
			_, err = io.Copy(io.Discard, conn)
			if late, ok := err.(net.Error); ok && late.Timeout() {
				t.Error("the connection is kept")
			}
		})
	}
	if v := exec(t, well, "SELECT 1"); v != "1" {
		t.Error(v)
	}

	// What is no record in the middle of a session ends that session.
	broken := r.connectTo(r.secure(ca, ""))
	raw := broken.Conn().(*tls.Conn).NetConn()
	if _, err := raw.Write([]byte("this is no TLS record")); err != nil {
		t.Fatal(err)
	}
	_ = raw.SetReadDeadline(time.Now().Add(15 * time.Second))
	if _, err := io.Copy(io.Discard, raw); err != nil {
		if late, ok := err.(net.Error); ok && late.Timeout() {
			t.Error("the session is kept")
		}
	}
	if v := exec(t, well, "SELECT 2"); v != "2" {
		t.Error(v)
	}
}
