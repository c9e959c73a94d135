package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"holdfast/config"
	"holdfast/election"
	"holdfast/proxy"
)

// ServeCommand is the subcommand that runs a node: whatever roles its configuration names.
type ServeCommand struct {
	Path string
	// Name overrides the configured name, so that all nodes can share one file.
	Name string
}

// Run serves until ctx ends or SIGTERM or SIGINT comes; then it drains and returns nil. A second
// one ends the process at once.
func (c ServeCommand) Run(ctx context.Context) error {
	cfg, err := loadConfig(c.Path, c.Name)
	var problems config.Problems
	if errors.As(err, &problems) {
		return codedError{code: codeConfig, err: err}
	}
	if err != nil {
		return err
	}
	log, err := newLogger(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()
	for _, w := range cfg.Warnings() {
		log.Warn("configuration", zap.String("warning", w))
	}
	var built atomic.Pointer[node]
	ctx, stop := catchSignals(ctx, log, func() { built.Load().reloadTLS() })
	defer stop()
	n, err := newNode(cfg, log)
	if err != nil {
		return err
	}
	built.Store(n)
	if err := n.start(ctx); err != nil {
		n.close()
		return err
	}
	log.Info("node started", zap.String("node", cfg.Name), zap.String("version", buildVersion()))
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	<-ctx.Done()
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	log.Info("node stopping", zap.String("node", cfg.Name))
	n.close()
	log.Info("node stopped", zap.String("node", cfg.Name))
	return nil
}

// catchSignals ends the context with the first SIGTERM or SIGINT and gives the next its usual
// effect, so that somebody who cannot wait for the sessions need not find SIGKILL. SIGHUP, which a
// closed terminal or a rotation of logs sends, must not end a node and cut all its sessions.
// It makes the node read its certificates again, and nothing else.
func catchSignals(ctx context.Context, log *zap.Logger, reload func(),
) (context.Context, func()) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	hangup, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(hangup, syscall.SIGHUP)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-hangup:
				log.Warn("SIGHUP reads the files of TLS to clients and to PostgreSQL again: the " +
					"configuration is read at the start only, restart to change it")
				reload()
			case <-done:
				return
			}
		}
	})
	return ctx, func() {
		stop()
		close(done)
		wg.Wait()
		signal.Stop(hangup)
	}
}

// node is a running process of the group: the voter, agent and proxy that are configured, joined
// here because none of them knows the others. It owns all of them.
type node struct {
	cfg      config.Config
	log      *zap.Logger
	registry *prometheus.Registry

	agent    *election.PostgresAgent // nil without the postgres role
	proxy    *proxy.Proxy            // nil without the proxy role
	election *election.Node
	source   lateSource // election, once it is made
	topology *topology
	http     *httpServer

	cancel  context.CancelFunc
	wg      sync.WaitGroup // of topology.run and runExpiry, which end with cancel; close waits
	running atomic.Bool
}

// newNode builds the roles and opens what they have on disk; nothing runs yet.
func newNode(cfg config.Config, log *zap.Logger) (*node, error) {
	n := &node{
		cfg: cfg, log: log, registry: prometheus.NewRegistry(),
		topology: newTopology(cfg.Synchronous.Mode),
	}
	n.registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := n.buildProxy(); err != nil {
		return nil, err
	}
	if err := makeDirs(cfg); err != nil { // before Raft makes them for itself
		return nil, err
	}
	if err := n.buildElection(); err != nil {
		return nil, err
	}
	return n, nil
}

func (n *node) buildProxy() error {
	if !n.cfg.Proxy.Enabled {
		return nil
	}
	pc, err := n.cfg.ProxyConfig()
	if err != nil {
		return err
	}
	n.proxy, err = proxy.New(pc, proxy.Deps{
		Topology: n.topology, Targets: n.topology, Peers: latePeers{&n.source},
		Log: n.log.Named("proxy"), Registerer: n.registry,
	})
	return err
}

// electionDeps makes the agent, where one is configured, and is what the node's part in the group
// is built on.
func (n *node) electionDeps() (election.Deps, error) {
	deps := election.Deps{Log: n.log.Named("election"), Registerer: n.registry}
	if n.cfg.Postgres.Enabled {
		ac, err := n.cfg.AgentConfig()
		if err != nil {
			return deps, err
		}
		n.agent, err = election.NewPostgresAgent(ac, election.AgentDeps{
			Source: &n.source, Log: n.log.Named("agent"), Lease: n.source.lease,
		})
		if err != nil {
			return deps, err
		}
		deps.Agent = n.agent
	}
	if n.proxy != nil {
		deps.Gate, deps.Stats, deps.Locks = n.proxy, n.proxy.Stats, n.proxy
		deps.Cancel, deps.Blind = n.proxy.CancelHere, n.proxy.Blind
	}
	if n.agent != nil && n.cfg.Postgres.OnLockLoss == election.OnLockLossStop {
		deps.Gate = election.LossGate{Gate: deps.Gate, Agent: n.agent}
	}
	return deps, nil
}

