package election

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// How long certificates are good for.
const (
	caLife   = 10 * 365 * 24 * time.Hour
	nodeLife = 5 * 365 * 24 * time.Hour
)

// CA signs the certificates of a group's nodes.
type CA struct {
	Cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	CertPEM []byte
	KeyPEM  []byte
}

// NewCA makes a CA for a cluster.
func NewCA(cluster string) (*CA, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	tmpl, err := template("holdfast CA of "+cluster, caLife)
	if err != nil {
		return nil, err
	}
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.MaxPathLenZero = true, true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	return &CA{Cert: cert, key: key, CertPEM: pemOf("CERTIFICATE", der), KeyPEM: keyPEM}, nil
}

// LoadCA reads a CA that NewCA made.
func LoadCA(certPEM, keyPEM []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("load CA: not an ECDSA key")
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	return &CA{Cert: cert, key: key, CertPEM: certPEM, KeyPEM: keyPEM}, nil
}

// Issue makes a node's certificate: its common name and first DNS name are the node's name.
func (ca *CA) Issue(name string, hosts []string) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	tmpl, err := template(name, nodeLife)
	if err != nil {
		return nil, nil, err
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{
		x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth,
	}
	tmpl.DNSNames = []string{name}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else if h != name {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.Cert, &key.PublicKey, ca.key)
	if err != nil {
		return nil, nil, fmt.Errorf("issue certificate for %s: %w", name, err)
	}
	return pemOf("CERTIFICATE", der), keyPEM, nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	return key, pemOf("PRIVATE KEY", der), nil
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func template(name string, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life),
	}, nil
}

// identity is what this node shows to others and accepts from them.
type identity struct {
	pair tls.Certificate
	pool *x509.CertPool
	// chains are those from the node's certificate to an authority of the pool.
	chains [][]*x509.Certificate
}

// loadIdentity reads CA, certificate and key, and checks that they fit and are this node's.
func loadIdentity(name, caFile, certFile, keyFile string) (*identity, error) {
	remedy := "; make certificates with `holdfast init` (see group.tls)"
	st, err := os.Stat(keyFile)
	if err != nil {
		return nil, fmt.Errorf("read key of this node: %w%s", err, remedy)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("read key of this node: %s is not a file%s", keyFile, remedy)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("read key of this node: %s is open to others (mode %04o); "+
			"run chmod 600 on it", keyFile, st.Mode().Perm())
	}
	caPEM, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read CA of the group: %w%s", err, remedy)
	}
	id := &identity{pool: x509.NewCertPool()}
	if !id.pool.AppendCertsFromPEM(caPEM) {
		return nil, fmt.Errorf("read CA of the group: %s has no certificate%s", caFile, remedy)
	}
	id.pair, err = tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate of this node: %w%s", err, remedy)
	}
	leaf, err := x509.ParseCertificate(id.pair.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("read certificate of this node: %w%s", err, remedy)
	}
	id.chains, err = leaf.Verify(x509.VerifyOptions{
		Roots: id.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, fmt.Errorf("check certificate %s against %s: %w%s", certFile, caFile, err,
			remedy)
	}
	if leaf.Subject.CommonName != name {
		return nil, fmt.Errorf("check certificate %s: it is for node %q, and this is %q%s",
			certFile, leaf.Subject.CommonName, name, remedy)
	}
	return id, nil
}

// CertificateChains are those from this node's certificate to an authority of group.tls.ca_file, as
// they were read at the start: what the nodes accept each other by until the next one.
func (n *Node) CertificateChains() [][]*x509.Certificate { return n.id.chains }

// server is the TLS configuration of the listener.
func (id *identity) server() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{id.pair}, ClientCAs: id.pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
		NextProtos: []string{protoRaft, protoRPC, protoLoan},
	}
}

// client is the TLS configuration for a connection to that node.
func (id *identity) client(peer, proto string) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{id.pair}, RootCAs: id.pool, ServerName: peer,
		MinVersion: tls.VersionTLS13, NextProtos: []string{proto},
	}
}
