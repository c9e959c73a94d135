package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	holdfast "holdfast/cmd/holdfast"
)

// This file runs Patroni as its users do, on its Raft store: three members, each a process of its
// own beside its server.

// The ports of Patroni's REST interface, where it always is, and of its Raft store.
const (
	patroniRESTPort = "8008"
	patroniRaftPort = "5010"
)

// needPatroni skips the test, or fails it in CI, unless there is Patroni with its Raft store.
func needPatroni(t *testing.T) {
	t.Helper()
	needCluster(t)
	for _, name := range []string{"patroni", "patronictl"} {
		if _, err := exec.LookPath(name); err != nil {
			skipUnlessCI(t, "Patroni: %v", err)
		}
	}
	out, err := exec.Command("/usr/bin/python3", "-c", "import pysyncobj").CombinedOutput()
	if err != nil {
		skipUnlessCI(t, "Patroni's Raft store (python3-pysyncobj): %v: %s", err, out)
	}
}

// realPatroni is a cluster that Patroni itself has made and runs.
type realPatroni struct {
	*patroniCluster
	procs map[string]*exec.Cmd // by node; waited for by stop alone
}

// startPatroni starts all members and waits until one is primary and two stream from it.
func startPatroni(t *testing.T) *realPatroni {
	t.Helper()
	c := &realPatroni{newAdoptCluster(t), map[string]*exec.Cmd{}}
	t.Cleanup(func() {
		c.stop(syscall.SIGKILL)
		for _, n := range c.Nodes {
			if t.Failed() {
				b, _ := os.ReadFile(c.patroniLog(n))
				t.Logf("Patroni and the server of %s:\n%s", n.Name, b[max(0, len(b)-5000):])
			}
		}
	})
	for _, n := range c.Nodes {
		c.startMember(n)
	}
	c.awaitMembers("a primary and two standbys", func(all []patroniMember) bool {
		i := slices.IndexFunc(all, patroniMember.isPrimary)
		return i >= 0 && all[i].streams() == len(all)-1 &&
			!slices.ContainsFunc(all, func(m patroniMember) bool { return !m.isUp() })
	})
	return c
}

// patroniDir is the home of a member's Patroni.
func (c *realPatroni) patroniDir(n *holdfast.ClusterNode) string {
	return filepath.Join(n.Dir, "patroni")
}

func (c *realPatroni) patroniConf(n *holdfast.ClusterNode) string {
	return filepath.Join(c.patroniDir(n), "patroni.yml")
}

// patroniLog has what Patroni logs, and the server that it has started.
func (c *realPatroni) patroniLog(n *holdfast.ClusterNode) string {
	return filepath.Join(c.patroniDir(n), "log")
}

// patroniYAML is the configuration of a member. The times are the shortest that every version
// allows. What parameters there are is written into postgresql.conf, and in part on the command
// line of the server as well.
const patroniYAML = `scope: batman
name: %[1]s
restapi:
  listen: %[2]s:` + patroniRESTPort + `
  connect_address: %[2]s:` + patroniRESTPort + `
raft:
  data_dir: %[3]s/raft
  self_addr: %[2]s:` + patroniRaftPort + `
  bind_addr: %[2]s:` + patroniRaftPort + `
  partner_addrs: [%[4]s]
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 1
    retry_timeout: 3
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
        max_connections: 100
        shared_buffers: 32MB
        dynamic_shared_memory_type: mmap
        password_encryption: scram-sha-256
  initdb:
  - encoding: UTF8
  - auth-local: peer
postgresql:
  listen: %[5]s
  connect_address: %[5]s
  data_dir: %[6]s
  bin_dir: %[7]s
  pgpass: %[3]s/pgpass
  authentication:
    superuser: {username: postgres, password: of the superuser}
    replication: {username: replicator, password: of replication}
    rewind: {username: rewinder, password: of the rewind}
  parameters:
    unix_socket_directories: %[8]s
  pg_hba:
  - local all all peer
  - host replication replicator 127.0.0.0/8 scram-sha-256
  - host all app 127.0.0.0/8 trust
  - host all postgres,rewinder 127.0.0.0/8 scram-sha-256
  callbacks:
    on_role_change: /bin/true
`

