package proxy_test

import (
	"context"
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
			_, err := dial(t.Context(), r.dsn(""))
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
				c, err := dial(t.Context(), r.dsn(""))
				if err != nil {
					return false
				}
				_ = c.Close(context.Background())
				return true
			}, "a place is free")
		})
	}
}

// TestSharesOfAddresses: whoever has its share gets no further session, but may ask for a cancel;
// connections that say nothing count, and are bounded too.
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
	login := func() (*pgconn.PgConn, error) {
		cfg, err := pgconn.ParseConfig(r.dsn(""))
		if err != nil {
			t.Fatal(err)
		}
		cfg.DialFunc = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}).DialContext
		c, err := pgconn.ConnectConfig(t.Context(), cfg)
		if err == nil {
			t.Cleanup(func() { _ = c.Close(context.Background()) })
		}
		return c, err
	}
	c, err := login()
	if err != nil {
		t.Fatal(err)
	}
	silent := []net.Conn{from("127.0.0.2"), from("127.0.0.2")}
	if _, err := login(); code(err) != "53300" || !strings.Contains(err.Error(), "per_address") {
		t.Errorf("got %v", err)
	}
	canceled := make(chan error, 1)
	go func() {
		_, err := tryExec(c, "SELECT pg_sleep(60)")
		canceled <- err
	}()
	r.eventually(func() bool { return r.sleepers() == "1" }, "the statement runs")
	if err := c.CancelRequest(t.Context()); err != nil {
		t.Errorf("cancel request: %v", err)
	}
	if err := <-canceled; code(err) != "57014" {
		t.Errorf("canceled: %v", err)
	}
	for range 8 { // the slack
		silent = append(silent, from("127.0.0.2"))
	}
	refused := from("127.0.0.2")
	_ = refused.SetReadDeadline(time.Now().Add(10 * time.Second))
	said, err := io.ReadAll(refused)
	if err != nil || !strings.Contains(string(said), "C53300") {
		t.Errorf("told %q, %v", said, err)
	}
	if n := r.count("refused_total", "connections_per_address"); n != 2 {
		t.Errorf("%v refused", n)
	}
	exec(t, r.connect(""), "SELECT 1") // from another address
	for _, c := range silent {
		_ = c.Close()
	}
	r.eventually(func() bool { _, err := login(); return err == nil }, "a place is free")
}
