package pgwire_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"holdfast/pgwire"
)

// TestEndPointBinding: the hash is that of the certificate's signature (RFC 5929, section 4.1).
func TestEndPointBinding(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sum256 := func(b []byte) []byte { s := sha256.Sum256(b); return s[:] }
	sum384 := func(b []byte) []byte { s := sha512.Sum384(b); return s[:] }
	sum512 := func(b []byte) []byte { s := sha512.Sum512(b); return s[:] }
	for _, c := range []struct {
		alg  x509.SignatureAlgorithm
		key  crypto.Signer
		want func([]byte) []byte
	}{
		{x509.SHA256WithRSA, rsaKey, sum256},
		{x509.SHA384WithRSA, rsaKey, sum384},
		{x509.SHA512WithRSAPSS, rsaKey, sum512},
		{x509.ECDSAWithSHA384, ecKey, sum384},
		{x509.PureEd25519, edKey, nil},
	} {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now(),
			SignatureAlgorithm: c.alg}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, c.key.Public(), c.key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		got := pgwire.EndPointBinding(cert)
		if c.want == nil && got != nil || c.want != nil && string(got) != string(c.want(der)) {
			t.Errorf("%v: %x", c.alg, got)
		}
		cert.SignatureAlgorithm = x509.SHA1WithRSA // which crypto/x509 makes no more
		if got := pgwire.EndPointBinding(cert); string(got) != string(sum256(der)) {
			t.Errorf("SHA-1: %x", got)
		}
	}
	if got := pgwire.EndPointBinding(nil); got != nil {
		t.Errorf("no certificate: %x", got)
	}
}
