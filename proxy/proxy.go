package proxy

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"holdfast/pgwire"
)

// Deps are what a Proxy works with.
type Deps struct {
	Topology Topology
	// Targets tells of planned changes beforehand; nil knows of none.
	Targets Targets
	// Secrets checks clients' passwords; nil asks the primary.
	Secrets Secrets
	Log     *zap.Logger
	// Peers reaches the other nodes' proxies; nil if there are none.
	Peers Peers
	// Registerer gets the metrics; nil keeps them to the proxy.
	Registerer prometheus.Registerer
	// Listeners are used beside those of Config.Listen, for tests and socket activation.
	Listeners []net.Listener
}

// Proxy accepts clients and keeps their sessions. It owns the listeners, the sessions, the pool,
// what is logged in ahead of a planned change, and the connections that look up secrets, outcomes
// and catalogues. It is a gate of the lease: Drain and Cut close it for an epoch.
type Proxy struct {
	cfg     Config
	log     *zap.Logger
	topo    Topology
	secrets Secrets
	cache   *secretCache
	mock    pgwire.MockKey
	metrics *metrics

	secretsAt  *lookup
	outcomesAt *lookup
	catalogues *catalogues
	dialer     net.Dialer
	ramp       *ramp
	blind      blindness

	lockBook lockBook

	asksRoles bool // rules ask for the roles of users

	cutEpoch   atomic.Uint64 // epochs up to this one are closed for good
	drainEpoch atomic.Uint64 // epochs up to this one start nothing new
	held       atomic.Int64  // sessions of which a client waits
	conns      atomic.Int64  // client connections, sessions or not yet
	carried    atomic.Int64  // bytes of temporary tables between two primaries
	packs      chan struct{} // places of those who pack such tables
	journals   atomic.Int64  // bytes of the sessions' journals beside their boxes
	params     paramLists
	setters    setterBook
	accounts   accounts
	pool       *pool
	prewarm    *prewarm
	logins     atomic.Uint64 // sessions there have ever been
	trimSeen   uint64        // runWatch's own: logins at the last look, and at the last trim
	trimmed    uint64
	trimSince  time.Time

	mu       sync.Mutex
	sessions map[uint32]*session
	// cancelable are those of the sessions that were given a key, by it.
	cancelable map[cancelID]*session
	nextID     uint32
	listeners  []net.Listener // their addresses, once acceptors has them
	acceptors  []*acceptor    // Start's
	arrivals   arrivals
	closing    bool

	watch     leaseWatch
	watchDone chan struct{}

	tag      byte // of the node, in the keys of its sessions
	peers    Peers
	relaying chan struct{}

	hba             []hbaRule
	sessionRules    []sessionRule
	harmless        harmless
	unreadTold      sync.Map // databases of which tellUnread has told
	userMaps        []userMap
	shares          *shares
	guesses         *guesses
	leavesDatabases atomic.Bool // leaveDatabases is under way
	// wrongKeys bounds cancel requests with a wrong key.
	wrongKeys *guesses
	tls       *tlsStore
	tlsWatch  sync.WaitGroup

	loops    []*loop
	nextLoop atomic.Uint32
	looping  sync.WaitGroup

	work sync.WaitGroup
	// counting is of runCountLoss, which runWatch starts: it is waited for behind the watch's end.
	counting sync.WaitGroup

	cancel context.CancelFunc
	ctx    context.Context
	// doors ends with Close's beginning, for clients that are no session yet.
	doors     context.Context
	shutDoors context.CancelFunc
}

// New makes a Proxy; Start opens it.
func New(cfg Config, deps Deps) (*Proxy, error) {
	if err := cfg.Validate(); err != nil && len(deps.Listeners) == 0 {
		return nil, err
	}
	p := &Proxy{
		cfg: cfg, log: deps.Log, topo: deps.Topology, secrets: deps.Secrets,
		metrics:    newMetrics(deps.Registerer),
		ramp:       newRamp(cfg.RestoreConcurrency),
		packs:      make(chan struct{}, cfg.RestoreConcurrency),
		shares:     newShares(&cfg),
		sessions:   make(map[uint32]*session),
		cancelable: make(map[cancelID]*session),
		listeners:  deps.Listeners,
		tag:        nodeTag(cfg.NodeName), peers: deps.Peers,
		relaying: make(chan struct{}, cfg.CancelsMax),
		doors:    context.Background(), // until Start
	}
	if p.log == nil {
		p.log = zap.NewNop()
	}
	p.watch, p.lockBook = newLeaseWatch(), newLockBook()
	p.pool, p.prewarm = newPool(p), newPrewarm(p, deps.Targets)
	p.secretsAt, p.outcomesAt = newLookup(p), newLookup(p)
	p.catalogues = newCatalogues(p)
	p.cache, p.mock = newSecretCache(p), pgwire.NewMockKey(cfg.LookupPassword)
	if p.secrets == nil {
		p.secrets = p.cache
	}
	if err := p.prepareAuth(); err != nil {
		return nil, err
	}
	if cfg.SourceAddr != "" {
		ip := net.ParseIP(cfg.SourceAddr)
		if ip == nil {
			return nil, fmt.Errorf("proxy source address %q is not an IP address",
				cfg.SourceAddr)
		}
		p.dialer.LocalAddr = &net.TCPAddr{IP: ip}
	}
	p.dialer.KeepAlive = 15 * time.Second
	return p, nil
}

