package election

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// loanConn is a borrower's connection to the relay beside a voter: dialed when it is needed, kept
// until something goes wrong. Requests wait for each other. Safe for concurrent use.
type loanConn struct {
	dial func(ctx context.Context) (net.Conn, error)
	turn chan struct{} // whoever puts in has the connection

	mu     sync.Mutex
	conn   net.Conn
	closed bool
}

func newLoanConn(dial func(ctx context.Context) (net.Conn, error)) *loanConn {
	return &loanConn{dial: dial, turn: make(chan struct{}, 1)}
}

// close ends the connection for good.
func (l *loanConn) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.conn != nil {
		_ = l.conn.Close()
	}
}

// ask sends a request and reads its answer. A connection that was kept may have ended with the
// other process: then it asks once more on a new one, which does no harm, since requests have
// numbers.
func (l *loanConn) ask(ctx context.Context, what byte, r Renewal) (RenewalAnswer, error) {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return RenewalAnswer{}, ctx.Err()
	}
	defer func() { <-l.turn }()
	c, isNew, err := l.take(ctx)
	if err != nil {
		return RenewalAnswer{}, err
	}
	a, err := l.try(ctx, c, what, r)
	if err == nil || isNew || ctx.Err() != nil {
		return a, err
	}
	if c, _, err = l.take(ctx); err != nil {
		return RenewalAnswer{}, err
	}
	return l.try(ctx, c, what, r)
}

// take returns the connection, or a new one.
func (l *loanConn) take(ctx context.Context) (c net.Conn, isNew bool, err error) {
	l.mu.Lock()
	c = l.conn
	l.mu.Unlock()
	if c != nil {
		return c, false, nil
	}
	if c, err = l.dial(ctx); err != nil {
		return nil, true, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = c.Close()
		return nil, true, net.ErrClosed
	}
	l.conn = c
	return c, true, nil
}

// try uses the connection once; it is dropped unless all went well.
func (l *loanConn) try(ctx context.Context, c net.Conn, what byte, r Renewal,
) (a RenewalAnswer, err error) {
	// What is late is of no use, and would be taken for the next one's answer.
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })
	defer func() {
		if !stop() || err != nil {
			l.drop(c)
		}
	}()
	return exchangeLoan(c, what, r)
}

// exchangeLoan sends a request and reads its answer.
func exchangeLoan(c io.ReadWriter, what byte, r Renewal) (RenewalAnswer, error) {
	buf := make([]byte, 2+loanMax)
	if _, err := c.Write(appendLoanRequest(buf[:0], what, r)); err != nil {
		return RenewalAnswer{}, fmt.Errorf("loan: ask: %w", err)
	}
	p, err := readLoan(c, buf)
	if err != nil {
		return RenewalAnswer{}, fmt.Errorf("loan: read answer: %w", err)
	}
	return parseLoanAnswer(p)
}

func (l *loanConn) drop(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = c.Close()
	l.conn = nil
}

// relayClient is how a borrower reaches the relay beside a voter.
type relayClient struct{ *peer }

func (r relayClient) renew(ctx context.Context, m Renewal) (RenewalAnswer, error) {
	return r.loan.ask(ctx, loanBorrow, m)
}

func (r relayClient) release(ctx context.Context, m Renewal) (RenewalAnswer, error) {
	return r.loan.ask(ctx, loanReturn, m)
}
