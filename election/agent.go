package election

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"

	"holdfast/pgwire"
)

// The errors of an agent that a caller tells apart.
var (
	// ErrAgentStaleEpoch refuses an order of an epoch below the highest that was pledged.
	ErrAgentStaleEpoch = errors.New("order of an overtaken epoch")
	// ErrAgentBusy refuses an order while a clone or a rewind runs.
	ErrAgentBusy = errors.New("the member is being rebuilt")
	// ErrAgentRole refuses an order that does not fit what the server is.
	ErrAgentRole = errors.New("the order does not fit the member's role")
	// ErrAgentForeign refuses to touch data that this cluster did not make.
	ErrAgentForeign = errors.New("the data directory is not holdfast's")
	// ErrAgentDown says that the server does not run.
	ErrAgentDown = errors.New("PostgreSQL does not run")
)

// AgentDeps are the parts around the agent.
type AgentDeps struct {
	// Source is where committed locks and the members come from.
	Source StateSource
	// Log takes transitions and failures; nil drops them.
	Log *zap.Logger
	// Lease is the newest lease of this process, its end in nanoseconds of CLOCK_BOOTTIME; needed
	// for OnLockLossStop.
	Lease func() (epoch uint64, until int64)
}

// PostgresAgent controls one local PostgreSQL. It owns its goroutines, for which Close waits:
// runSample (reads the server, the only one that publishes Status), runReconcile (brings the
// server to what the committed lock says), runDisk, runLog, runCheckpoint, with OnLockLossStop
// runLockLoss, and watchPostmaster for each postmaster. Orders run in their caller's goroutine.
// Whatever changes the server or its files holds ops, but for the stop of OnLockLossStop, which
// needs signals only.
type PostgresAgent struct {
	cfg     AgentConfig
	deps    AgentDeps
	log     *zap.Logger
	secrets agentSecrets
	bin     string // directory of PostgreSQL's programs
	major   int    // their version
	state   string // StatePath
	account *pgAccount

	// ops is held (one token) by the order or the reconcile step that acts on the server.
	ops chan struct{}
	// rebuild is what runs for long under ops ("cloning", ...); orders are refused meanwhile.
	rebuild atomic.Pointer[MemberPhase]

	// conn and verifiedSeq belong to the holder of ops.
	conn        *pgconn.PgConn
	verifiedSeq string // of holdfast.conf, seen by a backend of this postmaster
	verifiedHBA string // text of pg_hba.conf that this postmaster has loaded
	syncProof   syncProof
	startSeen   string // lastStart before readPrimary; belongs to the holder of ops, too
	// What follows is of a standby that lets nobody in, and belongs to the holder of ops, too. The
	// server has run without an upstream only since it was last seen to be down (isQuiet); the
	// configuration that the postmaster toldPid was told to read; when it was last looked at for
	// WAL that its primary does not have.
	isQuiet    bool
	scan       *walReader // how far its WAL was read; dropped where isQuiet changes
	toldSeq    string
	toldPid    int
	divergedAt time.Time
	// unproved is not 0 if the server was stopped while it let nobody in: its data are known to be
	// consistent only if they need WAL past that, which moves on by what is replayed after.
	unproved pgwire.LSN
	// What follows is about logical slots, and belongs to the holder of ops, too: whether the
	// running server has wal_level logical, whether its slots let it copy the primary's, and whose
	// slots logical decoding waits for on it as a primary.
	isLogical, slotSync bool
	waitSlots           []string
	// gap is that of a standby, of the holder of ops, too.
	gap walGap
	// grownStart is the newest start of the server that was made since it had less than its primary,
	// grownTo what that was to bring; of the holder of ops.
	grownStart string
	grownTo    map[string]int
	// dueAt is when it was first seen that such a start is due; zero if none is.
	dueAt time.Time

	kick       chan struct{}             // wakes runSample
	work       chan struct{}             // wakes runReconcile
	oldControl chan struct{}             // wakes runCheckpoint, at each sample that gives reason to
	fastUntil  atomic.Pointer[time.Time] // until when runSample hurries; nil at first

	cancel context.CancelFunc
	wg     sync.WaitGroup

	disk diskProbe
	loss lossStop

	logMu    sync.Mutex // held while the server's log is cut or moved
	logSpare uint64     // room that a copy of it leaves beside its own size; 0 but in tests

	mu      sync.Mutex
	status  MemberStatus
	diskBad string
	changed chan struct{}
	rec     agentRecord
	// provedSync names the newest record of the sync set that was proved.
	provedSync MemberSync
	problem    string // of the last reconcile step
	// slotProblem is what keeps this standby from copying logical slots.
	slotProblem string
	// sizeProblem is what keeps this standby from replaying, if it has less than its primary.
	sizeProblem string
	// recoverPid is the postmaster of a standby that lets nobody in, whose data needed WAL up to
	// recoverMin when it was seen first.
	recoverPid int
	recoverMin pgwire.LSN
	watched    int    // pid that watchPostmaster looks at
	waiters    int    // orders that wait for ops
	yield      func() // ends what the holder of ops asks another member
}

