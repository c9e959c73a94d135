package proxy_test

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// restartWithTLS gives the server a certificate and rules, and begins a new epoch there.
func (r *rig) restartWithTLS(cert, key, clientCA, rules string) {
	r.t.Helper()
	r.topo.Set(nil)
	r.proxy.Cut(r.epoch)
	r.server.UseTLS(cert, key, clientCA)
	if rules != "" {
		r.server.SetHBA(rules)
	}
	r.leadDirect()
}

// The proxy's own certificate lets it in where PostgreSQL asks for one: that of the role itself by
// a cert rule, and no other one; any of the authority with clientcert.
func TestServerAsksForACertificate(t *testing.T) {
	ca, foreign := proxytest.NewCA(t), proxytest.NewCA(t)
	cert, key := ca.Issue("pg", "127.0.0.1")
	for _, c := range []struct {
		name string
		from *proxytest.CA // nil: none
		rule string
		want string // client_dn, or the SQLSTATE of the refusal
	}{
		{"app", ca, "cert", "/CN=app"},
		{"other", ca, "cert", "28000"},
		{"app", nil, "cert", "28000"},
		{"any", ca, "trust clientcert=verify-ca", "/CN=any"},
		{"any", nil, "trust clientcert=verify-ca", "28000"},
		{"app", foreign, "cert", "57P03"}, // the handshake fails, which another attempt may mend
	} {
		t.Run(c.rule+"/"+c.name+"/"+c.want, func(t *testing.T) {
			r := newRig(t, func(cfg *proxy.Config) {
				cfg.HBA = []string{"host all all all trust"}
				cfg.ServerTLS.Mode, cfg.ServerTLS.CAFile = proxy.SSLVerifyFull, ca.File()
				if c.from != nil {
					cfg.ServerTLS.CertFile, cfg.ServerTLS.KeyFile = c.from.Issue("client", c.name)
				}
				cfg.HoldTimeout = 2 * time.Second
			})
			r.restartWithTLS(cert, key, ca.File(), "local all all trust\nhost all postgres all "+
				"scram-sha-256\nhostssl all holdfast_lookup all scram-sha-256\nhostssl all all all "+
				c.rule+"\n")
			conn, err := dial(context.Background(), r.dsn(""))
			defer closeConn(conn)
			if !strings.HasPrefix(c.want, "/") {
				if code(err) != c.want {
					t.Errorf("got %v, want %s", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				got := exec(t, conn, "SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
				if got != c.want {
					t.Errorf("the server sees %q, want %q", got, c.want)
				}
				r.proxy.Cut(r.epoch)
				r.server.Kill()
				r.server.Start()
				r.leadDirect()
			}
		})
	}
}

// A certificate of the right authority and of another name is one for verify-ca, and none for
// verify-full.
func TestServerOfAnotherName(t *testing.T) {
	ca := proxytest.NewCA(t)
	for _, c := range []struct{ mode, name, want string }{
		{proxy.SSLVerifyCA, "elsewhere", "t"},
		{proxy.SSLVerifyFull, "elsewhere", "28000"},
		{proxy.SSLVerifyFull, "localhost", "t"},
	} {
		t.Run(c.mode+"/"+c.name, func(t *testing.T) {
			r := newRig(t, func(cfg *proxy.Config) {
				cfg.HBA = []string{"host all all all trust"}
				cfg.ServerUsersFile = writeSecret(t, "app:"+proxytest.Password+"\n")
				cfg.ServerTLS.Mode, cfg.ServerTLS.CAFile = c.mode, ca.File()
			})
			cert, key := ca.Issue("pg-"+c.name, c.name)
			r.restartWithTLS(cert, key, ca.File(), "")
			pr, _ := r.topo.Current()
			next := *pr
			_, port, _ := net.SplitHostPort(pr.Addr)
			next.Addr = net.JoinHostPort("localhost", port)
			r.topo.Set(&next)
			conn, err := dial(context.Background(), r.dsn(""))
			defer closeConn(conn)
			if len(c.want) > 1 {
				if code(err) != c.want || !strings.Contains(err.Error(), "secure connection") {
					t.Errorf("got %v, want %s", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := exec(t, conn, isEncrypted); got != c.want {
				t.Errorf("encrypted: %s", got)
			}
		})
	}
}

// proxy.tls.min_version is the oldest version that a client gets.
func TestTLSMinVersion(t *testing.T) {
	for _, c := range []struct {
		min  string
		most uint16
		ok   bool
	}{
		{"1.2", tls.VersionTLS12, true}, {"1.2", tls.VersionTLS13, true},
		{"1.3", tls.VersionTLS12, false}, {"1.3", tls.VersionTLS13, true},
		{"1.2", tls.VersionTLS11, false},
	} {
		t.Run(c.min+"/"+tls.VersionName(c.most), func(t *testing.T) {
			r, ca := newTLSRig(t, proxy.TLSRequire, func(cfg *proxy.Config) {
				cfg.TLS.MinVersion = c.min
			})
			cfg, err := pgconn.ParseConfig(r.secure(ca, ""))
			if err != nil {
				t.Fatal(err)
			}
			cfg.TLSConfig.MinVersion, cfg.TLSConfig.MaxVersion = tls.VersionTLS10, c.most
			conn, err := pgconn.ConnectConfig(context.Background(), cfg)
			defer closeConn(conn)
			if (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "version") {
				t.Fatalf("got %v", err)
			}
			if !c.ok {
				r.eventually(func() bool { return r.count("tls_handshakes_total", "failed") > 0 },
					"the handshake counts as failed")
				return
			}
			if v := conn.Conn().(*tls.Conn).ConnectionState().Version; v != c.most {
				t.Errorf("it speaks %s", tls.VersionName(v))
			}
			if v := exec(t, conn, "SELECT 1"); v != "1" {
				t.Error(v)
			}
		})
	}
}
