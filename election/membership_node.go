package election

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"
)

// learned is what the others say about the membership while this node's own log does not.
type learned struct {
	members []Member
	set     uint64
	// isOut tells that the others' members do not have this node.
	isOut bool
}

// raftServers are the servers of Raft's configuration; empty before this node has one.
func (n *Node) raftServers() []raft.Server {
	r := n.raft.Load()
	if r == nil {
		return nil
	}
	f := r.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}

// knownNodes are the nodes of the group as far as this one knows: those of the replicated state
// and of Raft's configuration, and only as long as there is neither those that are configured. What
// the others say counts if it is newer: this node may have been away while members changed.
func (n *Node) knownNodes(s *State) []Member {
	out := slices.Clone(s.Members)
	n.mu.Lock()
	if l := n.learned; l.set > setVersion(s) && !l.isOut {
		out = slices.Clone(l.members)
	}
	n.mu.Unlock()
	for _, srv := range n.raftServers() {
		if _, known := memberOf(out, string(srv.ID)); !known {
			out = append(out, Member{Name: string(srv.ID), Address: string(srv.Address)})
		}
	}
	if len(out) == 0 {
		return n.cfg.Nodes
	}
	return out
}

// membersTick is how often a node looks at Raft's configuration, and asks the others while it
// hears no leader.
const membersTick = time.Second

// runMembers follows the membership until ctx ends.
func (n *Node) runMembers(ctx context.Context) {
	t := time.NewTicker(membersTick)
	defer t.Stop()
	quiet := 0
	for ctx.Err() == nil {
		s, newer := n.State()
		n.peers.update(n.knownNodes(s))
		n.remote.setPeers(n.peers.list())
		select {
		case <-ctx.Done():
		case <-newer:
		case <-t.C:
			quiet++
			if n.Leader() != "" || !n.cfg.Voter {
				quiet = 0
			}
			if quiet > 2 {
				n.learn(ctx)
			}
		}
	}
}

// learn asks the others for the membership. They answer to anybody with a certificate of the
// group, also to a node that they have removed.
func (n *Node) learn(ctx context.Context) {
	s, _ := n.State()
	for _, a := range n.sayHello(ctx, false) {
		if a.Cluster != n.cfg.Cluster || len(a.Members) == 0 {
			continue
		}
		n.mu.Lock()
		isNewer := a.SetVersion > max(setVersion(s), n.learned.set)
		if isNewer {
			_, isMember := memberOf(a.Members, n.cfg.Name)
			n.learned = learned{a.Members, a.SetVersion, !isMember}
		}
		isOut := n.learned.isOut
		n.mu.Unlock()
		if isNewer {
			n.log.Info("members learned from another node",
				zap.Strings("members", memberNames(a.Members)), zap.Bool("removed", isOut))
		}
	}
}

// IsRemoved tells that this node was removed from the group, as far as it knows: the end of its
// removal is an entry that it does not get any more. Safe for concurrent use.
func (n *Node) IsRemoved() bool {
	if n.fsm == nil {
		return false
	}
	s, _ := n.State() // the others may tell more than its own log ever gets
	n.mu.Lock()
	isOut := n.learned.isOut && n.learned.set > setVersion(s)
	n.mu.Unlock()
	_, isMember := memberOf(s.Members, n.cfg.Name)
	return isOut || len(s.Members) > 0 && !isMember || isLeaving(s, n.cfg.Name) &&
		!slices.Contains(voterNames(s), n.cfg.Name)
}

// lesseeClients are whom this node's lessee asks in a state.
func (n *Node) lesseeClients(s *State) (uint64, []voterClient) {
	names := voterNames(s)
	if len(names) == 0 {
		names = memberNames(n.cfg.Nodes)
	}
	if !n.cfg.Voter {
		names = nil
		for _, p := range n.peers.list() {
			names = append(names, p.member.Name)
		}
	}
	var out []voterClient
	for _, name := range names {
		p := n.peers.get(name)
		switch {
		case name == n.cfg.Name && n.voter != nil:
			out = append(out, localVoter{name, n.voter})
		case p == nil:
			// Of those that cannot be asked yet the majority counts all the same.
			out = append(out, unknownVoter(name))
		case n.cfg.Voter:
			out = append(out, p)
		default:
			out = append(out, relayClient{p})
		}
	}
	return setVersion(s), out
}

// unknownVoter is a voter whose address is not known here yet.
type unknownVoter string

func (u unknownVoter) name() string { return string(u) }

func (u unknownVoter) renew(context.Context, Renewal) (RenewalAnswer, error) {
	return RenewalAnswer{}, errNoPeer
}

func (u unknownVoter) release(context.Context, Renewal) (RenewalAnswer, error) {
	return RenewalAnswer{}, errNoPeer
}
