package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"

	"holdfast/config"
)

// postgresPrograms are the programs that a database node needs.
var postgresPrograms = []string{
	"postgres", "pg_ctl", "initdb", "pg_controldata", "pg_basebackup", "pg_rewind",
}

// FindPostgres returns the directory with PostgreSQL's programs: that of Debian's newest version,
// else that of PATH. The error is one line that says what to install.
func FindPostgres() (string, error) {
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", fmt.Errorf("find PostgreSQL: %w", err)
	}
	version := func(dir string) int {
		n, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		if err != nil {
			return 0
		}
		return n
	}
	slices.SortFunc(dirs, func(a, b string) int { return version(b) - version(a) })
	if path, err := exec.LookPath("pg_ctl"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	for _, dir := range dirs {
		missing := slices.ContainsFunc(postgresPrograms, func(name string) bool {
			_, err := os.Stat(filepath.Join(dir, name))
			return err != nil
		})
		if !missing {
			return dir, nil
		}
	}
	return "", errors.New("PostgreSQL 13 or newer is needed: install its server package " +
		"(Debian and Ubuntu: apt-get install postgresql)")
}

// nodePorts are the ports of a node, the same on every node's own address.
type nodePorts struct{ raft, postgres, proxy, http int }

// usualPorts are tried first, since people know them. Random ones stay below the range that the
// kernel takes for outgoing connections, so that none of those can take one later.
var usualPorts = nodePorts{raft: 7400, postgres: 5432, proxy: 6432, http: 7401}

// chooseAddresses picks n loopback addresses 127.A.B.1 and on, and ports that nobody listens on
// there. Each node has an address of its own, so that PostgreSQL's rules, which admit the nodes'
// addresses only, are real: a client from 127.0.0.1 cannot go round the proxies.
func chooseAddresses(n int) ([]string, nodePorts, error) {
	var last error
	ports := usualPorts
	for range 50 {
		a, b := 1+rand.IntN(254), rand.IntN(256)
		hosts := make([]string, 0, n)
		for i := range n {
			hosts = append(hosts, fmt.Sprintf("127.%d.%d.%d", a, b, i+1))
		}
		if last = areFree(hosts, ports); last == nil {
			return hosts, ports, nil
		}
		base := 10000 + rand.IntN(20000)
		ports = nodePorts{raft: base, postgres: base + 1, proxy: base + 2, http: base + 3}
	}
	return nil, nodePorts{}, fmt.Errorf("choose loopback addresses: %w", last)
}

// areFree tells whether every port can be listened on.
func areFree(hosts []string, p nodePorts) error {
	for _, host := range hosts {
		for _, port := range []int{p.raft, p.postgres, p.proxy, p.http} {
			l, err := net.Listen("tcp", hostPort(host, port))
			if err != nil {
				return err
			}
			if err := l.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

func hostPort(host string, port int) string {
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// clusterSettings keep three servers on one machine small. The dynamic shared memory lies in the
// data directory, so that a killed server leaves nothing in /dev/shm.
var clusterSettings = []string{
	"shared_buffers = 64MB",
	"max_connections = 300",
	"dynamic_shared_memory_type = mmap",
	"max_wal_size = 512MB",
}

// config is the node's configuration before any edit.
func (n *ClusterNode) config() config.Config {
	c := n.cluster
	cfg := config.Default()
	cfg.Name = n.Name
	cfg.DataDir = filepath.Join(n.Dir, "state")
	cfg.HTTP.TokenFile = n.TokenFile
	cfg.Group.Cluster = "demo"
	cfg.Group.Profile = c.cfg.Profile
	if c.cfg.LockBarrier > 0 {
		cfg.Proxy.LockBarrierTimeout = c.cfg.LockBarrier
	}
	if c.cfg.Fence != "" {
		cfg.Group.Fence = c.cfg.Fence
	}
	for _, peer := range c.Nodes {
		cfg.Group.Nodes = append(cfg.Group.Nodes, config.Node{
			Name: peer.Name, Address: peer.Raft, Postgres: peer.Postgres,
		})
	}
	cfg.Group.TLS = config.TLS{
		CAFile:   filepath.Join(c.pkiDir(), "ca.crt"),
		CertFile: filepath.Join(c.pkiDir(), n.Name+".crt"),
		KeyFile:  filepath.Join(c.pkiDir(), n.Name+".key"),
	}
	cfg.Postgres.BinDir = c.bin
	cfg.Postgres.DataDir = n.DataDir
	cfg.Postgres.SecretsDir = filepath.Join(c.pkiDir(), "secrets")
	cfg.Postgres.Settings = slices.Concat(clusterSettings, c.cfg.Settings)
	cfg.Proxy.Listen = []string{n.Proxy}
	cfg.Proxy.SourceAddr = n.Host
	cfg.HTTP.Listen = n.HTTP
	return cfg
}

// Configure writes the node's configuration with an edit, which may be nil, and makes the
// directories that it needs. It takes effect at the next start.
func (n *ClusterNode) Configure(edit func(*config.Config)) error {
	cfg := n.config()
	if err := n.makeDirs(cfg.Postgres.OSUser); err != nil {
		return err
	}
	if edit != nil {
		edit(&cfg)
	}
	if err := os.WriteFile(n.ConfigPath, cfg.YAML(), 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// makeDirs makes the node's directories; PostgreSQL's account must own the parent of its data.
func (n *ClusterNode) makeDirs(osUser string) error {
	parent := filepath.Dir(n.DataDir)
	for _, dir := range []string{n.Dir, parent} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	if os.Geteuid() != 0 {
		return nil
	}
	uid, _, err := lookupAccount(osUser)
	if err != nil {
		return err
	}
	if err := os.Chown(parent, uid, -1); err != nil {
		return fmt.Errorf("give directory to %s: %w", osUser, err)
	}
	return nil
}

// lookupAccount finds PostgreSQL's account, which root needs.
func lookupAccount(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, fmt.Errorf("PostgreSQL cannot run as root, and there is no other account for "+
			"it: %w", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, fmt.Errorf("account %s: %w", name, err)
	}
	return uid, gid, nil
}
