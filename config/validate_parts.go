package config

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"holdfast/election"
)

func (k *checker) postgres() {
	p := k.c.Postgres
	if !p.Enabled {
		return
	}
	if p.OSUser == "" {
		k.bad("postgres.os_user", "is empty")
	}
	for i, line := range p.HBA {
		k.hbaLine(item("postgres.hba", i), line)
	}
	for i, path := range p.BootstrapSQL {
		if !strings.HasPrefix(path, "/") {
			k.bad(item("postgres.bootstrap_sql", i), "%q is not an absolute path", clip(path))
		}
	}
}

// hbaTypes begin a record of pg_hba.conf (PostgreSQL's manual, client-authentication).
const hbaTypes = "local host hostssl hostnossl hostgssenc hostnogssenc"

func (k *checker) hbaLine(key, line string) {
	words := strings.Fields(line)
	if len(words) == 0 || strings.HasPrefix(words[0], "#") {
		return
	}
	if !contains(strings.Fields(hbaTypes), words[0]) {
		k.bad(key, "%q is no record of pg_hba.conf; the first word must be one of %s",
			clip(redactHBA(line)), strings.ReplaceAll(hbaTypes, " ", ", "))
		return
	}
	least := 5
	if words[0] == "local" {
		least = 4
	}
	if len(words) < least {
		k.bad(key, "%q has too few fields: type, database, user, address (but for local), method",
			clip(redactHBA(line)))
	}
}

// shutdown warns of a drain that the systemd units as shipped do not wait for: they give a stop
// 90 s, that of a sidecar 60, and closing the other roles takes up to 15 s for each of three, or
// two.
func (k *checker) shutdown() {
	most := 45 * time.Second
	if !k.c.Postgres.Enabled {
		most = 30 * time.Second
	}
	if d := k.c.Proxy.ShutdownTimeout; d > most {
		k.c.warnings = append(k.c.warnings, fmt.Sprintf("proxy.shutdown_timeout: %s is more than "+
			"the %s that the systemd unit's TimeoutStopSec leaves for it; raise that too, or the "+
			"drain ends in SIGKILL", d, most))
	}
}

func (k *checker) proxy() {
	p := k.c.Proxy
	if !p.Enabled {
		return
	}
	if len(p.Listen) == 0 {
		k.bad("proxy.listen", "is empty; at least one host:port is needed")
	}
	for i, a := range p.Listen {
		k.clientListener(item("proxy.listen", i), a)
	}
	if p.SourceAddr != "" {
		if _, err := netip.ParseAddr(p.SourceAddr); err != nil {
			k.bad("proxy.source_addr", "%q is not an IP address", clip(p.SourceAddr))
		}
	}
	for _, d := range []struct {
		key string
		d   time.Duration
	}{
		{"proxy.startup_timeout", p.StartupTimeout}, {"proxy.dial_timeout", p.DialTimeout},
		{"proxy.keep_alive", p.KeepAlive}, {"proxy.hold_timeout", p.HoldTimeout},
		{"proxy.secret_ttl", p.SecretTTL},
		{"proxy.reuse_idle", p.ReuseIdle}, {"proxy.reuse_lifetime", p.ReuseLifetime},
		{"proxy.shutdown_timeout", p.ShutdownTimeout},
	} {
		k.positive(d.key, d.d)
	}
	k.shutdown()
	k.positive("group.drain_timeout", k.c.Group.DrainTimeout)
	if d := k.c.Group.DrainTimeout; d >= p.HoldTimeout {
		k.bad("group.drain_timeout", "%s must be less than proxy.hold_timeout (%s): who waits "+
			"for the drain of others is held", d, p.HoldTimeout)
	}
	if d := p.LockBarrierTimeout; d < 0 || d >= p.HoldTimeout {
		k.bad("proxy.lock_barrier_timeout", "%s must be less than proxy.hold_timeout (%s), and not "+
			"below zero: who waits for others' locks is held", d, p.HoldTimeout)
	}
	t, err := election.TimingOf(k.c.Group.Profile)
	if err != nil {
		return // the walk refuses other profiles
	}
	least := election.SwitchoverLeast(t, k.c.Group.DrainTimeout)
	switch {
	case k.c.Raft.Enabled && p.HoldTimeout < least:
		k.bad("proxy.hold_timeout", "%s must be at least %s with profile %s and group.drain_timeout "+
			"%s: a switchover that fails leads back to the old primary within it", p.HoldTimeout,
			least, k.c.Group.Profile, k.c.Group.DrainTimeout)
	case p.HoldTimeout <= t.Promise: // a sidecar leads no group
		k.bad("proxy.hold_timeout", "%s must be more than %s, which a failover may take with "+
			"profile %s", p.HoldTimeout, t.Promise, k.c.Group.Profile)
	}
	if p.LeaseGrace > t.Promise-t.Lease {
		k.bad("proxy.lease_grace", "%s must be at most %s with profile %s (promise "+
			"less lease): later bytes could reach an old primary", p.LeaseGrace,
			t.Promise-t.Lease, k.c.Group.Profile)
	}
	if p.LookupUser == "" {
		k.bad("proxy.lookup_user", "is empty")
	}
	if !k.c.Postgres.Enabled && !strings.HasPrefix(p.LookupPasswordFile, "/") {
		k.bad("proxy.lookup_password_file", "%q is not an absolute path",
			clip(p.LookupPasswordFile))
	}
}

