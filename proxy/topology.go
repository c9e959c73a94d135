package proxy

import "context"

// Lease is the right to use an epoch for a while. Both deadlines are nanoseconds of
// CLOCK_BOOTTIME and may be read by any goroutine at any time; they move forward as the lease is
// renewed. They are compared at every relay; no timer sets a flag.
type Lease interface {
	// Doubt is the time from which no new unit of work may start.
	Doubt() int64
	// Until is the time from which nothing may be relayed either way.
	Until() int64
}

// Boundary tells which transaction ids of older epochs an epoch knows the outcome of: below Lo the
// server can be asked, at or past Hi the transaction never arrived, between nothing is known.
type Boundary struct {
	Epoch  uint64
	Lo, Hi uint64
	// MayLose tells that the epoch began with a failover for which commits had waited for nobody:
	// some that were acknowledged may not be there.
	MayLose bool
}

// Primary is the server that clients may be routed to, as the committed leader lock names it.
// It is immutable but for its lease.
type Primary struct {
	Name     string
	Addr     string // host:port
	Epoch    uint64
	Timeline uint32
	// Incarnation is the postmaster's start time in microseconds since 1970; a server that
	// answers with another one is not used.
	Incarnation string
	// SyncQuorum is how many synchronous standbys must have flushed a commit, if the server's own
	// synchronous_standby_names does not ask for more, or for none; 0 if the group asks for none.
	SyncQuorum int
	Lease      Lease
	// Boundaries are those of the epochs up to this one, oldest first.
	Boundaries []Boundary
	// Barrier is closed once the sessions of all proxies have their advisory locks again, or are
	// not waited for any more: no unit of work starts before. nil is one that is closed.
	Barrier <-chan struct{}
}

// Topology tells the proxy which primary to use. Implementations are safe for concurrent use.
type Topology interface {
	// Current returns the primary whose lock is committed and whose lease has ever been granted
	// here, or nil; and a channel that is closed when there is something else to return.
	Current() (*Primary, <-chan struct{})
}

// Target is the server that is about to become the primary in a planned change, if all goes well.
// It is immutable. Its server is a standby still: nobody is served there.
type Target struct {
	Name string
	Addr string // host:port
	// Epoch is that of the primary whose place it is to take.
	Epoch uint64
}

// Targets tells of planned changes. Implementations are safe for concurrent use.
type Targets interface {
	// Next returns the target of a change that is about to come, or under way, until Topology names
	// its outcome; nil if there is none. The channel is closed when there is something else to
	// return; the same target is the same pointer.
	Next() (*Target, <-chan struct{})
}

// Secrets finds what is needed to check a client's password while there may be no primary.
type Secrets interface {
	// UserSecret returns the stored secret (pg_authid.rolpassword) of a role that may log in;
	// ok is false if there is no such role. It may answer from a cache.
	UserSecret(ctx context.Context, user string) (secret string, ok bool, err error)
}

// Peers reaches the proxies of the group's other nodes.
type Peers interface {
	// RelayCancel passes a cancel request on to the nodes of which isNode is true, and waits until
	// they have dealt with it. Whether the key was right is not told.
	RelayCancel(ctx context.Context, isNode func(name string) bool, pid uint32, key []byte) error
}