func (n *node) buildElection() error {
	deps, err := n.electionDeps()
	if err != nil {
		return err
	}
	ec, err := n.cfg.ElectionConfig()
	if err != nil {
		return err
	}
	n.election, err = election.New(ec, deps)
	if err != nil {
		return err
	}
	n.source.set(n.election)
	registerSyncMetrics(n.registry, func() *election.State {
		s, _ := n.election.State()
		return s
	}, n.cfg.Synchronous)
	n.registry.MustRegister(groupMetrics{look: n.localStatus, isVoter: n.cfg.Raft.Enabled})
	return nil
}

// reloadTLS reads the proxy's files of TLS again; it logs what is wrong with them.
func (n *node) reloadTLS() {
	if n != nil && n.proxy != nil {
		_ = n.proxy.Reload()
	}
}

// start launches the roles in the order in which they need each other.
func (n *node) start(ctx context.Context) error {
	// Roles live until close: they must outlast the signal that ends ctx, to drain.
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	n.cancel = cancel
	var err error
	n.http, err = startHTTP(&n.cfg.HTTP, n, n.registry, n.log)
	if err != nil {
		return err
	}
	if n.proxy != nil {
		if err := n.proxy.Start(run); err != nil {
			return err
		}
	}
	// Before this node votes: somebody who restarts it for ever would else disturb the group.
	if n.agent != nil && !n.cfg.Postgres.AdoptForeign {
		if err := n.agent.CheckData(); err != nil {
			return codedError{code: codeConfig, err: fmt.Errorf("postgres.data_dir: %w", err)}
		}
	}
	if err := n.election.Start(run); err != nil {
		return err
	}
	n.wg.Go(func() { n.topology.run(run, n.election) })
	n.wg.Go(func() { runExpiry(run, n.certificates, n.log) })
	if n.agent != nil {
		if err := n.agent.Start(run); err != nil {
			return err
		}
		// Better no node than one that looks well and never takes its place.
		st := n.agent.Status()
		if st.Phase == election.PhaseForeign && !n.cfg.Postgres.AdoptForeign {
			return fmt.Errorf("postgres.data_dir: %s", st.Problem)
		}
	}
	n.running.Store(true)
	return nil
}

// closeTimeout bounds each step of an orderly end.
const closeTimeout = 15 * time.Second

// close ends the roles: clients first, then the control of PostgreSQL, which itself goes on
// running, then the group.
func (n *node) close() {
	n.running.Store(false)
	step := func(name string, f func(context.Context) error) {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if err := f(ctx); err != nil {
			n.log.Warn("role did not stop cleanly", zap.String("role", name), zap.Error(err))
		}
	}
	if n.proxy != nil {
		step("proxy", func(context.Context) error { return n.proxy.Close() })
	}
	if n.agent != nil {
		step("postgres", n.agent.Close)
	}
	if n.election != nil {
		step("raft", n.election.Close)
	}
	if n.cancel != nil {
		n.cancel()
	}
	n.wg.Wait()
	if n.http != nil {
		step("http", func(ctx context.Context) error { n.http.stop(ctx); return nil })
	}
}

// Ready implements controller.
func (n *node) Ready() error {
	if !n.running.Load() {
		return errors.New("starting or stopping")
	}
	if n.election != nil && n.election.IsRemoved() {
		return errors.New("this node was removed from the group")
	}
	return nil
}

// Request implements controller.
func (n *node) Request(ctx context.Context, r election.Request) ([]election.Check, error) {
	return n.election.Request(ctx, r)
}

// ChangeMember implements controller.
func (n *node) ChangeMember(ctx context.Context, r election.MemberRequest) ([]election.Check,
	error,
) {
	return n.election.ChangeMember(ctx, r)
}

// SetMaintenance implements controller.
func (n *node) SetMaintenance(ctx context.Context, on bool, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, maintenanceTimeout)
	defer cancel()
	return n.election.SetMaintenance(ctx, on, reason)
}

// maintenanceTimeout bounds the write of one entry to the replicated state.
const maintenanceTimeout = 15 * time.Second

