package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// Modes of TLS to clients.
const (
	// TLSOff answers a request for TLS with no.
	TLSOff = "off"
	// TLSAllow speaks TLS with clients that ask for it.
	TLSAllow = "allow"
	// TLSRequire refuses clients without it, but for those on a Unix socket.
	TLSRequire = "require"
)

// Modes of TLS to PostgreSQL, which mean what libpq's sslmode does.
const (
	SSLDisable    = "disable"
	SSLPrefer     = "prefer"
	SSLRequire    = "require"
	SSLVerifyCA   = "verify-ca"
	SSLVerifyFull = "verify-full"
)

// ClientTLS is TLS to clients.
type ClientTLS struct {
	// Mode is TLSOff, TLSAllow or TLSRequire.
	Mode string
	// CertFile and KeyFile hold the certificate with its chain, and its key. They are read again
	// when they change.
	CertFile, KeyFile string
	// ClientCAFile holds the authorities of clients' certificates; empty asks for none.
	ClientCAFile string
	// MinVersion is "1.2" or "1.3".
	MinVersion string
}

// ServerTLS is TLS to PostgreSQL.
type ServerTLS struct {
	// Mode is one of libpq's sslmode, but for allow.
	Mode string
	// CAFile holds the authorities of the servers' certificates; SSLRequire checks against it too
	// if it is there, as libpq does.
	CAFile string
	// CertFile and KeyFile are the certificate to show to servers; empty is none.
	CertFile, KeyFile string
}

// tlsTick is the pause between two looks at the files.
const tlsTick = 10 * time.Second

// alpnProtocol names PostgreSQL's protocol in TLS (RFC 7301).
const alpnProtocol = "postgresql"

// tlsSettings are what handshakes use, made from one state of the files. Immutable.
type tlsSettings struct {
	client *tls.Config // nil: off
	// binding is the certificate's hash for tls-server-end-point; nil if it has none.
	binding []byte
	server  *tls.Config       // nil: disabled
	users   map[string]string // of Config.ServerUsersFile
	secrets map[string]string // of Config.UsersFile
}

// tlsStore reads the files of both sides, and reads them again when they change. What cannot be
// read changes nothing: the old settings stay. Safe for concurrent use.
type tlsStore struct {
	cfg     *Config
	log     *zap.Logger
	metrics *metrics
	now     atomic.Pointer[tlsSettings]

	mu     sync.Mutex
	stamps map[string]fileStamp
}

// fileStamp changes with a file, also where a symbolic link to another is put in its place.
type fileStamp struct {
	at   time.Time
	size int64
	ino  uint64
}

func newTLSStore(p *Proxy) (*tlsStore, error) {
	t := &tlsStore{cfg: &p.cfg, log: p.log, metrics: p.metrics}
	t.stamps = t.look()
	now, err := loadTLS(t.cfg)
	if err != nil {
		return nil, err
	}
	t.now.Store(now)
	return t, nil
}

func (t *tlsStore) get() *tlsSettings { return t.now.Load() }

// run looks at the files until done is closed.
func (t *tlsStore) run(done <-chan struct{}) {
	tick := time.NewTicker(tlsTick)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			_ = t.reload(false)
		}
	}
}

// reload reads the files again if one has changed, or anyway. Connections keep what they began
// with.
func (t *tlsStore) reload(anyway bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	seen := t.look()
	if !anyway && sameStamps(seen, t.stamps) {
		return nil
	}
	next, err := loadTLS(t.cfg)
	if err != nil {
		// Files that are being replaced are read again at the next look: their stamps are not kept.
		t.metrics.tlsReloads.WithLabelValues("failed").Inc()
		t.log.Warn("files of tls and roles cannot be used, the old ones stay in use", zap.Error(err))
		return err
	}
	t.stamps = seen
	t.now.Store(next)
	t.metrics.tlsReloads.WithLabelValues("ok").Inc()
	t.log.Info("files of tls and roles were read again")
	return nil
}

// look returns the stamps of the files; one that cannot be looked at has none.
func (t *tlsStore) look() map[string]fileStamp {
	c, s := &t.cfg.TLS, &t.cfg.ServerTLS
	out := make(map[string]fileStamp)
	for _, path := range []string{c.CertFile, c.KeyFile, c.ClientCAFile, s.CAFile, s.CertFile,
		s.KeyFile, t.cfg.ServerUsersFile, t.cfg.UsersFile} {
		if info, err := os.Stat(path); path != "" && err == nil {
			st := fileStamp{at: info.ModTime(), size: info.Size()}
			if sys, ok := info.Sys().(*syscall.Stat_t); ok {
				st.ino = sys.Ino
			}
			out[path] = st
		}
	}
	return out
}

func sameStamps(a, b map[string]fileStamp) bool {
	if len(a) != len(b) {
		return false
	}
	for path, st := range a {
		if b[path] != st {
			return false
		}
	}
	return true
}

