package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/config"
)

// ClusterConfig says what cluster StartCluster makes.
type ClusterConfig struct {
	// Binary is the holdfast to run; empty is the running one.
	Binary string
	// Parent is the directory that the cluster's own is made in; empty is the temporary one.
	Parent string
	// Prefix begins the name of the cluster's directory.
	Prefix string
	// Profile is the timing profile of the group; empty is lan.
	Profile string
	// Fence is the group's; empty is lease.
	Fence string
	// LockBarrier is proxy.lock_barrier_timeout; 0 is the default.
	LockBarrier time.Duration
	// Keep leaves data and logs behind; the processes are ended all the same.
	Keep bool
	// Settings are PostgreSQL settings beside the cluster's own.
	Settings []string
	// Hosts are the nodes' addresses; empty chooses loopback ones.
	Hosts []string
	// Inside runs f where the node of that name lives, such as in a network namespace of its own:
	// its process is started there, and its HTTP interface is reached from there. Empty is here.
	Inside func(node string, f func() error) error
}

// Cluster is three nodes as processes of their own on this machine, each with a PostgreSQL server
// and a loopback address of its own. It owns the processes, the directory and a reaper, a process
// that removes both if this one dies; Close ends all of it.
type Cluster struct {
	// Dir holds everything the cluster writes.
	Dir string
	// Nodes are node1, node2 and node3.
	Nodes []*ClusterNode

	cfg    ClusterConfig
	bin    string // of PostgreSQL
	client *http.Client
	ports  nodePorts
	reaper *reaper
	spec   reapSpec
}

// clusterSize is how many nodes a cluster has: the smallest number that survives a loss with
// synchronous replication.
const clusterSize = 3

// StartCluster makes a cluster and starts its nodes. It returns before they are ready; after an
// error nothing is left.
func StartCluster(ctx context.Context, cfg ClusterConfig) (*Cluster, error) {
	c, err := NewCluster(ctx, cfg)
	if err != nil {
		return nil, err
	}
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// NewCluster makes directory, keys and configurations of a cluster; no node runs yet. After an
// error nothing is left.
func NewCluster(ctx context.Context, cfg ClusterConfig) (*Cluster, error) {
	c := &Cluster{cfg: cfg}
	c.client = &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: c.dial},
	}
	if err := c.prepare(); err != nil {
		return nil, err
	}
	if err := c.makeDir(); err != nil {
		return nil, err
	}
	if err := c.makeNodes(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// prepare finds programs and fills in what the configuration leaves open; it changes nothing.
func (c *Cluster) prepare() error {
	var err error
	if c.cfg.Binary == "" {
		if c.cfg.Binary, err = os.Executable(); err != nil {
			return fmt.Errorf("find own binary: %w", err)
		}
	}
	if c.cfg.Binary, err = filepath.EvalSymlinks(c.cfg.Binary); err != nil {
		return fmt.Errorf("find holdfast: %w", err)
	}
	if c.cfg.Parent == "" {
		c.cfg.Parent = os.TempDir()
	}
	if c.cfg.Parent, err = filepath.Abs(c.cfg.Parent); err != nil {
		return fmt.Errorf("find directory: %w", err)
	}
	if c.cfg.Prefix == "" {
		c.cfg.Prefix = "holdfast-demo"
	}
	if c.cfg.Profile == "" {
		c.cfg.Profile = "lan"
	}
	if c.bin, err = FindPostgres(); err != nil {
		return err
	}
	return checkParent(c.cfg.Parent)
}

// checkParent finds out whether PostgreSQL's account gets to the directory, by going there as that
// account. The nodes would find it out one by one, each in its own log.
func checkParent(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	name := config.Default().Postgres.OSUser
	uid, gid, err := lookupAccount(name)
	if err != nil {
		return err
	}
	cmd := exec.Command("/bin/true")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)},
	}
	if err := cmd.Run(); errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("PostgreSQL's account %s cannot enter %s: name another directory "+
			"(--dir, TMPDIR), or open it and those above by chmod o+x", name, dir)
	}
	return nil // anything else shows when the directory is made
}

