package main

import (
	"context"
	"sync"

	"holdfast/election"
	"holdfast/proxy"
)

// topology adapts the replicated state and the lease of a node to what the proxy routes by. It
// names a primary once the lock is committed and the lease of its epoch was granted here.
type topology struct {
	syncMode string

	mu      sync.Mutex
	primary *proxy.Primary
	target  *proxy.Target
	changed chan struct{}
}

var (
	_ proxy.Topology = (*topology)(nil)
	_ proxy.Targets  = (*topology)(nil)
)

func newTopology(syncMode string) *topology {
	return &topology{syncMode: syncMode, changed: make(chan struct{})}
}

// Current implements proxy.Topology.
func (t *topology) Current() (*proxy.Primary, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.primary, t.changed
}

// Next implements proxy.Targets.
func (t *topology) Next() (*proxy.Target, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.target, t.changed
}

// run follows the node until ctx ends.
func (t *topology) run(ctx context.Context, n *election.Node) {
	for {
		state, stateChanged := n.State()
		epoch, granted := n.Granted()
		t.update(n, state, epoch)
		select {
		case <-ctx.Done():
			return
		case <-stateChanged:
		case <-granted:
		}
	}
}

// update publishes the primary if it is another one.
func (t *topology) update(n *election.Node, state *election.State, granted uint64) {
	var next *proxy.Primary
	if l := state.Lock; l != nil && l.Epoch == granted {
		next = primaryOf(state, t.syncMode)
		if next != nil {
			next.Lease = epochLease{view: n.Lease(), epoch: granted}
			next.Barrier = n.LockBarrier(granted)
		}
	}
	t.publish(next, t.targetOf(state, granted))
}

// publish makes these two what Current and Next return, if one differs from what there is. Of a
// primary, within an epoch, only the group's synchronous mode does.
func (t *topology) publish(next *proxy.Primary, target *proxy.Target) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if target != nil && t.target != nil && *target == *t.target {
		target = t.target
	}
	isSame := next == nil && t.primary == nil ||
		next != nil && t.primary != nil && next.Epoch == t.primary.Epoch &&
			next.SyncQuorum == t.primary.SyncQuorum
	if isSame && target == t.target {
		return
	}
	if !isSame {
		t.primary = next
	}
	t.target = target
	close(t.changed)
	t.changed = make(chan struct{})
}

// targetOf is the target of the planned change that the state tells of. The outcome is published
// with the lease of its epoch; until then there still is a target, if the lock is with it.
func (t *topology) targetOf(s *election.State, granted uint64) *proxy.Target {
	if m, epoch, ok := s.Target(); ok {
		return &proxy.Target{Name: m.Name, Addr: m.Postgres, Epoch: epoch}
	}
	have, _ := t.Next()
	if l := s.Lock; have != nil && s.Intent == nil && l != nil && l.Holder == have.Name &&
		l.Epoch > have.Epoch && l.Epoch != granted {
		return have
	}
	return nil
}

// primaryOf builds what the proxy needs to know of the committed lock.
func primaryOf(s *election.State, syncMode string) *proxy.Primary {
	l := s.Lock
	p := &proxy.Primary{
		Name: l.Holder, Epoch: l.Epoch, Timeline: l.Timeline, Incarnation: l.Incarnation,
	}
	for _, m := range s.Members {
		if m.Name == l.Holder {
			p.Addr = m.Postgres
		}
	}
	if p.Addr == "" {
		return nil
	}
	mode := s.SyncModeOr(election.SyncMode{Mode: syncMode}).Mode
	if mode != election.SyncOff {
		p.SyncQuorum = 1 // unless the server itself says that commits wait for nobody
	}
	members := election.DataMembers(s.Members)
	isAsync := election.FullRule(election.Policy{SyncMode: mode, SyncWait: 1}, members,
		l.Holder).MayLose
	for _, c := range s.History {
		p.Boundaries = append(p.Boundaries, proxy.Boundary{
			Epoch: c.Lock.Epoch, Lo: c.Lock.XidLo, Hi: c.Lock.XidHi,
			// One that an operator asked for may accept a loss in any mode.
			MayLose: c.Kind == election.IntentFailover && (isAsync || c.Asked),
		})
	}
	return p
}

// epochLease is the node's lease as far as it is one of the epoch: a lease of a later epoch
// opens nothing for an earlier one.
type epochLease struct {
	view  *election.LeaseView
	epoch uint64
}

// Doubt implements proxy.Lease.
func (l epochLease) Doubt() int64 { return l.read(l.view.Doubt) }

// Until implements proxy.Lease.
func (l epochLease) Until() int64 { return l.read(l.view.Until) }

func (l epochLease) read(deadline func() int64) int64 {
	if l.view.Epoch() != l.epoch {
		return 0
	}
	v := deadline()
	if l.view.Epoch() != l.epoch {
		return 0
	}
	return v
}

// latePeers lets the proxy be made before the node through which it reaches the others.
type latePeers struct{ node *lateSource }

var _ proxy.Peers = latePeers{}

// RelayCancel implements proxy.Peers.
func (l latePeers) RelayCancel(ctx context.Context, isNode func(string) bool, pid uint32,
	key []byte,
) error {
	if n := l.node.node.Load(); n != nil {
		return n.RelayCancel(ctx, isNode, pid, key)
	}
	return nil
}
