package main_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	holdfast "holdfast/cmd/holdfast"
)

// testBackup takes a base backup through a proxy, loses everything else but the archive, restores a
// point in time on one host, and makes a group of it again (docs/backup.md).
func (d documented) testBackup(t *testing.T) {
	d.t = t
	through := d.c.Nodes[1]
	boss, conn := d.boss(t, through), connect(t, e2eDSN(through))
	exec1(t, boss, "CREATE ROLE rep LOGIN REPLICATION PASSWORD '"+repPassword+"'")
	exec1(t, conn, "CREATE TABLE restored (what text)")
	exec1(t, conn, "INSERT INTO restored VALUES ('in the backup')")
	host, port, _ := net.SplitHostPort(through.Proxy)
	d.asPostgres("pg_basebackup", "-d", fmt.Sprintf("host=%s port=%s user=rep password=%s", host,
		port, repPassword), "-D", d.backup, "-X", "stream", "-c", "fast")
	d.asPostgres("pg_verifybackup", d.backup)

	// The archive goes on with the next primary.
	d.must(through, "switchover")
	waitHealthy(t, d.c)
	exec1(t, conn, "INSERT INTO restored VALUES ('in the archive')")
	exec1(t, boss, "SELECT pg_create_restore_point('here')")
	exec1(t, conn, "INSERT INTO restored VALUES ('too late')")
	last := queryText(t, boss, "SELECT pg_walfile_name(pg_switch_wal())")
	d.awaitArchived(t, boss, last)
	_ = boss.Close(t.Context())
	_ = conn.Close(t.Context())

	d.loseEverything(t)
	first := d.c.Nodes[0]
	d.restore(t, first)
	if out, err := d.adopt(first); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, n := range d.c.Nodes {
		configure(t, n, d.configure)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if st := waitHealthy(t, d.c); st.Primary != first.Name {
		t.Errorf("the primary is %s", st.Primary)
	}
	waitSync(t, d.c, "of both standbys", time.Minute, func(s *holdfast.SyncStatus) bool {
		return s.Mode == "quorum" && len(s.Names) == 2 && len(s.Leaving) == 0
	})
	const all = "SELECT string_agg(what, ', ' ORDER BY what) FROM restored"
	if got := queryText(t, connect(t, e2eDSN(d.c.Nodes[2])), all); got != "in the archive, "+
		"in the backup" {
		t.Errorf("restored: %s", got)
	}
	// What waits for a restart, archive_mode for one, comes with it.
	d.must(first, "restart", first.Name)
	waitHealthy(t, d.c)
	for name, want := range map[string]string{"archive_mode": "always", "restore_command": ""} {
		if got := queryText(t, d.boss(t, first), "SHOW "+name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
}

// awaitArchived waits until a file is in the archive, and all others that wait for it.
func (d documented) awaitArchived(t *testing.T, boss *pgx.Conn, last string) {
	t.Helper()
	for until := time.Now().Add(time.Minute); ; {
		waiting := d.unarchived()
		if _, err := os.Stat(filepath.Join(d.archive, last)); err == nil && len(waiting) == 0 {
			break // it has its name once it is whole
		}
		if time.Now().After(until) {
			t.Fatalf("%s, or one of %q, is not archived: %s", last, waiting, queryText(t, boss,
				"SELECT a::text FROM pg_stat_archiver a"))
		}
		waitUntil(t, time.Now().Add(50*time.Millisecond))
	}
}

// unarchived are the files that wait for a member's archive_command. What they wait for may be of
// an older timeline than the newest file of the archive.
func (d documented) unarchived() []string {
	var waiting []string
	for _, n := range d.c.Nodes {
		files, _ := filepath.Glob(filepath.Join(n.DataDir, "pg_wal", "archive_status", "*.ready"))
		waiting = append(waiting, files...)
	}
	return waiting
}

// loseEverything ends all nodes and servers, and removes all that they had: data, Raft's directory
// and the agent's.
func (d documented) loseEverything(t *testing.T) {
	t.Helper()
	for _, n := range d.c.Nodes {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := n.KillNode(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		for _, path := range []string{n.DataDir, n.DataDir + ".holdfast",
			filepath.Join(n.Dir, "state")} {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// restore is the restore of docs/backup.md: the backup in the place of the data, what it had of the
// old group off, recovery to the point, by hand.
func (d documented) restore(t *testing.T, n *holdfast.ClusterNode) {
	t.Helper()
	d.asPostgres("mkdir", "-p", filepath.Dir(n.DataDir))
	d.asPostgres("cp", "-a", d.backup, n.DataDir)
	d.asPostgres("rm", filepath.Join(n.DataDir, "holdfast.json"))
	d.asPostgres("touch", filepath.Join(n.DataDir, "recovery.signal"))
	conf := filepath.Join(n.DataDir, "holdfast.conf")
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(n.Postgres)
	text = fmt.Appendf(text, `
primary_conninfo = ''
synchronous_standby_names = ''
archive_mode = off
listen_addresses = '%s'
port = %s
unix_socket_directories = '%s'
restore_command = 'cp %s/%%f %%p'
recovery_target_name = 'here'
recovery_target_action = promote
`, host, port, filepath.Dir(d.archive), d.archive)
	if err := os.WriteFile(conf, text, 0o600); err != nil {
		t.Fatal(err)
	}
	d.asPostgres("pg_ctl", "start", "-s", "-w", "-D", n.DataDir, "-l",
		filepath.Join(filepath.Dir(d.archive), "restore.log"))
	for until := time.Now().Add(time.Minute); ; {
		out := d.asPostgres("pg_controldata", n.DataDir)
		if strings.Contains(out, "in production") {
			return
		}
		if time.Now().After(until) {
			log, _ := os.ReadFile(filepath.Join(filepath.Dir(d.archive), "restore.log"))
			t.Fatalf("it does not end its recovery:\n%s\n%s", out, log)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (d documented) adopt(n *holdfast.ClusterNode) (string, error) {
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, d.binary, "adopt", "-c", n.ConfigPath,
		"--yes").CombinedOutput()
	d.t.Logf("adopt: %v\n%s", err, out)
	return string(out), err
}