// makeDir starts the reaper and then makes the directory that it watches over.
func (c *Cluster) makeDir() error {
	id := make([]byte, 5)
	if _, err := rand.Read(id); err != nil {
		return fmt.Errorf("choose directory: %w", err)
	}
	c.Dir = filepath.Join(c.cfg.Parent, c.cfg.Prefix+"-"+hex.EncodeToString(id))
	c.spec = reapSpec{Dir: c.Dir, Binary: c.cfg.Binary, Keep: c.cfg.Keep}
	var err error
	if c.reaper, err = startReaper(c.cfg.Binary, c.spec); err != nil {
		return err
	}
	if err := makeClusterDir(c.Dir); err != nil {
		return errors.Join(err, c.reaper.close())
	}
	return nil
}

// makeNodes makes keys and configurations.
func (c *Cluster) makeNodes(ctx context.Context) error {
	hosts, ports := c.cfg.Hosts, usualPorts
	if len(hosts) == 0 {
		var err error
		if hosts, ports, err = chooseAddresses(clusterSize); err != nil {
			return err
		}
	}
	c.ports = ports
	args := []string{"init", "--dir", c.pkiDir()}
	for i, host := range hosts {
		n := newClusterNode(c, fmt.Sprintf("node%d", i+1), host, ports)
		c.Nodes = append(c.Nodes, n)
		args = append(args, "--node", n.Name+"="+n.Host)
	}
	if out, err := c.run(ctx, args...); err != nil {
		return fmt.Errorf("make keys: %w: %s", err, out)
	}
	for _, n := range c.Nodes {
		if err := n.Configure(nil); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) pkiDir() string { return filepath.Join(c.Dir, "pki") }

// Serve runs the node in the foreground until it ends by itself, and returns what it printed and
// its exit code. It is for nodes that refuse to run.
func (n *ClusterNode) Serve(ctx context.Context) (string, int, error) {
	out, err := n.cluster.run(ctx, "serve", "-c", n.ConfigPath)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out, exit.ExitCode(), nil
	}
	return out, 0, err
}

// run runs the binary with the node's environment and returns what it printed.
func (c *Cluster) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.cfg.Binary, args...)
	cmd.Dir, cmd.Env = c.Dir, nodeEnv()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

// nodeEnv is the environment without what would change a node's configuration.
func nodeEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "HOLDFAST_") && !strings.HasPrefix(kv, "PG") {
			env = append(env, kv)
		}
	}
	return env
}

// inside runs f where the node lives.
func (c *Cluster) inside(node string, f func() error) error {
	if c.cfg.Inside == nil {
		return f()
	}
	return c.cfg.Inside(node, f)
}

// dial connects to a node's HTTP interface from where the node lives.
func (c *Cluster) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	for _, n := range c.Nodes {
		if n.HTTP != addr {
			continue
		}
		var conn net.Conn
		err := c.inside(n.Name, func() (err error) {
			conn, err = d.DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}
	return d.DialContext(ctx, network, addr)
}

// Node returns the node of a name; nil if there is none.
func (c *Cluster) Node(name string) *ClusterNode {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Secret returns a password that `holdfast init` made.
func (c *Cluster) Secret(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(c.pkiDir(), "secrets", name))
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Binary returns the path of holdfast's binary.
func (c *Cluster) Binary() string { return c.cfg.Binary }

// Program returns the path of one of PostgreSQL's programs.
func (c *Cluster) Program(name string) string { return filepath.Join(c.bin, name) }

// Close ends every process of the cluster and removes its directory. It may be called twice.
func (c *Cluster) Close() error {
	err := reap(c.spec)
	var g errgroup.Group
	for _, n := range c.Nodes {
		g.Go(n.join)
	}
	err = errors.Join(err, g.Wait())
	c.client.CloseIdleConnections()
	if c.reaper != nil {
		err = errors.Join(err, c.reaper.close())
	}
	return err
}

// Output runs one of PostgreSQL's programs to its end and returns what it printed.
func (c *Cluster) Output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, c.Program(name), args...).CombinedOutput()
	return string(out), err
}
