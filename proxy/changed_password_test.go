package proxy_test

import (
	"context"
	"testing"
	"time"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// What is changed about a role takes effect though its secret is cached: a login that fails casts
// doubt on it, so that the next one is right.
func TestChangedRoles(t *testing.T) {
	for _, method := range []string{"scram-sha-256", "password"} {
		t.Run(method, func(t *testing.T) {
			r := newRig(t, func(c *proxy.Config) {
				c.HBA, c.SecretTTL = []string{"host all all all " + method}, time.Hour
			})
			login := func(user, password, want string) {
				t.Helper()
				conn, err := dial(context.Background(), r.as(user, password))
				closeConn(conn)
				if want == "" && err != nil || want != "" && code(err) != want {
					t.Errorf("%s, %s: got %v, want %q", user, password, err, want)
				}
			}
			login("app", proxytest.Password, "")
			login("later", "x", "28P01")
			time.Sleep(1100 * time.Millisecond) // as old as has to be for a doubt
			r.server.Exec("ALTER ROLE app PASSWORD 'new'; CREATE ROLE later LOGIN PASSWORD 'x'")
			r.server.Exec("GRANT CONNECT ON DATABASE app TO later")
			login("app", "new", "28P01") // against the old one; whoever connects again is right
			login("app", "new", "")
			login("app", proxytest.Password, "28P01")
			login("later", "x", "28P01")
			login("later", "x", "")
			r.server.Exec("ALTER ROLE app PASSWORD NULL")
			time.Sleep(1100 * time.Millisecond)
			login("app", "newer", "28P01")
			login("app", "new", "28P01")
			r.server.Exec("REVOKE CONNECT ON DATABASE app FROM later; DROP ROLE later")
			login("later", "y", "28P01")
			login("later", "x", "28P01")
		})
	}
}

// A guess does not take the secret away that logins go on with while there is no primary.
func TestGuessesLeaveTheSecret(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.SecretTTL = time.Hour
		c.HoldTimeout, c.StartupTimeout = 2*time.Second, 2*time.Second
	})
	closeConn(r.connect(""))
	time.Sleep(1100 * time.Millisecond)
	r.topo.Set(nil)
	for range 2 {
		conn, err := dial(context.Background(), r.as("app", "wrong"))
		closeConn(conn)
		if code(err) != "57P03" { // it may be another one by now, which nobody can tell
			t.Errorf("a wrong password without a primary: %v", err)
		}
	}
	conn, err := dial(context.Background(), r.dsn(""))
	closeConn(conn)
	if code(err) != "57P03" { // authenticated, and held for a primary until hold_timeout
		t.Errorf("the right one: %v", err)
	}
}
