package election

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

// raftPoolMax is how many idle connections Raft keeps to each node.
const raftPoolMax = 3

// startRaft joins the group: with its log where there is one, else by forming the group of the
// configured nodes.
func (n *Node) startRaft() error {
	layer := &streamLayer{
		handoff: n.port.raft, id: n.id, nameOf: n.nameOf, isSilent: n.isOutOfRaft,
		outbound: &n.port.outbound,
	}
	// The address that others know, not the one that is listened on.
	layer.handoff.addr = raftAddr(n.cfg.Self().Address)
	n.transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: layer, MaxPool: raftPoolMax, MaxRPCsInFlight: 1,
		Timeout: n.timing.Heartbeat * 5, Logger: raftLogger(n.log),
	})
	n.store.onSilent = n.closeStreams
	n.store.leads = func() bool {
		r := n.raft.Load()
		return r != nil && r.State() == raft.Leader
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(n.cfg.Dir, 2, raftLogger(n.log))
	if err != nil {
		return fmt.Errorf("open snapshots in %s: %w", n.cfg.Dir, err)
	}
	if err := n.formGroup(snaps); err != nil {
		return err
	}
	last, err := n.store.LastIndex()
	if err != nil {
		return fmt.Errorf("read the Raft log: %w", err)
	}
	n.fsm.startAt(last)
	r, err := raft.NewRaft(n.raftConfig(), n.fsm, n.store, n.store, snaps,
		&reluctantTransport{n.regainedTransport(), n.mayStand})
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	n.raft.Store(r)
	s, _ := n.fsm.State()
	n.peers.update(n.knownNodes(s))
	n.port.raftWaits.Store(false)
	return nil
}

// closeStreams ends Raft's connections both ways.
func (n *Node) closeStreams() {
	n.transport.CloseStreams()
	n.port.inbound.closeAll()
	n.port.outbound.closeAll()
}

// raftConfig sets the times of the profile.
func (n *Node) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.cfg.Name)
	c.HeartbeatTimeout, c.ElectionTimeout = n.timing.Heartbeat, n.timing.Heartbeat
	c.LeaderLeaseTimeout = n.timing.Heartbeat / 2
	c.CommitTimeout = 20 * time.Millisecond
	c.SnapshotThreshold, c.TrailingLogs = 2048, 2048
	c.NotifyCh = n.notify
	c.Logger = raftLogger(n.log)
	c.PreVoteDisabled = false
	c.NoLegacyTelemetry = true
	return c
}

// raftAddr is an address as Raft compares it: by its text.
type raftAddr string

// Network implements net.Addr.
func (raftAddr) Network() string { return "tcp" }

// String implements net.Addr.
func (a raftAddr) String() string { return string(a) }

// nameOf is the node whose certificate is expected at an address.
func (n *Node) nameOf(addr string) string {
	if name := n.peers.nameAt(addr); name != "" {
		return name
	}
	for _, srv := range n.raftServers() {
		if string(srv.Address) == addr {
			return string(srv.ID)
		}
	}
	return ""
}

// formGroup writes the first configuration where there is no log yet. All nodes have the same
// list, so all write the same entry. A node that lost its disk, or one that is to be added, finds
// that the group is formed already, writes nothing, and gets the log from the leader.
func (n *Node) formGroup(snaps raft.SnapshotStore) error {
	exists, err := raft.HasExistingState(n.store, n.store, snaps)
	if err != nil {
		return fmt.Errorf("read raft log in %s: %w", n.cfg.Dir, err)
	}
	if err := n.openRegain(exists, snaps); err != nil {
		return err
	}
	if exists {
		n.meetServers(snaps)
	}
	formed, err := n.askPeers(exists)
	if err != nil || exists || formed {
		return err
	}
	if former, ok := n.deps.Agent.(FormerMember); ok {
		if file, was := former.WasMember(); was {
			return formerError(n.cfg.Dir, file)
		}
	}
	var c raft.Configuration
	for _, m := range n.cfg.Nodes {
		c.Servers = append(c.Servers, raft.Server{
			ID: raft.ServerID(m.Name), Address: raft.ServerAddress(m.Address),
		})
	}
	err = raft.BootstrapCluster(n.raftConfig(), n.store, n.store, snaps, n.transport, c)
	if err != nil {
		return fmt.Errorf("form group: %w", err)
	}
	return nil
}

