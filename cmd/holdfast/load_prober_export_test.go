package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// Prober commits one row at a time through one proxy, as often as it can, and knows how long
// there was no commit. It owns one goroutine; Stop waits for it.
type Prober struct {
	interval time.Duration
	clock    *CommitClock
	ledger   Ledger
	cancel   context.CancelFunc
	done     chan struct{}
	dropped  atomic.Int64

	mu       sync.Mutex
	dsn      string
	redirect bool  // to connect anew
	err      error // the last one
}

// NewProber makes a prober for the proxy and role of the DSN.
func NewProber(dsn string, interval time.Duration) *Prober {
	return &Prober{dsn: dsn, interval: interval, clock: NewCommitClock(),
		done: make(chan struct{})}
}

// Start makes the prober's table and launches it.
func (p *Prober) Start(ctx context.Context) error {
	err := execAll(ctx, p.target(), "CREATE TABLE holdfast_probe (id bigint NOT NULL)")
	if err != nil {
		return fmt.Errorf("start prober: %w", err)
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.cancel = cancel
	go p.run(run)
	return nil
}

// Stop ends the prober and waits for it.
func (p *Prober) Stop() {
	p.cancel()
	<-p.done
}

func (p *Prober) run(ctx context.Context) {
	defer close(p.done)
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			closeConn(conn)
		}
	}()
	ticker := time.NewTicker(p.interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if p.takeRedirect() && conn != nil {
			closeConn(conn)
			conn = nil
		}
		if conn == nil {
			var err error
			if conn, err = pgx.Connect(ctx, p.target()); err != nil {
				p.note(err)
				conn = nil
				continue
			}
		}
		id := p.ledger.Begin()
		_, err := conn.Exec(ctx, "INSERT INTO holdfast_probe VALUES ($1)", id)
		p.ledger.Settle(id, outcomeOf(err), errorText(err))
		if err == nil {
			p.clock.Record()
			continue
		}
		if ctx.Err() != nil {
			return
		}
		p.note(err)
		if conn.IsClosed() {
			p.dropped.Add(1)
			closeConn(conn)
			conn = nil
		}
	}
}

// Redirect makes the prober go on through another proxy, before its own is killed.
func (p *Prober) Redirect(dsn string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dsn, p.redirect = dsn, true
}

func (p *Prober) takeRedirect() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	is := p.redirect
	p.redirect = false
	return is
}

func (p *Prober) target() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dsn
}

func (p *Prober) note(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Gap is the longest time without a commit that overlaps from..to.
func (p *Prober) Gap(from, to time.Time) time.Duration { return p.clock.Gap(from, to) }

// Commits is how many commits were acknowledged.
func (p *Prober) Commits() int64 { return p.clock.Total() }

// Dropped is how often the prober lost its connection.
func (p *Prober) Dropped() int64 { return p.dropped.Load() }

// LastError is the newest error, of any sort.
func (p *Prober) LastError() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Check holds the prober's table against what it was promised; call it after Stop.
func (p *Prober) Check(ctx context.Context) (LedgerReport, error) {
	conn, err := pgx.Connect(ctx, p.target())
	if err != nil {
		return LedgerReport{}, fmt.Errorf("check probes: %w", err)
	}
	defer closeConn(conn)
	rows, err := conn.Query(ctx, "SELECT id, count(*) FROM holdfast_probe GROUP BY id")
	if err != nil {
		return LedgerReport{}, fmt.Errorf("check probes: %w", err)
	}
	there, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LedgerRow])
	if err != nil {
		return LedgerReport{}, fmt.Errorf("check probes: %w", err)
	}
	return p.ledger.Check(1, p.ledger.SettledBelow(1), there), nil
}
