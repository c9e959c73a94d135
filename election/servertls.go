package election

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
)

// Connections from one member's server to another's are made by libpq (walreceiver, pg_basebackup,
// pg_rewind) and by the agent itself. Both follow AgentConfig.ServerTLS, and read its files at each
// connection, so that certificates are replaced without anybody's help.

// sslInfo is that part of a conninfo string. Without TLS GSSAPI encryption, which libpq would
// prefer to it, is not wanted in its place either.
func (a *PostgresAgent) sslInfo() string {
	t := a.cfg.ServerTLS
	mode := t.Mode
	if t.IsOff() {
		mode = pgwire.SSLDisable
	}
	info := "sslmode=" + mode
	if t.IsDemanded() {
		info += " gssencmode=disable"
	}
	for _, kv := range [][2]string{
		{"sslrootcert", t.CAFile}, {"sslcert", t.CertFile}, {"sslkey", t.KeyFile},
	} {
		if kv[1] != "" {
			info += " " + kv[0] + "=" + pgQuoteConnInfo(kv[1])
		}
	}
	return info
}

// connectMember connects to a member's server and logs in.
func (a *PostgresAgent) connectMember(ctx context.Context, cfg *pgconn.Config,
) (*pgconn.PgConn, error) {
	conf, err := a.cfg.ServerTLS.Config()
	if err != nil {
		return nil, fmt.Errorf("postgres.server_tls: %w", err)
	}
	if conf == nil {
		return pgconn.ConnectConfig(ctx, cfg)
	}
	conf.ServerName = cfg.Host
	secure := cfg.Copy()
	// A tls.Conn as what was dialed is what pgconn binds SCRAM to.
	secure.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		return pgwire.DialTLS(ctx, network, addr, conf,
			a.cfg.ServerTLS.Mode == pgwire.SSLPrefer, d.DialContext)
	}
	if a.cfg.ServerTLS.Mode != pgwire.SSLAllow {
		return pgconn.ConnectConfig(ctx, secure)
	}
	c, err := pgconn.ConnectConfig(ctx, cfg)
	if !pgIsAuthError(err) {
		return c, err
	}
	if c, serr := pgconn.ConnectConfig(ctx, secure); serr == nil {
		return c, nil
	}
	return nil, err // of the first attempt: it says more than that there is no TLS
}

// hbaType is that of the lines by which members' servers reach one another.
func (a *PostgresAgent) hbaType() string {
	if a.cfg.ServerTLS.IsDemanded() {
		return "hostssl"
	}
	return "host"
}

// hbaNoClear refuses those roles without TLS where it is demanded: the lines for proxies, which log
// in from the same hosts as anybody, would let them in.
func (a *PostgresAgent) hbaNoClear() string {
	if !a.cfg.ServerTLS.IsDemanded() {
		return ""
	}
	return fmt.Sprintf("hostnossl replication,all %s,%s all reject\n", pgReplicationRole, pgRewindRole)
}

// validateServerTLS is the part of Validate that is about it. libpq takes a path as it is, from the
// server's working directory.
func (c AgentConfig) validateServerTLS() []error {
	errs := c.ServerTLS.Validate("server_tls")
	for key, path := range map[string]string{"ca_file": c.ServerTLS.CAFile,
		"cert_file": c.ServerTLS.CertFile, "key_file": c.ServerTLS.KeyFile} {
		if path != "" && (!filepath.IsAbs(path) || strings.ContainsAny(path, "\n\r\x00")) {
			errs = append(errs, fmt.Errorf("server_tls.%s: %q is not an absolute path", key, path))
		}
	}
	return errs
}

// checkServerTLS reads the files, as the agent and as the account that libpq reads them as.
func (c AgentConfig) checkServerTLS(account *pgAccount) error {
	t := c.ServerTLS
	if _, err := t.Config(); err != nil || t.IsOff() {
		return err
	}
	for _, f := range [][2]string{
		{"ca_file", t.CAFile}, {"cert_file", t.CertFile}, {"key_file", t.KeyFile},
	} {
		if f[1] == "" {
			continue
		}
		if err := account.reads(f[1], f[0] == "key_file"); err != nil {
			return fmt.Errorf("%s: %w", f[0], err)
		}
	}
	return nil
}

// reads checks that the account may read a file. Of a key libpq wants that it belongs to the
// account itself, or to root.
func (c *pgAccount) reads(path string, isKey bool) error {
	if c.cred == nil {
		return nil // it is our own, and we have read it
	}
	if err := c.reaches(path); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	need := os.FileMode(0o004)
	switch {
	case int(st.Uid) == c.uid:
		need = 0o400
	case isKey && st.Uid != 0:
		return fmt.Errorf("%s belongs to user id %d: libpq takes a key of account %s or of root only",
			path, st.Uid, c.name)
	case c.inGroup(st.Gid):
		need = 0o040
	}
	if info.Mode().Perm()&need == 0 {
		return fmt.Errorf("account %s, which runs PostgreSQL, cannot read %s (%v): chown or chmod it, "+
			"or make a copy of its own", c.name, path, info.Mode())
	}
	return nil
}