// formerError tells that a node which has lost its Raft log must not begin a new group: what the
// group decided, and perhaps who its members are, others still know (DESIGN.md I76).
func formerError(dir, file string) error {
	return fmt.Errorf("%w: there is no Raft log in %s, but %s says that this node was a member, and "+
		"no node that answers has the group's state: restore that directory, or start this node "+
		"while a majority of the others runs, and it gets the state anew; if its place is taken, "+
		"empty it and use `holdfast member add` or `replace`; if a majority is lost, see `holdfast "+
		"raft recover`; only if the whole group is given up, move %s away to begin a new one",
		ErrFormerMember, dir, file, file)
}

// meetServers adds the servers of Raft's last configuration to the nodes that are asked: the
// configured list may be older than the group.
func (n *Node) meetServers(snaps raft.SnapshotStore) {
	c, err := raft.GetConfiguration(n.raftConfig(), newFSM(), n.store, n.store, snaps, n.transport)
	if err != nil {
		n.log.Warn("servers of the Raft log not known yet", zap.Error(err))
		return
	}
	nodes := slices.Clone(n.cfg.Nodes)
	for _, srv := range c.Servers {
		m := Member{Name: string(srv.ID), Address: string(srv.Address)}
		nodes = append(slices.DeleteFunc(nodes, func(o Member) bool { return o.Name == m.Name }), m)
	}
	n.peers.update(nodes)
}

// askPeers finds out whether the group is formed, and refuses to start among nodes that have
// another idea of it. Once it is formed the replicated members count and not the list, which then
// only serves to find somebody. Nodes that do not answer are not waited for.
func (n *Node) askPeers(hasLog bool) (formed bool, err error) {
	answers := n.sayHello(n.ctx, true)
	for name, a := range answers {
		if a.Cluster != n.cfg.Cluster {
			return false, fmt.Errorf("node %s belongs to cluster %q and this one to %q: "+
				"check group.cluster and group.nodes", name, a.Cluster, n.cfg.Cluster)
		}
		if hasLog && a.Recovered > n.voter.recovered() {
			return false, fmt.Errorf("node %s belongs to the group that was recovered without this "+
				"one (holdfast raft recover): what is in %s is of a group that is no more; remove "+
				"that directory, and the node gets the state anew", name, n.cfg.Dir)
		}
		formed = formed || a.Formed
	}
	for name, a := range answers {
		if !formed && !hasLog && !reflect.DeepEqual(a.Nodes, n.cfg.Nodes) {
			return false, fmt.Errorf("node %s has another group.nodes than this one: the list "+
				"must be the same on all nodes until the group is formed", name)
		}
	}
	return formed, nil
}

// helloTimeout bounds a round of questions to the other nodes.
const helloTimeout = 2 * time.Second

// sayHello asks the other nodes who they are and returns what answered within helloTimeout.
func (n *Node) sayHello(ctx context.Context, warn bool) map[string]helloAnswer {
	type reply struct {
		name   string
		answer helloAnswer
		err    error
	}
	peers := n.peers.list()
	replies := make(chan reply, len(peers))
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	for _, p := range peers {
		go func() {
			var a helloAnswer
			err := p.call(ctx, "/v1/hello", empty{Version}, &a)
			replies <- reply{p.member.Name, a, err}
		}()
	}
	answers := make(map[string]helloAnswer)
	for range peers {
		r := <-replies
		if r.err == nil {
			answers[r.name] = r.answer
		} else if n.isStranger(r.name, r.err) || warn {
			// Not up yet, or the wrong one: the error tells.
			n.log.Warn("node does not answer", zap.String("peer", r.name), zap.Error(r.err))
		}
	}
	return answers
}

