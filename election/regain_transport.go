package election

import (
	"errors"
	"io"

	"github.com/hashicorp/raft"
)

// regainTransport is the transport of a node that lost its log: it refuses what one with the term
// and the log of the record would refuse (DESIGN.md I78). It embeds the transport, so that
// pre-votes are kept.
type regainTransport struct {
	*raft.NetworkTransport
	regain   *regain
	self     raft.RPCHeader
	consumer chan raft.RPC
}

var (
	_ raft.Transport   = (*regainTransport)(nil)
	_ raft.WithPreVote = (*regainTransport)(nil)
)

func newRegainTransport(t *raft.NetworkTransport, g *regain, name string) *regainTransport {
	return &regainTransport{
		NetworkTransport: t, regain: g, consumer: make(chan raft.RPC),
		self: raft.RPCHeader{
			ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(name),
			Addr: t.EncodePeer(raft.ServerID(name), t.LocalAddr()),
		},
	}
}

// errRegain is a vote that is not asked for.
var errRegain = errors.New("this node lost its raft log and has not got all of it back")

// Consumer implements raft.Transport.
func (t *regainTransport) Consumer() <-chan raft.RPC { return t.consumer }

// run passes requests on until stopped is closed.
func (t *regainTransport) run(stopped <-chan struct{}) {
	for {
		select {
		case <-stopped:
			return
		case rpc := <-t.NetworkTransport.Consumer():
			if t.refuse(rpc) {
				continue
			}
			select {
			case <-stopped:
				return
			case t.consumer <- rpc:
			}
		}
	}
}

// SetHeartbeatHandler implements raft.Transport.
func (t *regainTransport) SetHeartbeatHandler(handle func(raft.RPC)) {
	if handle == nil {
		t.NetworkTransport.SetHeartbeatHandler(nil)
		return
	}
	t.NetworkTransport.SetHeartbeatHandler(func(rpc raft.RPC) {
		if !t.refuse(rpc) {
			handle(rpc)
		}
	})
}

// refuse answers what must not reach Raft.
func (t *regainTransport) refuse(rpc raft.RPC) bool {
	rec := t.regain.record()
	switch c := rpc.Command.(type) {
	case *raft.RequestVoteRequest:
		if rec.mayVote(c.Term, c.LastLogTerm, c.LastLogIndex) {
			return false
		}
		rpc.Respond(&raft.RequestVoteResponse{RPCHeader: t.self, Term: rec.Term}, nil)
	case *raft.RequestPreVoteRequest:
		if rec.mayVote(c.Term, c.LastLogTerm, c.LastLogIndex) {
			return false
		}
		rpc.Respond(&raft.RequestPreVoteResponse{RPCHeader: t.self, Term: rec.Term}, nil)
	case *raft.AppendEntriesRequest:
		if rec.mayFollow(c.Term) {
			return false
		}
		rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: t.self, Term: rec.Term}, nil)
	case *raft.InstallSnapshotRequest:
		if rec.mayFollow(c.Term) {
			return false
		}
		_, _ = io.Copy(io.Discard, rpc.Reader) // else it would be read as the next request
		rpc.Respond(&raft.InstallSnapshotResponse{RPCHeader: t.self, Term: rec.Term}, nil)
	default:
		return false
	}
	return true
}

// RequestVote implements raft.Transport. Asking for votes is a vote for itself.
func (t *regainTransport) RequestVote(id raft.ServerID, target raft.ServerAddress,
	args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse,
) error {
	if !t.regain.record().mayVote(args.Term, args.LastLogTerm, args.LastLogIndex) {
		return errRegain
	}
	return t.NetworkTransport.RequestVote(id, target, args, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (t *regainTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress,
	args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse,
) error {
	if !t.regain.record().mayVote(args.Term, args.LastLogTerm, args.LastLogIndex) {
		return errRegain
	}
	return t.NetworkTransport.RequestPreVote(id, target, args, resp)
}
