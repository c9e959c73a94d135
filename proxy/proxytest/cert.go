package proxytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA makes certificates for tests.
type CA struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

// NewCA makes an authority; its files are gone when the test ends.
func NewCA(t testing.TB) *CA {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "hf-ca-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := &CA{t: t, dir: dir}
	c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := c.template("Holdfast test CA")
	tmpl.IsCA, tmpl.KeyUsage = true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, c.key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	if c.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	c.write("ca.crt", "CERTIFICATE", der)
	return c
}

// File is the authority's own certificate.
func (c *CA) File() string { return filepath.Join(c.dir, "ca.crt") }

func (c *CA) template(name string) *x509.Certificate {
	c.next++
	return &x509.Certificate{
		SerialNumber: big.NewInt(c.next), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true,
	}
}

// Issue makes a certificate for a name, good for 127.0.0.1 and these addresses, under that file
// name; one of before is replaced, as a new file is put in the place of an old one.
func (c *CA) Issue(file, name string, ips ...string) (certFile, keyFile string) {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	tmpl := c.template(name)
	tmpl.DNSNames, tmpl.IPAddresses = []string{name}, []net.IP{net.IPv4(127, 0, 0, 1)}
	for _, ip := range ips {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.ParseIP(ip))
	}
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth,
		x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, key.Public(), c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.write(file+".crt", "CERTIFICATE", der), c.write(file+".key", "PRIVATE KEY", raw)
}

func (c *CA) write(file, kind string, der []byte) string {
	c.t.Helper()
	path := filepath.Join(c.dir, file)
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// UseTLS restarts the server with that certificate, and an authority for those of clients.
func (s *Server) UseTLS(certFile, keyFile, caFile string) {
	s.t.Helper()
	for name, from := range map[string]string{"server.crt": certFile, "server.key": keyFile,
		"ca.crt": caFile} {
		text, err := os.ReadFile(from)
		if err != nil {
			s.t.Fatal(err)
		}
		to := filepath.Join(s.dir, name)
		if err := os.WriteFile(to, text, 0o600); err != nil {
			s.t.Fatal(err)
		}
		if s.cred != nil {
			if err := os.Chown(to, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	s.Configure("ssl=on", "ssl_ca_file='ca.crt'")
}

// Configure restarts the server with settings besides those it has.
func (s *Server) Configure(settings ...string) {
	s.t.Helper()
	path := filepath.Join(s.dir, "port.conf")
	text, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, line := range settings {
		text = append(text, line+"\n"...)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.Stop("fast")
	s.Start()
}