// isStranger tells, once for each node, that its certificate is refused: that does not pass by
// itself, and the node may not have been up when it was asked for the first time.
func (n *Node) isStranger(name string, err error) bool {
	var bad *tls.CertificateVerificationError
	if !errors.As(err, &bad) {
		return false
	}
	_, told := n.strangers.LoadOrStore(name, true)
	return !told
}

// MembershipVersion is the version of the membership that a node can follow. Members change at
// run time only when every node can.
const MembershipVersion = 1

// hello tells another node who this one is.
func (n *Node) hello() helloAnswer {
	a := helloAnswer{
		V: Version, Cluster: n.cfg.Cluster, Nodes: n.cfg.Nodes, Membership: MembershipVersion,
	}
	if n.fsm != nil {
		s, _ := n.fsm.State()
		a.Formed = s.Lock != nil
		a.Epoch, a.Blank = n.voter.memory()
		a.Epoch = max(a.Epoch, s.LastEpoch)
		a.Members, a.SetVersion, a.Set = s.Members, setVersion(s), n.voter.takenSet()
		a.SystemID = s.SystemID
		a.Ready, a.Recovered = n.voter.isReady(s), s.Recovered
		a.Raft = n.raftPosition()
	}
	return a
}

// admitPause is the pause between two rounds of questions to the other voters, admitWarn after
// how many of them that did not suffice the log says so.
const (
	admitPause = 100 * time.Millisecond
	admitWarn  = 50
)

// runAdmission gives this node's voter the memory of the others, if it has none of its own or has
// just been added. Until its own log has it among the members and enough of the voters answer,
// this voter takes no part in leases.
func (n *Node) runAdmission(ctx context.Context) {
	for round := 0; ctx.Err() == nil; {
		s, newer := n.fsm.State()
		request, needs := n.voter.needsAdmission(s)
		if _, isMember := memberOf(s.Members, n.cfg.Name); !needs || !isMember {
			select {
			case <-ctx.Done():
			case <-newer:
			}
			continue
		}
		n.admitOnce(ctx, s, request)
		if round++; round%admitWarn == 0 {
			n.log.Warn("voter takes no part in leases yet: too few of the others answer")
		}
		pauseFor(ctx, admitPause)
	}
}

// admitOnce asks the voters of the set that this node's log has.
func (n *Node) admitOnce(ctx context.Context, s *State, request string) {
	answers := n.sayHello(ctx, false)
	maps.DeleteFunc(answers, func(_ string, a helloAnswer) bool {
		return a.Cluster != n.cfg.Cluster
	})
	epoch, set, ok := admission(s, n.cfg.Name, answers)
	if !ok {
		return
	}
	if err := n.voter.admit(ctx, epoch, set, request); err != nil {
		n.log.Error("voter could not write what the others know", zap.Error(err))
		return
	}
	n.log.Info("voter takes part in leases", zap.Uint64("epoch", epoch),
		zap.Uint64("voter_set", set))
}

// raftLogger passes Raft's warnings on. A peer that is away makes Raft repeat itself several times
// a second: beyond a line a second they are counted and not printed.
func raftLogger(log *zap.Logger) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name: "raft", Level: hclog.Warn, DisableTime: true,
		Output: &logWriter{log: log, limit: rate.NewLimiter(1, 10)},
	})
}

// logWriter turns Raft's lines into entries.
type logWriter struct {
	log     *zap.Logger
	limit   *rate.Limiter
	dropped atomic.Int64
}

var _ io.Writer = (*logWriter)(nil)

// Write implements io.Writer.
func (w *logWriter) Write(p []byte) (int, error) {
	if !w.limit.Allow() {
		w.dropped.Add(1)
		return len(p), nil
	}
	w.log.Warn("raft", zap.String("line", strings.TrimSpace(string(p))),
		zap.Int64("left_out", w.dropped.Swap(0)))
	return len(p), nil
}
