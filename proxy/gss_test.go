package proxy_test

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// gssRequest is a GSSENCRequest (protocol-message-formats).
var gssRequest = []byte{0, 0, 0, 8, 4, 210, 22, 48}

// asked sends a request for encryption and returns the answer, of one byte.
func asked(t *testing.T, c net.Conn, request []byte) byte {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	var b [1]byte
	if _, err := c.Write(request); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b[:]); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

// loggedIn logs in on a connection and asks whether the server sees a session of it.
func loggedIn(t *testing.T, c net.Conn) {
	t.Helper()
	reader := pgwire.NewReader(c, 1<<16)
	_, err := pgwire.Login(c, reader, []pgwire.Param{{Name: "user", Value: "app"},
		{Name: "database", Value: "app"}}, pgwire.Credentials{Password: proxytest.Password})
	if err != nil {
		t.Fatal(err)
	}
	rows, err := pgwire.SimpleQuery(c, reader, "SELECT current_user")
	if err != nil || len(rows) != 1 || string(rows[0][0]) != "app" {
		t.Errorf("got %q, %v", rows, err)
	}
}

// GSSAPI encryption is not spoken: who asks for it first, as libpq with a ticket does, goes on
// without it, or with TLS.
func TestGSSIsNotSpoken(t *testing.T) {
	for _, mode := range []string{proxy.TLSOff, proxy.TLSAllow} {
		t.Run(mode, func(t *testing.T) {
			r, _ := newTLSRig(t, mode, nil)
			c := r.peer(t)
			if b := asked(t, c, gssRequest); b != 'N' {
				t.Fatalf("GSSENCRequest is answered by %q", b)
			}
			loggedIn(t, c)
			c = r.peer(t)
			want := map[string]byte{proxy.TLSOff: 'N', proxy.TLSAllow: 'S'}[mode]
			if a, b := asked(t, c, gssRequest), asked(t, c, pgwire.AppendSSLRequest(nil)); a != 'N' ||
				b != want {
				t.Fatalf("answers are %q and %q", a, b)
			}
			if want == 'S' {
				secure := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
				if err := secure.Handshake(); err != nil {
					t.Fatal(err)
				}
				c = secure
			}
			loggedIn(t, c)
		})
	}
}

// What comes together with a GSSENCRequest came in clear, and is refused as PostgreSQL does, be it
// a login or another request, and whatever would be allowed without encryption.
func TestGSSTakesNothingInClear(t *testing.T) {
	app := startupOf("user", "app", "database", "app")
	refuses := func(t *testing.T, c net.Conn, behind []byte) {
		t.Helper()
		if b := asked(t, c, append(gssRequest[:8:8], behind...)); b != 'N' {
			t.Fatalf("GSSENCRequest is answered by %q", b)
		}
		if got := lastWords(t, c); got != "08P01" {
			t.Errorf("got %q", got)
		}
	}
	for _, mode := range []string{proxy.TLSOff, proxy.TLSRequire} {
		t.Run(mode, func(t *testing.T) {
			r, _ := newTLSRig(t, mode, nil)
			for name, behind := range map[string][]byte{
				"a login":    app,
				"SSLRequest": pgwire.AppendSSLRequest(nil),
				"both":       append(pgwire.AppendSSLRequest(nil), app...),
				"a byte":     {0},
			} {
				t.Run(name, func(t *testing.T) { refuses(t, r.peer(t), behind) })
			}
		})
	}
	t.Run("PostgreSQL", func(t *testing.T) { // where it speaks GSSAPI it says 'G', and then no word
		r := newRig(t, nil)
		c, err := net.Dial("tcp", r.direct().Conn().RemoteAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if b := asked(t, c, gssRequest); b == 'N' {
			c, err = net.Dial("tcp", c.RemoteAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			refuses(t, c, app)
		}
	})
}
