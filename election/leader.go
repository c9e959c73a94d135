package election

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"
)

// barrierTimeout bounds the wait for the log of earlier leaders.
const barrierTimeout = 10 * time.Second

// runLeadership starts and stops the leader loop as Raft says. It is the one reader of the
// channel: signals come one by one, and a second true means that leadership was lost and
// regained in between.
func (n *Node) runLeadership(ctx context.Context) {
	defer n.work.Done()
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case <-ctx.Done():
			return
		case leads := <-n.notify:
			stop()
			stop = func() {}
			n.log.Info("raft leadership", zap.Bool("leader", leads))
			if leads {
				stop = n.startLoop(ctx)
			}
		}
	}
}

// startLoop runs the leader loop; the returned function ends it and waits.
func (n *Node) startLoop(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go n.runLoop(ctx, done)
	return func() {
		cancel()
		<-done
	}
}

// runLoop waits until this node knows everything that was decided before, and leads.
func (n *Node) runLoop(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	for ctx.Err() == nil {
		if err := n.raft.Load().Barrier(barrierTimeout).Error(); err == nil {
			break
		}
		pauseFor(ctx, 50*time.Millisecond)
	}
	for ctx.Err() == nil {
		if err := n.registerMembers(ctx); err == nil {
			break
		} else if ctx.Err() == nil {
			n.log.Warn("members could not be registered", zap.Error(err))
		}
		pauseFor(ctx, 500*time.Millisecond)
	}
	if ctx.Err() != nil {
		return
	}
	if err := n.fsm.problem(); err != nil {
		n.log.Error("leadership is given up", zap.Error(err))
		n.raft.Load().LeadershipTransfer()
		return
	}
	n.setLeading(true)
	defer n.setLeading(false)
	tended := make(chan struct{})
	go n.runMembership(ctx, tended)
	n.loop.RunLeader(ctx)
	<-tended
}

func (n *Node) setLeading(v bool) {
	n.mu.Lock()
	n.leading = v
	n.mu.Unlock()
}

// isLeading tells whether this node's loop decides for the group. A silent node may not know yet
// that it does not.
func (n *Node) isLeading() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leading && !n.store.isSilent()
}

// leaderPeers are the nodes to ask for the leader's answer, in turn: the leader, or all others
// where it is not known, as on a node that is silent or no voter.
func (n *Node) leaderPeers() []*peer {
	if n.raft.Load() == nil || n.store.isSilent() {
		return n.peers.list()
	}
	if p := n.peerOf(n.Leader()); p != nil {
		return []*peer{p}
	}
	return nil
}

// registerMembers enters the configured members when there are none yet, and later what the
// configuration says about those there are; it writes nothing if that is there.
func (n *Node) registerMembers(ctx context.Context) error {
	s, _ := n.fsm.State()
	c := Command{Kind: CommandRegister, Register: &RegisterMembers{
		Cluster: n.cfg.Cluster, Members: registerList(s, n.cfg.Nodes),
	}}
	if next, r := apply(s, c); next == s && r.Refused == "" {
		return nil
	}
	r, err := n.Apply(ctx, c)
	if err != nil {
		return err
	}
	return r.Err()
}

// Leader is the name of the Raft leader as far as it is known here; empty if there is none.
func (n *Node) Leader() string {
	r := n.raft.Load()
	if r == nil {
		return ""
	}
	_, id := r.LeaderWithID()
	return string(id)
}

// AppliedIndex is the newest log index whose entry is part of the state here; 0 on a node that is
// no voter.
func (n *Node) AppliedIndex() uint64 {
	r := n.raft.Load()
	if r == nil {
		return 0
	}
	return r.AppliedIndex()
}

// LastIndex is the newest log index on disk here, committed or not; 0 on a node that is no voter.
// It stands still while nothing changes.
func (n *Node) LastIndex() uint64 {
	r := n.raft.Load()
	if r == nil {
		return 0
	}
	return r.LastIndex()
}

// Apply implements Coordinator. On another node than the leader it is passed on.
func (n *Node) Apply(ctx context.Context, c Command) (Result, error) {
	r := n.raft.Load()
	if r == nil {
		return Result{}, errors.New("apply: this node is no voter, or not one yet")
	}
	if r.State() == raft.Leader {
		return n.applyHere(ctx, c)
	}
	p := n.peerOf(n.Leader())
	if p == nil {
		return Result{}, ErrNoLeader
	}
	var res Result
	err := p.call(ctx, "/v1/apply", c, &res)
	return res, err
}

