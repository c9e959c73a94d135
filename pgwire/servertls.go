package pgwire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Modes of TLS to PostgreSQL, which mean what libpq's sslmode does (libpq-ssl).
const (
	// SSLDisable never asks for TLS.
	SSLDisable = "disable"
	// SSLAllow asks for it where the server lets nobody in without.
	SSLAllow = "allow"
	// SSLPrefer takes it where the server has it.
	SSLPrefer = "prefer"
	// SSLRequire takes nothing else, and looks at the certificate only if there are authorities.
	SSLRequire = "require"
	// SSLVerifyCA wants a certificate of the authorities.
	SSLVerifyCA = "verify-ca"
	// SSLVerifyFull wants it to have the server's name too.
	SSLVerifyFull = "verify-full"
)

var sslModes = []string{
	SSLDisable, SSLAllow, SSLPrefer, SSLRequire, SSLVerifyCA, SSLVerifyFull,
}

// ALPN names PostgreSQL's protocol in TLS (RFC 7301).
const ALPN = "postgresql"

// ServerTLS is TLS to PostgreSQL.
type ServerTLS struct {
	// Mode is one of libpq's sslmode; empty is SSLDisable.
	Mode string
	// CAFile holds the authorities of the servers' certificates; SSLRequire checks against it too
	// if it is there, as libpq does.
	CAFile string
	// CertFile and KeyFile are the certificate to show to servers; empty is none.
	CertFile, KeyFile string
}

// IsOff tells that TLS is never asked for.
func (s ServerTLS) IsOff() bool { return s.Mode == "" || s.Mode == SSLDisable }

// IsDemanded tells that a connection without TLS is never made.
func (s ServerTLS) IsDemanded() bool {
	return s.Mode == SSLRequire || s.Mode == SSLVerifyCA || s.Mode == SSLVerifyFull
}

// Validate says what is wrong, files left out; key is the section's, for the errors.
func (s ServerTLS) Validate(key string) (errs []error) {
	switch {
	case s.IsOff():
		return nil
	case !slices.Contains(sslModes, s.Mode):
		errs = append(errs, fmt.Errorf("%s.mode: %q is not one of %s", key, s.Mode,
			strings.Join(sslModes, ", ")))
	case s.CAFile == "" && (s.Mode == SSLVerifyCA || s.Mode == SSLVerifyFull):
		errs = append(errs, fmt.Errorf("%s.ca_file: needed with mode %s", key, s.Mode))
	}
	if (s.CertFile == "") != (s.KeyFile == "") {
		errs = append(errs, fmt.Errorf("%s.cert_file: cert_file and key_file belong together", key))
	}
	return errs
}

// Config reads the files; nil is TLS that is off. ServerName is the caller's to set, since
// SSLVerifyFull looks for it in the certificate.
func (s ServerTLS) Config() (*tls.Config, error) {
	if s.IsOff() {
		return nil, nil
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{ALPN},
		DynamicRecordSizingDisabled: true,
	}
	if s.CertFile != "" {
		pair, err := LoadPair(s.CertFile, s.KeyFile)
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	if s.CAFile != "" {
		pool, err := LoadAuthorities(s.CAFile)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = pool
	}
	if s.Mode == SSLVerifyFull {
		return cfg, nil
	}
	// The name is not checked, and without authorities nothing is: crypto/tls has no such mode.
	cfg.InsecureSkipVerify = true
	if s.Mode == SSLVerifyCA || s.Mode == SSLRequire && cfg.RootCAs != nil {
		cfg.VerifyConnection = verifyChain(cfg.RootCAs)
	}
	return cfg, nil
}

// verifyChain checks a server's certificate, but for its name.
func verifyChain(roots *x509.CertPool) func(tls.ConnectionState) error {
	return func(st tls.ConnectionState) error {
		opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
		for _, c := range st.PeerCertificates[1:] {
			opts.Intermediates.AddCert(c)
		}
		_, err := st.PeerCertificates[0].Verify(opts)
		return err
	}
}

// LoadPair reads a certificate and its key, which nobody else may be able to read (PostgreSQL's
// own rule: 0600, or 0640 if it belongs to root). Errors begin with the key of the configuration.
func LoadPair(certFile, keyFile string) (tls.Certificate, error) {
	info, err := os.Stat(keyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("key_file: %w", err)
	}
	most := os.FileMode(0o600)
	if sys, ok := info.Sys().(*syscall.Stat_t); ok && sys.Uid == 0 {
		most = 0o640
	}
	if perm := info.Mode().Perm(); !info.Mode().IsRegular() || perm&^most != 0 {
		return tls.Certificate{}, fmt.Errorf("key_file: %s has mode %v, others could read it: "+
			"chmod 0600", keyFile, info.Mode())
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return pair, fmt.Errorf("cert_file, key_file: %w", err)
	}
	if pair.Leaf == nil {
		return pair, errors.New("cert_file: no certificate")
	}
	return pair, nil
}

// LoadAuthorities reads certificates that others are checked against.
func LoadAuthorities(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("ca file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca file: %s holds no certificate in PEM", path)
	}
	return pool, nil
}

// ErrNoTLS is a server that does not speak TLS; the connection can be used without.
var ErrNoTLS = errors.New("the server does not support TLS")

// AskTLS sends an SSLRequest on a fresh connection; nil is a server that waits for the handshake.
// It reads one byte and no more: what came in clear behind it would be taken for protected
// (CVE-2021-23222). The caller has set the deadline.
func AskTLS(c net.Conn) error {
	if _, err := c.Write(AppendSSLRequest(nil)); err != nil {
		return fmt.Errorf("ask for tls: %w", err)
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return fmt.Errorf("ask for tls: %w", err)
	}
	switch b[0] {
	case 'S':
		return nil
	case 'N':
		return ErrNoTLS
	}
	return fmt.Errorf("ask for tls: the server answers %q", b[0])
}

// DialTLS connects by dial and encrypts; nil encrypts nothing. With prefer it is a connection
// without TLS where there is none to be had, as of libpq. It returns a tls.Conn where there is.
func DialTLS(ctx context.Context, network, addr string, cfg *tls.Config, prefer bool,
	dial func(ctx context.Context, network, addr string) (net.Conn, error),
) (net.Conn, error) {
	c, err := dial(ctx, network, addr)
	if err != nil || cfg == nil {
		return c, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = AskTLS(c)
	if err == nil {
		t := tls.Client(c, cfg)
		if err = t.HandshakeContext(ctx); err == nil {
			return t, nil
		}
	}
	if prefer && errors.Is(err, ErrNoTLS) {
		return c, nil
	}
	_ = c.Close()
	if prefer && ctx.Err() == nil { // as libpq: a second attempt without
		return dial(ctx, network, addr)
	}
	return nil, fmt.Errorf("make a secure connection: %w", err)
}
