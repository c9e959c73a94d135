package election

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Deps are what a Node works with.
type Deps struct {
	Log *zap.Logger
	// Agent controls the local PostgreSQL; nil if there is none.
	Agent Agent
	// Gate is closed before a lease is released; nil if there is none.
	Gate Gate
	// Locks tells of the proxy's session advisory locks; nil if there are none.
	Locks LockBook
	// Stats tells the proxy's sessions and held ones for reports; nil reports none.
	Stats func() (sessions, held int)
	// Cancel carries out a client's cancel request that another node has passed on; nil if there is
	// no proxy.
	Cancel func(ctx context.Context, pid uint32, key []byte)
	// Blind tells how long the proxy has got no connection to the primary of that epoch though it
	// tried; asked on a sidecar, nil if there is no proxy.
	Blind func() (epoch uint64, d time.Duration)
	// Loop makes what runs on the Raft leader; nil is the controller.
	Loop func(c Coordinator) LeaderLoop
	// Registerer gets the metrics; nil keeps them to the node.
	Registerer prometheus.Registerer
}

// Node is one process's part in the group: a voter, or a follower of the voters, and always a
// lessee. It owns Raft, the node-to-node port and all goroutines of the package but the agent's.
type Node struct {
	cfg    Config
	deps   Deps
	log    *zap.Logger
	timing Timing
	now    func() int64
	id     *identity

	peers     *peerSet      // the other nodes
	strangers sync.Map      // names of those whose certificate was refused, and told so
	fsm       *fsm          // of a voter
	remote    *remoteSource // of a node that is none, or that is silent
	best      *bestSource   // of a voter
	voter     *voter
	lessee    *lessee
	sidecar   *sidecarWatch // of a node that is no voter and has a proxy
	reports   *reports
	loop      LeaderLoop
	metrics   *metrics
	answers   stateAnswers

	port      *port
	rpcServer *http.Server
	store     *store
	// raft is nil until the group is joined, and on a node that is no voter.
	raft      atomic.Pointer[raft.Raft]
	transport *raft.NetworkTransport
	// regain is set on a node that started without a Raft log.
	regain atomic.Pointer[regain]
	notify chan bool

	mu      sync.Mutex
	leading bool
	learned learned
	// memberProblem is what the change of members waits for, on the leader.
	memberProblem string

	ctx       context.Context
	cancel    context.CancelFunc
	stopped   chan struct{}
	closeOnce sync.Once
	work      sync.WaitGroup
}

var (
	_ Coordinator = (*Node)(nil)
	_ StateSource = (*Node)(nil)
)

// New builds a Node and opens what it has on disk; Start lets it take part.
func New(cfg Config, deps Deps) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	timing, err := TimingOf(cfg.Profile)
	if err != nil {
		return nil, err
	}
	id, err := loadIdentity(cfg.Name, cfg.CAFile, cfg.CertFile, cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, deps: deps, log: deps.Log, timing: timing, now: bootNow, id: id,
		peers: newPeerSet(cfg.Name, id, cfg.Nodes), stopped: make(chan struct{}),
		notify: make(chan bool, 64), metrics: newMetrics(deps.Registerer),
	}
	if n.log == nil {
		n.log = zap.NewNop()
	}
	n.reports = newReports(n.now)
	n.remote = newRemoteSource(n.peers.list(), n.log)
	if cfg.Voter {
		err = n.openVoter()
	}
	if err != nil {
		return nil, err
	}
	_, voters := n.lesseeClients(&State{})
	n.lessee = newLessee(cfg.Name, timing, cfg.DrainTimeout, voters, n, deps.Gate, n.log, n.now)
	n.lessee.clients = n.lesseeClients
	n.lessee.locks, n.lessee.lockBarrier = deps.Locks, cfg.LockBarrier
	n.metrics.watchBarrier(deps.Registerer, n.lessee)
	if !cfg.Voter {
		n.lessee.borrow()
		if deps.Blind != nil {
			n.sidecar = &sidecarWatch{blind: deps.Blind}
			n.lessee.sight = n.sidecar
		}
		n.remote.trusted, n.remote.first = n.lessee.lender, n.lessee.asks
	}
	if deps.Loop == nil {
		deps.Loop = func(c Coordinator) LeaderLoop { return newControllerFor(c, cfg) }
	}
	n.loop = deps.Loop(n)
	return n, nil
}

