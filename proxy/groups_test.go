package proxy_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// attempt is one login and its SQLSTATE, empty if it succeeds.
func (r *rig) attempt(dsn string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := pgconn.Connect(ctx, dsn)
	closeConn(conn)
	if err == nil {
		return ""
	}
	if c := code(err); c != "" {
		return c
	}
	return err.Error()
}

// Members of a role, directly or by way of another one, are who PostgreSQL's own rules would take
// for them; a change takes effect with secret_ttl, and without a primary what was known is used.
func TestGroupsOfUsers(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.HBA = []string{"host all +banned all reject", "host samerole +staff all scram-sha-256",
			"host all +staff all scram-sha-256", "host all all all reject"}
		c.SecretTTL, c.StartupTimeout = 300*time.Millisecond, 3*time.Second
		c.HoldTimeout = 2 * time.Second
	})
	for _, role := range []string{"direct", "nested", "other", "boss", "gone"} {
		r.server.Exec("CREATE ROLE " + role + " LOGIN PASSWORD '" + proxytest.Password + "'")
	}
	r.server.Exec(`ALTER ROLE boss SUPERUSER; CREATE ROLE staff; CREATE ROLE devs IN ROLE staff;
		CREATE ROLE banned; GRANT staff TO direct, gone; GRANT devs TO nested;
		GRANT CONNECT ON DATABASE app TO PUBLIC`)
	for _, c := range []struct{ user, want string }{
		{"direct", ""}, {"direct", ""}, {"nested", ""}, {"other", "28000"}, {"boss", "28000"},
		{"nobody", "28000"}, {"staff", "28P01"}, {"gone", ""},
	} {
		if got := r.attempt(r.as(c.user, proxytest.Password)); got != c.want {
			t.Errorf("%s: %q, want %q", c.user, got, c.want)
		}
	}
	if got := r.attempt(r.as("direct", "wrong")); got != "28P01" {
		t.Errorf("a wrong password: %q", got)
	}
	r.server.Exec("REVOKE devs FROM nested; GRANT banned TO gone; GRANT staff TO other")
	deadline := time.Now().Add(10 * time.Second)
	for _, c := range []struct{ user, want string }{
		{"nested", "28000"}, {"gone", "28000"}, {"other", ""}, {"direct", ""},
	} {
		for got := r.attempt(r.as(c.user, proxytest.Password)); got != c.want; {
			if time.Now().After(deadline) {
				t.Fatalf("%s after the change: %q, want %q", c.user, got, c.want)
			}
			got = r.attempt(r.as(c.user, proxytest.Password))
		}
	}
	r.topo.Set(nil)
	for _, c := range []struct{ user, want string }{
		{"direct", "57P03"}, // it has proved who it is, and waits for a primary
		{"gone", "28000"}, {"never", "57P03"},
	} {
		if got := r.attempt(r.as(c.user, proxytest.Password)); got != c.want {
			t.Errorf("%s without a primary: %q, want %q", c.user, got, c.want)
		}
	}
}

// The database's name as a role of the user, and a role of proxy.users_file, whose groups only the
// primary knows.
func TestDatabasesOfTheSameRole(t *testing.T) {
	secret := scramSecret(t, proxytest.Password, "salt of the file")
	r := newRig(t, func(c *proxy.Config) {
		c.HBA = []string{"host samerole all all scram-sha-256"}
		c.UsersFile = writeSecret(t, "filed:"+secret+"\n")
		c.StartupTimeout = 3 * time.Second
	})
	r.server.Exec("CREATE ROLE filed LOGIN PASSWORD '" + secret + "'; CREATE ROLE looked LOGIN " +
		"PASSWORD '" + proxytest.Password + "'; GRANT CONNECT ON DATABASE app TO PUBLIC")
	for _, want := range []string{"28000", ""} {
		for _, user := range []string{"filed", "looked"} {
			if got := r.attempt(r.as(user, proxytest.Password)); got != want {
				t.Errorf("%s: %q, want %q", user, got, want)
			}
		}
		r.server.Exec("GRANT app TO filed, looked")
		r.proxy.ForgetForTest("filed", "looked")
	}
}

// A member of more roles than are looked at is refused, since one of the others may be rejected.
func TestTooManyGroups(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.HBA = []string{"host all +banned all reject", "host all all all scram-sha-256"}
		c.StartupTimeout = 3 * time.Second
	})
	r.server.Exec(`DO $$BEGIN FOR i IN 1..1100 LOOP
		EXECUTE format('CREATE ROLE g%s ROLE app', i); END LOOP; END$$`)
	if got := r.attempt(r.dsn("")); got != "57P03" {
		t.Errorf("%q", got)
	}
}

// startWith logs in with a startup packet as it is given, and returns the server's first error.
func (r *rig) startWith(params ...pgwire.Param) (rd *pgwire.Reader, c net.Conn) {
	r.t.Helper()
	c, err := net.Dial("tcp", r.proxy.Addrs()[0].String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(pgwire.AppendStartup(nil, pgwire.Protocol3, params)); err != nil {
		r.t.Fatal(err)
	}
	return pgwire.NewReader(c, 1<<20), c
}

// The server takes replication=database, then true, for a connection to a database, with SQL: a
// rule for replication must not let it in. And it cuts long names, so that a rule for the name must
// see what it cuts them to.
func TestRulesSeeWhatTheServerSees(t *testing.T) {
	long := strings.Repeat("d", 63)
	r := newRig(t, func(c *proxy.Config) {
		c.HBA = []string{"host " + long + " all all reject", "host replication all all trust",
			"host app all all reject", "host all all all trust"}
		c.ServerUsersFile = writeSecret(t, "app:"+proxytest.Password+"\n")
	})
	r.server.Exec("ALTER ROLE app REPLICATION")
	r.server.SetHBA("local all all trust\nhost all,replication all all scram-sha-256\n")
	r.server.Exec("CREATE DATABASE " + long)
	for _, c := range []struct {
		name   string
		params []pgwire.Param
		want   string
	}{
		{"physical", []pgwire.Param{{Name: "replication", Value: "true"}}, ""},
		{"to a database", []pgwire.Param{{Name: "replication", Value: "database"}}, "28000"},
		{"twice", []pgwire.Param{{Name: "replication", Value: "database"},
			{Name: "replication", Value: "true"}}, "28000"},
		{"a long name", []pgwire.Param{{Name: "database", Value: long + "x"}}, "28000"},
	} {
		params := append([]pgwire.Param{{Name: "user", Value: "app"}, {Name: "database",
			Value: "app"}}, c.params...)
		rd, conn := r.startWith(params...)
		got := ""
		for typ := byte(0); typ != pgwire.SrvReadyForQuery && got == ""; {
			var body []byte
			var err error
			if typ, body, err = rd.ReadMessage(); err != nil {
				t.Fatal(c.name, err)
			}
			if typ == pgwire.SrvError {
				e, _ := pgwire.ParseError(body)
				got = e.Code
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		_ = conn.Close()
	}
	// That the server sees it so, too: what the rules are about is no guess.
	direct, err := pgconn.Connect(context.Background(), fmt.Sprintf("host=127.0.0.1 port=%d user=app "+
		"password='%s' dbname=%sx sslmode=disable", r.server.Port, proxytest.Password, long))
	if err == nil {
		if got := exec(t, direct, "SELECT current_database()"); got != long {
			t.Errorf("the server is in %q", got)
		}
	} else if code(err) != "3D000" { // a version that does not cut
		t.Error(err)
	}
	closeConn(direct)
}
