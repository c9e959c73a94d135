package election

import (
	"context"
	"fmt"
	"io"
	"maps"
	"reflect"
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
		handoff: n.port.raft, id: n.id, nameOf: n.nameOf, isSilent: n.store.isSilent,
		outbound: &n.port.outbound,
	}
	// The address that others know, not the one that is listened on.
	layer.handoff.addr = raftAddr(n.cfg.Self().Address)
	n.transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: layer, MaxPool: raftPoolMax, MaxRPCsInFlight: 1,
		Timeout: n.timing.Heartbeat * 5, Logger: raftLogger(n.log),
	})
	n.store.onSilent = n.closeStreams
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
	r, err := raft.NewRaft(n.raftConfig(), n.fsm, n.store, n.store, snaps, n.transport)
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	n.raft.Store(r)
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

func (n *Node) nameOf(addr string) string {
	for _, m := range n.cfg.Nodes {
		if m.Address == addr {
			return m.Name
		}
	}
	return ""
}

// formGroup writes the first configuration where there is no log yet. All nodes have the same
// list, so all write the same entry. A node that lost its disk finds that the group is formed
// already, writes nothing, and gets the log from the leader.
func (n *Node) formGroup(snaps raft.SnapshotStore) error {
	exists, err := raft.HasExistingState(n.store, n.store, snaps)
	if err != nil {
		return fmt.Errorf("read raft log in %s: %w", n.cfg.Dir, err)
	}
	formed, err := n.askPeers()
	if err != nil || exists || formed {
		return err
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

// askPeers finds out whether the group is formed, and refuses to start among nodes that have
// another idea of it. Nodes that do not answer are not waited for.
func (n *Node) askPeers() (formed bool, err error) {
	for name, a := range n.sayHello(n.ctx, true) {
		if a.Cluster != n.cfg.Cluster {
			return false, fmt.Errorf("node %s belongs to cluster %q and this one to %q: "+
				"check group.cluster and group.nodes", name, a.Cluster, n.cfg.Cluster)
		}
		if !reflect.DeepEqual(a.Nodes, n.cfg.Nodes) {
			return false, fmt.Errorf("node %s has another group.nodes than this one: the list "+
				"must be the same on all nodes", name)
		}
		formed = formed || a.Formed
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
	replies := make(chan reply, len(n.peers))
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	for name, p := range n.peers {
		go func() {
			var a helloAnswer
			err := p.call(ctx, "/v1/hello", empty{Version}, &a)
			replies <- reply{name, a, err}
		}()
	}
	answers := make(map[string]helloAnswer)
	for range n.peers {
		r := <-replies
		if r.err == nil {
			answers[r.name] = r.answer
		} else if warn {
			// Not up yet, or the wrong one: the error tells.
			n.log.Warn("node does not answer", zap.String("peer", r.name), zap.Error(r.err))
		}
	}
	return answers
}

// hello tells another node who this one is.
func (n *Node) hello() helloAnswer {
	a := helloAnswer{V: Version, Cluster: n.cfg.Cluster, Nodes: n.cfg.Nodes}
	if n.fsm != nil {
		s, _ := n.fsm.State()
		a.Formed = s.Lock != nil
		a.Epoch, a.Blank = n.voter.memory()
		a.Epoch = max(a.Epoch, s.LastEpoch)
	}
	return a
}

// admitPause is the pause between two rounds of questions to the other voters, admitWarn after
// how many of them that did not suffice the log says so.
const (
	admitPause = 100 * time.Millisecond
	admitWarn  = 50
)

// runAdmission gives this node's voter the memory of the others, if it has none of its own. Until
// enough of them answer, this voter takes no part in leases.
func (n *Node) runAdmission(ctx context.Context) {
	for round := 1; ctx.Err() == nil; round++ {
		answers := n.sayHello(ctx, false)
		maps.DeleteFunc(answers, func(_ string, a helloAnswer) bool {
			return a.Cluster != n.cfg.Cluster
		})
		epoch, ok := mayAdmit(len(n.cfg.Nodes), answers)
		if ok {
			err := n.voter.admit(ctx, epoch)
			if err == nil {
				n.log.Info("voter takes part in leases", zap.Uint64("epoch", epoch))
				return
			}
			n.log.Error("voter could not write what the others know", zap.Error(err))
		}
		if round%admitWarn == 0 {
			n.log.Warn("voter takes no part in leases yet: too few of the others answer",
				zap.Int("answers", len(answers)), zap.Int("others", len(n.peers)))
		}
		pauseFor(ctx, admitPause)
	}
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