// prepareAuth reads the rules, those of limits too, and the files that handshakes and logins need.
func (p *Proxy) prepareAuth() (err error) {
	if p.hba, err = parseHBA(p.cfg.HBA); err != nil {
		return err
	}
	p.asksRoles = hasRoleRules(p.hba)
	if p.cfg.CustomSettings, err = parseCustomSettings(p.cfg.CustomSettings); err != nil {
		return err
	}
	if p.harmless, err = parseHarmless(p.cfg.HarmlessFunctions); err != nil {
		return err
	}
	if p.sessionRules, err = parseSessionRules(p.cfg.SessionLimits); err != nil {
		return err
	}
	for i := range p.sessionRules {
		if r := &p.sessionRules[i]; r.hasTimeout { // all values begin at 0
			p.metrics.ruleTimeouts.WithLabelValues(strconv.Itoa(r.line))
		}
	}
	if p.userMaps, err = parseUserMaps(p.cfg.UserMaps); err != nil {
		return err
	}
	p.guesses = newGuesses(p.cfg.AuthFailuresMax)
	p.wrongKeys = newGuesses(p.cfg.AuthFailuresMax)
	p.tls, err = newTLSStore(p)
	return err
}

// Start listens and serves until Close. ctx ending has the effect of Close without waiting.
func (p *Proxy) Start(ctx context.Context) error {
	p.ctx, p.cancel = context.WithCancel(ctx)
	p.doors, p.shutDoors = context.WithCancel(p.ctx)
	for _, addr := range p.cfg.Listen {
		l, err := listen(addr)
		if err != nil {
			p.closeListeners()
			p.cancel()
			return fmt.Errorf("listen for clients on %s (proxy.listen): %w", addr, err)
		}
		p.listeners = append(p.listeners, l)
	}
	if err := p.startLoops(); err != nil {
		p.closeListeners()
		p.cancel()
		return err
	}
	if err := p.accept(); err != nil {
		p.closeListeners()
		p.cancel()
		p.stopLoops()
		return err
	}
	p.watchDone = make(chan struct{})
	go p.runWatch()
	p.prewarm.start()
	p.tlsWatch.Go(func() { p.tls.run(p.ctx.Done()) })
	p.work.Go(func() { p.cache.runRoles(p.doors) })
	return nil
}

// accept lets clients in.
func (p *Proxy) accept() error {
	for _, l := range p.listeners {
		a, err := newAcceptor(p, l)
		if err != nil {
			return err
		}
		p.acceptors = append(p.acceptors, a)
	}
	return nil
}

// startLoops starts what relays for the sessions; Close waits for it.
func (p *Proxy) startLoops() error {
	for range p.cfg.loops() {
		l, err := newLoop()
		if err != nil {
			p.stopLoops()
			return err
		}
		p.loops = append(p.loops, l)
		p.looping.Add(1)
		go func() {
			defer p.looping.Done()
			l.run()
		}()
	}
	return nil
}

// stopLoops waits for the loops' end; nobody uses a socket any more.
func (p *Proxy) stopLoops() {
	for _, l := range p.loops {
		l.stop()
	}
	p.looping.Wait()
}

// anyLoop is the loop for a new session.
func (p *Proxy) anyLoop() *loop {
	return p.loops[int(p.nextLoop.Add(1))%len(p.loops)]
}

// Addrs are the addresses that clients can connect to, once Start has returned.
func (p *Proxy) Addrs() []net.Addr {
	var out []net.Addr
	for _, l := range p.listeners {
		out = append(out, l.Addr())
	}
	return out
}