// applyTimeout bounds the time until Raft takes an entry.
const applyTimeout = 5 * time.Second

// applyHere writes to the log as the leader.
func (n *Node) applyHere(ctx context.Context, c Command) (Result, error) {
	b, err := encodeCommand(c)
	if err != nil {
		return Result{}, err
	}
	r := n.raft.Load()
	if r == nil {
		return Result{}, errNotLeader // this node is still joining
	}
	f := r.Apply(b, applyTimeout)
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		if err != nil {
			return Result{}, fmt.Errorf("apply %s: %w", c.Kind, err)
		}
	case <-ctx.Done():
		return Result{}, fmt.Errorf("apply %s: outcome unknown: %w", c.Kind, ctx.Err())
	}
	a, ok := f.Response().(applied)
	if !ok {
		return Result{}, fmt.Errorf("apply %s: no result", c.Kind)
	}
	return a.result, a.err
}

// seeTimeout bounds how long a node waits to see what the leader says is done.
const seeTimeout = 2 * time.Second

// awaitLock waits until the state here has a newer lock, so that whoever asked sees it.
func (n *Node) awaitLock(ctx context.Context, before uint64) {
	ctx, cancel := context.WithTimeout(ctx, seeTimeout)
	defer cancel()
	for {
		s, newer := n.State()
		if lockEpoch(s) > before {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-newer:
		}
	}
}

// changesLock tells that a request that was carried out has entered a new lock.
func changesLock(s *State, r Request) bool {
	switch r.Kind {
	case RequestReinit:
		return false
	case RequestRestart:
		return s.Lock != nil && r.Member == s.Lock.Holder
	}
	return true
}

func (n *Node) requestHere(ctx context.Context, r Request) ([]Check, error) {
	if !n.isLeading() {
		return nil, errNotLeader
	}
	ctx, stop := n.whileHeard(ctx)
	defer stop()
	checks, err := n.loop.Request(ctx, r)
	if err == ErrNotLeading { // by itself, nothing was begun
		return checks, errNotLeader
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errSilent), errors.Is(cause, errClosed) && err != nil:
		return checks, fmt.Errorf("%w: the outcome is unknown; look at the status and ask again "+
			"once another node leads", cause)
	}
	return checks, err
}

// UnplannedChanges implements Coordinator.
func (n *Node) UnplannedChanges() []time.Duration { return n.fsm.unplannedAges() }

// silentCheck is how often whileHeard looks.
const silentCheck = 100 * time.Millisecond

// whileHeard ends the returned context when this node falls silent or is closed: what it began as
// the leader gets no further then, and the others elect another one.
func (n *Node) whileHeard(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			select {
			case <-n.stopped:
				cancel(errClosed)
			default:
			}
			if n.store.isSilent() {
				cancel(errSilent)
			}
			pauseFor(ctx, silentCheck)
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// LocalView is what is known here without asking anybody, so that a scrape of metrics waits for
// nobody: on the leader what LeaderView gives, elsewhere this node's own part alone.
func (n *Node) LocalView() (obs []Observation, d *Decision, isLeader bool) {
	if n.isLeading() {
		obs, _ = n.Observations()
		last := n.loop.LastDecision()
		return obs, &last, true
	}
	own := Report{V: Version, Node: n.cfg.Name}
	if n.deps.Agent != nil {
		own.Member = n.deps.Agent.Status()
	}
	if n.deps.Stats != nil {
		own.Sessions, own.Held = n.deps.Stats()
	}
	return []Observation{{Report: own}}, nil, false
}

// LeaderView is what the leader knows of all nodes, and its newest decision, wherever this is
// asked; the decision is nil from a leader of a release that does not tell.
func (n *Node) LeaderView(ctx context.Context) ([]Observation, *Decision, error) {
	if n.isLeading() {
		obs, _ := n.Observations()
		d := n.loop.LastDecision()
		return obs, &d, nil
	}
	last := ErrNoLeader
	for _, p := range n.leaderPeers() {
		var a observationsAnswer
		if last = p.call(ctx, "/v1/observations", empty{Version}, &a); last == nil {
			return a.Observations, a.Decision, nil
		}
	}
	return nil, nil, last
}
