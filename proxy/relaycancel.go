package proxy

import (
	"context"
	"net/netip"
	"time"

	"go.uber.org/zap"
)

// relayedCancelTime bounds one cancel request that is passed on.
const relayedCancelTime = 10 * time.Second

// relayCancel passes on a cancel request for a session that is not here, as many at a time as
// Config.CancelsMax says.
func (p *Proxy) relayCancel(ctx context.Context, pid uint32, key []byte) {
	if p.peers == nil || len(key) == 0 {
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
	tag := keyTag(key)
	err := p.peers.RelayCancel(ctx, func(name string) bool { return nodeTag(name) == tag }, pid, key)
	if err != nil {
		p.log.Info("cancel request could not be passed on to another node", zap.Error(err))
	}
}

// fromNodes stands for the addresses of clients that other nodes have heard.
var fromNodes = netip.IPv6Unspecified()

// CancelHere carries out a cancel request that another node has passed on. Wrong keys of all other
// nodes together have the bound of one address.
func (p *Proxy) CancelHere(ctx context.Context, pid uint32, key []byte) {
	switch {
	case p.wrongKeys.isSpent(fromNodes):
		p.metrics.cancels.WithLabelValues("dropped").Inc()
	case !p.cancelSession(ctx, pid, key):
		p.wrongKeys.failed(fromNodes)
		p.metrics.cancels.WithLabelValues("unknown").Inc()
	}
}