// connsMax bounds the connections that are accepted: the sessions, and some that log in, ask for a
// cancel or say nothing until startup_timeout ends them.
func (p *Proxy) connsMax() int64 { return int64(p.cfg.SessionsMax + max(100, p.cfg.SessionsMax/8)) }

// runClient takes a client up to its session, which goes on without this goroutine.
func (p *Proxy) runClient(conn *sock, until time.Time) {
	if !p.admit(p.ctx, conn, until) {
		p.clientDone()
	}
}

// endWithDoors ends a client that is no session yet when Close begins, until stop is called.
func (p *Proxy) endWithDoors(conn *sock) (stop func() bool) {
	return context.AfterFunc(p.doors, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
}

// clientDone accounts for the end of a client's connection.
func (p *Proxy) clientDone() {
	p.conns.Add(-1)
	p.work.Done()
}

// add registers a session and gives it an id.
func (p *Proxy) add(s *session) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return fatal(pgwire.NewError(pgwire.CodeCannotConnectNow, "the proxy is shutting down"))
	}
	if len(p.sessions) >= p.cfg.SessionsMax {
		p.metrics.refused.WithLabelValues("sessions_max").Inc()
		return errTooManySessions()
	}
	for {
		p.nextID++
		if _, taken := p.sessions[p.nextID]; !taken && p.nextID != 0 {
			break
		}
	}
	s.id = p.nextID
	p.sessions[s.id] = s
	p.logins.Add(1)
	p.metrics.sessions.Set(float64(len(p.sessions)))
	return nil
}

func (p *Proxy) remove(s *session) {
	p.lockBook.drop(s)
	s.unclaim()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, s.id)
	p.dropKey(s)
	p.metrics.sessions.Set(float64(len(p.sessions)))
}

// journaled accounts for the memory of a journal; false if there is more than may be.
func (p *Proxy) journaled(grown int) bool {
	if grown == 0 {
		return true
	}
	n := p.journals.Add(int64(grown))
	p.metrics.journalBytes.Set(float64(n))
	return grown < 0 || n <= int64(p.cfg.JournalTotalBytesMax)
}

// Reload reads the files of TLS again. Connections keep what they began with; if the files are bad
// nothing changes, and the error says why.
func (p *Proxy) Reload() error { return p.tls.reload(true) }

// Stats returns how many sessions there are, and how many of them wait for a primary.
func (p *Proxy) Stats() (sessions, held int) {
	p.mu.Lock()
	n := len(p.sessions)
	p.mu.Unlock()
	return n, int(max(0, p.held.Load()))
}

// all returns the sessions of this moment.
func (p *Proxy) all() []*session {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]*session, 0, len(p.sessions))
	for _, s := range p.sessions {
		out = append(out, s)
	}
	return out
}

func (p *Proxy) closeListeners() {
	for _, l := range p.listeners {
		_ = l.Close()
	}
	for _, a := range p.acceptors {
		a.close()
	}
	p.arrivals.close()
}

// Close stops accepting, lets sessions reach a safe point for up to ShutdownTimeout, tells the
// clients and waits for every goroutine.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	p.closeListeners()
	if p.shutDoors != nil {
		p.shutDoors()
	}
	p.pool.close()
	p.prewarm.close()
	for _, s := range p.all() {
		s.mu.Lock()
		s.closing = true
		s.mu.Unlock()
		s.interrupt()
	}
	done := make(chan struct{})
	go func() {
		p.work.Wait()
		close(done)
	}()
	t := time.NewTimer(p.cfg.ShutdownTimeout)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
	// The deadlines come first: who ends gets a later one for its last words.
	for _, s := range p.all() {
		_ = s.client.SetDeadline(time.Unix(1, 0))
	}
	if p.cancel != nil {
		p.cancel()
	}
	p.secretsAt.drop()
	p.outcomesAt.drop()
	p.catalogues.drop()
	for _, s := range p.all() {
		s.mu.Lock()
		b, opening := s.backend, s.opening
		s.mu.Unlock()
		s.lose(b, false)
		if opening != nil { // it may wait for the answer of a statement that was sent again
			opening.close(false)
		}
		s.interrupt()
	}
	<-done
	if p.watchDone != nil {
		<-p.watchDone
	}
	p.counting.Wait()
	p.secretsAt.drop()
	p.outcomesAt.drop()
	p.catalogues.drop()
	p.tlsWatch.Wait()
	p.prewarm.work.Wait()
	p.stopLoops()
	return nil
}
