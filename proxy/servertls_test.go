package proxy_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// leadDirect begins a new epoch at the server without the line, which cannot read what is
// encrypted.
func (r *rig) leadDirect() {
	r.t.Helper()
	r.epoch++
	r.lease = proxytest.NewLease(time.Hour)
	next := r.server.NextXID()
	r.bounds = append(r.bounds, proxy.Boundary{Epoch: r.epoch, Lo: next, Hi: next})
	r.topo.Set(&proxy.Primary{
		Name: "pg", Addr: fmt.Sprintf("127.0.0.1:%d", r.server.Port), Epoch: r.epoch,
		Incarnation: r.server.Incarnation(), Lease: r.lease,
		Boundaries: append([]proxy.Boundary(nil), r.bounds...),
	})
}

const isEncrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"

// Every mode of libpq towards a server with TLS, one without, and one whose certificate is of
// another authority. The look-up connections use the same, or no secret would be found.
func TestServerTLSModes(t *testing.T) {
	ca, foreign := proxytest.NewCA(t), proxytest.NewCA(t)
	cert, key := ca.Issue("server", "127.0.0.1")
	for _, c := range []struct {
		mode, ca                string
		with, without, stranger string // what clients get: t, f, or an SQLSTATE
	}{
		{proxy.SSLDisable, "", "f", "f", "f"},
		{proxy.SSLAllow, "", "f", "f", "f"},
		{proxy.SSLPrefer, "", "t", "f", "t"},
		{proxy.SSLRequire, "", "t", "28000", "t"},
		{proxy.SSLRequire, ca.File(), "t", "28000", "28000"},
		{proxy.SSLVerifyCA, ca.File(), "t", "28000", "28000"},
		{proxy.SSLVerifyFull, ca.File(), "t", "28000", "28000"},
	} {
		for _, kind := range []string{"with", "without", "stranger"} {
			want := map[string]string{"with": c.with, "without": c.without,
				"stranger": c.stranger}[kind]
			t.Run(fmt.Sprintf("%s/%t/%s", c.mode, c.ca != "", kind), func(t *testing.T) {
				r := newRig(t, func(cfg *proxy.Config) {
					cfg.ServerTLS.Mode, cfg.ServerTLS.CAFile = c.mode, c.ca
					if len(want) > 1 {
						cfg.StartupTimeout = 2 * time.Second // it waits for another server
					}
				})
				r.topo.Set(nil)
				r.proxy.Cut(r.epoch)
				switch kind {
				case "with":
					r.server.UseTLS(cert, key, ca.File())
				case "stranger":
					cert, key := foreign.Issue("server", "127.0.0.1")
					r.server.UseTLS(cert, key, ca.File())
				}
				r.leadDirect()
				conn, err := dial(context.Background(), r.dsn(""))
				defer closeConn(conn)
				if len(want) > 1 {
					// No secret can be looked up over such a connection either.
					if got := code(err); err == nil || got != want && got != "57P03" {
						t.Errorf("got %v, want %s", err, want)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := exec(t, conn, isEncrypted); got != want {
					t.Errorf("encrypted: %s, want %s", got, want)
				}
			})
		}
	}
}

// A session keeps what it is over a change of primary when both its sides are encrypted, with
// channel binding on both, large results and a COMMIT whose outcome is looked up.
func TestTLSOnBothSides(t *testing.T) {
	ca := proxytest.NewCA(t)
	cert, key := ca.Issue("pg", "127.0.0.1")
	r, front := newTLSRig(t, proxy.TLSRequire, func(cfg *proxy.Config) {
		cfg.ServerTLS.Mode, cfg.ServerTLS.CAFile = proxy.SSLVerifyFull, ca.File()
	})
	r.topo.Set(nil)
	r.proxy.Cut(r.epoch)
	r.server.UseTLS(cert, key, ca.File())
	r.server.SetHBA("local all all trust\nhostnossl all postgres all scram-sha-256\n" +
		"hostssl all all all scram-sha-256\n")
	r.leadDirect()
	c := r.connectTo(r.secure(front, "channel_binding=require"))
	exec(t, c, "SET statement_timeout = '1h'")
	for range 3 {
		if v := exec(t, c, isEncrypted); v != "t" {
			t.Fatal(v)
		}
		if v := exec(t, c, "SELECT repeat('y', 3000000)"); len(v) != 3000000 {
			t.Errorf("got %d bytes", len(v))
		}
		if v := exec(t, c, "SELECT length('"+strings.Repeat("x", 2<<20)+"')"); v != "2097152" {
			t.Error(v)
		}
		r.proxy.Cut(r.epoch)
		r.server.Kill()
		r.server.Start()
		r.leadDirect()
	}
	if v := exec(t, c, "SHOW statement_timeout"); v != "1h" {
		t.Error(v)
	}
}

// A cancel request, over TLS of either kind, to a server that takes none in clear.
func TestCancelOverTLS(t *testing.T) {
	ca := proxytest.NewCA(t)
	cert, key := ca.Issue("pg", "127.0.0.1")
	r, front := newTLSRig(t, proxy.TLSRequire, func(cfg *proxy.Config) {
		cfg.ServerTLS.Mode = proxy.SSLRequire
	})
	r.topo.Set(nil)
	r.proxy.Cut(r.epoch)
	r.server.UseTLS(cert, key, ca.File())
	r.leadDirect()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	for i, negotiation := range []string{"postgres", "direct"} {
		c := r.connectTo(r.secure(front, "sslnegotiation="+negotiation))
		done := make(chan error, 1)
		go func() {
			_, err := tryExec(c, "SELECT pg_sleep(30)")
			done <- err
		}()
		for r.server.Exec("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' " +
			"AND state = 'active' AND usename = 'app'")[0][0] != "1" {
			time.Sleep(5 * time.Millisecond) // until it runs
		}
		if err := c.CancelRequest(ctx); err != nil {
			t.Fatal(err)
		}
		if err := <-done; code(err) != "57014" {
			t.Errorf("%s: got %v", negotiation, err)
		}
		// That of the session, and that of the request: the driver encrypts both.
		if n := r.count("tls_handshakes_total", "ok"); n != float64(2*i+2) {
			t.Errorf("%s: %v handshakes", negotiation, n)
		}
	}
}
