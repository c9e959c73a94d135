package proxy

import (
	"crypto/tls"
	"crypto/x509"
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
	SSLDisable    = pgwire.SSLDisable
	SSLAllow      = pgwire.SSLAllow
	SSLPrefer     = pgwire.SSLPrefer
	SSLRequire    = pgwire.SSLRequire
	SSLVerifyCA   = pgwire.SSLVerifyCA
	SSLVerifyFull = pgwire.SSLVerifyFull
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
type ServerTLS = pgwire.ServerTLS

// tlsTick is the pause between two looks at the files.
const tlsTick = 10 * time.Second

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

// Certificate is what the proxy shows to clients now, which is another one once the file was read
// again; nil without TLS.
func (p *Proxy) Certificate() *x509.Certificate {
	if c := p.tls.get().client; c != nil {
		return c.Certificates[0].Leaf
	}
	return nil
}

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
	var err error
	if out.server, err = cfg.ServerTLS.Config(); err != nil {
		return nil, fmt.Errorf("proxy.server_tls: %w", err)
	}
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
	_, server := c.ServerTLS.Config()
	return map[string]error{
		"tls": s.loadClient(&c.TLS), "server_tls": server,
		"server_users_file": users, "users_file": secrets,
	}
}

// loadClient makes the settings towards clients. No session tickets, as in PostgreSQL: drivers do
// not resume, and a resumed session would not show its certificate again.
func (s *tlsSettings) loadClient(c *ClientTLS) error {
	if c.Mode == TLSOff || c.Mode == "" {
		return nil
	}
	pair, err := pgwire.LoadPair(c.CertFile, c.KeyFile)
	if err != nil {
		return err
	}
	cfg := &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12,
		NextProtos: []string{pgwire.ALPN}, SessionTicketsDisabled: true,
		DynamicRecordSizingDisabled: true,
	}
	if c.MinVersion == "1.3" {
		cfg.MinVersion = tls.VersionTLS13
	}
	if c.ClientCAFile != "" {
		if cfg.ClientCAs, err = pgwire.LoadAuthorities(c.ClientCAFile); err != nil {
			return err
		}
		cfg.ClientAuth = tls.VerifyClientCertIfGiven
	}
	s.client, s.binding = cfg, pgwire.EndPointBinding(pair.Leaf)
	return nil
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
