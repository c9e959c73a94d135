package election

import (
	"context"
	"sync"
	"time"
)

// bestSource is the newest state that a voter knows: its own, or, while its disk keeps it out of
// Raft or it has just started, what the other voters have applied. Without it the proxy of a node
// with a frozen Raft disk would renew a lease that is to end, and never learn who the next primary
// is. Only committed state is ever taken, and only newer.
type bestSource struct {
	own    *fsm
	others *remoteSource
	// isSilent tells that the own state stands still, or is not that of the group yet.
	isSilent func() bool

	mu      sync.Mutex
	state   *State
	index   uint64
	changed chan struct{}
}

var _ StateSource = (*bestSource)(nil)

func newBestSource(own *fsm, others *remoteSource, isSilent func() bool) *bestSource {
	s, index, _ := own.at()
	return &bestSource{own: own, others: others, isSilent: isSilent, state: s, index: index,
		changed: make(chan struct{})}
}

// State implements StateSource. What this node has applied is seen at once.
func (b *bestSource) State() (*State, <-chan struct{}) {
	s, index, _ := b.own.at()
	b.take(s, index)
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state, b.changed
}

// at is State with the index of the entry that made it.
func (b *bestSource) at() (*State, uint64, <-chan struct{}) {
	b.State()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state, b.index, b.changed
}

func (b *bestSource) take(s *State, index uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if index <= b.index {
		return
	}
	b.state, b.index = s, index
	close(b.changed)
	b.changed = make(chan struct{})
}

// silencePoll is how often run looks whether the node is silent.
const silencePoll = 100 * time.Millisecond

// run passes news on until ctx ends, and asks the others while the node is silent.
func (b *bestSource) run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	work.Add(1)
	go func() {
		defer work.Done()
		b.pass(ctx)
	}()
	for ctx.Err() == nil {
		if !b.isSilent() {
			pauseFor(ctx, silencePoll)
			continue
		}
		asking, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			b.others.run(asking)
		}()
		for b.isSilent() && ctx.Err() == nil {
			pauseFor(ctx, silencePoll)
		}
		stop()
		<-done
	}
}

// pass takes whatever is new on either side.
func (b *bestSource) pass(ctx context.Context) {
	for {
		s, index, own := b.own.at()
		b.take(s, index)
		s, index, others := b.others.at()
		b.take(s, index)
		select {
		case <-ctx.Done():
			return
		case <-own:
		case <-others:
		}
	}
}
