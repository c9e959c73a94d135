package main_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"os/user"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/config"
	"holdfast/pgwire"
	"holdfast/proxy/proxytest"
)

// tlsDSN is a connection string that trusts nobody but the authority.
func tlsDSN(n *holdfast.ClusterNode, ca *proxytest.CA, user, password, database string) string {
	return fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=verify-full&sslrootcert=%s", user,
		url.PathEscape(password), n.Proxy, database, ca.File())
}

// startTLSCluster starts three nodes that speak TLS with clients only, and with PostgreSQL only.
func startTLSCluster(t *testing.T) (*holdfast.Cluster, *proxytest.CA, []string) {
	t.Helper()
	c, err := holdfast.NewCluster(t.Context(), holdfast.ClusterConfig{
		Binary: buildBinary(t), Prefix: "holdfast-e2e",
	})
	if err != nil {
		t.Fatal(err)
	}
	endWithTest(t, c)
	ca := proxytest.NewCA(t)
	var hosts []string
	for _, n := range c.Nodes {
		hosts = append(hosts, n.Host)
	}
	front, frontKey := ca.Issue("front", "proxy", hosts...)
	back, backKey := ca.Issue("back", "postgres", hosts...)
	giveToPostgres(t, back, backKey)
	for _, n := range c.Nodes {
		err := n.Configure(func(cfg *config.Config) {
			cfg.Proxy.TLS.Mode = "require"
			cfg.Proxy.TLS.CertFile, cfg.Proxy.TLS.KeyFile = front, frontKey
			cfg.Proxy.ServerTLS.Mode, cfg.Proxy.ServerTLS.CAFile = "verify-full", ca.File()
			cfg.Postgres.Settings = append(cfg.Postgres.Settings, "ssl = on",
				"ssl_cert_file = '"+back+"'", "ssl_key_file = '"+backKey+"'")
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	waitHealthy(t, c)
	return c, ca, hosts
}

// giveToPostgres makes files those of the account that PostgreSQL runs as.
func giveToPostgres(t *testing.T, files ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	for _, f := range files {
		if err := os.Chown(f, uid, -1); err != nil {
			t.Fatal(err)
		}
	}
}

// TestE2ETLS: nodes that speak nothing in clear with anybody, from the first login to a session
// that outlives a switchover, cancel requests by way of another node, and a new certificate.
func TestE2ETLS(t *testing.T) {
	needCluster(t)
	c, ca, hosts := startTLSCluster(t)
	secret, err := c.Secret("superuser")
	if err != nil {
		t.Fatal(err)
	}
	boss := connect(t, tlsDSN(c.Nodes[0], ca, "postgres", secret, "postgres"))
	exec1(t, boss, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", e2eUser, e2ePassword))
	exec1(t, boss, fmt.Sprintf("CREATE DATABASE %s OWNER %s", e2eUser, e2eUser))
	conn := connect(t, tlsDSN(c.Nodes[1], ca, e2eUser, e2ePassword, e2eUser))
	exec1(t, conn, "SET application_name = 'kept'")
	const isEncrypted = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
	if got := queryText(t, conn, isEncrypted); got != "true" {
		t.Errorf("the connection to PostgreSQL: %s", got)
	}
	if _, err := pgx.Connect(t.Context(), e2eDSN(c.Nodes[1])+"?sslmode=disable"); err == nil {
		t.Error("a session without TLS was taken")
	}
	for _, n := range c.Nodes {
		t.Run("cancel by "+n.Name, func(t *testing.T) { testCancelBy(t, conn, n, ca) })
	}
	if err := c.Switchover(t.Context(), away(t, c).Name); err != nil {
		t.Fatal(err)
	}
	if got := queryText(t, conn, "SHOW application_name"); got != "kept" {
		t.Errorf("after the switchover: %s", got)
	}
	if got := queryText(t, conn, isEncrypted); got != "true" {
		t.Errorf("the connection to the new primary: %s", got)
	}

	serial := func() string {
		conn := connect(t, tlsDSN(c.Nodes[2], ca, e2eUser, e2ePassword, e2eUser))
		st := conn.PgConn().Conn().(*tls.Conn).ConnectionState()
		return st.PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	ca.Issue("front", "proxy", hosts...)
	if err := c.Nodes[2].Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(30 * time.Second); serial() == first; {
		if time.Now().After(until) {
			t.Fatalf("the new certificate is not used:\n%s", c.Nodes[2].LogTail(20))
		}
	}
	exec1(t, conn, "SELECT 1")
}

// testCancelBy sends the cancel request of a session, over TLS, to a node that may not be the
// session's.
func testCancelBy(t *testing.T, conn *pgx.Conn, n *holdfast.ClusterNode, ca *proxytest.CA) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	pem, err := os.ReadFile(ca.File())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	dial := (&tls.Dialer{
		Config: &tls.Config{RootCAs: pool, NextProtos: []string{"postgresql"}},
	}).DialContext
	done := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "SELECT pg_sleep(60)", pgx.QueryExecModeSimpleProtocol)
		done <- err
	}()
	// A cancel request before the statement runs has no effect, so that they are repeated.
	for {
		err := pgwire.SendCancel(ctx, n.Proxy, conn.PgConn().PID(), conn.PgConn().SecretKey(), dial)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if sqlState(err) != "57014" {
				t.Errorf("ends with %v", err)
			}
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}
