package election_test

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/election"
)

// adoptRestart plans and applies with a restart.
func (c *adoptCluster) adoptRestart(name string) error {
	c.t.Helper()
	d := c.adoption(name, func(cfg *election.AdoptConfig) { cfg.Restart = true })
	defer d.Close()
	p := c.plan(d)
	if len(p.Refusals) > 0 {
		c.t.Fatalf("%s: refused: %q", name, p.Refusals)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return d.Apply(ctx, p)
}

// mustStayDown makes the next start of a member's server fail, which no reload tells.
func (c *adoptCluster) mustStayDown(name string, down bool) {
	cfg := c.cfgs[name]
	cfg.Settings = slices.DeleteFunc(slices.Clone(cfg.Settings), func(s string) bool {
		return strings.HasPrefix(s, "shared_preload_libraries")
	})
	if down {
		cfg.Settings = append(cfg.Settings, "shared_preload_libraries = 'no_such_library'")
	}
	c.cfgs[name] = cfg
}

// checkAsBefore looks that the server runs and has its catalogue, settings and files.
func (c *adoptCluster) checkAsBefore(name, catalog string, files map[string]string) {
	c.t.Helper()
	if now := c.admin(name, adoptCatalogSQL); now != catalog {
		was := strings.Split(catalog, "\n")
		for _, l := range strings.Split(now, "\n") {
			if !slices.Contains(was, l) {
				c.t.Errorf("%s: in the catalogue after the way back: %s", name, l)
			}
		}
		c.t.Errorf("%s: the catalogue is another one", name)
	}
	after := c.filesOf(name)
	for _, path := range slices.Sorted(maps.Keys(after)) {
		isOwn := strings.HasPrefix(path, "data.holdfast")
		if path == "data.holdfast/agent.json" || path == "data.holdfast/pgpass" ||
			!isOwn && files[path] != after[path] && path != "data/postmaster.pid" {
			c.t.Errorf("%s: %s is not as before", name, path)
		}
	}
	for path := range files {
		if after[path] == "" {
			c.t.Errorf("%s: %s is gone", name, path)
		}
	}
}

// awaitSQL waits until a query of the account's own superuser gives what is wanted.
func (c *adoptCluster) awaitSQL(name, sql, want string) {
	c.t.Helper()
	got := ""
	for range 400 {
		if got = c.admin(name, sql); got == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.t.Fatalf("%s: %s: %q, want %q", name, sql, got, want)
}

// TestAdoptRestartThatFailsIsUndone: a server that does not come up with the new settings is
// started as it was, with its command line, its files and its catalogue, and can be adopted once
// the cause is gone (DESIGN.md I80).
func TestAdoptRestartThatFailsIsUndone(t *testing.T) {
	c := newAdoptCluster(t, 2, "n1")
	files, catalog := c.filesOf("n1"), c.admin("n1", adoptCatalogSQL)
	pid := c.pid("n1")
	c.mustStayDown("n1", true)
	err := c.adoptRestart("n1")
	if err == nil || !strings.Contains(err.Error(), "no_such_library") ||
		!strings.Contains(err.Error(), "runs as before") {
		t.Fatalf("a restart that cannot succeed: %v", err)
	}
	if now := c.pid("n1"); now == pid || now == 0 {
		t.Errorf("pid %d, before %d", now, pid)
	}
	c.checkAsBefore("n1", catalog, files)
	c.admin("n1", "INSERT INTO t VALUES (1)")
	c.mustStayDown("n1", false)
	if err := c.adoptRestart("n1"); err != nil {
		t.Fatal(err)
	}
	if got := c.admin2("n1", "SHOW cluster_name"); got != "n1" {
		t.Errorf("cluster_name %q", got)
	}
}

// TestAdoptRestartUndoesOutside: the same for a server whose configuration is outside of its data
// directory, as Debian's packages have it, and that was adopted before as it ran.
func TestAdoptRestartUndoesOutside(t *testing.T) {
	c := newAdoptCluster(t, 2)
	c.makePrimary("n1")
	dir := c.cfgs["n1"].DataDir
	adoptRun(t, "pg_ctl", "stop", "-s", "-w", "-m", "fast", "-D", dir)
	etc := filepath.Join(c.parent("n1"), "etc")
	if err := os.Mkdir(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"postgresql.conf", "pg_hba.conf", "pg_ident.conf"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(etc, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c.append("n1", "pg_hba.conf", "# nobody reads this one\n")
	c.startByHand("n1", "-c config_file="+etc+"/postgresql.conf", "-c hba_file="+etc+
		"/pg_hba.conf", "-c ident_file="+etc+"/pg_ident.conf", "-c data_directory="+dir)
	files := c.filesOf("n1")
	c.adopt("n1")
	c.mustStayDown("n1", true)
	err := c.adoptRestart("n1")
	if err == nil || !strings.Contains(err.Error(), "runs as before") {
		t.Fatalf("a restart that cannot succeed: %v", err)
	}
	if got := c.admin("n1", "SHOW config_file"); got != etc+"/postgresql.conf" {
		t.Errorf("it runs with %s", got)
	}
	after := c.filesOf("n1")
	for path := range files {
		if path != "data/postmaster.pid" && after[path] != files[path] {
			t.Errorf("%s is not as before", path)
		}
	}
	c.mustStayDown("n1", false)
	if err := c.adoptRestart("n1"); err != nil {
		t.Fatal(err)
	}
	if got := c.admin2("n1", "SHOW config_file"); got != dir+"/postgresql.conf" {
		t.Errorf("after the restart it runs with %s", got)
	}
}

// TestAdoptRestartOfAStandby: one that was adopted as it ran, and then does not come up, goes back
// to what it was before the first of the two, but for what others have changed since. The primary
// is restarted last: before that its greater settings would stop the standby's replay.
func TestAdoptRestartOfAStandby(t *testing.T) {
	c := newAdoptCluster(t, 2, "n1", "n2")
	c.awaitSQL("n1", "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn IS NOT NULL", "1")
	d := c.adoption("n1", func(cfg *election.AdoptConfig) { cfg.Restart = true })
	if p := c.plan(d); !strings.Contains(strings.Join(p.Refusals, "\n"), "max_wal_senders grow") {
		t.Errorf("a restart of the primary first: refusals %q", p.Refusals)
	}
	d.Close()
	c.adopt("n1")
	before := c.filesOf("n2")
	c.adopt("n2")
	c.mustStayDown("n2", true)
	c.append("n2", "postgresql.conf", "work_mem = 5MB\n")
	err := c.adoptRestart("n2")
	if err == nil || !strings.Contains(err.Error(), "runs as before") {
		t.Fatalf("a restart that cannot succeed: %v", err)
	}
	now := c.filesOf("n2")
	for _, path := range []string{"data/pg_hba.conf", "data/postmaster.opts",
		"data/standby.signal", "data/holdfast.conf", "data/holdfast.json",
		"data.holdfast/agent.json"} {
		if now[path] != before[path] {
			t.Errorf("n2: %s is not as before", path)
		}
	}
	b, err := os.ReadFile(c.cfgs["n2"].DataDir + "/postgresql.conf")
	if err != nil || strings.Contains(string(b), "holdfast.conf") ||
		!strings.Contains(string(b), "work_mem = 5MB") {
		t.Errorf("n2: postgresql.conf: %v\n%s", err, b)
	}
	c.awaitSQL("n2", "SELECT slot_name IS NULL, status FROM pg_stat_wal_receiver", "t|streaming")

	c.mustStayDown("n2", false)
	if err := c.adoptRestart("n2"); err != nil {
		t.Fatal(err)
	}
	if err := c.adoptRestart("n1"); err != nil {
		t.Fatal(err)
	}
	for range 400 {
		if c.streamsBySlot("n2") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if !c.streamsBySlot("n2") {
		t.Error("the standby does not stream by its slot")
	}
	c.admin2("n1", "CREATE TABLE after_both (n int)")
	for range 400 {
		if c.admin2("n2", "SELECT to_regclass('after_both')") != "" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("the standby does not replay what the restarted primary wrote")
}
