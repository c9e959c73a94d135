package proxy_test

import (
	"bytes"
	"context"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// newReplicationRig is a rig whose server lets the role app replicate.
func newReplicationRig(t *testing.T, change func(*proxy.Config)) *rig {
	t.Helper()
	r := newRig(t, func(c *proxy.Config) {
		c.HBA = []string{"host replication app all scram-sha-256", "host app app all scram-sha-256"}
		if change != nil {
			change(c)
		}
	})
	r.server.Configure("wal_level=logical", "max_wal_senders=10", "max_replication_slots=10")
	r.server.Exec("ALTER ROLE app REPLICATION")
	r.server.SetHBA("local all all trust\nhost all,replication all all scram-sha-256\n")
	r.change()
	return r
}

// tool runs a program of PostgreSQL against the proxy.
func (r *rig) tool(ctx context.Context, name string, args ...string) *osexec.Cmd {
	cmd := osexec.CommandContext(ctx, filepath.Join(proxytest.BinDir(r.t), name), args...)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+proxytest.Password)
	return cmd
}

// pg_basebackup takes a whole copy, with its WAL on a second connection, through the proxy.
func TestBaseBackup(t *testing.T) {
	r := newReplicationRig(t, nil)
	r.server.Exec("CREATE TABLE big AS SELECT repeat('x', 1000) v FROM generate_series(1, 20000)")
	dir := filepath.Join(t.TempDir(), "copy")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dsn := strings.Replace(r.dsn(""), "dbname=app", "", 1)
	out, err := r.tool(ctx, "pg_basebackup", "-d", dsn, "-D", dir, "-X", "stream", "-c",
		"fast").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, f := range []string{"PG_VERSION", "backup_manifest", "global/pg_control"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Error(err)
		}
	}
	out, err = osexec.Command(filepath.Join(proxytest.BinDir(t), "pg_verifybackup"),
		dir).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if n := r.count("replication_connections_total", ""); n < 2 {
		t.Errorf("%v replication connections", n)
	}
	if n, _ := r.proxy.Stats(); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

// A stream is relayed as it comes, and ends with 57P01 and the reason when the primary changes;
// pg_receivewal and pg_recvlogical connect again by themselves and go on.
func TestReplicationEndsWithItsPrimary(t *testing.T) {
	for _, c := range []struct{ name, program string }{
		{"physical", "pg_receivewal"}, {"logical", "pg_recvlogical"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newReplicationRig(t, nil)
			dir := t.TempDir()
			file := filepath.Join(dir, "out")
			args := []string{"-d", strings.Replace(r.dsn(""), "dbname=app", "", 1), "-D", dir, "-S",
				"s", "-n", "-v", "--status-interval=1"}
			slot := "SELECT pg_create_physical_replication_slot('s', true)"
			if c.name == "logical" {
				args = []string{"-d", r.dsn(""), "-f", file, "-S", "s", "-n", "-v", "--start",
					"--status-interval=1", "--fsync-interval=1"}
				slot = "SELECT pg_create_logical_replication_slot('s', 'test_decoding')"
			}
			conn := r.connect("")
			exec(t, conn, slot)
			exec(t, conn, "CREATE TABLE t (a text)")
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			cmd := r.tool(ctx, c.program, args...)
			var said bytes.Buffer
			cmd.Stdout, cmd.Stderr = &said, &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			defer func() { cancel(); ended <- <-ended }()
			exec(t, conn, "INSERT INTO t VALUES ('streamed')")
			confirmed := "restart_lsn"
			if c.name == "logical" {
				confirmed = "confirmed_flush_lsn"
			}
			lsn := exec(t, conn, "SELECT pg_current_wal_insert_lsn()")
			for done := "f"; done != "t"; {
				r.server.Exec("SELECT pg_switch_wal()")
				done = exec(t, conn, "SELECT "+confirmed+" >= '"+lsn+"' FROM pg_replication_slots")
				if ctx.Err() != nil {
					t.Fatalf("nothing is confirmed:\n%s", said.String())
				}
			}
			r.change()
			err := <-ended
			ended <- err
			if err == nil || !strings.Contains(said.String(), "terminating replication connection") {
				t.Errorf("ends with %v:\n%s", err, said.String())
			}
			if c.name == "logical" {
				if text, _ := os.ReadFile(file); !strings.Contains(string(text), "streamed") {
					t.Errorf("received %q", text)
				}
			}
			if v := exec(t, conn, "SELECT count(*) FROM t"); v != "1" {
				t.Error(v)
			}
		})
	}
}

// What a replication connection may not do, and what is not known when it does SQL.
func TestReplicationIsJudged(t *testing.T) {
	r := newReplicationRig(t, func(c *proxy.Config) {
		c.HBA = []string{"host app app all scram-sha-256"}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	// The word all of a database is no replication, as in PostgreSQL.
	_, err := dial(ctx, r.dsn("replication=true"))
	if code(err) != "28000" || !strings.Contains(err.Error(), "replication connection") {
		t.Errorf("physical: %v", err)
	}
	if _, err := dial(ctx, r.dsn("replication=perhaps")); code(err) != "22023" {
		t.Errorf("no kind: %v", err)
	}
	c := r.connect("replication=no")
	if v := exec(t, c, "SELECT 1"); v != "1" {
		t.Error(v)
	}
	c = r.connect("replication=database")
	if v := exec(t, c, "SELECT 1"); v != "1" {
		t.Error(v)
	}
	if _, err := c.Exec(ctx, "IDENTIFY_SYSTEM").ReadAll(); err != nil {
		t.Error(err)
	}
}

// A replication connection is behind the gate: under a lease that is over nothing of it reaches the
// server, nor its client.
func TestReplicationStopsWithTheLease(t *testing.T) {
	r := newReplicationRig(t, nil)
	c := r.connect("replication=database")
	exec(t, c, "CREATE TABLE t (a int)")
	w := hijack(t, c)
	w.send(pgwire.AppendQuery(nil, "SELECT pg_sleep(1)"))
	running := func() string {
		return r.server.Exec("SELECT count(*) FROM pg_stat_activity WHERE query LIKE " +
			"'%sleep(1)%' AND state = 'active' AND usename = 'app'")[0][0]
	}
	for running() != "1" {
		time.Sleep(5 * time.Millisecond) // until it runs
	}
	r.lease.Set(0, 0)
	for running() != "0" {
		time.Sleep(5 * time.Millisecond) // until it is answered
	}
	w.send(pgwire.AppendQuery(nil, "INSERT INTO t VALUES (1)"))
	time.Sleep(200 * time.Millisecond) // for what must not happen
	r.proxy.Cut(r.epoch)
	_ = w.c.SetReadDeadline(time.Now().Add(10 * time.Second))
	typ, body, err := w.r.ReadMessage()
	if err != nil || typ != pgwire.SrvError {
		t.Fatalf("got %q, %v", typ, err)
	}
	// The first statement may have been executed, and was: its outcome is not known here.
	if e, _ := pgwire.ParseError(body); e.Code != "08007" || e.Severity != "FATAL" {
		t.Errorf("ends with %v", e)
	}
	r.lead(1, 1)
	if v := r.rows(); v != "0" {
		t.Errorf("%s rows", v)
	}
}
