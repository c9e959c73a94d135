package election

import (
	"context"
	"errors"
	"sync"
	"time"
)

// cancelCall is a cancel request of a client that came to another node than its session is at.
type cancelCall struct {
	V   int    `json:"v"`
	PID uint32 `json:"pid"`
	Key []byte `json:"key"`
}

// cancelKeyMax is the longest key of the protocol.
const cancelKeyMax = 256

// cancelTimeout bounds what a node does for a cancel request that was passed on to it.
const cancelTimeout = 10 * time.Second

// RelayCancel passes a cancel request on to the nodes of which isNode is true, and returns when all
// have dealt with it, or ctx ends. As PostgreSQL does, it does not tell whether the key was right.
func (n *Node) RelayCancel(ctx context.Context, isNode func(name string) bool, pid uint32,
	key []byte,
) error {
	var work sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, p := range n.peers.list() {
		if !isNode(p.member.Name) {
			continue
		}
		work.Go(func() {
			var a empty
			err := p.call(ctx, "/v1/cancel", cancelCall{V: Version, PID: pid, Key: key}, &a)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

// serveCancel gives a cancel request of another node to the proxy of this one.
func (n *Node) serveCancel(ctx context.Context, r cancelCall) (empty, error) {
	if len(r.Key) > cancelKeyMax {
		return empty{}, errors.New("cancel key is too long")
	}
	if n.deps.Cancel != nil {
		ctx, done := context.WithTimeout(ctx, cancelTimeout)
		defer done()
		n.deps.Cancel(ctx, r.PID, r.Key)
	}
	return empty{Version}, nil
}
