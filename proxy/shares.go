package proxy

import (
	"net"
	"net/netip"
	"sync"

	"holdfast/pgwire"
)

// shares bounds what one user, one database and one address may have of the proxy; a bound of 0 is
// none, and nothing is counted then. Users and databases count once a client has proved who it is,
// so that nobody can use up another one's share; addresses (of IPv6: networks of 64 bits, as for
// failed logins) from the connection on. Safe for concurrent use.
type shares struct {
	ofUser, ofDatabase, ofAddress int

	mu        sync.Mutex
	users     map[string]int
	databases map[string]int
	addresses map[netip.Addr]int
}

func newShares(cfg *Config) *shares {
	return &shares{
		ofUser: cfg.SessionsPerUser, ofDatabase: cfg.SessionsPerDatabase,
		ofAddress: cfg.ConnectionsPerAddress, users: make(map[string]int),
		databases: make(map[string]int), addresses: make(map[netip.Addr]int),
	}
}

// takeSession counts a session; limit names the bound that is reached, and nothing is counted then.
func (c *shares) takeSession(user, database string) (limit string) {
	if c.ofUser == 0 && c.ofDatabase == 0 {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ofUser > 0 && c.users[user] >= c.ofUser:
		return "sessions_per_user"
	case c.ofDatabase > 0 && c.databases[database] >= c.ofDatabase:
		return "sessions_per_database"
	}
	c.users[user]++
	c.databases[database]++
	return ""
}

// leaveSession takes back what takeSession has counted.
func (c *shares) leaveSession(user, database string) {
	if c.ofUser == 0 && c.ofDatabase == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	lessOf(c.users, user)
	lessOf(c.databases, database)
}

// addressSlack is how many connections of an address may be there beyond its share: they may ask
// for a cancel, or have not said yet what they want.
func (c *shares) addressSlack() int { return max(8, c.ofAddress/8) }

// takeAddress counts a connection; nil where the address has its share and the slack. The result
// takes it back.
func (c *shares) takeAddress(from netip.Addr) (leave func()) {
	from = network(from)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.addresses[from] >= c.ofAddress+c.addressSlack() {
		return nil
	}
	c.addresses[from]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		lessOf(c.addresses, from)
	}
}

func lessOf[K comparable](counts map[K]int, k K) {
	if counts[k]--; counts[k] <= 0 {
		delete(counts, k)
	}
}

// claim counts the session of a client that has proved who it is; an error is its end.
func (s *session) claim() error {
	user, database := s.track.loginUser, s.database()
	limit := s.proxy.shares.takeSession(user, database)
	if limit == "" {
		s.claimed = true
		return nil
	}
	s.proxy.metrics.refused.WithLabelValues(limit).Inc()
	text := "too many connections for role " + quoteIdent(user)
	if limit == "sessions_per_database" {
		text = "too many connections for database " + quoteIdent(database)
	}
	return fatal(pgwire.NewError(pgwire.CodeTooManyConnections, text+": proxy."+limit+
		" is reached"))
}

// unclaim takes claim back.
func (s *session) unclaim() {
	if s.claimed {
		s.proxy.shares.leaveSession(s.track.loginUser, s.database())
	}
}

// takeShare counts the new connection for its address; false if that has too many.
func (p *Proxy) takeShare(c *sock) bool {
	if p.shares.ofAddress == 0 {
		return true
	}
	from := addressOf(c)
	if !from.IsValid() {
		return true // a Unix socket, or gone
	}
	c.left = p.shares.takeAddress(from)
	return c.left != nil
}

// hasShare tells that the address of a client that wants a session has not more than its share.
func (p *Proxy) hasShare(c net.Conn) bool {
	if p.shares.ofAddress == 0 {
		return true
	}
	from := network(addressOf(c))
	p.shares.mu.Lock()
	defer p.shares.mu.Unlock()
	return p.shares.addresses[from] <= p.shares.ofAddress
}

// addressOf is not valid where there is none.
func addressOf(c net.Conn) netip.Addr {
	if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().WithZone("")
	}
	return netip.Addr{}
}

func errTooManyOfAddress() *pgwire.Error {
	return fatal(pgwire.NewError(pgwire.CodeTooManyConnections,
		"too many connections from this address: proxy.connections_per_address is reached"))
}
