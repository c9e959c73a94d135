package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// newTLSRig is a rig that speaks TLS with clients.
func newTLSRig(t *testing.T, mode string, change func(*proxy.Config)) (*rig, *proxytest.CA) {
	t.Helper()
	ca := proxytest.NewCA(t)
	cert, key := ca.Issue("server", "localhost")
	return newRig(t, func(c *proxy.Config) {
		c.TLS.Mode, c.TLS.CertFile, c.TLS.KeyFile = mode, cert, key
		c.TLS.ClientCAFile = ca.File()
		if change != nil {
			change(c)
		}
	}), ca
}

// secure is dsn with another sslmode.
func (r *rig) secure(ca *proxytest.CA, options string) string {
	return strings.Replace(r.dsn(options), "sslmode=disable",
		"sslmode=verify-full sslrootcert="+ca.File(), 1)
}

func (r *rig) connectTo(dsn string) *pgconn.PgConn {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := dial(ctx, dsn)
	if err != nil {
		r.t.Fatalf("connect: %v", err)
	}
	r.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Close(ctx)
	})
	return c
}

// A session with TLS is one like others: it relays small and large things both ways and outlives
// its primary.
func TestTLSSession(t *testing.T) {
	for _, negotiation := range []string{"postgres", "direct"} {
		t.Run(negotiation, func(t *testing.T) {
			r, ca := newTLSRig(t, proxy.TLSRequire, nil)
			c := r.connectTo(r.secure(ca, "sslnegotiation="+negotiation))
			exec(t, c, "SET application_name = 'kept'")
			large := strings.Repeat("x", 3<<20)
			if v := exec(t, c, "SELECT length('"+large+"')"); v != fmt.Sprint(len(large)) {
				t.Errorf("sent %s", v)
			}
			if v := exec(t, c, "SELECT repeat('y', 5000000)"); len(v) != 5000000 {
				t.Errorf("got %d bytes", len(v))
			}
			if v := exec(t, c, "SELECT count(*), max(length(v)) FROM (SELECT "+
				"repeat('z', i % 3000) v FROM generate_series(1, 20000) i) s"); v != "20000" {
				t.Error(v)
			}
			r.change()
			if v := exec(t, c, "SHOW application_name"); v != "kept" {
				t.Errorf("after the change: %s", v)
			}
			if n := r.count("tls_handshakes_total", "ok"); n < 1 {
				t.Errorf("%v handshakes", n)
			}
		})
	}
}

// Modes are what they say, for clients of either kind.
func TestTLSModes(t *testing.T) {
	for _, c := range []struct{ mode, plain, secure string }{
		{proxy.TLSAllow, "", ""},
		{proxy.TLSRequire, "28000", ""},
		{proxy.TLSOff, "", "refused"},
	} {
		t.Run(c.mode, func(t *testing.T) {
			r, ca := newTLSRig(t, c.mode, nil)
			conn, err := dial(context.Background(), r.dsn(""))
			if (err == nil) != (c.plain == "") || err != nil && code(err) != c.plain {
				t.Errorf("without TLS: %v", err)
			}
			closeConn(conn)
			conn, err = dial(context.Background(), r.secure(ca, ""))
			closeConn(conn)
			if c.secure == "" && err != nil || c.secure != "" && (err == nil ||
				!strings.Contains(err.Error(), c.secure)) {
				t.Errorf("with TLS: %v", err)
			}
		})
	}
}

