package main_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/pgwire"
)

// labProber commits one row at a time through the proxy of one node, on one connection as long as
// that lives, and remembers each error. It owns one goroutine.
type labProber struct {
	node   *holdfast.ClusterNode
	ledger holdfast.Ledger
	clock  *holdfast.CommitClock
	all    *holdfast.CommitClock // of all probers

	mu    sync.Mutex
	codes map[string]int
	drops []string
	lost  int
	raw   net.Conn // of the connection of the moment
}

// labProbeEvery is the pace: three probers and the load must leave two cores time for the faults.
const labProbeEvery = 20 * time.Millisecond

func newLabProber(n *holdfast.ClusterNode, all *holdfast.CommitClock) *labProber {
	return &labProber{node: n, clock: holdfast.NewCommitClock(), all: all,
		codes: map[string]int{}}
}

func (p *labProber) run(ctx context.Context) {
	var conn *pgx.Conn
	defer func() { closeLabConn(conn) }()
	ticker := time.NewTicker(labProbeEvery)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if conn == nil {
			var err error
			if conn, err = p.connect(ctx); err != nil {
				p.note("login", err)
				conn = nil
				continue
			}
		}
		id := p.ledger.Begin()
		_, err := conn.Exec(ctx, "INSERT INTO lab_probe (node, id) VALUES ($1, $2)",
			p.node.Name, id)
		p.ledger.Settle(id, labOutcome(err), fmt.Sprint(err))
		if err == nil {
			p.clock.Record()
			p.all.Record()
			continue
		}
		if ctx.Err() != nil {
			return
		}
		p.note("write", err)
		if conn.IsClosed() {
			p.mu.Lock()
			p.lost++
			p.mu.Unlock()
			closeLabConn(conn)
			conn = nil
		}
	}
}

// connect waits long for a login, as the proxy holds it while there is no primary.
func (p *labProber) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cfg, err := pgx.ParseConfig(e2eDSN(p.node))
	if err != nil {
		return nil, err
	}
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, addr)
		if err == nil {
			p.mu.Lock()
			p.raw = conn
			p.mu.Unlock()
		}
		return conn, err
	}
	return pgx.ConnectConfig(ctx, cfg)
}

// reset breaks the connection to a host that was lost, which the kernel would notice only when
// its next retransmission is due.
func (p *labProber) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.raw != nil {
		_ = p.raw.Close()
	}
}

func (p *labProber) note(what string, err error) {
	code := "none"
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		code = pe.Code
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.codes[code]++
	if len(p.drops) < 5 {
		p.drops = append(p.drops, fmt.Sprintf("%s: %s through %s: %v",
			time.Now().Format(time.StampMilli), what, p.node.Name, err))
	}
}

// labOutcome is what an error of a write that may have been committed means for it.
func labOutcome(err error) holdfast.Outcome {
	var pe *pgconn.PgError
	switch {
	case err == nil:
		return holdfast.OutcomeAcknowledged
	case errors.As(err, &pe) && pe.Code != pgwire.CodeOutcomeUnknown && pe.Severity != "FATAL":
		return holdfast.OutcomeRefused
	}
	return holdfast.OutcomeInDoubt
}

// takeErrors returns the errors since the last call.
func (p *labProber) takeErrors() (codes map[string]int, drops []string, lost int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	codes, drops, lost = maps.Clone(p.codes), p.drops, p.lost
	clear(p.codes)
	p.drops, p.lost = nil, 0
	return codes, drops, lost
}

// check holds the rows against what was promised, for all writes that have ended.
func (p *labProber) check(ctx context.Context, conn *pgx.Conn) (holdfast.LedgerReport, error) {
	return checkLabLedger(ctx, conn, &p.ledger, "lab_probe", p.node.Name)
}

func checkLabLedger(ctx context.Context, conn *pgx.Conn, l *holdfast.Ledger, table, node string) (
	holdfast.LedgerReport, error,
) {
	to := l.SettledBelow(1)
	rows, err := conn.Query(ctx, "SELECT id, count(*) FROM "+table+
		" WHERE node = $1 AND id < $2 GROUP BY id", node, to)
	if err != nil {
		return holdfast.LedgerReport{}, fmt.Errorf("check %s: %w", table, err)
	}
	there, err := pgx.CollectRows(rows, pgx.RowToStructByPos[holdfast.LedgerRow])
	if err != nil {
		return holdfast.LedgerReport{}, fmt.Errorf("check %s: %w", table, err)
	}
	return l.Check(1, to, there), nil
}

func closeLabConn(conn *pgx.Conn) {
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
	<-conn.PgConn().CleanupDone()
}

// labDoor tries to write on a node's PostgreSQL itself, from the node's own address, which no
// client has: what it acknowledges, and when, tells whether there were two primaries. An attempt
// that gets no answer is abandoned, not cancelled: PostgreSQL would end a cancelled wait for the
// standbys with a commit that only it has.
type labDoor struct {
	node   *holdfast.ClusterNode
	host   *labHost
	ledger holdfast.Ledger

	mu   sync.Mutex
	acks []labAck
}

// labAck is a write that a server acknowledged.
type labAck struct {
	node, timeline string
	sent, acked    time.Time
}

const (
	labDoorEvery   = 400 * time.Millisecond
	labDoorTimeout = 1500 * time.Millisecond
)

func (d *labDoor) run(ctx context.Context) {
	ticker := time.NewTicker(labDoorEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		try, cancel := context.WithTimeout(ctx, labDoorTimeout)
		d.try(try)
		cancel()
	}
}

func (d *labDoor) try(ctx context.Context) {
	dsn := strings.Replace(e2eDSN(d.node), d.node.Proxy, d.node.Postgres, 1)
	cfg, err := pgx.ParseConfig(dsn + "?sslmode=disable")
	if err != nil {
		panic(fmt.Sprintf("BUG: lab: %v", err))
	}
	isDialled := false
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if isDialled {
			return nil, errors.New("the second connection would cancel what the first one waits for")
		}
		isDialled = true
		return d.host.dial(ctx, network, addr)
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return // closed, in recovery, not there
	}
	defer closeLabConn(conn)
	id := d.ledger.Begin()
	a := labAck{node: d.node.Name, sent: time.Now()}
	err = conn.QueryRow(ctx, `INSERT INTO lab_door (node, id) VALUES ($1, $2)
		RETURNING left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)`, d.node.Name,
		id).Scan(&a.timeline)
	a.acked = time.Now()
	d.ledger.Settle(id, labOutcome(err), fmt.Sprint(err))
	if err == nil {
		d.mu.Lock()
		d.acks = append(d.acks, a)
		d.mu.Unlock()
	}
}

// takeAcks returns what was acknowledged since the last call.
func (d *labDoor) takeAcks() []labAck {
	d.mu.Lock()
	defer d.mu.Unlock()
	acks := d.acks
	d.acks = nil
	return acks
}

// twoPrimaries finds a write that a server acknowledged although another one, of a timeline not
// older, had acknowledged one before it was sent: then both would have been writable at once.
func twoPrimaries(acks []labAck) string {
	for _, old := range acks {
		for _, young := range acks {
			if old.node != young.node && young.acked.Before(old.sent) &&
				young.timeline >= old.timeline {
				return fmt.Sprintf("%s (timeline %s) acknowledged a write that was sent at %s, "+
					"%v after %s (timeline %s) had acknowledged one", old.node, old.timeline,
					old.sent.Format(time.StampMilli), old.sent.Sub(young.acked), young.node,
					young.timeline)
			}
		}
	}
	return ""
}
