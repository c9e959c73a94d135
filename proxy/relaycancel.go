package proxy

import (
	"context"
	"hash/fnv"
	"time"

	"go.uber.org/zap"
)

// Session ids name the node that has the session: a client's cancel request may come to another
// one, behind a load balancer or with several hosts in its connection string. A process id has 31
// bits for people: 7 for the node, and 24 to count with. Two nodes of a group may have the same
// seven bits; then both are asked.
const (
	sessionIDBits = 24
	sessionIDMask = 1<<sessionIDBits - 1
	nodeTagMask   = 0x7f
)

// nodeTag is the bits of a node's name.
func nodeTag(name string) uint32 {
	if name == "" {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return h.Sum32() & nodeTagMask
}

const (
	// relayedCancels is how many cancel requests are passed on at once: anybody can send one.
	relayedCancels = 16
	// relayedCancelTime bounds one.
	relayedCancelTime = 10 * time.Second
)

// relayCancel passes on a cancel request for a session that is not here.
func (p *Proxy) relayCancel(ctx context.Context, pid uint32, key []byte) {
	if p.peers == nil {
		p.metrics.cancels.WithLabelValues("unknown").Inc()
		return
	}
	select {
	case p.relaying <- struct{}{}:
		defer func() { <-p.relaying }()
	default:
		p.metrics.cancels.WithLabelValues("dropped").Inc()
		return
	}
	ctx, done := context.WithTimeout(ctx, relayedCancelTime)
	defer done()
	p.metrics.cancels.WithLabelValues("passed_on").Inc()
	tag := pid >> sessionIDBits
	err := p.peers.RelayCancel(ctx, func(name string) bool { return nodeTag(name) == tag }, pid, key)
	if err != nil {
		p.log.Info("cancel request could not be passed on to another node", zap.Error(err))
	}
}

// CancelHere carries out a cancel request that another node has passed on.
func (p *Proxy) CancelHere(ctx context.Context, pid uint32, key []byte) {
	if !p.cancelSession(ctx, pid, key) {
		p.metrics.cancels.WithLabelValues("unknown").Inc()
	}
}
