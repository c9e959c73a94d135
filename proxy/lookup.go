package proxy

import (
	"context"
	"fmt"
	"sync"
	"time"

	"holdfast/pgwire"
)

// lookup is the proxy's own connection to the primary, over which secrets and outcomes are asked
// for. It is made when it is first needed and made anew for a new epoch. Safe for concurrent use;
// questions wait for one another.
type lookup struct {
	proxy *Proxy
	turn  chan struct{} // capacity 1: held by whoever asks

	mu sync.Mutex
	b  *backend
}

// query asks one question of that very primary.
func (l *lookup) query(ctx context.Context, pr *Primary, sql string) ([][][]byte, error) {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for fresh := false; ; {
		b, made, err := l.use(ctx, pr)
		if err != nil {
			return nil, err
		}
		fresh = made
		if bootNow() >= pr.Lease.Until() {
			return nil, fmt.Errorf("look up on %s: the lease has run out", pr.Name)
		}
		_ = b.conn.SetDeadline(time.Now().Add(l.proxy.cfg.DialTimeout))
		stop := context.AfterFunc(ctx, func() { _ = b.conn.SetDeadline(time.Unix(1, 0)) })
		rows, err := pgwire.SimpleQuery(b.conn, b.reader, sql)
		live := stop() && bootNow() < pr.Lease.Until()
		if err == nil && live {
			return rows, nil
		}
		if e, ok := err.(*pgwire.Error); ok && e.Severity != "FATAL" && live {
			return nil, err
		}
		l.drop()
		if err == nil {
			return nil, fmt.Errorf("look up on %s: the lease has run out", pr.Name)
		}
		if fresh || ctx.Err() != nil {
			return nil, fmt.Errorf("look up on %s: %w", pr.Name, err)
		}
	}
}

// use returns the connection to that primary, and whether it was made now.
func (l *lookup) use(ctx context.Context, pr *Primary) (*backend, bool, error) {
	l.mu.Lock()
	b := l.b
	l.mu.Unlock()
	if b != nil && b.primary.Epoch == pr.Epoch {
		return b, false, nil
	}
	l.drop()
	cfg := &l.proxy.cfg
	login := []pgwire.Param{
		{Name: "user", Value: cfg.LookupUser},
		{Name: "database", Value: "postgres"},
		{Name: "application_name", Value: "holdfast"},
	}
	b, err := l.proxy.connect(ctx, pr, login, pgwire.Credentials{Password: cfg.LookupPassword})
	if err != nil {
		return nil, false, err
	}
	l.mu.Lock()
	l.b = b
	l.mu.Unlock()
	return b, true, nil
}

// drop closes the connection, also under whoever waits for its answer.
func (l *lookup) drop() {
	l.mu.Lock()
	b := l.b
	l.b = nil
	l.mu.Unlock()
	if b != nil {
		b.close(false)
	}
}
