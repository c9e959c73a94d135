package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// LoadConfig says what a Load does.
type LoadConfig struct {
	// Sessions is how many client sessions there are, of all kinds together.
	Sessions int
	// Mixed has sessions among them that write in all the ways there are. They are told 40001 now
	// and then, as two of them meet, though there is no fault.
	Mixed bool
	// Proxies are the addresses that they connect to, host:port.
	Proxies []string
	// Superuser and SuperuserPassword make the load's own role and database.
	Superuser, SuperuserPassword string
}

// loadName is the load's role and its database.
const loadName = "holdfast_demo"

// opTimeout bounds one operation of a session. It is longer than any hold: pgx gives up the
// connection when it passes, which counts as a lost session.
const opTimeout = 2 * time.Minute

// Load is a set of client sessions that behave as applications do, through the proxies, and a
// ledger of what they were promised. It owns one goroutine a session; Stop waits for them.
type Load struct {
	cfg      LoadConfig
	password string
	clock    *CommitClock
	ledger   Ledger
	sessions []*loadSession

	cancel context.CancelFunc
	stop   chan struct{}
	group  sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{}  // closed at the next change of the primary
	runs    map[string]int // how often each proxy was killed
	drops   []string       // why sessions were lost, the first few
	codes   map[string]int // of errors that sessions were told, how often each
	told    []string       // the first few of them

	connected, dropped, cut   atomic.Int64
	everLost                  atomic.Int64 // sessions, not losses
	retried, refused, inDoubt atomic.Int64
	stateChecks, stateWrong   atomic.Int64
	miscounted                atomic.Int64
	hasEnded                  atomic.Bool // no session runs any more
}

// LoadStats is a moment of a Load.
type LoadStats struct {
	Sessions  int   `json:"sessions"`
	Connected int64 `json:"connected"`
	// Kept are sessions that have had one connection all the time.
	Kept int64 `json:"kept"`
	// Dropped are sessions that lost their connection though their proxy lived.
	Dropped int64 `json:"dropped"`
	// Cut are sessions whose own proxy was killed: their connection ended with it.
	Cut     int64 `json:"cut_with_proxy"`
	Commits int64 `json:"commits"`
	// Retried are transactions and statements that ended in 40001 and were run again.
	Retried int64 `json:"retried"`
	// Refused are other errors.
	Refused int64 `json:"refused"`
	// InDoubt are writes whose outcome the client was told to be unknown (08007).
	InDoubt int64 `json:"in_doubt"`
	// StateChecks and StateWrong count looks at what a session had set, and those that failed.
	StateChecks int64 `json:"state_checks"`
	StateWrong  int64 `json:"state_wrong"`
	// Miscounted are answers of counters that do not follow from those before.
	Miscounted int64    `json:"miscounted"`
	Drops      []string `json:"drops,omitempty"`
	// Codes counts the errors that sessions were told, by SQLSTATE.
	Codes map[string]int `json:"codes,omitempty"`
	// Told are the first few of those errors.
	Told []string `json:"told,omitempty"`
}

// NewLoad makes a load; Setup and Start follow.
func NewLoad(cfg LoadConfig) *Load {
	l := &Load{
		cfg: cfg, clock: NewCommitClock(), stop: make(chan struct{}),
		changed: make(chan struct{}), runs: make(map[string]int),
		codes: make(map[string]int),
	}
	cycle := kindCycle
	if cfg.Mixed {
		cycle = mixedCycle
	}
	for i := range cfg.Sessions {
		l.sessions = append(l.sessions, &loadSession{load: l, id: i + 1, kind: cycle[i%len(cycle)],
			home: (i + i/len(cycle)) % len(cfg.Proxies)})
	}
	return l
}

// accounts is how many accounts the transfers move between.
const accounts = 1000

// Setup makes role, database and tables.
func (l *Load) Setup(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	var err error
	if l.password, err = randomName(); err != nil {
		return err
	}
	admin := dsn(l.cfg.Proxies[0], l.cfg.Superuser, l.cfg.SuperuserPassword, "postgres")
	err = execAll(ctx, admin,
		fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", loadName, l.password),
		fmt.Sprintf("CREATE DATABASE %s OWNER %s", loadName, loadName))
	if err != nil {
		return fmt.Errorf("make database: %w", err)
	}
	err = execAll(ctx, l.dsn(0),
		"CREATE SCHEMA demo",
		// No unique index: a write that was applied twice must be able to show.
		"CREATE TABLE demo.ledger (id bigint NOT NULL, session int NOT NULL, kind text NOT NULL)",
		"CREATE INDEX ON demo.ledger (id)",
		"CREATE TABLE demo.account (id int PRIMARY KEY, balance bigint NOT NULL)",
		fmt.Sprintf("INSERT INTO demo.account SELECT i, 0 FROM generate_series(1, %d) i", accounts),
		"CREATE TABLE demo.counter (session int PRIMARY KEY, n bigint NOT NULL)",
		fmt.Sprintf("INSERT INTO demo.counter SELECT i, 0 FROM generate_series(1, %d) i",
			max(l.cfg.Sessions, 1)),
		"CREATE TABLE demo.tally AS SELECT * FROM demo.counter",
		"ALTER TABLE demo.tally ADD PRIMARY KEY (session)")
	if err != nil {
		return fmt.Errorf("make tables: %w", err)
	}
	return nil
}

// dsn names the i-th proxy and the load's role; everything else is the client's default.
func (l *Load) dsn(i int) string {
	return dsn(l.cfg.Proxies[i%len(l.cfg.Proxies)], loadName, l.password, loadName)
}

func dsn(addr, user, password, database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(user, password), Host: addr,
		Path: "/" + database, RawQuery: "sslmode=disable&target_session_attrs=any"}
	return u.String()
}

