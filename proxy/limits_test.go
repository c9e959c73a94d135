package proxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// Connections that say nothing are bounded too, and told so.
func TestSilentConnectionsAreBounded(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.SessionsMax = 5 })
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for range 105 {
		c, err := net.Dial("tcp", r.proxy.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for deadline := time.Now().Add(10 * time.Second); r.count("connections_total", "") < 105; {
		if time.Now().After(deadline) {
			t.Fatal("connections are not accepted")
		}
		time.Sleep(time.Millisecond) // until all were accepted
	}
	_, err := dial(context.Background(), r.dsn(""))
	if code(err) != "53300" {
		t.Errorf("got %v", err)
	}
	if n := r.count("refused_total", "connections"); n < 1 {
		t.Errorf("%v refused", n)
	}
}

// A full server is not asked again and again by new logins; they get its answer.
func TestFullServerIsAnAnswer(t *testing.T) {
	r := newRig(t, nil)
	r.server.Exec("ALTER ROLE app CONNECTION LIMIT 1")
	keep := r.connect("")
	begun := time.Now()
	_, err := dial(context.Background(), r.dsn(""))
	if code(err) != "53300" || time.Since(begun) > 10*time.Second {
		t.Errorf("got %v after %v", err, time.Since(begun))
	}
	if v := exec(t, keep, "SELECT 1"); v != "1" {
		t.Error(v)
	}
}

// What cannot change is said at once, and why.
func TestLoginMethodThatCannotBeMet(t *testing.T) {
	r := newRig(t, nil)
	r.server.Exec("SELECT 1")
	keep := r.connect("") // the secret is known
	r.server.SetHBA("local all all trust\nhost all app 127.0.0.1/32 password\n" +
		"host all all 127.0.0.1/32 scram-sha-256\n")
	begun := time.Now()
	_, err := dial(context.Background(), r.dsn(""))
	if code(err) != "28000" || !strings.Contains(err.Error(), "proxy could not log in") {
		t.Errorf("got %v", err)
	}
	if time.Since(begun) > 10*time.Second {
		t.Errorf("after %v", time.Since(begun))
	}
	_ = keep
}

// Names that no role can have are refused like others, and the primary is not asked.
func TestImpossibleNamesAreNotAskedFor(t *testing.T) {
	r := newRig(t, nil)
	for _, name := range []string{"a\xff", strings.Repeat("x", 64)} {
		cfg, err := pgconn.ParseConfig(r.dsn(""))
		if err != nil {
			t.Fatal(err)
		}
		cfg.User = name
		begun := time.Now()
		if _, err := pgconn.ConnectConfig(context.Background(), cfg); code(err) != "28P01" {
			t.Errorf("got %v", err)
		}
		if time.Since(begun) > 5*time.Second {
			t.Errorf("after %v", time.Since(begun))
		}
	}
}

// The secret of a login is cached: when the primary's host has vanished, and nobody has said so
// yet, the next login is authenticated without it, and is through as soon as there is a primary.
func TestLoginsDoNotWaitForAVanishedPrimary(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.SecretTTL, c.DialTimeout = time.Millisecond, 30*time.Second
	})
	_ = exec(t, r.connect(""), "SELECT 1")
	silent, err := net.Listen("tcp", "127.0.0.1:0") // its backlog accepts, and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r.epoch++
	r.proxy.Cut(r.epoch - 1)
	r.topo.Set(&proxy.Primary{
		Name: "pg", Addr: silent.Addr().String(), Epoch: r.epoch, Incarnation: "1",
		Lease: proxytest.NewLease(time.Hour),
	})
	done := make(chan error, 8)
	for range cap(done) {
		go func() {
			c, err := dial(context.Background(), r.dsn(""))
			if err == nil {
				err = c.Close(context.Background())
			}
			done <- err
		}()
	}
	time.Sleep(500 * time.Millisecond) // they are under way, at the silent host
	r.proxy.Cut(r.epoch)
	r.lead(1<<40, 1<<40)
	for range cap(done) {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a login still waits for the host that is gone")
		}
	}
}

// A client that is silent, before its first byte or in the middle of its login, is ended by
// startup_timeout, counted from its first sign.
func TestSlowLoginsEnd(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.StartupTimeout = 3 * time.Second })
	exec(t, r.connect(""), "SELECT 1") // the secret is known, so that the login is the loop's
	var work sync.WaitGroup            // they are waited for side by side
	for name, said := range map[string][]byte{
		"nothing": nil,
		"a part":  {0, 0, 0, 50, 0, 3, 0, 0},
		"startup": pgwire.AppendStartup(nil, pgwire.Protocol3, []pgwire.Param{
			{Name: "user", Value: "app"}, {Name: "database", Value: "app"}}),
	} {
		c, err := net.Dial("tcp", r.proxy.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		begun := time.Now()
		if _, err := c.Write(said); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		work.Go(func() {
			_, err := io.Copy(io.Discard, c)
			var late net.Error
			if errors.As(err, &late) && late.Timeout() {
				t.Errorf("%s: the connection lives after %v", name, time.Since(begun))
			}
		})
	}
	work.Wait()
	r.eventually(func() bool { n, _ := r.proxy.Stats(); return n == 1 }, "one session is left")
}
