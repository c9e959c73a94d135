package election_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/election"
	"holdfast/election/electiontest"
	"holdfast/pgwire"
)

// keep writes a file that PostgreSQL's account owns.
func (c *agentCluster) keep(name string, text []byte) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		c.t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			c.t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		if err := os.Chown(path, uid, -1); err != nil {
			c.t.Fatal(err)
		}
	}
	return path
}

// newTLSAgents are members whose servers have certificates of one authority, and take no other
// ones; the file of another authority comes with them.
func newTLSAgents(t *testing.T, n int, mode string) (c *agentCluster, foreign string) {
	t.Helper()
	c = newAgentCluster(t, n)
	ca, err := election.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	other, err := election.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	caFile := c.keep("ca.crt", ca.CertPEM)
	for _, m := range c.members {
		host, _, _ := net.SplitHostPort(m.Postgres)
		cert, key, err := ca.Issue(m.Name, []string{host})
		if err != nil {
			t.Fatal(err)
		}
		cfg := c.cfgs[m.Name]
		cfg.ServerTLS = pgwire.ServerTLS{Mode: mode, CAFile: caFile,
			CertFile: c.keep(m.Name+".crt", cert), KeyFile: c.keep(m.Name+".key", key)}
		cfg.Settings = append(cfg.Settings, "ssl = on", "log_connections = on",
			"ssl_cert_file = '"+cfg.ServerTLS.CertFile+"'",
			"ssl_key_file = '"+cfg.ServerTLS.KeyFile+"'", "ssl_ca_file = '"+caFile+"'")
		c.cfgs[m.Name] = cfg
	}
	return c, c.keep("other.crt", other.CertPEM)
}

// strictestTLS is the mode that the tests' certificates can be checked by: libpq of PostgreSQL 13
// and 14 looks for no addresses in them.
func strictestTLS() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/1[34]/bin/postgres")
	newer, _ := filepath.Glob("/usr/lib/postgresql/1[5-9]/bin/postgres")
	if len(found) > 0 && len(newer) == 0 {
		return pgwire.SSLVerifyCA
	}
	return pgwire.SSLVerifyFull
}

