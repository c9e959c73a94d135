package proxy_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// oldSecret is what PostgreSQL stores of proxytest.Password of the role old, with the method md5.
func oldSecret() string { return pgwire.MD5Secret("old", proxytest.Password) }

// scramSecret is one of a password, with a salt of its own.
func scramSecret(t *testing.T, password, salt string) string {
	t.Helper()
	secret, err := pgwire.BuildScramSecret(password, []byte(salt), 4096)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// newUsersRig is a rig with the roles filed and old in the file of proxy.users_file, whose path it
// returns. The functions of the look-up know neither: they are not there for them.
func newUsersRig(t *testing.T, change func(*proxy.Config)) (*rig, string) {
	t.Helper()
	secret := scramSecret(t, proxytest.Password, "salt of the file")
	path := writeSecret(t, "# roles\nfiled:"+secret+"\r\n\nold:"+oldSecret()+"\n")
	r := newRig(t, func(c *proxy.Config) {
		c.UsersFile, c.StartupTimeout = path, 3*time.Second
		c.HBA = []string{"host all old all md5", "host all all all scram-sha-256"}
		if change != nil {
			change(c)
		}
	})
	r.server.Exec("CREATE ROLE filed LOGIN PASSWORD '" + secret + "'; CREATE ROLE old LOGIN " +
		"PASSWORD '" + oldSecret() + "'; CREATE ROLE looked LOGIN PASSWORD '" +
		proxytest.Password + "'")
	r.server.Exec("CREATE OR REPLACE FUNCTION holdfast.user_secret(name text) RETURNS text " +
		"LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$SELECT " +
		"rolpassword FROM pg_authid WHERE rolname = $1 AND rolname NOT IN ('filed', 'old')$$")
	r.server.SetHBA("local all all trust\nhost all old all md5\nhost all all all scram-sha-256\n")
	return r, path
}

// A role in the file is checked against it, and not looked up; another one is looked up.
func TestUsersFile(t *testing.T) {
	r, _ := newUsersRig(t, nil)
	for _, c := range []struct{ user, password, want string }{
		{"filed", proxytest.Password, ""}, {"filed", "wrong", "28P01"},
		{"old", proxytest.Password, ""}, {"old", "wrong", "28P01"},
		{"looked", proxytest.Password, ""}, {"looked", "wrong", "28P01"},
		{"nobody", proxytest.Password, "28P01"},
	} {
		conn, err := dial(context.Background(), r.as(c.user, c.password))
		if c.want != "" {
			if code(err) != c.want {
				t.Errorf("%s with %s: %v, want %s", c.user, c.password, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.user, err)
			continue
		}
		if user := exec(t, conn, "SELECT current_user"); user != c.user {
			t.Errorf("%s logged in as %s", c.user, user)
		}
		closeConn(conn)
	}
}

// With no primary there has ever been, a role in the file that proves itself is in at once, and
// waits inside. One that does not is told no more than one that has to be looked up.
func TestUsersFileWithoutPrimary(t *testing.T) {
	r, _ := newUsersRig(t, nil)
	r.topo.Set(nil)
	for _, user := range []string{"filed", "old", "looked"} {
		if _, err := dial(context.Background(), r.as(user, "wrong")); code(err) != "57P03" {
			t.Errorf("%s with a wrong password: %v", user, err)
		}
	}
	type end struct {
		user string
		err  error
	}
	ends := make(chan end, 2)
	for _, user := range []string{"filed", "old"} {
		conn, err := net.Dial("tcp", r.proxy.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		tap := &tapped{Conn: conn}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		go func() {
			_, err := pgwire.Login(tap, pgwire.NewReader(tap, 1<<16),
				[]pgwire.Param{{Name: "user", Value: user}, {Name: "database", Value: "app"}},
				pgwire.Credentials{Password: proxytest.Password})
			ends <- end{user, err}
		}()
	}
	select {
	case e := <-ends:
		t.Fatalf("%s has a session without a primary, or an error: %v", e.user, e.err)
	case <-time.After(4 * time.Second): // beyond startup_timeout: they are in
	}
	r.lead(0, 0)
	for range 2 {
		if e := <-ends; e.err != nil {
			t.Errorf("%s: %v", e.user, e.err)
		}
	}
}

// The file is read again: what it has now counts, for a role that it has no longer the primary's
// word; a bad file changes nothing.
func TestUsersFileIsReadAgain(t *testing.T) {
	r, path := newUsersRig(t, nil)
	write := func(text string) error {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return r.proxy.Reload()
	}
	login := func(user, password string) string {
		conn, err := dial(context.Background(), r.as(user, password))
		closeConn(conn)
		if err == nil {
			return ""
		}
		return code(err)
	}
	want := func(when, user, password, want string) {
		t.Helper()
		if got := login(user, password); got != want {
			t.Errorf("%s: %s with %q: got %q, want %q", when, user, password, got, want)
		}
	}
	want("at first", "filed", proxytest.Password, "")
	changed := scramSecret(t, "changed", "another salt")
	if err := write("filed:" + changed + "\n"); err != nil {
		t.Fatal(err)
	}
	want("not the server's", "filed", "changed", "28P01")
	r.server.Exec("ALTER ROLE filed PASSWORD '" + changed + "'")
	want("with another secret", "filed", "changed", "")
	want("with another secret", "filed", proxytest.Password, "28P01")
	want("no longer there", "old", proxytest.Password, "28P01")
	for _, bad := range []string{"filed:" + changed + "\nfiled:secret\n", "filed:" + changed +
		"\nfiled:" + changed + "\n", "# a\n" + strings.Repeat("x", 64) + ":" + changed + "\n"} {
		err := write(bad)
		if err == nil || !strings.Contains(err.Error(), path+", line 2: ") ||
			strings.Contains(err.Error(), "secret\n") || strings.Contains(err.Error(), "xxx") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	want("after bad ones", "filed", "changed", "")
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := r.proxy.Reload(); err == nil || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("a file that others can read: %v", err)
	}
}

// A bad file keeps a proxy from starting, with the line at fault and nothing of what is in it.
func TestBadUsersFileIsRefused(t *testing.T) {
	cfg := proxy.DefaultConfig()
	for _, line := range []string{"app", "app:", ":" + oldSecret(), "app:clear", "app:md5short",
		"app:SCRAM-SHA-256$4096:c2FsdA==$xx:yy"} {
		cfg.UsersFile = writeSecret(t, "# roles\nold:"+oldSecret()+"\n"+line+"\n")
		_, err := proxy.New(cfg, proxy.Deps{Topology: proxytest.NewTopology()})
		if err == nil || !strings.Contains(err.Error(), "proxy.users_file: "+cfg.UsersFile+
			", line 3: ") || strings.Contains(err.Error(), "clear") {
			t.Errorf("%q: %v", line, err)
		}
		if err := cfg.CheckFiles()["users_file"]; err == nil {
			t.Errorf("%q: nothing is wrong with it before the start", line)
		}
	}
	cfg.UsersFile = "/none"
	_, err := proxy.New(cfg, proxy.Deps{Topology: proxytest.NewTopology()})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