var (
	_ Agent         = (*PostgresAgent)(nil)
	_ WatchfulAgent = (*PostgresAgent)(nil)
)

// NewPostgresAgent checks the configuration, the secrets and the durable record. It touches
// neither the server nor its data.
func NewPostgresAgent(cfg AgentConfig, deps AgentDeps) (*PostgresAgent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("postgres agent: %w", err)
	}
	if deps.Source == nil {
		return nil, errors.New("postgres agent: a source of the state is needed")
	}
	if cfg.OnLockLoss == OnLockLossStop && deps.Lease == nil {
		return nil, errors.New("postgres agent: on_lock_loss stop needs the lease")
	}
	if deps.Log == nil {
		deps.Log = zap.NewNop()
	}
	a := &PostgresAgent{
		cfg: cfg, deps: deps, log: deps.Log.With(zap.String("member_id", cfg.Name)),
		state:      cfg.statePath(),
		ops:        make(chan struct{}, 1),
		kick:       make(chan struct{}, 1),
		work:       make(chan struct{}, 1),
		oldControl: make(chan struct{}, 1),
		changed:    make(chan struct{}),
		disk: diskProbe{path: filepath.Clean(cfg.DataDir) + ".holdfast-probe",
			limit: cfg.DiskTimeout},
		status: MemberStatus{Name: cfg.Name, Phase: PhaseUnknown, Problem: "not looked at yet"},
	}
	var err error
	if a.secrets, err = loadAgentSecrets(cfg.SecretsDir); err != nil {
		return nil, fmt.Errorf("postgres agent: %w", err)
	}
	if a.bin, err = pgFindBin(cfg.BinDir); err != nil {
		return nil, fmt.Errorf("postgres agent: %w", err)
	}
	if a.account, err = pgLookupAccount(cfg.OSUser); err != nil {
		return nil, fmt.Errorf("postgres agent: %w", err)
	}
	if err := cfg.checkServerTLS(a.account); err != nil {
		return nil, fmt.Errorf("postgres agent: server_tls: %w", err)
	}
	if err := a.readMajor(); err != nil {
		return nil, fmt.Errorf("postgres agent: %w", err)
	}
	if a.rec, err = a.loadRecord(); err != nil {
		return nil, fmt.Errorf("postgres agent: %w", err)
	}
	return a, nil
}