// inClear logs in without TLS as one of the agents' roles.
func (c *agentCluster) inClear(name, role, file, more string) error {
	c.t.Helper()
	secret, err := os.ReadFile(filepath.Join(c.dir, "secrets", file))
	if err != nil {
		c.t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(c.member(name).Postgres)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := pgconn.Connect(ctx, fmt.Sprintf("host=%s port=%s user=%s password=%s "+
		"dbname=postgres sslmode=disable %s", host, port, role,
		strings.TrimSpace(string(secret)), more))
	if err == nil {
		_ = conn.Close(ctx)
	}
	return err
}

// authorized are the lines of a server's log of logins of the agents' roles over TCP.
func (c *agentCluster) authorized(name string) (lines []string) {
	c.t.Helper()
	b, err := os.ReadFile(c.cfgs[name].DataDir + ".holdfast/postgresql.log")
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "connection authorized: user=holdfast_") {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestAgentServerTLS: clone, replication, the agents' questions and pg_rewind by verified TLS, with
// servers that let their roles in with TLS only; another authority is refused by the standby, which
// goes on when it is given the right one, without a restart of its server.
func TestAgentServerTLS(t *testing.T) {
	c, foreign := newTLSAgents(t, 2, strictestTLS())
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.waitStreaming("n2", "n1")
	const walsenders = `SELECT string_agg(concat_ws(' ', usename, ssl, client_dn), ';')
		FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)`
	electiontest.Wait(t, "one stream by TLS", 20*time.Second, func() bool {
		return c.sql("n1", walsenders) == "holdfast_replication t /CN=n2" // none of before is left
	})
	for _, r := range []struct{ role, file, more, want string }{
		{"holdfast_replication", "replication", "replication=true", "28000"},
		{"holdfast_replication", "replication", "", "28000"},
		{"holdfast_rewind", "rewind", "", "28000"},
		{"holdfast_lookup", "lookup", "", ""}, // the proxies', which have a key of their own
	} {
		err := c.inClear("n1", r.role, r.file, r.more)
		if r.want == "" && err != nil || r.want != "" &&
			(err == nil || !strings.Contains(err.Error(), r.want)) {
			t.Errorf("%s %s in clear: %v", r.role, r.more, err)
		}
	}

	c.sql("n1", "CREATE TABLE t AS SELECT generate_series(1, 10) i")
	c.awaitReceived("n1", "n2")
	c.epoch = 2
	c.do("n2", election.Order{Kind: election.OrderRecruit})
	p := c.do("n2", election.Order{Kind: election.OrderPromote})
	c.sql("n1", "INSERT INTO t VALUES (666)") // on a primary that was replaced
	c.commit("n2", p)
	c.waitStreaming("n1", "n2")
	if got := c.sql("n1", "SELECT count(*) FROM t"); got != "10" {
		t.Errorf("the diverged member has %s rows", got)
	}
	if _, err := os.Stat(c.cfgs["n1"].DataDir + ".lost-2"); err == nil {
		t.Error("it was cloned, a rewind was expected")
	}

	seen := map[string]bool{}
	for _, name := range []string{"n1", "n2"} {
		for _, line := range c.authorized(name) {
			who, _, _ := strings.Cut(line[strings.Index(line, "user=")+5:], " ")
			if !strings.Contains(line, "SSL enabled") {
				// Only the one login above that this test made itself.
				if who != "holdfast_lookup" || strings.Contains(line, "holdfast agent") {
					t.Errorf("%s: %s", name, line)
				}
				continue
			}
			seen[who] = true
		}
	}
	for _, who := range []string{"holdfast_replication", "holdfast_rewind", "holdfast_lookup"} {
		if !seen[who] {
			t.Errorf("%s never logged in with TLS", who)
		}
	}
	c.testAnotherAuthority(foreign)
}

// testAnotherAuthority gives n1, which follows n2, another authority, and then the right one.
func (c *agentCluster) testAnotherAuthority(foreign string) {
	c.t.Helper()
	pid, right := c.pid("n1"), c.cfgs["n1"]
	wrong := right
	wrong.ServerTLS.CAFile = foreign
	c.close("n1")
	c.cfgs["n1"] = wrong
	c.start("n1")
	c.wait("n1", "without a stream", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStandby && !s.Streaming
	})
	for begin := time.Now(); !strings.Contains(c.serverLog("n1"), "certificate verify failed"); {
		if time.Since(begin) > 20*time.Second {
			c.t.Fatalf("the walreceiver's refusal is not in the log:\n%s", c.serverLog("n1"))
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.close("n1")
	c.cfgs["n1"] = right
	c.start("n1")
	c.waitStreaming("n1", "n2")
	if got := c.pid("n1"); got != pid {
		c.t.Errorf("the server was restarted: process %d, was %d", got, pid)
	}
}

// TestAgentServerTLSRefusesToClone: a member that is to be cloned from a server of another
// authority is not, and takes nothing in clear in its place.
func TestAgentServerTLSRefusesToClone(t *testing.T) {
	c, foreign := newTLSAgents(t, 2, pgwire.SSLVerifyFull)
	cfg := c.cfgs["n2"]
	cfg.ServerTLS.CAFile = foreign
	c.cfgs["n2"] = cfg
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.wait("n2", "a refusal", func(s election.MemberStatus) bool {
		return strings.Contains(s.Problem, "certificate verify failed") ||
			strings.Contains(s.Problem, "certificate signed by unknown authority")
	})
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "PG_VERSION")); err == nil {
		t.Error("it was cloned")
	}
	if lines := c.authorized("n1"); len(lines) > 0 {
		t.Errorf("it logged in: %s", lines)
	}
}

// TestAgentServerTLSPrefer: the default, with servers that have TLS and with ones that have not;
// pg_hba.conf is the one of before.
func TestAgentServerTLSPrefer(t *testing.T) {
	for _, has := range []bool{true, false} {
		t.Run(fmt.Sprintf("server has TLS: %t", has), func(t *testing.T) {
			c, _ := newTLSAgents(t, 2, pgwire.SSLPrefer)
			for name, cfg := range c.cfgs {
				cfg.ServerTLS = election.DefaultAgentConfig().ServerTLS
				if !has {
					cfg.Settings = append(cfg.Settings, "ssl = off")
				}
				c.cfgs[name] = cfg
			}
			c.start("n1", "n2")
			c.bootstrap("")
			c.open("n1")
			c.waitStreaming("n2", "n1")
			if got := c.sql("n1", "SELECT count(*) FROM pg_hba_file_rules WHERE type <> 'local' "+
				"AND type <> 'host'"); got != "0" {
				t.Errorf("%s lines are about TLS", got)
			}
			lines := c.authorized("n1")
			for _, line := range lines {
				if strings.Contains(line, "SSL enabled") != has {
					t.Error(line)
				}
			}
			if len(lines) == 0 {
				t.Error("nobody logged in")
			}
		})
	}
}

// Files that the agent or PostgreSQL's account cannot use are told at the start.
func TestAgentServerTLSFiles(t *testing.T) {
	c, _ := newTLSAgents(t, 1, pgwire.SSLVerifyFull)
	good := c.cfgs["n1"].ServerTLS
	notRoot := c.keep("stranger.key", mustRead(t, good.KeyFile))
	if os.Geteuid() == 0 {
		if err := os.Chown(notRoot, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	private := c.keep("private.crt", mustRead(t, good.CAFile))
	if os.Geteuid() == 0 {
		if err := os.Chown(private, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []struct {
		name   string
		change func(s *pgwire.ServerTLS)
		root   bool // it needs root
		want   string
	}{
		{"good", func(*pgwire.ServerTLS) {}, false, ""},
		{"no authority", func(s *pgwire.ServerTLS) { s.CAFile = "" }, false, "server_tls.ca_file"},
		{"relative", func(s *pgwire.ServerTLS) { s.CAFile = "ca.crt" }, false, "absolute"},
		{"no key", func(s *pgwire.ServerTLS) { s.KeyFile = "" }, false, "belong together"},
		{"mode", func(s *pgwire.ServerTLS) { s.Mode = "always" }, false, "verify-full"},
		{"missing", func(s *pgwire.ServerTLS) { s.CAFile += ".no" }, false, "no such file"},
		{"no PEM", func(s *pgwire.ServerTLS) { s.CAFile = s.KeyFile }, false, "no certificate"},
		{"key of another", func(s *pgwire.ServerTLS) { s.KeyFile = notRoot }, true, "belongs to"},
		{"not readable", func(s *pgwire.ServerTLS) { s.CAFile = private }, true, "cannot read"},
	} {
		cfg := c.cfgs["n1"]
		f.change(&cfg.ServerTLS)
		_, err := election.NewPostgresAgent(cfg, election.AgentDeps{Source: c.src})
		switch {
		case f.root && os.Geteuid() != 0:
		case f.want == "" && err != nil, f.want != "" &&
			(err == nil || !strings.Contains(err.Error(), f.want)):
			t.Errorf("%s: %v, want %q", f.name, err, f.want)
		}
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
