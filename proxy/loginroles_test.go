package proxy_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// tryIn begins a login by SCRAM. asked tells when the client was asked for its proof, ended with
// which SQLSTATE the login has ended, or <nil>.
func (r *rig) tryIn(user, password string) (asked <-chan bool, ended <-chan string) {
	challenged, end := make(chan bool, 1), make(chan string, 1)
	conn, err := net.Dial("tcp", r.proxy.Addrs()[0].String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		tap := &firstRead{Conn: conn, seen: challenged}
		_, err := pgwire.Login(tap, pgwire.NewReader(tap, 1<<16), []pgwire.Param{
			{Name: "user", Value: user}, {Name: "database", Value: "app"}},
			pgwire.Credentials{Password: password})
		var pe *pgwire.Error
		if errors.As(err, &pe) {
			end <- pe.Code
			return
		}
		end <- code(err)
	}()
	return challenged, end
}

// firstRead tells when something has come.
type firstRead struct {
	net.Conn
	seen chan bool
}

func (c *firstRead) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	select {
	case c.seen <- n > 0:
	default:
	}
	return n, err
}

// isThere waits for a moment.
func isThere[T any](c <-chan T, long time.Duration) (v T, ok bool) {
	select {
	case v = <-c:
		return v, true
	case <-time.After(long):
		return v, false
	}
}

// While there is no primary nobody learns which names are those of roles, or of roles that have
// logged in lately, and each role gets in; what fails is judged only when somebody can be asked.
func TestLoginsWithoutAPrimary(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.UsersFile = writeSecret(t, "filed:"+scramSecret(t, proxytest.Password, "salt")+"\n")
	})
	for _, role := range []string{"never", "changed", "dropped"} {
		r.server.Exec("CREATE ROLE " + role + " LOGIN PASSWORD '" + proxytest.Password + "'")
	}
	r.server.Exec("CREATE ROLE empty LOGIN; CREATE ROLE nologin PASSWORD 'x'")
	r.server.Exec("CREATE ROLE filed LOGIN PASSWORD '" + proxytest.Password + "'")
	salts := map[string]string{}
	closeConn(r.connect("")) // whoever logs in has the list asked for
	r.eventually(func() bool { return proxy.KnowsLoginRole(r.proxy, "never") }, "they are known")
	pr, _ := r.topo.Current()
	r.server.Exec("ALTER ROLE changed PASSWORD 'new'; DROP ROLE dropped; " +
		"CREATE ROLE late LOGIN PASSWORD 'x'")
	r.topo.Set(nil)
	type tried struct{ user, password, want string }
	var all []tried
	var ends []<-chan string
	for _, c := range []tried{
		{"app", "wrong", "28P01"}, {"never", "wrong", "28P01"}, {"nobody", "wrong", "28P01"},
		{"empty", "wrong", "28P01"}, {"nologin", "x", "28P01"}, {"filed", "wrong", "28P01"},
		{"holdfast_lookup", "wrong", "28P01"}, {"dropped", "wrong", "57P03"},
		// What has come since the list was made is not refused: it is to be tried again.
		{"changed", "new", "57P03"}, {"late", "x", "57P03"},
	} {
		salts[c.user] = shown(t, r.proxy, c.user)
		asked, ended := r.tryIn(c.user, c.password)
		if _, ok := isThere(asked, 5*time.Second); !ok {
			t.Errorf("%s is not asked for a proof", c.user)
		}
		all, ends = append(all, c), append(ends, ended)
	}
	_, in := r.tryIn("never", proxytest.Password)
	time.Sleep(700 * time.Millisecond)
	for i, c := range all {
		if got, ok := isThere(ends[i], 0); ok {
			t.Errorf("%s with %s ended with %s, while nobody can be asked", c.user, c.password, got)
		}
	}
	r.topo.Set(pr)
	for i, c := range all {
		if got, _ := isThere(ends[i], 10*time.Second); got != c.want {
			t.Errorf("%s with %s: %s, want %s", c.user, c.password, got, c.want)
		}
	}
	if got, _ := isThere(in, 10*time.Second); got != "<nil>" {
		t.Errorf("a role that never logged in before: %s", got)
	}
	for _, user := range []string{"app", "never", "nobody", "empty", "filed"} {
		if got := shown(t, r.proxy, user); got != salts[user] {
			t.Errorf("%s is shown another salt with a primary", user)
		}
	}
	for user, password := range map[string]string{"changed": "new", "late": "x"} {
		conn, err := dial(context.Background(), r.as(user, password))
		closeConn(conn)
		if err != nil {
			t.Errorf("%s, tried again: %v", user, err)
		}
	}
}

// Where the roles are not all known, since there are too many, or rules ask for more about them,
// no name is taken for that of no role: it waits for a primary.
func TestLoginsWithoutAListOfRoles(t *testing.T) {
	for name, change := range map[string]func(c *proxy.Config){
		"too many": func(c *proxy.Config) { c.LoginRolesMax = 2 },
		"off":      func(c *proxy.Config) { c.LoginRolesMax = 0 },
		"groups": func(c *proxy.Config) {
			c.HBA = []string{"host all +banned all reject", "host all all all scram-sha-256"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, change)
			r.server.Exec("CREATE ROLE second LOGIN PASSWORD '" + proxytest.Password + "'; " +
				"CREATE ROLE banned")
			closeConn(r.connect(""))
			if name == "too many" {
				r.eventually(func() bool { return r.count("limits_total", "login_roles") == 1 }, "counted")
			}
			pr, _ := r.topo.Current()
			r.topo.Set(nil)
			asked, _ := r.tryIn("app", proxytest.Password)
			if _, ok := isThere(asked, 5*time.Second); !ok {
				t.Error("a role that has logged in is not asked for a proof")
			}
			asked, in := r.tryIn("second", proxytest.Password)
			if _, ok := isThere(asked, 700*time.Millisecond); ok {
				t.Error("a role that is not known is asked for a proof")
			}
			r.topo.Set(pr)
			if got, _ := isThere(in, 10*time.Second); got != "<nil>" {
				t.Errorf("it comes to %s", got)
			}
			if n := r.count("limits_total", "login_roles"); (n > 0) != (name == "too many") {
				t.Errorf("counted %v times", n)
			}
		})
	}
}

// A proof against a secret that nobody could be asked for is judged by what the primary says, also
// if that is there again before the proof is.
func TestProofBehindAnOutage(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.SecretTTL = time.Millisecond })
	closeConn(r.connect(""))
	pr, _ := r.topo.Current()
	r.topo.Set(nil)
	right, wrong := r.guess("new"), r.guess("wrong")
	r.topo.Set(pr)
	if got := wrong(); got != "28P01" {
		t.Errorf("a wrong password: %s", got)
	}
	r.server.Exec("ALTER ROLE app PASSWORD 'new'")
	if got := right(); got != "57P03" {
		t.Errorf("the new password: %s", got)
	}
}