// startMember starts Patroni as PostgreSQL's account.
func (c *realPatroni) startMember(n *holdfast.ClusterNode) {
	c.t.Helper()
	dir := c.patroniDir(n)
	var partners []string
	for _, other := range c.Nodes {
		if other != n {
			partners = append(partners, "'"+net.JoinHostPort(other.Host, patroniRaftPort)+"'")
		}
	}
	conf := fmt.Sprintf(patroniYAML, n.Name, n.Host, dir, strings.Join(partners, ", "), n.Postgres,
		n.DataDir, filepath.Dir(c.Program("postgres")), filepath.Dir(n.DataDir))
	if err := os.MkdirAll(filepath.Join(dir, "raft"), 0o700); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(c.patroniConf(n), []byte(conf), 0o600); err != nil {
		c.t.Fatal(err)
	}
	log, err := os.Create(c.patroniLog(n))
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close() // the process has its own
	if a := c.account(); a != nil {
		for _, path := range []string{dir, filepath.Join(dir, "raft"), c.patroniConf(n)} {
			if err := os.Chown(path, int(a.Uid), int(a.Gid)); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	cmd := exec.Command("patroni", c.patroniConf(n))
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, c.patroniEnv(n), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.account(), Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.procs[n.Name] = cmd
}

func (c *realPatroni) patroniEnv(n *holdfast.ClusterNode) []string {
	return []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "HOME=" + c.patroniDir(n)}
}

// stop signals every Patroni that runs and waits for its end. With SIGTERM, as `systemctl stop`
// sends it, one that does not end in time fails the test.
func (c *realPatroni) stop(sig syscall.Signal) {
	for _, cmd := range c.procs {
		_ = cmd.Process.Signal(sig)
	}
	for name, cmd := range c.procs {
		late := time.AfterFunc(30*time.Second, func() {
			c.t.Errorf("Patroni of %s does not end", name)
			_ = cmd.Process.Kill()
		})
		err := cmd.Wait()
		late.Stop()
		if err != nil && sig != syscall.SIGKILL {
			c.t.Errorf("Patroni of %s: %v", name, err)
		}
	}
	c.procs = nil
}

// patronictl runs Patroni's command and returns what it printed.
func (c *realPatroni) patronictl(args ...string) string {
	c.t.Helper()
	n := c.Nodes[0]
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "patronictl", append([]string{"-c", c.patroniConf(n)}, args...)...)
	cmd.Dir, cmd.Env = c.patroniDir(n), c.patroniEnv(n)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.account()}
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("patronictl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// patroniMember is what a member's REST interface tells of it.
type patroniMember struct {
	Node        *holdfast.ClusterNode `json:"-"`
	State, Role string
	Pause       bool
	Replication []struct{ State string }
}

// isUp and isPrimary know the words of all versions. A clone that is being made streams as well.
func (m patroniMember) isUp() bool { return m.State == "running" || m.State == "streaming" }

func (m patroniMember) isPrimary() bool {
	return m.isUp() && (m.Role == "master" || m.Role == "primary")
}

// streams is how many standbys stream from a member.
func (m patroniMember) streams() int {
	n := 0
	for _, r := range m.Replication {
		if r.State == "streaming" {
			n++
		}
	}
	return n
}

// members asks every member; one that does not answer is empty.
func (c *realPatroni) members() []patroniMember {
	all := make([]patroniMember, len(c.Nodes))
	client := &http.Client{
		Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
	}
	for i, n := range c.Nodes {
		resp, err := client.Get("http://" + net.JoinHostPort(n.Host, patroniRESTPort) + "/patroni")
		if err == nil {
			_ = json.NewDecoder(resp.Body).Decode(&all[i]) // half of one is no member yet
			_ = resp.Body.Close()
		}
		all[i].Node = n
	}
	return all
}

// awaitMembers waits until the members are as wanted, as long as waitHealthy does for Holdfast's.
func (c *realPatroni) awaitMembers(what string, ok func([]patroniMember) bool) []patroniMember {
	c.t.Helper()
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		all := c.members()
		if ok(all) {
			c.t.Logf("Patroni: %s after %.1f s", what, time.Since(begin).Seconds())
			return all
		}
		if time.Since(begin) > 2*time.Minute {
			c.t.Fatalf("Patroni has not %s: %+v", what, all)
		}
	}
}
