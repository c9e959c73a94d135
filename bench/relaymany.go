package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"holdfast/pgwire"
)

// Names of the modes with many sessions.
const (
	modeIdle = "stub, idle sessions"
	modeMany = "stub, one stream beside many sessions"
)

// RelayIdle is what sessions cost that do nothing.
type RelayIdle struct {
	Target   string  `json:"target"`
	Sessions int     `json:"sessions"`
	Bytes    float64 `json:"rss_bytes_per_session"`
	Peak     int64   `json:"peak_rss_bytes"`
	CPU      float64 `json:"cpu_percent"`
	Login    float64 `json:"login_cpu_us"`
}

// RelayMany is how long the others wait while one session streams.
type RelayMany struct {
	Target   string  `json:"target"`
	Sessions int     `json:"sessions"`
	Pace     int     `json:"tx_per_second"`
	AloneP50 float64 `json:"alone_p50_us"`
	AloneP99 float64 `json:"alone_p99_us"`
	P50      float64 `json:"beside_p50_us"`
	P99      float64 `json:"beside_p99_us"`
	Stream   float64 `json:"stream_mb_per_second"`
}

// idle logs in many sessions and watches them do nothing. Memory is what the target has more than
// before the logins, after it had time to give back what the logins took.
func (r *Relay) idle(ctx context.Context, t *target) error {
	if t.cmd == nil {
		return nil // no process, nothing to measure
	}
	before, _, err := t.memory()
	if err != nil {
		return err
	}
	start, err := t.cpu()
	if err != nil {
		return err
	}
	c, err := connectMany(ctx, t.addr, r.Sessions, simpleSelect)
	if err != nil {
		return err
	}
	defer c.close()
	done, err := t.cpu()
	if err != nil {
		return err
	}
	if err := wait(ctx, r.Settle); err != nil {
		return err
	}
	after, peak, err := t.memory()
	if err != nil {
		return err
	}
	calm, err := t.cpu()
	if err != nil {
		return err
	}
	if err := wait(ctx, r.Watch); err != nil {
		return err
	}
	end, err := t.cpu()
	if err != nil {
		return err
	}
	n := float64(r.Sessions)
	r.report.Idle = append(r.report.Idle, RelayIdle{Target: t.Name, Sessions: r.Sessions,
		Bytes: float64(after-before) / n, Peak: peak,
		CPU:   100 * (end - calm).Seconds() / r.Watch.Seconds(),
		Login: (done - start).Seconds() * 1e6 / n})
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// manyPace is how many transactions per second all sessions together begin, in turn.
const manyPace = 1000

// many compares the latency of paced sessions without and with a stream in another session.
func (r *Relay) many(ctx context.Context, t *target) error {
	n := max(1, r.Sessions/2)
	c, err := connectMany(ctx, t.addr, n, simpleSelect)
	if err != nil {
		return err
	}
	defer c.close()
	conn, reader, err := dial(ctx, t.addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	alone, err := c.paced(ctx, manyPace, 8*r.Round, nil)
	if err != nil {
		return err
	}
	var g sync.WaitGroup
	stop := make(chan struct{})
	request := pgwire.AppendQuery(nil, fmt.Sprintf(
		"SELECT repeat('x', %d) FROM generate_series(1,%d)", stubRowBytes,
		r.StreamMB*1000000/(stubRowBytes+11)))
	var streamed int
	var failed error
	begin := monotonic()
	var took float64
	g.Go(func() {
		defer close(stop)
		streamed, failed = exchange(conn, reader, request)
		took = float64(monotonic()-begin) / 1e9
	})
	beside, err := c.paced(ctx, manyPace, time.Minute, stop)
	if err != nil {
		_ = conn.Close()
	}
	g.Wait()
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	var a, b RelayRound
	a.latencies(alone)
	b.latencies(beside)
	r.report.Many = append(r.report.Many, RelayMany{Target: t.Name, Sessions: n, Pace: manyPace,
		AloneP50: a.P50, AloneP99: a.P99, P50: b.P50, P99: b.P99,
		Stream: float64(streamed) / 1e6 / took})
	return nil
}

// dialers is how many log in at once where there are many to log in.
const dialers = 8

// connectMany is connectClients by several goroutines.
func connectMany(ctx context.Context, addr string, n int, s script) (*clients, error) {
	c, err := connectClients(ctx, addr, 0, s)
	if err != nil {
		return nil, err
	}
	var g sync.WaitGroup
	var failed error
	next := make(chan struct{}, n)
	for range n {
		next <- struct{}{}
	}
	close(next)
	for range dialers {
		g.Go(func() {
			for range next {
				if err := c.add(ctx, addr); err != nil {
					c.mu.Lock()
					failed = err
					c.mu.Unlock()
					return
				}
			}
		})
	}
	g.Wait()
	if failed != nil {
		c.close()
		return nil, failed
	}
	return c, nil
}