// History implements controller.
func (n *node) History(limit int) []ChangeStatus {
	state, _ := n.election.State()
	return historyOf(state, limit)
}

// Sessions implements controller.
func (n *node) Sessions() []proxy.SessionInfo {
	if n.proxy == nil {
		return []proxy.SessionInfo{}
	}
	return n.proxy.Sessions()
}

// Status implements controller.
func (n *node) Status(ctx context.Context) (Status, error) {
	state, _ := n.election.State()
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	obs, decision, err := n.election.LeaderView(ctx)
	return n.statusOf(state, obs, decision, err), nil
}

// localStatus is the status without what only the leader knows, unless this is the leader. It asks
// nobody.
func (n *node) localStatus() (st Status, isLeader bool) {
	state, _ := n.election.State()
	obs, decision, isLeader := n.election.LocalView()
	return n.statusOf(state, obs, decision, nil), isLeader
}

// statusOf adds what this node itself knows to a view of the members; notAsked is why there is
// none.
func (n *node) statusOf(state *election.State, obs []election.Observation, d *election.Decision,
	notAsked error,
) Status {
	st := buildStatus(state, obs)
	st.Decision = decisionStatus(d)
	if notAsked != nil {
		st.Problems = append(st.Problems, "members were not asked: "+notAsked.Error())
	}
	for _, p := range n.election.Problems() {
		st.Problems = append(st.Problems, n.cfg.Name+": "+p)
	}
	st.Sync = syncStatus(state, n.cfg.Synchronous)
	if p := st.Sync.problem(); p != "" {
		st.Problems = append(st.Problems, p)
	}
	st.Certificates = n.certificates()
	for _, p := range expiryProblems(st.Certificates, time.Now()) {
		st.Problems = append(st.Problems, n.cfg.Name+": "+p)
	}
	st.Node, st.Leader = n.cfg.Name, n.election.Leader()
	st.RaftIndex, st.RaftLastIndex = n.election.AppliedIndex(), n.election.LastIndex()
	st.Lease = leaseStatus(n.election)
	if n.proxy != nil {
		st.Sessions, st.Held = n.proxy.Stats()
	}
	return st
}

// leaderTimeout bounds the question to the leader.
const leaderTimeout = 2 * time.Second

// leaseStatus describes the lease as the gate sees it now.
func leaseStatus(e *election.Node) LeaseStatus {
	v, now := e.Lease(), e.Now()
	doubt, until := v.Doubt(), v.Until()
	out := LeaseStatus{Epoch: v.Epoch(), State: "none"}
	if out.LeftMS = max(0, (until-now)/int64(time.Millisecond)); until == 0 {
		return out
	}
	switch {
	case now < doubt:
		out.State = "ok"
	case now < until:
		out.State = "doubt"
	default:
		out.State = "closed"
	}
	return out
}

// lateSource lets the agent be made before the node that it reads the state from.
type lateSource struct{ node atomic.Pointer[election.Node] }

// State implements election.StateSource.
func (l *lateSource) State() (*election.State, <-chan struct{}) {
	if n := l.node.Load(); n != nil {
		return n.State()
	}
	return &election.State{V: election.Version}, nil
}

// lease is the node's newest lease; none before there is a node.
func (l *lateSource) lease() (epoch uint64, until int64) {
	n := l.node.Load()
	if n == nil {
		return 0, 0
	}
	v := n.Lease()
	epoch, until = v.Epoch(), v.Until()
	if v.Epoch() != epoch {
		return 0, 0 // it is just another one
	}
	return epoch, until
}

func (l *lateSource) set(n *election.Node) { l.node.Store(n) }

// newLogger builds the log of the configured level and format.
func newLogger(cfg config.Config) (*zap.Logger, error) {
	level, err := zap.ParseAtomicLevel(cfg.Log.Level)
	if err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	zc := zap.NewProductionConfig()
	zc.Level = level
	zc.Encoding = cfg.Log.Format
	zc.Sampling = nil
	zc.DisableStacktrace = true
	zc.EncoderConfig.TimeKey = "time"
	zc.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	if cfg.Log.Format == "text" {
		zc.Encoding = "console"
	}
	return zc.Build()
}

func newServeCommand() *cobra.Command {
	c := ServeCommand{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the node: voter, agent and proxy as the configuration names them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Getpid() == 1 {
				return runAsInit()
			}
			return c.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVarP(&c.Path, "config", "c", defaultConfigPath, "configuration file")
	cmd.Flags().StringVar(&c.Name, "name", "", "this node's name, if the file is shared")
	return cmd
}
