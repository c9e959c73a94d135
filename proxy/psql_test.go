package proxy_test

import (
	"context"
	"fmt"
	"net"
	"os"
	osexec "os/exec"
	"strings"
	"testing"
	"time"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// psql and pg_dump, which are libpq, with what it calls strictest: the certificate's name is
// checked, and nobody is in between.
func TestPsqlWithTLS(t *testing.T) {
	if _, err := osexec.LookPath("psql"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("psql is not installed")
		}
		t.Skip("psql is not installed")
	}
	r, ca := newTLSRig(t, proxy.TLSRequire, nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, port, _ := net.SplitHostPort(r.proxy.Addrs()[0].String())
	dsn := func(more string) string {
		return fmt.Sprintf("host=127.0.0.1 port=%s user=app dbname=app sslrootcert=%s %s", port,
			ca.File(), more)
	}
	strict := dsn("sslmode=verify-full channel_binding=require")
	out, err := r.tool(ctx, "psql", "-X", "-d", strict, "-c", `\conninfo`, "-c",
		"CREATE TABLE t AS SELECT i, repeat('x', 500) v FROM generate_series(1, 5000) i", "-c",
		`\copy t TO '/dev/null'`, "-c", "SELECT 1/0").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "TLSv1.3") ||
		!strings.Contains(string(out), "COPY 5000") ||
		!strings.Contains(string(out), "division by zero") {
		t.Errorf("psql: %v\n%s", err, out)
	}
	out, err = r.tool(ctx, "pg_dump", "-d", strict, "-t", "t").Output()
	if err != nil || strings.Count(string(out), "\n") < 5000 {
		t.Errorf("pg_dump: %v, %d bytes", err, len(out))
	}
	for more, want := range map[string]string{
		"sslmode=disable": "not encrypted",
		"sslmode=verify-full sslrootcert=/dev/null":                                "certificate",
		"sslmode=require gssencmode=prefer":                                        "",
		"sslmode=verify-ca ssl_min_protocol_version=x":                             "invalid",
		"sslmode=require ssl_max_protocol_version=TLSv1.2 channel_binding=require": "",
	} {
		out, err := r.tool(ctx, "psql", "-X", "-d", dsn(more), "-c", "SELECT 1").CombinedOutput()
		if (err == nil) != (want == "") || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v\n%s", more, err, out)
		}
	}
	// A role's password that is wrong is told as PostgreSQL tells it.
	cmd := r.tool(ctx, "psql", "-X", "-d", strict, "-c", "SELECT 1")
	for i, e := range cmd.Env {
		cmd.Env[i] = strings.Replace(e, proxytest.Password, "wrong", 1)
	}
	out, err = cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "password authentication failed") {
		t.Errorf("wrong password: %v\n%s", err, out)
	}
}