// socketPathMax is the length of a Unix socket's path (unix(7)).
const socketPathMax = 107

// clientListener checks an entry of proxy.listen: host:port, or the path of a Unix socket, which
// libpq looks for as .s.PGSQL.PORT in the directory that it is given as the host.
func (k *checker) clientListener(key, address string) {
	switch {
	case !strings.HasPrefix(address, "/"):
		k.hostPort(key, address)
	case len(address) > socketPathMax:
		k.bad(key, "%q has more than %d bytes", clip(address), socketPathMax)
	case strings.HasSuffix(address, "/"):
		k.bad(key, "%q is no path of a socket, such as /run/holdfast/.s.PGSQL.6432", clip(address))
	}
}

func (k *checker) positive(key string, d time.Duration) {
	if d <= 0 {
		k.bad(key, "must be more than 0")
	}
}

// listeners checks that no two listeners of this node want the same port.
func (k *checker) listeners() {
	type listener struct{ key, address string }
	var all []listener
	if self, ok := k.c.Self(); ok && k.c.Raft.Enabled {
		all = append(all, listener{"the address of " + k.c.Name + " in group.nodes",
			self.Address})
	}
	if k.c.Postgres.Enabled {
		all = append(all, listener{"postgres.listen", k.c.Postgres.Listen})
	}
	if k.c.Proxy.Enabled {
		for i, a := range k.c.Proxy.Listen {
			all = append(all, listener{item("proxy.listen", i), a})
		}
	}
	a := k.c.HTTP.Listen
	all = append(all, listener{"http.listen", a})
	if host, ok := k.hostPort("http.listen", a); ok && !loopback(host) {
		k.bad("http.listen", "%q is not a loopback address; whoever reaches the "+
			"interface can read, so only 127.0.0.1, [::1] or localhost are allowed", a)
	}
	for i, a := range all {
		for _, b := range all[:i] {
			if clash(a.address, b.address) {
				k.bad(a.key, "%s has the port of %s (%s)", a.address, b.key, b.address)
				break
			}
		}
	}
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// clash tells whether two addresses cannot be listened on at once, as far as can be seen without
// asking the network.
func clash(a, b string) bool {
	if strings.HasPrefix(a, "/") {
		return a == b
	}
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB {
		return false
	}
	return hostA == hostB || anyHost(hostA) || anyHost(hostB)
}

func anyHost(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}
