package proxy_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// writeSecret writes a file that only its owner may read.
func writeSecret(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// as is dsn with another user and password.
func (r *rig) as(user, password string) string {
	dsn := strings.Replace(r.dsn(""), "user=app", "user="+user, 1)
	return strings.Replace(dsn, "password='"+proxytest.Password+"'", "password='"+password+"'", 1)
}

// Each method lets the right one in, who then has a session that a change of primary keeps, and
// nobody else.
func TestAuthMethods(t *testing.T) {
	r, ca := newTLSRig(t, proxy.TLSAllow, func(c *proxy.Config) {
		c.HBA = []string{
			"hostssl app certain all cert map=people",
			"hostssl app scrammed all scram-sha-256 clientcert=verify-ca",
			"host app old all md5",
			"host app clear,oldclear all password",
			"host app trusted,welcome,poor all trust",
			"host app nobody all reject",
			"host all app all scram-sha-256",
		}
		c.UserMaps = []string{`people /^(.*)@example\.org$ \1`}
		c.ServerUsersFile = writeSecret(t, "# roles\ntrusted:"+proxytest.Password+
			"\ncertain:"+proxytest.Password+"\n")
	})
	r.server.SetHBA("local all all trust\nhost all old,oldclear all md5\n" +
		"host all welcome all trust\nhost all all all scram-sha-256\n")
	for _, role := range []string{"certain", "scrammed", "clear", "trusted", "welcome", "poor",
		"nobody"} {
		r.server.Exec("CREATE ROLE " + role + " LOGIN PASSWORD '" + proxytest.Password + "'")
	}
	r.server.Exec("SET password_encryption = md5; CREATE ROLE old LOGIN PASSWORD '" +
		proxytest.Password + "'; CREATE ROLE oldclear LOGIN PASSWORD '" + proxytest.Password + "'")
	withCert := func(user, name string) string {
		cert, key := ca.Issue("client-"+name, name)
		return strings.Replace(r.as(user, proxytest.Password), "sslmode=disable",
			"sslmode=verify-full sslrootcert="+ca.File()+" sslcert="+cert+" sslkey="+key, 1)
	}
	secure := func(dsn string) string {
		return strings.Replace(dsn, "sslmode=disable", "sslmode=verify-full sslrootcert="+
			ca.File(), 1)
	}
	const wrong = "wrong"
	for _, c := range []struct{ name, dsn, want string }{
		{"cert", withCert("certain", "certain@example.org"), ""},
		{"cert of somebody", withCert("certain", "scrammed@example.org"), "28000"},
		{"cert without the map's form", withCert("certain", "certain"), "28000"},
		{"cert without one", secure(r.as("certain", proxytest.Password)), "28000"},
		{"cert without TLS", r.as("certain", proxytest.Password), "28000"},
		{"scram with any cert", withCert("scrammed", "anybody"), ""},
		{"scram without the cert", secure(r.as("scrammed", proxytest.Password)), "28000"},
		{"md5", r.as("old", proxytest.Password), ""},
		{"md5 wrong", r.as("old", wrong), "28P01"},
		{"password", r.as("clear", proxytest.Password), ""},
		{"password wrong", r.as("clear", wrong), "28P01"},
		{"password, md5 secret", r.as("oldclear", proxytest.Password), ""},
		{"password, md5 secret, wrong", r.as("oldclear", wrong), "28P01"},
		{"trust", r.as("trusted", wrong), ""},
		{"trust on both sides", r.as("welcome", wrong), ""},
		{"trust without credentials", r.as("poor", wrong), "28000"},
		{"reject", r.as("nobody", proxytest.Password), "28000"},
		{"no rule", r.as("stranger", proxytest.Password), "28000"},
		{"scram", r.as("app", proxytest.Password), ""},
		{"scram wrong", r.as("app", wrong), "28P01"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := dial(context.Background(), c.dsn)
			defer closeConn(conn)
			if c.want != "" {
				if code(err) != c.want {
					t.Errorf("got %v, want %s", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if user := exec(t, conn, "SELECT current_user"); !strings.Contains(c.dsn, "user="+user) {
				t.Errorf("logged in as %s", user)
			}
			r.change() // the credentials must be good for another login
			if v := exec(t, conn, "SELECT 1"); v != "1" {
				t.Error(v)
			}
		})
	}
	if n := r.count("auth_failures_total", "md5"); n != 1 {
		t.Errorf("%v failures of md5", n)
	}
	_, err := dial(context.Background(), r.as("poor", ""))
	if err == nil || !strings.Contains(err.Error(), "no credentials") {
		t.Errorf("what is missing is not said: %v", err)
	}
}

// The answers to a role that does not exist are those to one with another password, whatever the
// method: the same messages, of the same sizes.
func TestUnknownUsersAreNotTold(t *testing.T) {
	for _, method := range []string{"scram-sha-256", "md5", "password"} {
		t.Run(method, func(t *testing.T) {
			r := newRig(t, func(c *proxy.Config) { c.HBA = []string{"host all all all " + method} })
			r.server.Exec("CREATE ROLE known LOGIN PASSWORD '" + proxytest.Password + "'")
			shape := func(user string) (out []string) {
				conn, err := net.Dial("tcp", r.proxy.Addrs()[0].String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				tap := &tapped{Conn: conn}
				reader := pgwire.NewReader(tap, 1<<16)
				_, err = pgwire.Login(tap, reader, []pgwire.Param{{Name: "user", Value: user},
					{Name: "database", Value: "app"}}, pgwire.Credentials{Password: "wrong"})
				if err == nil {
					t.Fatal("logged in")
				}
				return append(tap.sizes, strings.ReplaceAll(err.Error(), user, "*"))
			}
			known, unknown := shape("known"), shape("nobdy")
			if strings.Join(known, " ") != strings.Join(unknown, " ") {
				t.Errorf("%s: known %q, unknown %q", method, known, unknown)
			}
		})
	}
}

// tapped notes what is read.
type tapped struct {
	net.Conn
	sizes []string
}

func (c *tapped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.sizes = append(c.sizes, string(p[0])+strings.Repeat(".", n))
	}
	return n, err
}

// Guesses are bounded by address, and the right password is refused too once they are spent: else
// the bound would tell which one it is.
func TestGuessesFromOneAddress(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.AuthFailuresMax = 3 })
	for i := range 4 {
		want := "28P01"
		if i == 3 {
			want = "53300"
		}
		if _, err := dial(context.Background(), r.as("app", "wrong")); code(err) != want {
			t.Errorf("attempt %d: %v, want %s", i, err, want)
		}
	}
	if _, err := dial(context.Background(), r.dsn("")); code(err) != "53300" {
		t.Errorf("the right password: %v", err)
	}
	if r.count("refused_total", "auth_failures") != 2 {
		t.Error("refusals are not counted")
	}
}

// guess is a login that has been begun: the server's challenge is there, the answer is not sent.
func (r *rig) guess(password string) (answer func() string) {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.proxy.Addrs()[0].String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	reader := pgwire.NewReader(conn, 1<<16)
	client, first, err := pgwire.NewScramClient(pgwire.Credentials{Password: password})
	if err != nil {
		r.t.Fatal(err)
	}
	ask := func(p []byte) (byte, []byte) {
		if _, err := conn.Write(p); err != nil {
			r.t.Fatal(err)
		}
		typ, body, err := reader.ReadMessage()
		if err != nil {
			r.t.Fatal(err)
		}
		return typ, body
	}
	ask(pgwire.AppendStartup(nil, pgwire.Protocol3, []pgwire.Param{{Name: "user", Value: "app"}}))
	initial := append([]byte("SCRAM-SHA-256\x00"), 0, 0, 0, byte(len(first)))
	_, challenge := ask(pgwire.AppendPassword(nil, append(initial, first...)))
	final, err := client.Continue(challenge[4:])
	if err != nil {
		r.t.Fatal(err)
	}
	return func() string {
		typ, body := ask(pgwire.AppendPassword(nil, final))
		if typ != pgwire.SrvError {
			return string(typ)
		}
		e, _ := pgwire.ParseError(body)
		return e.Code
	}
}

// Guesses that begin before the bound is reached count too: else as many could be made at once as
// there may be connections.
func TestGuessesAtTheSameTime(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.AuthFailuresMax = 2 })
	guesses := []func() string{r.guess("a"), r.guess("b"), r.guess("c"),
		r.guess(proxytest.Password)}
	for i, want := range []string{"28P01", "28P01", "53300", "53300"} {
		if got := guesses[i](); got != want {
			t.Errorf("guess %d: %s, want %s", i, got, want)
		}
	}
}
