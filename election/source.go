package election

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
)

// remoteSource follows the state of the voters from a node that is none, by long-polls. It holds
// no promise about how old its state is; what may be done with it is the lease's matter.
type remoteSource struct {
	peers []*peer
	log   *zap.Logger

	mu      sync.Mutex
	state   *State
	index   uint64
	changed chan struct{}
}

var _ StateSource = (*remoteSource)(nil)

func newRemoteSource(peers []*peer, log *zap.Logger) *remoteSource {
	return &remoteSource{
		peers: peers, log: log, state: &State{V: Version}, changed: make(chan struct{}),
	}
}

// State implements StateSource.
func (r *remoteSource) State() (*State, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state, r.changed
}

// remoteWait is how long one long-poll may wait.
const remoteWait = 2 * time.Second

// run polls until ctx ends. A voter that does not answer, or has nothing new, is left for the next
// one: it may be cut off from the others.
func (r *remoteSource) run(ctx context.Context) {
	for i := 0; ctx.Err() == nil; {
		p := r.peers[i%len(r.peers)]
		one, cancel := context.WithTimeout(ctx, remoteWait+time.Second)
		var a stateAnswer
		err := p.call(one, "/v1/state", stateRequest{
			V: Version, Index: r.index, WaitMS: remoteWait.Milliseconds(),
		}, &a)
		cancel()
		if err != nil {
			r.log.Debug("state could not be read", zap.Error(err))
			i++
			pauseFor(ctx, 100*time.Millisecond)
			continue
		}
		if !r.take(a) {
			i++
		}
	}
}

// take publishes what is newer; a voter that lags behind another one changes nothing.
func (r *remoteSource) take(a stateAnswer) (isNewer bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.State == nil || a.Index <= r.index {
		return false
	}
	r.state, r.index = a.State, a.Index
	close(r.changed)
	r.changed = make(chan struct{})
	return true
}

// pauseFor waits for d or the end of ctx.
func pauseFor(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