// openVoter opens the Raft store and the endorsement.
func (n *Node) openVoter() error {
	n.fsm = newFSM()
	var err error
	if n.store, err = openStore(n.cfg.Dir, n.log); err != nil {
		return err
	}
	n.metrics.watchStore(n.deps.Registerer, n.store)
	n.voter, err = newVoter(filepath.Join(n.cfg.Dir, "endorsed.json"), n.timing, n.fsm, n.now)
	if err != nil {
		_ = n.store.Close()
		return err
	}
	n.voter.drain, n.voter.name = n.cfg.DrainTimeout, n.cfg.Name
	n.voter.fence = n.cfg.Fence
	n.best = newBestSource(n.fsm, n.remote, n.isBehind)
	return nil
}

// Start takes part in the group until Close.
func (n *Node) Start(ctx context.Context) error {
	n.ctx, n.cancel = context.WithCancel(ctx)
	if n.cfg.Voter {
		if err := n.startVoter(); err != nil {
			return err
		}
	} else {
		n.goRun(n.remote.run)
		if n.sidecar != nil {
			n.goRun(n.runSidecarWatch)
		}
	}
	n.goRun(n.runMembers)
	n.goRun(n.lessee.run)
	if n.cfg.Voter {
		n.work.Add(1)
		go n.runReports(n.ctx)
	}
	return nil
}

func (n *Node) goRun(run func(context.Context)) {
	n.work.Add(1)
	go func() {
		defer n.work.Done()
		run(n.ctx)
	}()
}

func (n *Node) startVoter() error {
	listen := n.cfg.Listen
	if listen == "" {
		listen = n.cfg.Self().Address
	}
	var err error
	if n.port, err = listenPort(listen, n.id, n.isNode, n.log); err != nil {
		return err
	}
	n.port.raftWaits.Store(true)
	n.port.start()
	n.startRPC()
	if err := n.startRaft(); err != nil {
		return err
	}
	n.work.Add(1)
	go n.runLeadership(n.ctx)
	n.goRun(n.best.run)
	n.goRun(n.voter.runSets)
	n.goRun(n.runAdmission)
	return nil
}

// isNode tells whether the name is one of the group's nodes.
func (n *Node) isNode(name string) bool {
	return name == n.cfg.Name && n.cfg.Voter || n.peers.get(name) != nil
}

func (n *Node) peerOf(name string) *peer { return n.peers.get(name) }

// Name implements Coordinator.
func (n *Node) Name() string { return n.cfg.Name }

// Timing implements Coordinator.
func (n *Node) Timing() Timing { return n.timing }

// Now implements Coordinator.
func (n *Node) Now() int64 { return n.now() }

// Log implements Coordinator.
func (n *Node) Log() *zap.Logger { return n.log }

// State implements StateSource.
func (n *Node) State() (*State, <-chan struct{}) {
	if n.best != nil {
		return n.best.State()
	}
	return n.remote.State()
}

// Lease returns this process's lease.
func (n *Node) Lease() *LeaseView { return &n.lessee.view }

// Granted returns the newest epoch that a majority has granted to this process, and a channel
// that is closed when there is another one.
func (n *Node) Granted() (uint64, <-chan struct{}) { return n.lessee.state() }

// Observations implements Coordinator.
func (n *Node) Observations() ([]Observation, <-chan struct{}) { return n.reports.all() }

