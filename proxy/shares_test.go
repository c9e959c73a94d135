package proxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/proxy"
)

// TestSharesOfUsersAndDatabases: one who has its share is told so, others are not in its way, and a
// place that is left is taken. Who has not proved anything takes nobody's share.
func TestSharesOfUsersAndDatabases(t *testing.T) {
	for limit, change := range map[string]func(*proxy.Config){
		"sessions_per_user":     func(c *proxy.Config) { c.SessionsPerUser = 2 },
		"sessions_per_database": func(c *proxy.Config) { c.SessionsPerDatabase = 2 },
	} {
		t.Run(limit, func(t *testing.T) {
			r := newRig(t, change)
			r.server.Exec("CREATE ROLE other LOGIN PASSWORD 'other'")
			r.server.Exec("CREATE DATABASE other")
			for range 3 {
				cfg, err := pgconn.ParseConfig(r.dsn(""))
				if err != nil {
					t.Fatal(err)
				}
				cfg.Password = "wrong"
				if _, err := pgconn.ConnectConfig(t.Context(), cfg); code(err) != "28P01" {
					t.Fatalf("got %v", err)
				}
			}
			first := r.connect("")
			r.connect("")
			_, err := pgconn.Connect(t.Context(), r.dsn(""))
			if code(err) != "53300" || !strings.Contains(err.Error(), limit) {
				t.Errorf("got %v", err)
			}
			if n := r.count("refused_total", limit); n != 1 {
				t.Errorf("%v refused", n)
			}
			elsewhere := "user=other password=other"
			if limit == "sessions_per_database" {
				elsewhere = "dbname=other"
			}
			exec(t, r.connect(elsewhere), "SELECT 1")
			_ = first.Close(context.Background())
			r.eventually(func() bool {
				c, err := pgconn.Connect(t.Context(), r.dsn(""))
				if err != nil {
					return false
				}
				_ = c.Close(context.Background())
				return true
			}, "a place is free")
		})
	}
}

// TestSharesOfAddresses counts connections that say nothing as well, and cancel requests.
func TestSharesOfAddresses(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.ConnectionsPerAddress = 3 })
	from := func(ip string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: 10 * time.Second}
		c, err := d.DialContext(t.Context(), "tcp", r.proxy.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	silent := []net.Conn{from("127.0.0.2"), from("127.0.0.2"), from("127.0.0.2")}
	refused := from("127.0.0.2")
	_ = refused.SetReadDeadline(time.Now().Add(10 * time.Second))
	said, err := io.ReadAll(refused)
	if err != nil || !strings.Contains(string(said), "C53300") {
		t.Errorf("told %q, %v", said, err)
	}
	if n := r.count("refused_total", "connections_per_address"); n != 1 {
		t.Errorf("%v refused", n)
	}
	exec(t, r.connect(""), "SELECT 1") // from another address
	_ = silent[0].Close()
	r.eventually(func() bool {
		c := from("127.0.0.2")
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		return isTimeout(err)
	}, "a place is free")
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
