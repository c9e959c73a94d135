package proxytest

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/proxy"
)

// Now is CLOCK_BOOTTIME in nanoseconds.
func Now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// Lease is a lease that a test sets. Safe for concurrent use.
type Lease struct{ doubt, until atomic.Int64 }

// NewLease returns one that is good for d.
func NewLease(d time.Duration) *Lease {
	l := &Lease{}
	l.Set(d, d)
	return l
}

// Set makes the lease doubtful after doubt and closed after until, from now.
func (l *Lease) Set(doubt, until time.Duration) {
	now := Now()
	l.doubt.Store(now + int64(doubt))
	l.until.Store(now + int64(until))
}

// Doubt implements proxy.Lease.
func (l *Lease) Doubt() int64 { return l.doubt.Load() }

// Until implements proxy.Lease.
func (l *Lease) Until() int64 { return l.until.Load() }

// Topology is a proxy.Topology that a test sets. Safe for concurrent use.
type Topology struct {
	mu      sync.Mutex
	primary *proxy.Primary
	target  *proxy.Target
	changed chan struct{}
}

var (
	_ proxy.Topology = (*Topology)(nil)
	_ proxy.Targets  = (*Topology)(nil)
)

// NewTopology starts without a primary.
func NewTopology() *Topology { return &Topology{changed: make(chan struct{})} }

// Current implements proxy.Topology.
func (t *Topology) Current() (*proxy.Primary, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.primary, t.changed
}

// Next implements proxy.Targets.
func (t *Topology) Next() (*proxy.Target, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.target, t.changed
}

// Set names another primary; nil is none. No change is about to come then.
func (t *Topology) Set(p *proxy.Primary) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.primary, t.target = p, nil
	close(t.changed)
	t.changed = make(chan struct{})
}

// Announce tells of a planned change; nil calls it off.
func (t *Topology) Announce(target *proxy.Target) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.target = target
	close(t.changed)
	t.changed = make(chan struct{})
}
