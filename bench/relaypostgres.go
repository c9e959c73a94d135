package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"holdfast/config"
)

// database is one node of Holdfast as users run it, `holdfast serve` with its PostgreSQL, and a
// directory of its own. stop ends both.
type database struct {
	cmd    *exec.Cmd
	dir    string
	bin    string
	data   string
	origin origin
}

// pgScale is pgbench's: 10 makes a million accounts, which memory holds.
const pgScale = 10

// runPostgres runs the modes that have a real server behind all targets.
func (r *Relay) runPostgres(ctx context.Context) (err error) {
	if r.Binary == "" {
		return nil
	}
	modes := slices.DeleteFunc(postgresModes(r.Clients, r.dir), func(m relayMode) bool {
		return !r.wants(m.name)
	})
	if len(modes) == 0 {
		return nil
	}
	fmt.Fprintln(r.Log, "starting PostgreSQL")
	db := &database{dir: filepath.Join(r.dir, "node")}
	defer func() { err = errors.Join(err, db.stop()) }()
	if err := db.start(ctx, r.Binary); err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	f, err := r.startFleet(ctx, &db.origin)
	defer func() { err = errors.Join(err, f.stop()) }()
	if err != nil {
		return err
	}
	for _, m := range modes {
		if err := r.measure(ctx, f, m); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// start makes the node and fills its tables.
func (d *database) start(ctx context.Context, binary string) error {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) == 0 {
		return errors.New("it is not installed (package postgresql)")
	}
	d.bin = found[len(found)-1]
	d.data = filepath.Join(d.dir, "pg", "data")
	cfg, err := d.configure(ctx, binary)
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(d.dir, "log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	d.cmd = exec.Command(binary, "serve", "-c", filepath.Join(d.dir, "holdfast.yaml"))
	d.cmd.Stdout, d.cmd.Stderr, d.cmd.Dir = log, log, d.dir
	d.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		d.cmd = nil
		return err
	}
	if err := awaitReady(ctx, "http://"+cfg.HTTP.Listen+"/readyz"); err != nil {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w: %s", err, text)
	}
	return d.fill(ctx, cfg)
}

// configure makes keys, directories and configuration of a group of one node.
func (d *database) configure(ctx context.Context, binary string) (config.Config, error) {
	cfg := config.Default()
	pki := filepath.Join(d.dir, "pki")
	for _, dir := range []string{d.dir, filepath.Dir(d.data)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return cfg, err
		}
	}
	if os.Getuid() == 0 {
		u, err := user.Lookup(cfg.Postgres.OSUser)
		if err != nil {
			return cfg, err
		}
		uid, _ := strconv.Atoi(u.Uid)
		if err := os.Chown(filepath.Dir(d.data), uid, -1); err != nil {
			return cfg, err
		}
	}
	out, err := exec.CommandContext(ctx, binary, "init", "--dir", pki, "--node",
		"bench=127.0.0.1").CombinedOutput()
	if err != nil {
		return cfg, fmt.Errorf("make keys: %w: %s", err, out)
	}
	var addrs [4]string
	for i := range addrs {
		if addrs[i], err = freeAddr(); err != nil {
			return cfg, err
		}
	}
	cfg.Name, cfg.DataDir = "bench", filepath.Join(d.dir, "state")
	cfg.Group.Cluster, cfg.Group.Profile = "bench", "lan"
	cfg.Group.Nodes = []config.Node{{Name: "bench", Address: addrs[0], Postgres: addrs[1]}}
	cfg.Group.TLS = config.TLS{CAFile: filepath.Join(pki, "ca.crt"),
		CertFile: filepath.Join(pki, "bench.crt"), KeyFile: filepath.Join(pki, "bench.key")}
	cfg.Postgres.BinDir, cfg.Postgres.DataDir = d.bin, d.data
	cfg.Postgres.SecretsDir = filepath.Join(pki, "secrets")
	cfg.Postgres.Settings = []string{"shared_buffers = 256MB", "max_connections = 800",
		"dynamic_shared_memory_type = mmap", "max_wal_size = 2GB"}
	cfg.Synchronous.Mode = "off"
	cfg.Proxy.Listen, cfg.Proxy.SourceAddr = []string{addrs[2]}, "127.0.0.1"
	cfg.HTTP.Listen = addrs[3]
	d.origin.addr = addrs[1]
	return cfg, os.WriteFile(filepath.Join(d.dir, "holdfast.yaml"), cfg.YAML(), 0o600)
}

