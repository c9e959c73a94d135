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
	log *zap.Logger
	// trusted is a node that is known not to be cut off: it lends its lease to this process;
	// -1 if there is none.
	trusted func() int
	first   int // node to begin with

	mu      sync.Mutex
	peers   []*peer
	state   *State
	index   uint64
	changed chan struct{}
}

var _ StateSource = (*remoteSource)(nil)

func newRemoteSource(peers []*peer, log *zap.Logger) *remoteSource {
	return &remoteSource{
		peers: peers, log: log, state: &State{V: Version}, changed: make(chan struct{}),
		trusted: func() int { return -1 },
	}
}

// setPeers replaces the nodes that are asked.
func (r *remoteSource) setPeers(peers []*peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peers = peers
}

// peer is the node to ask at the i-th turn; nil if there is none.
func (r *remoteSource) peer(i int) *peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.peers) == 0 {
		return nil
	}
	return r.peers[i%len(r.peers)]
}

// State implements StateSource.
func (r *remoteSource) State() (*State, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state, r.changed
}

// at is State with the index.
func (r *remoteSource) at() (*State, uint64, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state, r.index, r.changed
}

// remoteWait is how long one long-poll may wait, trustedWait how long at a node that is trusted,
// and trustCheck how often that is looked at meanwhile.
const (
	remoteWait  = 2 * time.Second
	trustedWait = 20 * time.Second
	trustCheck  = 200 * time.Millisecond
)

// run polls until ctx ends. A voter that does not answer, or has nothing new, is left for the next
// one: it may be cut off from the others. One that lends its lease is not, so it is asked as long
// as it does.
func (r *remoteSource) run(ctx context.Context) {
	for i := r.first; ctx.Err() == nil; {
		trusted := r.trusted()
		if trusted >= 0 {
			i = trusted
		}
		p := r.peer(i)
		if p == nil {
			pauseFor(ctx, trustCheck)
			continue
		}
		a, err := r.poll(ctx, p, trusted)
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

// poll asks one node; it stops early when that is no longer the trusted one.
func (r *remoteSource) poll(ctx context.Context, p *peer, trusted int) (stateAnswer, error) {
	wait := remoteWait
	if trusted >= 0 {
		wait = trustedWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait+time.Second)
	defer cancel()
	if trusted >= 0 {
		done := make(chan struct{})
		defer func() { cancel(); <-done }()
		go func() {
			defer close(done)
			for r.trusted() == trusted && ctx.Err() == nil {
				pauseFor(ctx, trustCheck)
			}
			cancel()
		}()
	}
	var a stateAnswer
	err := p.call(ctx, "/v1/state", stateRequest{
		V: Version, Index: r.index, WaitMS: wait.Milliseconds(),
	}, &a)
	return a, err
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

// pauseFor waits for d or the end of ctx, whose error it returns then.
func pauseFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
