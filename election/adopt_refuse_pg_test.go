package election_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/election"
)

// wantRefusal looks that a plan is refused for the one reason, and that Apply then does nothing.
func (c *adoptCluster) wantRefusal(name, reason string, change ...func(*election.AdoptConfig)) {
	c.t.Helper()
	d := c.adoption(name, change...)
	defer d.Close()
	p := c.plan(d)
	if len(p.Refusals) != 1 || !strings.Contains(p.Refusals[0], reason) {
		c.t.Errorf("%s: refusals %q, want one with %q", name, p.Refusals, reason)
	}
	before := c.filesOf(name)
	if err := d.Apply(context.Background(), p); err == nil {
		c.t.Errorf("%s: a plan that is refused (%s) was applied", name, reason)
	}
	for path, sum := range c.filesOf(name) {
		if before[path] != sum {
			c.t.Errorf("%s: %s was changed in spite of the refusal", name, path)
		}
	}
}

func TestAdoptRefusesWhatIsNoServer(t *testing.T) {
	c := newAdoptCluster(t, 3, "n1")
	c.wantRefusal("n2", "is missing or empty")
	if err := os.MkdirAll(c.cfgs["n2"].DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.cfgs["n2"].DataDir, "notes")
	if err := os.WriteFile(path, []byte("not PostgreSQL's"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.wantRefusal("n2", "is no data directory")
	adoptRun(t, "pg_ctl", "stop", "-s", "-w", "-m", "fast", "-D", c.cfgs["n1"].DataDir)
	c.wantRefusal("n1", "no server runs")
}

func TestAdoptRefusesAnotherSystem(t *testing.T) {
	c := newAdoptCluster(t, 2, "n1")
	c.makePrimary("n2")
	c.adopt("n1")
	c.wantRefusal("n2", "they are not of one cluster")
}

// TestAdoptRefusesAnotherUpstream: n3 streams from n2. That both are of the primary's system does
// not make n3 the primary's standby.
func TestAdoptRefusesAnotherUpstream(t *testing.T) {
	c := newAdoptCluster(t, 3, "n1", "n2")
	c.makeStandby("n3", "n2")
	c.wantRefusal("n2", "adopt the primary's host first")
	c.adopt("n1")
	c.adopt("n2")
	c.waitReceives("n3")
	c.wantRefusal("n3", "which is not the primary n1")
	host, port, _ := net.SplitHostPort(c.cfgs["n1"].Listen)
	c.append("n3", "postgresql.auto.conf", fmt.Sprintf("primary_conninfo = 'user=streamer host=%s "+
		"port=%s'\n", host, port))
	c.admin("n3", "SELECT pg_reload_conf()")
	c.waitSender("n3", net.JoinHostPort(host, port))
	c.adopt("n3") // the remedy that the refusal names
}

// TestAdoptWaitsForTheRoles: what the primary's adoption made reaches a standby a moment later, and
// is no reason to refuse it until then.
func TestAdoptWaitsForTheRoles(t *testing.T) {
	c := newAdoptCluster(t, 2, "n1", "n2")
	c.append("n2", "postgresql.auto.conf", "recovery_min_apply_delay = '1s'\n")
	c.admin("n2", "SELECT pg_reload_conf()")
	c.adopt("n1")
	c.adopt("n2")
}

func (c *adoptCluster) waitReceives(name string) {
	c.t.Helper()
	host, port, _ := net.SplitHostPort(c.cfgs["n2"].Listen)
	c.waitSender(name, net.JoinHostPort(host, port))
}

// waitSender waits until a standby streams from an address.
func (c *adoptCluster) waitSender(name, addr string) {
	c.t.Helper()
	sql := "SELECT status || ' ' || sender_host || ':' || sender_port FROM pg_stat_wal_receiver"
	deadline := time.Now().Add(20 * time.Second)
	for c.admin(name, "SELECT coalesce(("+sql+"), '')") != "streaming "+addr {
		if time.Now().After(deadline) {
			c.t.Fatalf("%s does not stream from %s", name, addr)
		}
		time.Sleep(20 * time.Millisecond) // polls a real server
	}
}

func TestAdoptRefusesWithoutSuperuser(t *testing.T) {
	c := newAdoptCluster(t, 2, "n1")
	try := func(change ...func(*election.AdoptConfig)) error {
		d := c.adoption("n1", change...)
		defer d.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_, err := d.Plan(ctx)
		return err
	}
	err := try(func(cfg *election.AdoptConfig) { cfg.AdminRole = "app" })
	if err == nil || !strings.Contains(err.Error(), "is no superuser") {
		t.Errorf("app looked at the server: %v", err)
	}
	path := filepath.Join(c.cfgs["n1"].DataDir, "pg_hba.conf")
	if err := os.WriteFile(path, []byte("local all all reject\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	adoptRun(t, "pg_ctl", "reload", "-s", "-D", c.cfgs["n1"].DataDir)
	deadline := time.Now().Add(10 * time.Second)
	for err = try(); err == nil && time.Now().Before(deadline); err = try() {
		time.Sleep(20 * time.Millisecond) // the postmaster reads the file by itself
	}
	if err == nil || !strings.Contains(err.Error(), "--admin") {
		t.Errorf("without a login: %v", err)
	}
}

// TestAdoptNeedsRestartForWAL: wal_level cannot change without a restart. It is refused, and done
// if a restart is allowed: then it is listed, and the slots come after it.
func TestAdoptNeedsRestartForWAL(t *testing.T) {
	c := newAdoptCluster(t, 2)
	c.makePrimary("n1")
	adoptRun(t, "pg_ctl", "stop", "-s", "-w", "-m", "fast", "-D", c.cfgs["n1"].DataDir)
	c.append("n1", "postgresql.conf", "wal_level = minimal\nmax_wal_senders = 0\n")
	c.startByHand("n1")
	d := c.adoption("n1")
	if p := c.plan(d); !strings.Contains(strings.Join(p.Refusals, "\n"), "wal_level is minimal") ||
		!strings.Contains(strings.Join(p.Refusals, "\n"), "--restart") {
		t.Errorf("refusals %q", p.Refusals)
	}
	d.Close()
	pid := c.pid("n1")
	d = c.adoption("n1", func(cfg *election.AdoptConfig) { cfg.Restart = true })
	defer d.Close()
	p := c.plan(d)
	listed := false
	for _, ch := range p.Changes {
		listed = listed || ch.Object == "wal_level" && ch.When == election.AdoptRestart
	}
	if len(p.Refusals) > 0 || !listed {
		t.Fatalf("refusals %q, wal_level listed: %v", p.Refusals, listed)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := d.Apply(ctx, p); err != nil {
		t.Fatal(err)
	}
	got := c.admin2("n1", "SELECT current_setting('wal_level') || ' ' || count(*) FROM "+
		"pg_replication_slots")
	if got != "replica 1" || c.pid("n1") == pid {
		t.Errorf("after the restart: %s, pid %d, was %d", got, c.pid("n1"), pid)
	}
}

// TestAdoptRefusesBesidePatroni: a Patroni is known by its process, its sessions, or its REST
// interface; one of another server does not matter.
func TestAdoptRefusesBesidePatroni(t *testing.T) {
	c := newAdoptCluster(t, 2, "n1")
	id := c.admin("n1", "SELECT system_identifier FROM pg_control_system()")
	rest := func(id string) func(*election.AdoptConfig) {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprintf(w, `{"database_system_identifier": %q, "patroni": {"scope": "x"}}`, id)
		}))
		t.Cleanup(s.Close)
		return func(cfg *election.AdoptConfig) { cfg.ManagerURLs = []string{s.URL} }
	}
	c.wantRefusal("n1", "Patroni answers at", rest(id))
	c.wantPlan("n1", rest("7"))
	end := c.fakePatroni("PATRONI_POSTGRESQL_DATA_DIR=" + c.cfgs["n1"].DataDir)
	c.wantRefusal("n1", "patroni runs (pid")
	end()
	end = c.fakePatroni("PATRONI_POSTGRESQL_DATA_DIR=" + t.TempDir())
	c.wantPlan("n1")
	end()
	_, port, _ := net.SplitHostPort(c.cfgs["n1"].Listen)
	conn, err := pgconn.Connect(context.Background(), fmt.Sprintf("host=%s port=%s user=app "+
		"dbname=postgres application_name='Patroni heartbeat'", c.sock, port))
	if err != nil {
		t.Fatal(err)
	}
	c.wantRefusal("n1", "a manager has a session")
	_ = conn.Close(context.Background())
}

// wantPlan looks that a plan is not refused.
func (c *adoptCluster) wantPlan(name string, change ...func(*election.AdoptConfig)) {
	c.t.Helper()
	d := c.adoption(name, change...)
	defer d.Close()
	if p := c.plan(d); len(p.Refusals) > 0 {
		c.t.Errorf("%s: refused: %q", name, p.Refusals)
	}
}

// fakePatroni starts a process that looks like a Patroni.
func (c *adoptCluster) fakePatroni(env string) (end func()) {
	c.t.Helper()
	cmd := &exec.Cmd{Path: "/bin/sleep", Args: []string{"/usr/bin/patroni", "60"},
		Env: []string{env}, Dir: "/"}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
}

// TestAdoptKeepsLinks: a configuration file that is a symbolic link stays one.
func TestAdoptKeepsLinks(t *testing.T) {
	c := newAdoptCluster(t, 2, "n1")
	link := filepath.Join(c.cfgs["n1"].DataDir, "postgresql.conf")
	to := filepath.Join(c.parent("n1"), "managed.conf")
	if err := os.Rename(link, to); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, link); err != nil {
		t.Fatal(err)
	}
	c.adopt("n1")
	if got, err := os.Readlink(link); err != nil || got != to {
		t.Errorf("the link is gone: %q, %v", got, err)
	}
	b, err := os.ReadFile(to)
	if err != nil || !strings.Contains(string(b), "include 'holdfast.conf'") {
		t.Errorf("the file behind the link was not written: %v", err)
	}
}