// sourceAddr is the address that this node's connections to servers come from: that of its own
// PostgreSQL or node address, since the servers admit nodes by it.
func (n *Node) sourceAddr() net.Addr {
	self := n.cfg.Self()
	addr := self.Postgres
	if addr == "" {
		addr = self.Address
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return &net.TCPAddr{IP: ip}
	}
	return nil
}

// obey carries an order out on the local agent.
func (n *Node) obey(ctx context.Context, o Order) (OrderResult, error) {
	if n.deps.Agent == nil {
		return OrderResult{}, errors.New("this node has no PostgreSQL")
	}
	r, err := n.deps.Agent.Do(ctx, o)
	r.V = Version
	return r, err
}

// Call implements Coordinator.
func (n *Node) Call(ctx context.Context, member string, o Order) (OrderResult, error) {
	o.V = Version
	if o.Kind == OrderReinit || o.Kind == OrderRestart {
		if err := n.verifyLeader(ctx); err != nil {
			return OrderResult{}, fmt.Errorf("order %s: %w", o.Kind, err)
		}
	}
	if member == n.cfg.Name {
		return n.obey(ctx, o)
	}
	p := n.peerOf(member)
	if p == nil {
		return OrderResult{}, fmt.Errorf("order %s: %q is not a node", o.Kind, member)
	}
	var r OrderResult
	err := p.call(ctx, "/v1/order", o, &r)
	return r, err
}

// EndorseAll implements Coordinator. The set does not change while the intent stands.
func (n *Node) EndorseAll(ctx context.Context, epoch uint64, recruits ...string) error {
	s, _ := n.fsm.State()
	if have := intentEpoch(s); have != epoch {
		// The set may have changed since: this one need not be the one of that intent.
		return fmt.Errorf("endorse epoch %d: %w: the intent is of epoch %d", epoch, ErrConflict,
			have)
	}
	verified := n.verifyingLeader()
	err := n.askMajority(ctx, voterNames(s), func(ctx context.Context, name string) error {
		if name == n.cfg.Name {
			return n.voter.endorse(ctx, epoch, recruits...)
		}
		return n.ask(ctx, name, "/v1/endorse", endorseRequest{Version, epoch, recruits})
	})
	if err == nil {
		err = awaitVerified(ctx, verified)
	}
	if err != nil {
		return fmt.Errorf("endorse epoch %d: %w", epoch, err)
	}
	return nil
}

// Close leaves the group and waits for every goroutine. PostgreSQL is not touched.
func (n *Node) Close(ctx context.Context) error {
	var err error
	n.closeOnce.Do(func() { err = n.closeAll(ctx) })
	return err
}

func (n *Node) closeAll(ctx context.Context) error {
	close(n.stopped)
	n.lessee.leaves.Store(true)
	if n.cancel != nil {
		n.cancel()
	}
	var errs []error
	if n.rpcServer != nil {
		_ = n.rpcServer.Close()
	}
	if n.port != nil {
		n.port.close()
	}
	if n.store != nil {
		n.store.closed.Store(true)
	}
	if r := n.raft.Load(); r != nil {
		errs = append(errs, waitClosed(ctx, "raft", r.Shutdown().Error))
	}
	if n.transport != nil {
		_ = n.transport.Close()
		n.closeStreams()
	}
	done := make(chan struct{})
	go func() {
		n.work.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("close node: %w", ctx.Err()))
	}
	if n.voter != nil {
		errs = append(errs, waitClosed(ctx, "endorsement", n.voter.close))
	}
	if n.store != nil {
		errs = append(errs, waitClosed(ctx, "raft store", n.store.Close))
	}
	n.peers.update(nil)
	return errors.Join(errs...)
}

// waitClosed closes something, but does not wait beyond ctx: a disk that hangs must not keep the
// process from ending.
func waitClosed(ctx context.Context, what string, closeIt func() error) error {
	done := make(chan error, 1)
	go func() { done <- closeIt() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("close %s: %w", what, ctx.Err())
	}
}