// Start prepares the private directories, takes one sample, and starts the agent's goroutines.
// They end when ctx does or at Close.
func (a *PostgresAgent) Start(ctx context.Context) error {
	if err := pgMayLook(a.account); err != nil {
		return fmt.Errorf("postgres agent: %w", err)
	}
	if err := a.prepareDirs(); err != nil {
		return fmt.Errorf("postgres agent: %w", err)
	}
	if err := a.writePassFile(); err != nil {
		return fmt.Errorf("postgres agent: password file: %w", err)
	}
	ctx, a.cancel = context.WithCancel(ctx)
	a.wg.Add(5)
	s := &agentSampler{a: a}
	s.once(ctx)
	go func() { defer a.wg.Done(); s.runSample(ctx) }()
	go func() { defer a.wg.Done(); a.runReconcile(ctx) }()
	go func() { defer a.wg.Done(); a.runDisk(ctx) }()
	go func() { defer a.wg.Done(); a.runLog(ctx) }()
	go func() { defer a.wg.Done(); a.runCheckpoint(ctx) }()
	if a.cfg.OnLockLoss == OnLockLossStop {
		a.loss.life.Store(&ctx)
		a.wg.Add(1)
		go func() { defer a.wg.Done(); a.runLockLoss(ctx) }()
	}
	return nil
}

// Close ends the agent's goroutines and connections. PostgreSQL runs on.
func (a *PostgresAgent) Close(ctx context.Context) error {
	if a.cancel == nil {
		return nil
	}
	a.cancel()
	done := make(chan struct{})
	go func() { a.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("close postgres agent: %w", ctx.Err())
	}
	if err := a.lockOps(ctx); err != nil {
		return fmt.Errorf("close postgres agent: %w", err)
	}
	defer a.unlockOps()
	a.closeConn()
	return nil
}

// Status returns the newest sample, with what the probe of the disk says now: a sample may itself
// hang on that disk.
func (a *PostgresAgent) Status() MemberStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := a.status
	if st.DiskBad = a.diskBad; st.DiskBad != "" && st.Problem == "" {
		st.Problem = "the data disk takes no writes: " + st.DiskBad
	}
	return st
}

// Changed is closed at the next change of Status that matters for a decision.
func (a *PostgresAgent) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// Do carries out an order. One order runs at a time; OrderCheckpoint and OrderSlots, which change
// nothing, run beside it. Those that change who is primary or whom a standby streams from raise
// the pledge durably before they act; OrderRestart and OrderReinit leave it: a standby is started
// as the pledge and the lock say, and its data is made anew under a lock that the pledge allows.
func (a *PostgresAgent) Do(ctx context.Context, o Order) (OrderResult, error) {
	res, err := a.do(ctx, o)
	res.V = Version
	if err != nil {
		err = fmt.Errorf("%s order of epoch %d: %w", o.Kind, o.Epoch, err)
		a.log.Warn("order not carried out", zap.String("order", string(o.Kind)),
			zap.Uint64("epoch", o.Epoch), zap.Error(err))
		return res, err
	}
	if res.Incarnation != "" && o.Kind != OrderRecruit { // a recruit is no primary
		a.awaitSample(ctx, res.Incarnation)
	}
	a.log.Info("order carried out", zap.String("order", string(o.Kind)),
		zap.Uint64("epoch", o.Epoch), zap.Stringer("lsn", res.LSN))
	return res, nil
}

// sampleWait bounds the wait for a sample of a server that was just made a primary.
const sampleWait = 500 * time.Millisecond