// execAll runs statements one by one on a connection of their own.
func execAll(ctx context.Context, dsn string, statements ...string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// closeConn says good-bye; a server that does not listen is not waited for.
func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
	<-conn.PgConn().CleanupDone()
}

// Start launches the sessions and waits until each is connected and has set its state.
func (l *Load) Start(ctx context.Context) error {
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.cancel = cancel
	for _, s := range l.sessions {
		l.group.Go(func() { s.run(run) })
	}
	for l.connected.Load() < int64(len(l.sessions)) {
		if drops := l.Stats().Drops; len(drops) > 0 {
			return fmt.Errorf("start sessions: %s", drops[0])
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start sessions: %d of %d are connected: %w", l.connected.Load(),
				len(l.sessions), ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Stop lets every session finish what it does and ends it; when ctx ends first, what is under way
// is broken off. It may be called without Start.
func (l *Load) Stop(ctx context.Context) {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	done := make(chan struct{})
	go func() { l.group.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
	if l.cancel != nil {
		l.cancel()
	}
	<-done
	l.hasEnded.Store(true)
}

// Changed tells the sessions that the primary was changed: those with state check it.
func (l *Load) Changed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Load) changeSignal() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// ExpectCut tells that a proxy is about to be killed: the sessions that are connected to it now
// end with it, which is not the fault of the change.
func (l *Load) ExpectCut(proxy string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.runs[proxy]++
}

func (l *Load) proxyRun(proxy string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.runs[proxy]
}

// dropsMax bounds how many reasons are kept.
const dropsMax = 20

func (l *Load) noteDrop(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.drops) < dropsMax {
		l.drops = append(l.drops, fmt.Sprintf(format, args...))
	}
}

// noteError counts an error that a server or proxy told a session.
func (l *Load) noteError(err error) {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.codes[pe.Code]++
	if len(l.told) < dropsMax {
		l.told = append(l.told, fmt.Sprintf("%s: %s %s (%s)", time.Now().Format(time.StampMilli),
			pe.Code, pe.Message, pe.Detail))
	}
}

// Clock tells when commits were acknowledged.
func (l *Load) Clock() *CommitClock { return l.clock }

// Stats returns the counters.
func (l *Load) Stats() LoadStats {
	l.mu.Lock()
	drops, codes := slices.Clone(l.drops), maps.Clone(l.codes)
	told := slices.Clone(l.told)
	l.mu.Unlock()
	return LoadStats{
		Sessions: l.cfg.Sessions, Connected: l.connected.Load(), Dropped: l.dropped.Load(),
		Kept: int64(l.cfg.Sessions) - l.everLost.Load(),
		Cut:  l.cut.Load(), Commits: l.clock.Total(), Retried: l.retried.Load(),
		Refused: l.refused.Load(), InDoubt: l.inDoubt.Load(),
		StateChecks: l.stateChecks.Load(), StateWrong: l.stateWrong.Load(), Drops: drops,
		Miscounted: l.miscounted.Load(), Codes: codes, Told: told,
	}
}

// Check reads what the database has from the primary and holds it against the ledger, for the
// writes from one id on. It returns where the next check may go on: below that all is settled.
func (l *Load) Check(ctx context.Context, from int64) (LedgerReport, int64, error) {
	to := l.ledger.SettledBelow(from)
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	var last error
	for i := range 10 {
		r, err := l.checkOnce(ctx, l.dsn(i), from, to)
		if err == nil {
			return r, to, nil
		}
		last = err
		select {
		case <-ctx.Done():
			return r, from, fmt.Errorf("check ledger: %w", errors.Join(last, ctx.Err()))
		case <-time.After(200 * time.Millisecond):
		}
	}
	return LedgerReport{}, from, fmt.Errorf("check ledger: %w", last)
}

func (l *Load) checkOnce(ctx context.Context, dsn string, from, to int64) (LedgerReport, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return LedgerReport{}, err
	}
	defer closeConn(conn)
	rows, err := conn.Query(ctx, `SELECT id, count(*) FROM demo.ledger
		WHERE id >= $1 AND id < $2 GROUP BY id`, from, to)
	if err != nil {
		return LedgerReport{}, err
	}
	there, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LedgerRow])
	if err != nil {
		return LedgerReport{}, err
	}
	r := l.ledger.Check(from, to, there)
	// One statement, hence one snapshot: it can run beside the load.
	err = conn.QueryRow(ctx, `SELECT
		(SELECT count(*) FROM demo.counter c LEFT JOIN (SELECT session, count(*) AS n
			FROM demo.ledger WHERE kind LIKE $1 || '%' GROUP BY session) l USING (session)
			WHERE c.n <> coalesce(l.n, 0))
		+ (SELECT count(*) FROM (SELECT sum(balance) s FROM demo.account) a WHERE s <> 0)`,
		transferPrefix).Scan(&r.Unbalanced)
	if err != nil || !l.hasEnded.Load() {
		return r, err
	}
	return r, l.checkTallies(ctx, conn, &r)
}

// checkTallies holds the counters that leave no row against what their sessions know, once those
// have ended.
func (l *Load) checkTallies(ctx context.Context, conn *pgx.Conn, r *LedgerReport) error {
	rows, err := conn.Query(ctx, "SELECT session, n FROM demo.tally")
	if err != nil {
		return err
	}
	var session int
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&session, &n}, func() error {
		if session > len(l.sessions) {
			return nil // there is one row though there is no session
		}
		if t := l.sessions[session-1].tally; n < t.low || n > t.high {
			r.Unbalanced++
			r.example("the counter of session %d is %d, and not %d to %d", session, n, t.low,
				t.high)
		}
		return nil
	})
	return err
}

// hostOfProxy is the address without the port, for texts.
func hostOfProxy(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}