// What comes in clear behind a request for TLS is refused, not taken for protected
// (CVE-2021-23214).
func TestTLSTakesNothingInClear(t *testing.T) {
	r, _ := newTLSRig(t, proxy.TLSAllow, nil)
	conn, err := net.Dial("tcp", r.proxy.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	out := pgwire.AppendSSLRequest(nil)
	out = pgwire.AppendStartup(out, pgwire.Protocol3, []pgwire.Param{{Name: "user", Value: "app"}})
	if _, err := conn.Write(out); err != nil {
		t.Fatal(err)
	}
	typ, body, err := pgwire.NewReader(conn, 1<<16).ReadMessage()
	if err != nil || typ != pgwire.SrvError {
		t.Fatalf("got %q, %v", typ, err)
	}
	if e, _ := pgwire.ParseError(body); e.Code != pgwire.CodeProtocolViolation ||
		!strings.Contains(e.Message, "unencrypted data") {
		t.Errorf("got %v", e)
	}
}

// Direct TLS needs the protocol's name, and clients that name another are refused in both kinds.
func TestTLSNeedsItsProtocol(t *testing.T) {
	r, _ := newTLSRig(t, proxy.TLSAllow, nil)
	dial := func(request bool, protos ...string) (*tls.Conn, error) {
		conn, err := net.Dial("tcp", r.proxy.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if request {
			_, _ = conn.Write(pgwire.AppendSSLRequest(nil))
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: protos})
		return c, c.Handshake()
	}
	c, err := dial(false)
	if err != nil {
		t.Fatal(err)
	}
	typ, body, err := pgwire.NewReader(c, 1<<16).ReadMessage()
	if err != nil || typ != pgwire.SrvError || !strings.Contains(string(body), "ALPN") {
		t.Errorf("without a name: %q %q %v", typ, body, err)
	}
	for _, request := range []bool{false, true} {
		if _, err := dial(request, "http/1.1"); err == nil {
			t.Error("another protocol was taken")
		}
		if _, err := dial(request, "http/1.1", "postgresql"); err != nil {
			t.Error(err)
		}
	}
	if _, err := dial(true); err != nil {
		t.Error(err)
	}
}

// A certificate that is replaced is used for new connections; the others notice nothing. A bad one
// changes nothing.
func TestTLSCertificateIsReplaced(t *testing.T) {
	r, ca := newTLSRig(t, proxy.TLSRequire, nil)
	old := r.connectTo(r.secure(ca, ""))
	serial := func() string {
		c := r.connectTo(r.secure(ca, ""))
		return c.Conn().(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	_, key := ca.Issue("server", "localhost")
	if err := r.proxy.Reload(); err != nil {
		t.Fatal(err)
	}
	second := serial()
	if second == first {
		t.Error("the new certificate is not used")
	}
	if got := r.proxy.Certificate().SerialNumber.String(); got != second {
		t.Errorf("certificate %s is told of, %s is used", got, second)
	}
	if err := os.WriteFile(key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.proxy.Reload(); err == nil {
		t.Error("a bad key was taken")
	}
	if got := serial(); got != second {
		t.Errorf("certificate %s after a bad one", got)
	}
	if v := exec(t, old, "SELECT 1"); v != "1" {
		t.Error(v)
	}
	if r.count("tls_reloads_total", "ok") != 1 || r.count("tls_reloads_total", "failed") != 1 {
		t.Error("reloads are not counted")
	}
}

func closeConn(c *pgconn.PgConn) {
	if c != nil {
		_ = c.Close(context.Background())
	}
}

// While there is no primary, an idle session with TLS waits for nothing, a statement of it is held
// and answered by the next one, and a client that goes away is noticed.
func TestTLSHold(t *testing.T) {
	r, ca := newTLSRig(t, proxy.TLSRequire, nil)
	c, gone := r.connectTo(r.secure(ca, "")), r.connectTo(r.secure(ca, ""))
	exec(t, c, "SELECT 1")
	r.topo.Set(nil)
	r.proxy.Cut(r.epoch)
	await := func(what string, sessions, held int) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			n, h := r.proxy.Stats()
			if n == sessions && h == held {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d sessions, %d held", what, n, h)
			}
		}
	}
	await("idle", 2, 0)
	done := make(chan string, 1)
	go func() {
		v, err := tryExec(c, "SELECT 'held'")
		done <- fmt.Sprint(v, err)
	}()
	await("a statement waits", 2, 1)
	_ = gone.Conn().Close()
	await("a client is gone", 1, 1)
	r.server.Kill()
	r.server.Start()
	next := r.server.NextXID()
	r.lead(next, next)
	if got := <-done; got != "held<nil>" {
		t.Error(got)
	}
}