// awaitSample waits until Status tells of that start of the server. Under the new epoch an older
// sample would say that the server is down, which the leader takes as proof.
func (a *PostgresAgent) awaitSample(ctx context.Context, incarnation string) {
	ctx, cancel := context.WithTimeout(ctx, sampleWait)
	defer cancel()
	for {
		a.mu.Lock()
		st, changed := a.status, a.changed
		a.mu.Unlock()
		if st.Phase == PhasePrimary && st.Incarnation == incarnation {
			return
		}
		pgPoke(a.kick)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (a *PostgresAgent) do(ctx context.Context, o Order) (OrderResult, error) {
	if o.V > Version {
		return OrderResult{}, fmt.Errorf("order of version %d, this node knows %d: upgrade it",
			o.V, Version)
	}
	if o.Epoch == 0 {
		return OrderResult{}, errors.New("an order needs an epoch")
	}
	if err := a.checkPledge(o.Epoch); err != nil {
		return OrderResult{}, err
	}
	switch o.Kind {
	case OrderCheckpoint:
		return a.orderCheckpoint(ctx)
	case OrderSlots:
		return a.orderSlots(ctx)
	}
	if p := a.rebuild.Load(); p != nil {
		return OrderResult{}, fmt.Errorf("%w (%s)", ErrAgentBusy, *p)
	}
	a.waiting(1)
	err := a.lockOps(ctx)
	a.waiting(-1)
	if err != nil {
		return OrderResult{}, err
	}
	defer a.unlockOps()
	defer a.hurry()
	// Again under ops: another order may have raised the pledge.
	if err := a.checkPledge(o.Epoch); err != nil {
		return OrderResult{}, err
	}
	if err := a.checkOver(o); err != nil {
		return OrderResult{}, err
	}
	switch o.Kind {
	case OrderBootstrap:
		return a.orderBootstrap(ctx, o)
	case OrderRecruit:
		return a.orderRecruit(ctx, o)
	case OrderPromote:
		return a.orderPromote(ctx, o)
	case OrderFollow:
		return a.orderFollow(ctx, o)
	case OrderStop:
		return a.orderStop(ctx, o)
	case OrderStartPrimary:
		return a.orderStartPrimary(ctx, o)
	case OrderRestart:
		return a.orderRestart(ctx)
	case OrderReinit:
		return a.orderReinit()
	default:
		return OrderResult{}, fmt.Errorf("unknown order %q: upgrade this node", o.Kind)
	}
}

func (a *PostgresAgent) orderCheckpoint(ctx context.Context) (OrderResult, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return OrderResult{}, err
	}
	defer pgClose(c)
	if err := c.Exec(ctx, "CHECKPOINT").Close(); err != nil {
		return OrderResult{}, fmt.Errorf("checkpoint: %w", err)
	}
	return OrderResult{}, nil
}

func (a *PostgresAgent) lockOps(ctx context.Context) error {
	select {
	case a.ops <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the running step: %w", ctx.Err())
	}
}

func (a *PostgresAgent) unlockOps() { <-a.ops }

// waiting counts the orders that wait for ops, and has the holder give up what it may give up.
func (a *PostgresAgent) waiting(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiters += n
	if a.waiters > 0 && a.yield != nil {
		a.yield()
	}
}

// yielding is the context of what the reconcile loop asks other members: they may be unreachable,
// and an order must not wait for that.
func (a *PostgresAgent) yielding(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, 2*a.cfg.QueryTimeout)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.yield = cancel
	if a.waiters > 0 {
		cancel()
	}
	return ctx, cancel
}

// hurry makes the sampler look now and often for a while: something has just changed.
func (a *PostgresAgent) hurry() {
	until := time.Now().Add(2 * time.Second)
	a.fastUntil.Store(&until)
	pgPoke(a.kick)
	pgPoke(a.work)
}

// LookClosely makes the sampler look often for a second: the primary does not answer, and whether a
// standby streams from it still decides what becomes of it.
func (a *PostgresAgent) LookClosely() {
	if now := time.Now(); !a.isHurried(now.Add(time.Second)) {
		until := now.Add(time.Second)
		a.fastUntil.Store(&until)
		pgPoke(a.kick)
	}
}

// isHurried tells whether something has just changed.
func (a *PostgresAgent) isHurried(now time.Time) bool {
	until := a.fastUntil.Load()
	return until != nil && now.Before(*until)
}

func pgPoke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// prepareDirs makes StatePath and the socket's directory, private to PostgreSQL's account, and
// makes sure that this account can reach them.
func (a *PostgresAgent) prepareDirs() error {
	for _, dir := range []string{a.state, a.cfg.socketDir()} {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make directory: %w", err)
		}
		if err := a.account.own(dir); err != nil {
			return fmt.Errorf("give %s to %s: %w", dir, a.cfg.OSUser, err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("make %s private: %w", dir, err)
		}
		if err := a.account.reaches(dir); err != nil {
			return err
		}
	}
	return nil
}
