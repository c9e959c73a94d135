package main_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	holdfast "holdfast/cmd/holdfast"
)

// startHandMadePrimary starts a primary on node1; the other nodes have no data.
func startHandMadePrimary(t *testing.T) *patroniCluster {
	t.Helper()
	c := newHandMadeCluster(t)
	first := c.Nodes[0]
	c.write(first, "pg_hba.conf", "local all all peer\nhost replication streamer 127.0.0.0/8 "+
		"trust\nhost all app 127.0.0.0/8 trust\n")
	c.startByHand(first)
	c.psql(first, "CREATE ROLE streamer LOGIN REPLICATION; CREATE ROLE app LOGIN; "+
		"GRANT CREATE ON SCHEMA public TO app; "+
		"CREATE TABLE t (n int PRIMARY KEY); GRANT ALL ON t TO app")
	return c
}

// startHandMadePair starts a primary on node1 and a standby on node2 as an administrator makes
// them with initdb and pg_basebackup -R; node3 has no data.
func startHandMadePair(t *testing.T) *patroniCluster {
	t.Helper()
	c := startHandMadePrimary(t)
	first, second := c.Nodes[0], c.Nodes[1]
	host, port, _ := net.SplitHostPort(first.Postgres)
	c.asPostgres("pg_basebackup", "-D", second.DataDir, "-h", host, "-p", port, "-U", "streamer",
		"--checkpoint=fast", "-X", "stream", "-R")
	c.startByHand(second)
	return c
}

// startByHand starts a server by pg_ctl alone.
func (c *patroniCluster) startByHand(n *holdfast.ClusterNode) {
	host, port, _ := net.SplitHostPort(n.Postgres)
	c.asPostgres("pg_ctl", "start", "-s", "-w", "-D", n.DataDir, "-l",
		filepath.Join(filepath.Dir(n.DataDir), "log"), "-o", fmt.Sprintf("-c listen_addresses=%s "+
			"-c port=%s -c unix_socket_directories=%s -c shared_buffers=32MB "+
			"-c dynamic_shared_memory_type=mmap", host, port, filepath.Dir(n.DataDir)))
}

// directPgbench runs pgbench after pgbench against a server, never through a proxy.
type directPgbench struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu           sync.Mutex
	runs, ended  int
	transactions int
	errors       []string
}

var directCount = regexp.MustCompile(`transactions actually processed: (\d+)`)

// startDirectPgbench begins; one of two runs opens a connection for each transaction.
func (c *patroniCluster) startDirectPgbench(n *holdfast.ClusterNode) *directPgbench {
	host, port, _ := net.SplitHostPort(n.Postgres)
	to := []string{"-h", host, "-p", port, "-U", "app"}
	if out, err := exec.Command(c.Program("pgbench"), append(to, "-i", "-q", "-s", "2",
		"postgres")...).CombinedOutput(); err != nil {
		c.t.Fatalf("pgbench -i: %v\n%s", err, out)
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	b := &directPgbench{cancel: cancel}
	c.t.Cleanup(func() { cancel(); b.done.Wait() })
	for _, args := range [][]string{{"-c", "4", "-j", "2", "-T", "3"},
		{"-c", "2", "-C", "-R", "40", "-T", "3"}} {
		b.done.Go(func() {
			for ctx.Err() == nil {
				b.run(exec.Command(c.Program("pgbench"), append(append(args, to...), "-n",
					"postgres")...))
			}
		})
	}
	return b
}

func (b *directPgbench) run(cmd *exec.Cmd) {
	b.mu.Lock()
	b.runs++
	b.mu.Unlock()
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended++
	if m := directCount.FindSubmatch(out); m != nil {
		n, _ := strconv.Atoi(string(m[1]))
		b.transactions += n
	}
	text := string(out)
	if err != nil || strings.Contains(text, "error:") || strings.Contains(text, "ERROR") ||
		strings.Contains(text, "aborted") {
		b.errors = append(b.errors, fmt.Sprintf("%v: %s", err, text))
	}
}

// awaitRun waits until a run that began after the call has ended.
func (b *directPgbench) awaitRun(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	want := b.runs + 2 // one of each kind may be under way
	b.mu.Unlock()
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		b.mu.Lock()
		ended := b.ended
		b.mu.Unlock()
		if ended >= want {
			return
		}
		if time.Since(begin) > 60*time.Second {
			t.Fatal("pgbench does not end")
		}
	}
}

// TestE2EAdoptPgbench: while pgbench works directly on the primary of a hand-made pair, with
// standing connections and with one for each transaction, both servers are adopted and the group
// takes its first lock. Nobody sees an error, and no server is restarted.
func TestE2EAdoptPgbench(t *testing.T) {
	needCluster(t)
	c := startHandMadePair(t)
	first, second := c.Nodes[0], c.Nodes[1]
	pids := []int{first.Postmaster(), second.Postmaster()}
	standing := startAdoptLoad(t, first.Postgres, 0)
	bench := c.startDirectPgbench(first)
	bench.awaitRun(t)
	for _, n := range []*holdfast.ClusterNode{first, second} {
		if out, err := c.adopt(n, "--yes"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	st := waitHealthy(t, c.Cluster)
	bench.awaitRun(t) // commits that wait for standbys are seen too
	bench.cancel()
	bench.done.Wait()
	standing.cancel()
	standing.done.Wait()
	t.Logf("%d runs of pgbench, %d transactions, %d runs with errors; %d commits on one connection",
		bench.runs, bench.transactions, len(bench.errors), standing.n.Load())
	for _, e := range bench.errors {
		t.Error(e)
	}
	if bench.transactions < 100 || standing.err != nil || standing.n.Load() < 10 {
		t.Errorf("%d transactions; %d commits on one connection, %v", bench.transactions,
			standing.n.Load(), standing.err)
	}
	for i, n := range []*holdfast.ClusterNode{first, second} {
		if n.Postmaster() != pids[i] {
			t.Errorf("%s: the server was restarted", n.Name)
		}
	}
	if st.Primary != first.Name {
		t.Errorf("primary %q", st.Primary)
	}
}

// TestE2EAdoptAlone: a primary without standbys is adopted while a client writes to it. The group
// takes it over, clones the members without data, and then commits wait for them. Until then nobody
// may be promoted.
func TestE2EAdoptAlone(t *testing.T) {
	needCluster(t)
	c := startHandMadePrimary(t)
	first := c.Nodes[0]
	pid := first.Postmaster()
	load := startAdoptLoad(t, first.Postgres, 0)
	if out, err := c.adopt(first, "--yes"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	st := waitHealthy(t, c.Cluster)
	rows := load.n.Load()
	load.cancel()
	load.done.Wait()
	if load.err != nil || rows < 10 {
		t.Errorf("the client's connection broke after %d commits: %v", load.n.Load(), load.err)
	}
	if st.Primary != first.Name || first.Postmaster() != pid {
		t.Errorf("primary %q, pid %d, was %d", st.Primary, first.Postmaster(), pid)
	}
	waitSync(t, c.Cluster, "of both standbys", time.Minute, func(s *holdfast.SyncStatus) bool {
		return len(s.Names) == 2 && len(s.Leaving) == 0
	})
	got := strings.TrimSpace(c.psql(first, "SELECT current_setting('synchronous_standby_names'), "+
		"(SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming')"))
	if got != `ANY 1 ("node2","node3")|2` {
		t.Errorf("the primary waits for, and is streamed by, %s", got)
	}
}
