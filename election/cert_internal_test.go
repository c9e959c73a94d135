package election

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestCertificatesStandAStep (I69): new certificates are good on nodes whose clocks are minutes
// apart, and connections are made all the same.
func TestCertificatesStandAStep(t *testing.T) {
	ca, err := NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	of := func(name string) *identity {
		certPEM, keyPEM, err := ca.Issue(name, []string{"127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		id := &identity{pool: x509.NewCertPool()}
		id.pool.AddCert(ca.Cert)
		if id.pair, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
			t.Fatal(err)
		}
		return id
	}
	at := func(cfg *tls.Config, off time.Duration) *tls.Config {
		cfg.Time = func() time.Time { return time.Now().Add(off) }
		return cfg
	}
	shake := func(server, client time.Duration) error {
		l, err := tls.Listen("tcp", "127.0.0.1:0", at(of("node1").server(), server))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		done := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				done <- err
				return
			}
			defer c.Close()
			done <- c.(*tls.Conn).Handshake()
		}()
		c, err := tls.Dial("tcp", l.Addr().String(), at(of("node2").client("node1", protoRPC),
			client))
		if err == nil {
			defer c.Close()
		}
		return errors.Join(err, <-done)
	}
	for _, minutes := range [][2]time.Duration{{10, -10}, {-10, 10}, {-10, -10}, {50, -50}} {
		if err := shake(minutes[0]*time.Minute, minutes[1]*time.Minute); err != nil {
			t.Errorf("server %+d minutes off, client %+d: %v", minutes[0], minutes[1], err)
		}
	}
	if err := shake(-2*time.Hour, 0); err == nil {
		t.Error("a clock before the certificate's time was not noticed: this test sees nothing")
	}
}

// TestCertificatesOfTwoCAs: while a CA is replaced, nodes with certificates of either let each
// other in if their ca_file has both, as docs/monitoring.md says.
func TestCertificatesOfTwoCAs(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca, err1 := NewCA("main")
	next, err2 := NewCA("main")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	both := write("ca.crt", slices.Concat(ca.CertPEM, next.CertPEM))
	of := func(name string, ca *CA) *identity {
		cert, key, err := ca.Issue(name, nil)
		if err != nil {
			t.Fatal(err)
		}
		id, err := loadIdentity(name, both, write(name+".crt", cert), write(name+".key", key))
		if err != nil {
			t.Fatal(err)
		}
		if len(id.chains) != 1 || !id.chains[0][1].Equal(ca.Cert) {
			t.Errorf("%s: the chain is not to its CA", name)
		}
		return id
	}
	ids := []*identity{of("node1", ca), of("node2", next)}
	for i, server := range ids {
		client := ids[1-i]
		a, b := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- tls.Server(a, server.server()).Handshake() }()
		c := tls.Client(b, client.client(server.pair.Leaf.Subject.CommonName, protoRPC))
		if err := errors.Join(c.Handshake(), <-done); err != nil {
			t.Error(err)
		}
		_, _ = a.Close(), b.Close()
	}
}
