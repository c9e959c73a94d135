package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// checker collects what is wrong across sections.
type checker struct {
	c        *Config
	from     *origin
	problems Problems
}

func (k *checker) bad(key, format string, args ...any) {
	k.problems = append(k.problems, k.from.problem(key, fmt.Sprintf(format, args...)))
}

// validate checks the rules that no single value shows, after derive.
func (c *Config) validate(from *origin) Problems {
	k := &checker{c: c, from: from}
	c.warnings = nil
	k.roles()
	k.nodes()
	k.tls()
	k.paths()
	k.postgres()
	k.proxy()
	k.listeners()
	k.owners()
	return k.problems
}

// Warnings returns what is odd but allowed, one sentence each.
func (c Config) Warnings() []string { return slices.Clone(c.warnings) }

// nodeName is what a name may be: it becomes an application_name, a slot name, a host name of a
// certificate and a part of file names. A slot's name has at most 63 bytes, "holdfast_" before it.
var nodeName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,52}[A-Za-z0-9])?$`)

const nodeNameAllowed = "1 to 54 letters, digits, dots, dashes or underscores, " +
	"a letter or digit first and last"

// CheckName tells whether a node or a cluster may have the name.
func CheckName(name string) error {
	if !nodeName.MatchString(name) {
		return fmt.Errorf("the name %q is not allowed; allowed: %s", clip(name), nodeNameAllowed)
	}
	return nil
}

func (k *checker) roles() {
	c := k.c
	if !nodeName.MatchString(c.Name) {
		k.bad("name", "%q is not allowed; allowed: %s", clip(c.Name), nodeNameAllowed)
	}
	if !nodeName.MatchString(c.Group.Cluster) {
		k.bad("group.cluster", "%q is not allowed; allowed: %s", clip(c.Group.Cluster),
			nodeNameAllowed)
	}
	if !c.Raft.Enabled && !c.Postgres.Enabled && !c.Proxy.Enabled {
		k.bad("raft.enabled", "nothing to run: raft, postgres and proxy are all disabled")
	}
	if len(c.Group.Nodes) == 0 {
		k.bad("group.nodes", "is empty; list the voters, the same on all nodes")
		return
	}
	self, isVoter := c.Self()
	names := make([]string, len(c.Group.Nodes))
	for i, n := range c.Group.Nodes {
		names[i] = n.Name
	}
	if (c.Raft.Enabled || c.Postgres.Enabled) && !isVoter {
		k.bad("name", "%q is not in group.nodes (%s), as it must be to run raft or postgres; "+
			"set name, or disable both for a sidecar proxy", clip(c.Name),
			clip(strings.Join(names, ", ")))
		return
	}
	if c.Postgres.Enabled && !c.Raft.Enabled {
		k.bad("raft.enabled", "must be true where postgres is enabled: every member votes")
	}
	if c.Postgres.Enabled && self.Witness {
		k.bad("postgres.enabled", "must be false on %s, which group.nodes calls a witness",
			c.Name)
	}
	if isVoter && !c.Postgres.Enabled && !self.Witness && c.Raft.Enabled {
		k.bad("postgres.enabled", "must be true on %s, or group.nodes must call it a witness",
			c.Name)
	}
}

func (k *checker) nodes() {
	nodes := k.c.Group.Nodes
	const votersMax = 9
	if len(nodes) > votersMax {
		k.bad("group.nodes", "has %d voters; at most %d are allowed, 3 or 5 are usual",
			len(nodes), votersMax)
		return
	}
	if len(nodes) > 0 && len(nodes)%2 == 0 {
		k.c.warnings = append(k.c.warnings, fmt.Sprintf("group.nodes: %d voters survive no more "+
			"losses than %d would; add a witness", len(nodes), len(nodes)-1))
	}
	names, slots, addresses := map[string]int{}, map[string]int{}, map[string]string{}
	members := 0
	for i, n := range nodes {
		key := fmt.Sprintf("group.nodes[%d]", i)
		if !nodeName.MatchString(n.Name) {
			k.bad(key+".name", "%q is not allowed; allowed: %s", clip(n.Name), nodeNameAllowed)
		} else if first, twice := names[n.Name]; twice {
			k.bad(key+".name", "%q is also the name of group.nodes[%d]", n.Name, first)
		} else if first, twice := slots[slotPart(n.Name)]; twice {
			k.bad(key+".name", "%q and group.nodes[%d] would share a replication slot; names "+
				"must differ in more than case and punctuation", n.Name, first)
		}
		names[n.Name], slots[slotPart(n.Name)] = i, i
		k.reachable(key+".address", n.Address, addresses)
		if n.Witness {
			if n.Postgres != "" {
				k.bad(key+".postgres", "must be empty: %s is a witness", n.Name)
			}
			continue
		}
		members++
		k.reachable(key+".postgres", n.Postgres, addresses)
	}
	if len(nodes) > 0 && members == 0 {
		k.bad("group.nodes", "every node is a witness; at least one needs a PostgreSQL server")
	}
}

// slotPart is what makes a member's slot name; two names with the same one would share a slot.
func slotPart(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, strings.ToLower(name))
}

// reachable checks an address that others connect to, and that no other has it.
func (k *checker) reachable(key, address string, taken map[string]string) {
	if address == "" {
		k.bad(key, "is empty; write host:port")
		return
	}
	host, ok := k.hostPort(key, address)
	if !ok {
		return
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		k.bad(key, "%q is no address that others can reach; write this node's own", address)
		return
	}
	if other, twice := taken[address]; twice {
		k.bad(key, "%q is also %s", address, other)
		return
	}
	taken[address] = key
}

func (k *checker) hostPort(key, address string) (host string, ok bool) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		k.bad(key, "%q is not host:port, such as 10.0.0.1:5432 or [::1]:5432", clip(address))
		return "", false
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		k.bad(key, "%q has no port from 1 to 65535", clip(address))
		return "", false
	}
	if strings.ContainsAny(host, " /@%,") {
		k.bad(key, "%q has no valid host name", clip(address))
		return "", false
	}
	return host, true
}

func (k *checker) tls() {
	t := k.c.Group.TLS
	for _, f := range []struct{ key, path, what string }{
		{"group.tls.ca_file", t.CAFile, "the certificate of the group's own authority"},
		{"group.tls.cert_file", t.CertFile, "this node's certificate"},
		{"group.tls.key_file", t.KeyFile, "this node's private key"},
	} {
		if f.path == "" {
			k.bad(f.key, "is empty; nodes always use mutual TLS: give the file with %s, as "+
				"`holdfast init` makes it", f.what)
		}
	}
}

func (k *checker) paths() {
	c := k.c
	for _, p := range []struct {
		key, path string
		needed    bool
	}{
		{"data_dir", c.DataDir, c.Raft.Enabled || c.Postgres.Enabled},
		{"raft.dir", c.Raft.Dir, c.Raft.Enabled},
		{"postgres.data_dir", c.Postgres.DataDir, c.Postgres.Enabled},
		{"postgres.secrets_dir", c.Postgres.SecretsDir, c.Postgres.Enabled},
	} {
		if p.needed && !filepath.IsAbs(p.path) {
			k.bad(p.key, "%q is not an absolute path", clip(p.path))
		}
	}
	if !c.Postgres.Enabled {
		return
	}
	if c.Raft.Enabled && inside(c.Raft.Dir, c.Postgres.DataDir) {
		k.bad("raft.dir", "lies inside postgres.data_dir, which a clone replaces")
	}
	if inside(c.Postgres.SecretsDir, c.Postgres.DataDir) {
		k.bad("postgres.secrets_dir", "lies inside postgres.data_dir, which a clone replaces")
	}
	if filepath.Clean(c.Postgres.DataDir) == filepath.Clean(c.DataDir) {
		k.bad("postgres.data_dir", "is the same directory as data_dir")
	}
}

// inside tells whether path is dir or lies below it.
func inside(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
