package election_test

import (
	"os"
	"path/filepath"
	"testing"

	"holdfast/election"
)

// TestBootstrapSQLKeepsItsRole: a file of bootstrap_sql may take another role; what is written down
// about how far it came needs the first one, and leaves its role and its transactions as they are.
// A file that goes on after a failure has the role again.
func TestBootstrapSQLKeepsItsRole(t *testing.T) {
	c := newAgentCluster(t, 1)
	path := filepath.Join(c.dir, "roles.sql")
	write := func(last string) {
		text := `CREATE ROLE app; GRANT CREATE ON SCHEMA public TO app;
			CREATE ROLE gone; SET ROLE gone; RESET ROLE; DROP ROLE gone;
			SELECT set_config('role', 'app', false); CREATE TABLE a (); BEGIN; CREATE TABLE b ();
			RESET ROLE; CREATE TABLE super (); ROLLBACK; CREATE TABLE c ();` + last
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cfg := c.cfgs["n1"]
	cfg.BootstrapSQL = []string{path}
	c.cfgs["n1"] = cfg
	c.start("n1")
	c.epoch = 1
	write("CREATE TABLE c ()")
	if _, err := c.tryDo("n1", election.Order{Kind: election.OrderBootstrap}); err == nil {
		t.Fatal("a file that fails was run")
	}
	write("CREATE TABLE d (); SET SESSION AUTHORIZATION app; CREATE TABLE e ()")
	c.commit("n1", c.do("n1", election.Order{Kind: election.OrderBootstrap}))
	c.open("n1")
	got := c.sql("n1", "SELECT string_agg(tablename || ' ' || tableowner, ', ' ORDER BY 1) "+
		"FROM pg_tables WHERE schemaname = 'public'")
	if got != "a app, c app, d app, e app" {
		t.Errorf("tables and their owners: %s", got)
	}
}
