package proxy

import (
	"context"
	"fmt"
	"sync"
	"time"

	"holdfast/pgwire"
)

// lookup is a connection of the proxy's own to the primary, over which secrets or outcomes are
// asked for. It is made when it is first needed and made anew for a new epoch. Safe for concurrent
// use; questions wait for one another. A question ends when its primary is the primary no longer:
// it keeps no other one waiting, least of all for a host that is gone.
type lookup struct {
	proxy    *Proxy
	database string
	settings []pgwire.Param // of its session
	turn     chan struct{}  // capacity 1: held by whoever asks

	mu sync.Mutex
	b  *backend
}

func newLookup(p *Proxy) *lookup {
	return &lookup{
		proxy: p, database: "postgres", settings: lookupSettings, turn: make(chan struct{}, 1),
	}
}

// lookupSettings make the answers, and the operators in our questions, those of PostgreSQL whatever
// the server, the database and the role have set. Names travel as the bytes that they are, as in
// the startup packet of their client. transaction_timeout (17) is not there, since older servers
// refuse it: it ends the connection, and the question is asked over another one.
var lookupSettings = []pgwire.Param{
	{Name: "search_path", Value: "pg_catalog"},
	{Name: "standard_conforming_strings", Value: "on"},
	{Name: "client_encoding", Value: "SQL_ASCII"},
	{Name: "statement_timeout", Value: "0"},
	{Name: "lock_timeout", Value: "0"},
	{Name: "default_transaction_isolation", Value: "read committed"},
	{Name: "default_transaction_read_only", Value: "off"},
	{Name: "default_transaction_deferrable", Value: "off"},
	{Name: "jit", Value: "off"}, // the estimates for the catalogue would start it
}

// query asks one question of that very primary.
func (l *lookup) query(ctx context.Context, pr *Primary, sql string) ([][][]byte, error) {
	ctx, end := l.proxy.while(ctx, pr)
	defer end()
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("look up on %s: %w", pr.Name, ctx.Err())
	}
	for fresh := false; ; {
		if ctx.Err() != nil || l.proxy.isCut(pr.Epoch) {
			return nil, fmt.Errorf("look up on %s: %w", pr.Name, errOvertaken)
		}
		if bootNow() >= pr.Lease.Until() {
			return nil, fmt.Errorf("look up on %s: the lease has run out", pr.Name)
		}
		b, made, err := l.use(ctx, pr)
		if err != nil {
			return nil, err
		}
		fresh = made
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
		{Name: "database", Value: l.database},
		{Name: "application_name", Value: "holdfast"},
	}
	login = append(login, l.settings...)
	b, err := l.proxy.connect(ctx, l.proxy.loops[0], pr, login,
		pgwire.Credentials{Password: cfg.LookupPassword})
	if err != nil {
		return nil, false, err
	}
	l.mu.Lock()
	l.b = b
	l.mu.Unlock()
	if l.proxy.isCut(pr.Epoch) || l.proxy.ctx.Err() != nil { // neither saw the new connection
		l.drop()
		return nil, false, errOvertaken
	}
	return b, true, nil
}

// cut closes the connection if it belongs to that epoch or an older one.
func (l *lookup) cut(epoch uint64) {
	l.mu.Lock()
	b := l.b
	l.mu.Unlock()
	if b != nil && b.primary.Epoch <= epoch {
		b.close(false)
	}
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