// awaitReady waits until the node serves clients.
func awaitReady(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return errors.New("it is not ready within a minute")
		}
	}
}

// fill makes the clients' role and pgbench's tables, and learns what the targets need to know.
func (d *database) fill(ctx context.Context, cfg config.Config) error {
	secret := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(cfg.Postgres.SecretsDir, name))
		return strings.TrimSpace(string(b))
	}
	u := url.URL{Scheme: "postgres", Host: d.origin.addr, Path: "/" + benchDatabase,
		User: url.UserPassword(cfg.Postgres.Superuser, secret("superuser"))}
	conn, err := connectFirst(ctx, u.String())
	if err != nil {
		return err
	}
	defer closeConn(conn)
	for _, sql := range []string{
		"CREATE ROLE " + benchUser + " LOGIN PASSWORD '" + benchPassword + "'",
		"GRANT CREATE ON SCHEMA public TO " + benchUser,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	out, err := pgbench(ctx, d.origin.addr, "-i", "-q", "-s", strconv.Itoa(pgScale))
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	o := &d.origin
	o.lookupUser, o.lookupPassword = cfg.Proxy.LookupUser, secret("lookup")
	var version string
	if err := conn.QueryRow(ctx, "SELECT (extract(epoch FROM pg_postmaster_start_time())"+
		" * 1000000)::int8::text, current_setting('server_version'), rolpassword"+
		" FROM pg_authid WHERE rolname = $1", benchUser).Scan(&o.incarnation, &version,
		&o.secret); err != nil {
		return err
	}
	o.version = "PostgreSQL " + version
	o.more = []*target{{Name: "Holdfast serve", addr: cfg.Proxy.Listen[0], cmd: d.cmd,
		Version: versionOf(d.cmd.Path, "version"), isForeign: true}}
	return nil
}

// connectFirst connects to a server that is being made and opened: a node is ready, in that it
// takes clients and lets them wait, before there is one.
func connectFirst(ctx context.Context, address string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, address)
		if err == nil {
			return conn, nil
		}
		if wait(ctx, 200*time.Millisecond) != nil {
			return nil, err
		}
	}
}

// stop ends the node and then the server, which may outlive it.
func (d *database) stop() error {
	if d.cmd == nil {
		return nil
	}
	err := stopProcess(d.cmd)
	text, readErr := os.ReadFile(filepath.Join(d.data, "postmaster.pid"))
	if readErr != nil {
		return err // it has ended
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, convErr := strconv.Atoi(line)
	if convErr != nil {
		return errors.Join(err, convErr)
	}
	p, findErr := os.FindProcess(pid)
	if findErr != nil {
		return errors.Join(err, findErr)
	}
	for sent := time.Now(); p.Signal(unix.SIGINT) == nil; {
		if time.Since(sent) > 20*time.Second {
			return errors.Join(err, p.Kill())
		}
		time.Sleep(50 * time.Millisecond) // it is no child of ours: there is nothing to wait for
	}
	return err
}

// pgbench runs it once; the clients' password is no secret.
func pgbench(ctx context.Context, addr string, args ...string) (string, error) {
	host, port, ok := strings.Cut(addr, ":")
	if !ok {
		return "", fmt.Errorf("pgbench: address %q", addr)
	}
	cmd := exec.CommandContext(ctx, "pgbench", append(args, "-h", host, "-p", port, "-U",
		benchUser, benchDatabase)...)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+benchPassword)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
