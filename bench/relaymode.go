package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"holdfast/pgwire"
)

// bulkRows are the rows of one large result: of 100 bytes each, about 10 MB.
const bulkRows = 92000

var (
	largeResult = script{name: "large result", isBulk: true,
		request: pgwire.AppendQuery(nil, fmt.Sprintf(
			"SELECT repeat('x', %d) FROM generate_series(1,%d)", stubRowBytes, bulkRows))}
	copyOut = script{name: "copy out", isBulk: true,
		request: pgwire.AppendQuery(nil, fmt.Sprintf(
			"COPY (SELECT repeat('x', %d) FROM generate_series(1,%d)) TO STDOUT", stubRowBytes,
			bulkRows))}
)

// scriptWorker runs a script over and over.
type scriptWorker struct{ *clients }

func (w scriptWorker) round(ctx context.Context, d time.Duration) (RelayRound, error) {
	begin := monotonic()
	took, err := w.run(ctx, d)
	if err != nil {
		return RelayRound{}, err
	}
	r := RelayRound{Units: float64(len(took)), Seconds: float64(monotonic()-begin) / 1e9}
	if w.script.isBulk {
		r.Units *= float64(w.answer) / 1e6
	}
	r.latencies(took)
	return r, nil
}

// scriptMode is n clients that run a script.
func scriptMode(server string, s script, n int) relayMode {
	m := relayMode{name: fmt.Sprintf("%s, %s, %d clients", server, s.name, n), unit: "tx"}
	if n == 1 {
		m.name = strings.TrimSuffix(m.name, "s")
	}
	if s.isBulk {
		m.unit = "MB"
	}
	m.open = func(ctx context.Context, t *target) (worker, error) {
		c, err := connectClients(ctx, t.addr, n, s)
		if err != nil {
			return nil, err
		}
		return scriptWorker{c}, nil
	}
	return m
}

// copyIn is one client that sends a table's rows.
type copyIn struct {
	conn *net.TCPConn
	r    *pgwire.Reader
}

func copyInMode() relayMode {
	return relayMode{name: "stub, copy in, 1 client", unit: "MB",
		open: func(ctx context.Context, t *target) (worker, error) {
			conn, r, err := dial(ctx, t.addr)
			if err != nil {
				return nil, err
			}
			return &copyIn{conn, r}, nil
		}}
}

func (w *copyIn) close() { _ = w.conn.Close() }

// round sends COPY statements of about 10 MB.
func (w *copyIn) round(ctx context.Context, d time.Duration) (RelayRound, error) {
	begin := monotonic()
	var took []int64
	sent := 0
	for monotonic() < begin+int64(d) && ctx.Err() == nil {
		since := monotonic()
		n, err := w.one()
		if err != nil {
			return RelayRound{}, fmt.Errorf("copy in: %w", err)
		}
		sent += n
		took = append(took, monotonic()-since)
	}
	r := RelayRound{Units: float64(sent) / 1e6, Seconds: float64(monotonic()-begin) / 1e9}
	r.latencies(took)
	return r, ctx.Err()
}

func (w *copyIn) one() (int, error) {
	_ = w.conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := w.conn.Write(pgwire.AppendQuery(nil, "COPY bench_in FROM STDIN")); err != nil {
		return 0, err
	}
	for {
		typ, body, err := w.r.ReadMessage()
		if err != nil {
			return 0, err
		}
		if typ == pgwire.SrvError {
			e, err := pgwire.ParseError(body)
			return 0, errors.Join(e, err)
		}
		if typ == pgwire.SrvCopyInResponse {
			break
		}
	}
	sent := 0
	for range bulkRows / stubBlockRows {
		if _, err := w.conn.Write(stubBytes.copyBlock); err != nil {
			return sent, err
		}
		sent += len(stubBytes.copyBlock)
	}
	_, err := exchange(w.conn, w.r, []byte{pgwire.CliCopyDone, 0, 0, 0, 4})
	return sent, err
}

// loginClients is how many log in at the same time.
const loginClients = 4

// logins is clients that log in, ask one thing and leave.
type logins struct{ addr string }

func loginMode() relayMode {
	return relayMode{name: "stub, logins with SCRAM, 4 clients", unit: "login",
		open: func(_ context.Context, t *target) (worker, error) { return logins{t.addr}, nil }}
}

func (logins) close() {}

func (w logins) round(ctx context.Context, d time.Duration) (RelayRound, error) {
	begin := monotonic()
	var g sync.WaitGroup
	var mu sync.Mutex
	var took []int64
	var failed error
	for range loginClients {
		g.Go(func() {
			for monotonic() < begin+int64(d) && ctx.Err() == nil {
				since := monotonic()
				err := w.one(ctx)
				mu.Lock()
				took = append(took, monotonic()-since)
				failed = errors.Join(failed, err)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	g.Wait()
	r := RelayRound{Units: float64(len(took)), Seconds: float64(monotonic()-begin) / 1e9}
	r.latencies(took)
	return r, failed
}

func (w logins) one(ctx context.Context) error {
	conn, r, err := dial(ctx, w.addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := exchange(conn, r, simpleSelect.request); err != nil {
		return err
	}
	_, err = conn.Write(pgwire.AppendTerminate(nil))
	return err
}
