package main

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// load is a number of clients in a closed loop. Each has a goroutine, which stop waits for.
type load struct {
	user, password string
	cancel         context.CancelFunc
	group          sync.WaitGroup

	mu      sync.Mutex
	proxies []string // that clients may be connected to
	acks    []ack    // since the last mark, and lead before it
	marked  time.Time
	dropped int // connections lost since the last mark, though the proxy lived
}

// ack is one acknowledged commit: when it was, and how long its statement took.
type ack struct {
	at   time.Time
	took time.Duration
}

func (l *load) dsn(proxy string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(l.user, l.password), Host: proxy,
		Path: "/postgres"}
	return u.String()
}

// start makes the table and launches the clients.
func (l *load) start(ctx context.Context, clients int) error {
	conn, err := pgx.Connect(ctx, l.dsn(l.proxy(0)))
	if err != nil {
		return fmt.Errorf("start load: %w", err)
	}
	_, err = conn.Exec(ctx, "CREATE TABLE bench_row (client int, at timestamptz DEFAULT now())")
	closeConn(conn)
	if err != nil {
		return fmt.Errorf("start load: %w", err)
	}
	ctx, l.cancel = context.WithCancel(ctx)
	for i := range clients {
		l.group.Go(func() { l.runClient(ctx, i) })
	}
	return nil
}

func (l *load) stop() {
	if l.cancel != nil {
		l.cancel()
	}
	l.group.Wait()
}

// use tells which proxies the clients are to be connected to; those elsewhere move.
func (l *load) use(proxies []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.proxies = proxies
}

func (l *load) proxy(i int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.proxies[i%len(l.proxies)]
}

// runClient writes until ctx ends. A write that fails is just tried again: nothing here counts on
// it.
func (l *load) runClient(ctx context.Context, i int) {
	var conn *pgx.Conn
	at := ""
	defer func() { closeConn(conn) }()
	for n := 0; ctx.Err() == nil; n++ {
		if want := l.proxy(i); conn == nil || want != at {
			closeConn(conn)
			var err error
			if conn, err = pgx.Connect(ctx, l.dsn(want)); err != nil {
				conn = nil
				pause(ctx)
				continue
			}
			at = want
		}
		begin := time.Now()
		err := write(ctx, conn, i, n%2 == 0)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			l.acked(ack{time.Now(), time.Since(begin)})
			continue
		}
		if conn.IsClosed() {
			l.lost()
			closeConn(conn)
			conn = nil
		}
	}
}

// write commits one row, in a transaction block or without one.
func write(ctx context.Context, conn *pgx.Conn, client int, isBlock bool) error {
	const sql = "INSERT INTO bench_row (client) VALUES ($1)"
	if !isBlock {
		_, err := conn.Exec(ctx, sql, client)
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql, client)
		return err
	})
}

func (l *load) acked(a ack) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acks = append(l.acks, a)
}

func (l *load) lost() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropped++
}

// lead is how much of the time before a mark is kept, to show what the load was before.
const lead = 500 * time.Millisecond

// mark begins a round; what was long before is forgotten, but for the newest commit, since a gap
// may begin with it.
func (l *load) mark() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marked = time.Now()
	i := 0
	for i+1 < len(l.acks) && l.acks[i].at.Before(l.marked.Add(-lead)) {
		i++
	}
	l.acks = append([]ack(nil), l.acks[i:]...)
	l.dropped = 0
}

// round is what the clients noticed since the mark.
type round struct {
	Gap     time.Duration
	Stall   time.Duration
	Commits int
	Dropped int
}

func (l *load) round() round {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := len(l.acks) - 1
	for i > 0 && !l.acks[i].at.Before(l.marked) {
		i--
	}
	return measure(l.acks[max(i, 0):], l.dropped, time.Now())
}

// throughput is the number of commits in each step of time, beginning lead before the fault, up
// to now.
func (l *load) throughput(fault time.Time) []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return histogram(l.acks, fault.Add(-lead), time.Now())
}

// step is the resolution of the throughput.
const step = 50 * time.Millisecond

// histogram counts commits by step; a step that is not over is left out.
func histogram(acks []ack, from, to time.Time) []int {
	out := make([]int, max(0, to.Sub(from)/step))
	for _, a := range acks {
		if i := int(a.at.Sub(from) / step); !a.at.Before(from) && i < len(out) {
			out[i]++
		}
	}
	return out
}

// firstAfter is when the first commit after t was acknowledged; zero if there is none.
func (l *load) firstAfter(t time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.acks {
		if a.at.After(t) {
			return a.at
		}
	}
	return time.Time{}
}

// measure finds the longest gap between commits, the time since the last one included.
func measure(acks []ack, dropped int, now time.Time) round {
	r := round{Commits: len(acks), Dropped: dropped}
	for i, a := range acks {
		r.Stall = max(r.Stall, a.took)
		next := now
		if i+1 < len(acks) {
			next = acks[i+1].at
		}
		if gap := next.Sub(a.at); gap > r.Gap {
			r.Gap = gap
		}
	}
	return r
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
}

// closeConn ends a connection and waits for pgx to be done with it; nil is allowed.
func closeConn(conn *pgx.Conn) {
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
	<-conn.PgConn().CleanupDone()
}
