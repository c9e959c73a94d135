package main_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/config"
)

// documented is a cluster on which the steps of the documentation are gone through.
type documented struct {
	operator
	// archive is where the members' archive_command puts WAL, and backup a base backup.
	archive, backup string
	// secret is the superuser's password.
	secret string
}

// repPassword is that of the role that takes base backups.
const repPassword = "sesame"

// TestE2EDocs does what docs/operations.md (changing settings), docs/clients.md (several hosts),
// docs/adopt.md (PgBouncer) and docs/backup.md tell to do.
func TestE2EDocs(t *testing.T) {
	d := documented{operator: operator{t: t, binary: buildBinary(t)}}
	d.c = newCluster(t, holdfast.ClusterConfig{Binary: d.binary, Prefix: "holdfast-e2e"})
	dir, err := os.MkdirTemp("/tmp", "hfdocs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	giveToPostgres(t, dir)
	d.archive, d.backup = filepath.Join(dir, "wal"), filepath.Join(dir, "base")
	d.asPostgres("mkdir", d.archive)
	for _, n := range d.c.Nodes {
		if err := n.Configure(d.configure); err != nil {
			t.Fatal(err)
		}
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	waitHealthy(t, d.c)
	makeDatabase(t, d.c)
	if d.secret, err = d.c.Secret("superuser"); err != nil {
		t.Fatal(err)
	}
	t.Run("settings", d.testSettings)
	t.Run("pgbouncer", d.testPgBouncer)
	t.Run("backup", d.testBackup)
}

// archiveCommand is that of docs/backup.md. A file that is there is another member's copy: to
// compare them would stop the archive, since copies of the last segment of a timeline differ behind
// its end. One that is being written has another name.
const archiveCommand = "test -e DIR/%f || { cp %p DIR/%f.$(hostname)-$$ && " +
	"mv DIR/%f.$(hostname)-$$ DIR/%f; }"

// configure is what docs/backup.md has in each node's file.
func (d documented) configure(cfg *config.Config) {
	cfg.Postgres.Settings = append(cfg.Postgres.Settings, "archive_mode = always",
		"archive_command = '"+strings.ReplaceAll(archiveCommand, "DIR", d.archive)+"'")
	cfg.Postgres.HBA = []string{"host replication rep 127.0.0.0/8 scram-sha-256"}
	cfg.Proxy.HBA = []string{"host replication rep 127.0.0.0/8 scram-sha-256",
		"host all all all scram-sha-256"}
}

// asPostgres runs a program of PostgreSQL, or of the machine, as PostgreSQL's account.
func (d documented) asPostgres(program string, args ...string) string {
	d.t.Helper()
	path := d.c.Program(program)
	if _, err := os.Stat(path); err != nil {
		path = program
	}
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin:/usr/sbin", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: d.account()}
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// account is the one that PostgreSQL runs as; nil: this one.
func (d documented) account() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(filepath.Dir(d.c.Nodes[0].DataDir))
	if err != nil {
		d.t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	return &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
}

// boss is a superuser's session through a node's proxy.
func (d documented) boss(t *testing.T, n *holdfast.ClusterNode) *pgx.Conn {
	t.Helper()
	return connect(t, fmt.Sprintf("postgres://postgres:%s@%s/postgres", d.secret, n.Proxy))
}

// testSettings changes PostgreSQL's settings in the file of the primary's node: some when the node
// is started again, some when the server is. Nobody else's session ends, and clients that name
// several hosts find another one meanwhile.
func (d documented) testSettings(t *testing.T) {
	d.t = t
	st := waitHealthy(t, d.c)
	primary, other := d.c.Node(st.Primary), away(t, d.c)
	kept := d.boss(t, other)
	load := startCounterOf(t, connect(t, e2eDSN(other)),
		"CREATE TABLE IF NOT EXISTS op (i int); INSERT INTO op VALUES (1)")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := primary.Terminate(ctx); err != nil {
		t.Fatal(err)
	}
	several := strings.Replace(e2eDSN(other), "@", "@"+primary.Proxy+",", 1)
	if got := queryText(t, connect(t, several), "SELECT 'found'"); got != "found" {
		t.Errorf("with two hosts: %q", got)
	}
	err := primary.Configure(func(cfg *config.Config) {
		d.configure(cfg)
		cfg.Postgres.Settings = append(cfg.Postgres.Settings, "work_mem = 5MB",
			"superuser_reserved_connections = 5")
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := primary.Start(); err != nil {
		t.Fatal(err)
	}
	waitUntilText(t, kept, "SELECT string_agg(name || ' ' || setting || ' ' || pending_restart, ', ' "+
		"ORDER BY name) FROM pg_settings WHERE name IN ('work_mem', 'superuser_reserved_connections')",
		"superuser_reserved_connections 3 true, work_mem 5120 false", 30*time.Second)
	if now := waitHealthy(t, d.c); now.Epoch != st.Epoch {
		t.Errorf("starting a node again changed the epoch from %d to %d", st.Epoch, now.Epoch)
	}
	d.must(other, "restart", primary.Name)
	if got := queryText(t, kept, "SHOW superuser_reserved_connections"); got != "5" {
		t.Errorf("superuser_reserved_connections is %s after the restart", got)
	}
	load.end(t, "change of settings")
}

// testPgBouncer: PgBouncer in transaction mode before a proxy. Its clients see no error in a
// switchover, and each commit is there once.
func (d documented) testPgBouncer(t *testing.T) {
	d.t = t
	if _, err := os.Stat("/usr/sbin/pgbouncer"); err != nil {
		skipUnlessCI(t, "PgBouncer is not installed: %v", err)
	}
	addr := d.startPgBouncer(t, away(t, d.c))
	dsn := fmt.Sprintf("postgres://%s:x@%s/%[1]s?default_query_exec_mode=simple_protocol&"+
		"sslmode=disable", e2eUser, addr)
	conn := connect(t, dsn)
	exec1(t, conn, "CREATE TABLE pooled (client int, n int)")
	const clients = 12 // over four server connections
	var wg sync.WaitGroup
	stop := make(chan struct{})
	done := make([]atomic.Int64, clients)
	for i := range clients {
		conn := connect(t, dsn)
		wg.Go(func() {
			for n := int64(0); ; n = done[i].Add(1) {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
					_, err := tx.Exec(t.Context(), "SELECT count(*) FROM pooled WHERE n = $1", n)
					if err == nil {
						_, err = tx.Exec(t.Context(), "INSERT INTO pooled VALUES ($1, $2)", i, n)
					}
					return err
				})
				if err != nil {
					t.Errorf("client %d after %d commits: %v", i, n, err)
					return
				}
			}
		})
	}
	each := func() { // work of every client: before, across and after the change
		for i := range done {
			for was := done[i].Load(); done[i].Load() < was+3 && !t.Failed(); {
				time.Sleep(time.Millisecond)
			}
		}
	}
	each()
	before := waitHealthy(t, d.c)
	d.must(d.c.Nodes[0], "switchover")
	if after := waitHealthy(t, d.c); after.Primary == before.Primary {
		t.Error("the primary is the same")
	}
	each()
	close(stop)
	wg.Wait()
	sum := int64(0)
	for i := range done {
		sum += done[i].Load()
	}
	got := queryText(t, conn, "SELECT count(*) || ' ' || count(DISTINCT (client, n)) FROM pooled")
	if want := fmt.Sprintf("%d %[1]d", sum); got != want {
		t.Errorf("%s rows, and different ones; %d commits", got, sum)
	}
}

// startPgBouncer runs PgBouncer in front of a node's proxy, and returns where it listens.
func (d documented) startPgBouncer(t *testing.T, n *holdfast.ClusterNode) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	host, port, _ := net.SplitHostPort(addr)
	proxyHost, proxyPort, _ := net.SplitHostPort(n.Proxy)
	dir := filepath.Dir(d.archive)
	users, ini := filepath.Join(dir, "users.txt"), filepath.Join(dir, "pgbouncer.ini")
	for path, text := range map[string]string{
		users: fmt.Sprintf("%q %q\n", e2eUser, e2ePassword),
		ini: fmt.Sprintf("[databases]\n* = host=%s port=%s\n[pgbouncer]\nlisten_addr = %s\n"+
			"listen_port = %s\nunix_socket_dir =\nauth_type = trust\nauth_file = %s\n"+
			"pool_mode = transaction\ndefault_pool_size = 4\nlogfile =\npidfile =\n"+
			"ignore_startup_parameters = extra_float_digits\n", proxyHost, proxyPort, host, port, users),
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/usr/sbin/pgbouncer", ini)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: d.account(), Pdeathsig: syscall.SIGKILL}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("PgBouncer:\n%s", said.String())
		}
	})
	for until := time.Now().Add(20 * time.Second); ; {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			_ = c.Close()
			return addr
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // it tells nobody when it listens
	}
}
