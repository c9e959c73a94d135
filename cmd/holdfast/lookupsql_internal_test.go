package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// lookupPassword has what psql and SQL would read otherwise.
const lookupPassword = `it's :a $1 "pass\word"`

// runLookupSQL gives to psql what `holdfast config lookup-sql` prints.
func runLookupSQL(t *testing.T, server *proxytest.Server, passwordFile string) (string, error) {
	t.Helper()
	var sql, stderr bytes.Buffer
	if code := run(t.Context(), []string{"config", "lookup-sql"}, &sql, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	cmd := exec.Command(filepath.Join(proxytest.BinDir(t), "psql"), "-X", "-q", "-h", "127.0.0.1",
		"-p", fmt.Sprint(server.Port), "-U", "postgres", "-d", "app",
		"-v", "password_file="+passwordFile)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+proxytest.Password)
	cmd.Stdin = &sql
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// ask is a query of a role of its own, straight to the server.
func ask(t *testing.T, port int, user, password, sql string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := pgconn.Connect(ctx, fmt.Sprintf("host=127.0.0.1 port=%d sslmode=disable dbname=postgres",
		port)+" user="+user+" password='"+strings.NewReplacer(`\`, `\\`, `'`, `\'`).
		Replace(password)+"'")
	if err != nil {
		return "", err
	}
	defer c.Close(ctx)
	res := c.ExecParams(ctx, sql, nil, nil, nil, nil).Read()
	if res.Err != nil || len(res.Rows) == 0 {
		return "", res.Err
	}
	return string(res.Rows[0][0]), nil
}

// On a server that no agent has prepared, the printed statements are all that a proxy needs to let
// clients in; they may be run again, and give nobody else what they give the look-up role.
func TestLookupSQL(t *testing.T) {
	server := proxytest.StartServer(t)
	t.Cleanup(proxytest.RemoveTemplate)
	server.Exec("DROP SCHEMA holdfast CASCADE; DROP OWNED BY holdfast_lookup; " +
		"DROP ROLE holdfast_lookup")
	file := filepath.Join(t.TempDir(), "look up")
	if out, err := runLookupSQL(t, server, file); err == nil ||
		!strings.Contains(out, "no password was set") {
		t.Errorf("without its file: %v, %s", err, out)
	}
	if err := os.WriteFile(file, []byte(lookupPassword+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if out, err := runLookupSQL(t, server, file); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	const call = "SELECT holdfast.user_secret('app')"
	secret, err := ask(t, server.Port, "holdfast_lookup", lookupPassword, call)
	if err != nil || !strings.HasPrefix(secret, "SCRAM-SHA-256$") {
		t.Errorf("the look-up role gets %q, %v", secret, err)
	}
	for _, sql := range []string{call, "SELECT holdfast.end_backend(1, now())"} {
		_, err := ask(t, server.Port, "app", proxytest.Password, sql)
		if pe := (*pgconn.PgError)(nil); !errors.As(err, &pe) || pe.Code != "42501" {
			t.Errorf("%s of another role: %v", sql, err)
		}
	}
	rights := server.Exec("SELECT count(*), bool_or(has_function_privilege('app', oid, 'EXECUTE')) " +
		"FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace")
	if rights[0][0] != "2" || rights[0][1] != "f" {
		t.Errorf("functions, and whether others may call one: %v", rights)
	}
	port := lookupProxy(t, server)
	if v, err := ask(t, port, "app", proxytest.Password, "SELECT current_user"); v != "app" {
		t.Errorf("through a proxy: %q, %v", v, err)
	}
}

// lookupProxy is the port of a proxy with that password, before the server.
func lookupProxy(t *testing.T, server *proxytest.Server) int {
	t.Helper()
	topo := proxytest.NewTopology()
	topo.Set(&proxy.Primary{
		Name: "pg", Addr: fmt.Sprintf("127.0.0.1:%d", server.Port), Epoch: 1,
		Incarnation: server.Incarnation(), Lease: proxytest.NewLease(time.Hour),
		Boundaries: []proxy.Boundary{{Epoch: 1}},
	})
	cfg := proxy.DefaultConfig()
	cfg.Listen, cfg.LookupPassword = []string{"127.0.0.1:0"}, lookupPassword
	cfg.ShutdownTimeout = time.Second
	p, err := proxy.New(cfg, proxy.Deps{Topology: topo})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	_, port, _ := strings.Cut(p.Addrs()[0].String(), ":")
	var n int
	if _, err := fmt.Sscan(port, &n); err != nil {
		t.Fatal(err)
	}
	return n
}
