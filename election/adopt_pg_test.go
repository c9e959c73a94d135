package election_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/election"
)

// adoptRun runs one of PostgreSQL's programs as its account.
func adoptRun(t *testing.T, args ...string) string {
	t.Helper()
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(dirs) > 0 {
		args[0] = filepath.Join(dirs[len(dirs)-1], args[0])
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)},
		}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out.String())
	}
	return out.String()
}

// adoptCluster is a cluster that somebody made by hand: a primary n1 and streaming standbys.
type adoptCluster struct {
	*agentCluster
	sock string
}

// parent is where the servers of the hand-made cluster are.
func (c *adoptCluster) parent(name string) string {
	return filepath.Dir(c.cfgs[name].DataDir)
}

// newAdoptCluster makes n members; the servers of the names given are set up and started, the
// first one as the primary.
func newAdoptCluster(t *testing.T, n int, names ...string) *adoptCluster {
	t.Helper()
	c := &adoptCluster{agentCluster: newAgentCluster(t, n)}
	c.sock = filepath.Join(c.dir, "sock")
	dirs := []string{c.sock}
	for name := range c.cfgs {
		dirs = append(dirs, c.parent(name))
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if u, err := user.Lookup("postgres"); err == nil && os.Geteuid() == 0 {
			uid, _ := strconv.Atoi(u.Uid)
			if err := os.Chown(dir, uid, -1); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, name := range names {
		if i == 0 {
			c.makePrimary(name)
		} else {
			c.makeStandby(name, names[0])
		}
	}
	return c
}

func (c *adoptCluster) makePrimary(name string) {
	dir := c.cfgs[name].DataDir
	adoptRun(c.t, "initdb", "-D", dir, "-U", "postgres", "-A", "peer", "-E", "UTF8", "-N")
	err := os.WriteFile(filepath.Join(dir, "pg_hba.conf"), []byte("# by hand\nlocal all app trust\n"+
		"local all all peer\nhost replication streamer 127.0.0.0/8 trust\n"+
		"host all app 127.0.0.0/8 trust\n"), 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	c.append(name, "postgresql.conf", "shared_buffers = 16MB\nmax_connections = 40\n"+
		"wal_log_hints = on\nwal_keep_size = 32MB\n")
	c.startByHand(name)
	c.admin(name, "CREATE ROLE streamer LOGIN REPLICATION; CREATE ROLE app LOGIN")
	c.admin(name, "CREATE TABLE t (n int); GRANT ALL ON t TO app")
}

func (c *adoptCluster) append(name, file, text string) {
	c.t.Helper()
	f, err := os.OpenFile(filepath.Join(c.cfgs[name].DataDir, file), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString(text); err != nil {
		c.t.Fatal(err)
	}
}

// startByHand starts a server as its owner would, with more on the command line if there is any.
func (c *adoptCluster) startByHand(name string, more ...string) {
	host, port, _ := net.SplitHostPort(c.cfgs[name].Listen)
	opts := fmt.Sprintf("-c listen_addresses=%s -c port=%s -c unix_socket_directories=%s %s",
		host, port, c.sock, strings.Join(more, " "))
	adoptRun(c.t, "pg_ctl", "start", "-s", "-w", "-D", c.cfgs[name].DataDir,
		"-l", filepath.Join(c.parent(name), "log"), "-o", opts)
	c.t.Cleanup(func() { c.killServer(name) })
}

func (c *adoptCluster) makeStandby(name, from string) {
	host, port, _ := net.SplitHostPort(c.cfgs[from].Listen)
	adoptRun(c.t, "pg_basebackup", "-D", c.cfgs[name].DataDir, "-h", host, "-p", port, "-U",
		"streamer", "--checkpoint=fast", "-X", "stream", "-R")
	c.startByHand(name)
}

// admin runs SQL as the account's own superuser, by the socket.
func (c *adoptCluster) admin(name, sql string) string {
	c.t.Helper()
	_, port, _ := net.SplitHostPort(c.cfgs[name].Listen)
	return strings.TrimSpace(adoptRun(c.t, "psql", "-X", "-A", "-t", "-q", "-h", c.sock, "-p",
		port, "-U", "postgres", "-d", "postgres", "-c", sql))
}

func (c *adoptCluster) adoption(name string, change ...func(*election.AdoptConfig),
) *election.Adoption {
	c.t.Helper()
	cfg := election.AdoptConfig{Agent: c.cfgs[name], Members: c.members,
		SyncMode: election.SyncQuorum, ManagerURLs: []string{}}
	for _, f := range change {
		f(&cfg)
	}
	d, err := election.NewAdoption(cfg, c.log())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(d.Close)
	return d
}

func (c *adoptCluster) plan(d *election.Adoption) *election.AdoptPlan {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	p, err := d.Plan(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// adopt plans and applies.
func (c *adoptCluster) adopt(name string) *election.AdoptPlan {
	c.t.Helper()
	d := c.adoption(name)
	defer d.Close()
	p := c.plan(d)
	if len(p.Refusals) > 0 {
		c.t.Fatalf("%s: refused: %q", name, p.Refusals)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := d.Apply(ctx, p); err != nil {
		log, _ := os.ReadFile(filepath.Join(c.parent(name), "log"))
		c.t.Fatalf("%s: %v\n%s", name, err, log)
	}
	return p
}

// filesOf gives a digest of every file below the member's directory, but for those that a
// running server writes by itself.
func (c *adoptCluster) filesOf(name string) map[string]string {
	c.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(c.parent(name), func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(c.parent(name), path)
		if err != nil {
			return nil // a temporary file that went
		}
		for _, own := range []string{"data/pg_wal", "data/pg_stat", "data/base", "data/global",
			"data/pg_xact", "data/pg_subtrans", "data/pg_logical", "data/pg_notify", "log",
			"data/pg_stat_tmp", "data/pg_replslot", "data.holdfast/run",
			"data.holdfast/postgresql.log"} {
			if rel == own {
				if e.IsDir() {
					return filepath.SkipDir
				}
				return nil
			}
		}
		if e.IsDir() {
			out[rel] = "directory"
			return nil
		}
		b, _ := os.ReadFile(path)
		out[rel] = fmt.Sprintf("%x", sha256.Sum256(b))
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// adoptCatalogSQL is all that an adoption could change in the catalogue, and every setting.
const adoptCatalogSQL = `SELECT string_agg(t, E'\n' ORDER BY t) FROM (
 SELECT 'role ' || r::text AS t FROM pg_authid r
 UNION ALL SELECT 'schema ' || n::text FROM pg_namespace n
 UNION ALL SELECT 'function ' || p.oid::regprocedure || coalesce(p.proacl::text, '') FROM pg_proc p
 UNION ALL SELECT 'member ' || m::text FROM pg_auth_members m
 UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots
 UNION ALL SELECT 'setting ' || name || '=' || setting || ' ' || pending_restart FROM pg_settings
  WHERE name NOT IN ('in_hot_standby', 'application_name')) x`

func TestAdoptDryRunChangesNothing(t *testing.T) {
	c := newAdoptCluster(t, 3, "n1", "n2")
	for _, name := range []string{"n1", "n2"} {
		before, catalog := c.filesOf(name), c.admin(name, adoptCatalogSQL)
		d := c.adoption(name)
		p := c.plan(d)
		d.Close()
		for _, ch := range p.Changes {
			t.Logf("%s: %v", name, ch)
		}
		t.Logf("%s: limits %q refusals %q", name, p.Limits, p.Refusals)
		after := c.filesOf(name)
		for path, sum := range after {
			if before[path] != sum {
				t.Errorf("%s: dry run changed %s", name, path)
			}
		}
		if len(before) != len(after) || len(before) < 10 {
			t.Errorf("%s: %d files before, %d after", name, len(before), len(after))
		}
		if now := c.admin(name, adoptCatalogSQL); now != catalog {
			t.Errorf("%s: dry run changed the catalogue", name)
		}
	}
}

// TestAdoptListsWhatWaits: whatever waits for a restart after an adoption was listed to do so, also
// what comes with the end of a line. A line that says what holds without it, as Patroni writes them
// on a standby, is left where it is.
func TestAdoptListsWhatWaits(t *testing.T) {
	c := newAdoptCluster(t, 2)
	c.makePrimary("n1")
	adoptRun(t, "pg_ctl", "stop", "-s", "-w", "-D", c.cfgs["n1"].DataDir)
	c.append("n1", "postgresql.conf", "external_pid_file = '"+c.dir+"/n1/pid'\n"+
		"recovery_target_xid = ''\n")
	c.startByHand("n1")
	p := c.adopt("n1")
	waits := []string{}
	for _, ch := range p.Changes {
		if ch.Kind == "setting" && ch.When == election.AdoptRestart {
			waits = append(waits, ch.Object)
		}
	}
	if !slices.Contains(waits, "external_pid_file") {
		t.Errorf("it is listed that %v wait, not external_pid_file", waits)
	}
	const pending = "SELECT string_agg(name, ' ') FROM pg_settings WHERE pending_restart"
	for _, name := range strings.Fields(c.admin2("n1", pending)) {
		if !slices.Contains(waits, name) {
			t.Errorf("%s waits for a restart, and was not listed", name)
		}
	}
	for _, ch := range p.Changes {
		if strings.Contains(ch.From, "recovery_target_xid") || ch.Object == "recovery_target_xid" {
			t.Errorf("a line that changes nothing: %v", ch)
		}
	}
}