// loadTLS reads the files.
func loadTLS(cfg *Config) (*tlsSettings, error) {
	out := &tlsSettings{}
	if err := out.loadClient(&cfg.TLS); err != nil {
		return nil, fmt.Errorf("proxy.tls: %w", err)
	}
	if err := out.loadServer(&cfg.ServerTLS); err != nil {
		return nil, fmt.Errorf("proxy.server_tls: %w", err)
	}
	var err error
	if out.users, err = loadUsers(cfg.ServerUsersFile); err != nil {
		return nil, fmt.Errorf("proxy.server_users_file: %w", err)
	}
	if out.secrets, err = loadSecrets(cfg.UsersFile); err != nil {
		return nil, fmt.Errorf("proxy.users_file: %w", err)
	}
	return out, nil
}

// CheckFiles tells what is wrong with the files that the configuration names, by its keys.
func (c Config) CheckFiles() map[string]error {
	var s tlsSettings
	_, users := loadUsers(c.ServerUsersFile)
	_, secrets := loadSecrets(c.UsersFile)
	return map[string]error{
		"tls": s.loadClient(&c.TLS), "server_tls": s.loadServer(&c.ServerTLS),
		"server_users_file": users, "users_file": secrets,
	}
}

// loadClient makes the settings towards clients. No session tickets, as in PostgreSQL: drivers do
// not resume, and a resumed session would not show its certificate again.
func (s *tlsSettings) loadClient(c *ClientTLS) error {
	if c.Mode == TLSOff || c.Mode == "" {
		return nil
	}
	pair, err := loadPair(c.CertFile, c.KeyFile)
	if err != nil {
		return err
	}
	cfg := &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12,
		NextProtos: []string{alpnProtocol}, SessionTicketsDisabled: true,
		DynamicRecordSizingDisabled: true,
	}
	if c.MinVersion == "1.3" {
		cfg.MinVersion = tls.VersionTLS13
	}
	if c.ClientCAFile != "" {
		if cfg.ClientCAs, err = loadPool(c.ClientCAFile); err != nil {
			return err
		}
		cfg.ClientAuth = tls.VerifyClientCertIfGiven
	}
	s.client, s.binding = cfg, pgwire.EndPointBinding(pair.Leaf)
	return nil
}

// loadServer makes the settings towards PostgreSQL.
func (s *tlsSettings) loadServer(c *ServerTLS) error {
	if c.Mode == SSLDisable || c.Mode == "" {
		return nil
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{alpnProtocol},
		DynamicRecordSizingDisabled: true,
	}
	if c.CertFile != "" {
		pair, err := loadPair(c.CertFile, c.KeyFile)
		if err != nil {
			return err
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	if c.CAFile != "" {
		pool, err := loadPool(c.CAFile)
		if err != nil {
			return err
		}
		cfg.RootCAs = pool
	}
	s.server = cfg
	if c.Mode == SSLVerifyFull {
		return nil
	}
	// The name is not checked, and without authorities nothing is: crypto/tls has no such mode.
	cfg.InsecureSkipVerify = true
	if c.Mode == SSLVerifyCA || c.Mode == SSLRequire && cfg.RootCAs != nil {
		cfg.VerifyConnection = verifyChain(cfg.RootCAs)
	}
	return nil
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

// loadPair reads a certificate and its key, which nobody else may be able to read (PostgreSQL's
// own rule: 0600, or 0640 if it belongs to root).
func loadPair(certFile, keyFile string) (tls.Certificate, error) {
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

func loadPool(path string) (*x509.CertPool, error) {
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

// validate says what is wrong, files left out.
func (c *ClientTLS) validate() (errs []error) {
	switch c.Mode {
	case "", TLSOff:
		return nil
	case TLSAllow, TLSRequire:
	default:
		errs = append(errs, fmt.Errorf("proxy.tls.mode: %q is not one of off, allow, require",
			c.Mode))
	}
	if c.CertFile == "" || c.KeyFile == "" {
		errs = append(errs, fmt.Errorf("proxy.tls.cert_file: cert_file and key_file are needed "+
			"with mode %s", c.Mode))
	}
	if c.MinVersion != "1.2" && c.MinVersion != "1.3" {
		errs = append(errs, fmt.Errorf("proxy.tls.min_version: %q is not one of 1.2, 1.3",
			c.MinVersion))
	}
	return errs
}

func (c *ServerTLS) validate() (errs []error) {
	switch c.Mode {
	case "", SSLDisable:
		return nil
	case SSLPrefer, SSLRequire:
	case SSLVerifyCA, SSLVerifyFull:
		if c.CAFile == "" {
			errs = append(errs, fmt.Errorf("proxy.server_tls.ca_file: needed with mode %s", c.Mode))
		}
	default:
		errs = append(errs, fmt.Errorf("proxy.server_tls.mode: %q is not one of disable, prefer, "+
			"require, verify-ca, verify-full", c.Mode))
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, errors.New("proxy.server_tls.cert_file: cert_file and key_file belong "+
			"together"))
	}
	return errs
}
