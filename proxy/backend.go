package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/pgwire"
)

// backend is a server process side of a session: a connection that was logged in, checked to
// reach the very server that the lock names, and belongs to one epoch.
type backend struct {
	primary *Primary
	conn    net.Conn
	pid     uint32
	key     []byte
	started string // backend_start, which with pid names the process for good
	params  []pgwire.Param
	status  byte           // transaction status, while it is not attached
	reader  *pgwire.Reader // for exchanges before it is attached

	in       inbox // the deliverer's
	passing  int   // bytes of a message larger than the relay's buffer
	passHide bool
	taken    int
	isLast   bool // what was taken ends the last unit of work of a proxy that is closing

	quiet silence // Proxy.runWatch's own

	done      chan struct{} // closed when the deliverer ended
	closed    chan struct{} // closed by close
	closeOnce sync.Once
}

// checkSQL tells whether this is the server and the start of it that the lock names. Every role
// may ask it.
const checkSQL = "SELECT (extract(epoch FROM pg_catalog.pg_postmaster_start_time())" +
	" OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8, pg_catalog.pg_is_in_recovery()," +
	" (SELECT backend_start FROM pg_catalog.pg_stat_activity" +
	" WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())"

// errWrongServer is a server that answers at the primary's address and is not the one that the
// lock names.
var errWrongServer = errors.New("not the server that the lock names")

// connect logs in to the primary; the caller owns the result.
func (p *Proxy) connect(ctx context.Context, pr *Primary, login []pgwire.Param,
	cred pgwire.Credentials,
) (*backend, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout)
	defer cancel()
	conn, err := p.dialer.DialContext(ctx, "tcp", pr.Addr)
	if err != nil {
		return nil, fmt.Errorf("dial backend %s: %w", pr.Addr, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	b := &backend{primary: pr, conn: conn, done: make(chan struct{}),
		closed: make(chan struct{})}
	err = b.login(login, cred)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		reset(conn)
		return nil, err
	}
	return b, nil
}

// login authenticates and checks the server's incarnation (DESIGN.md I2).
func (b *backend) login(login []pgwire.Param, cred pgwire.Credentials) error {
	b.reader = pgwire.NewReader(b.conn, loginBodyMax)
	info, err := pgwire.Login(b.conn, b.reader, login, cred)
	if err != nil {
		return fmt.Errorf("log in to backend: %w", err)
	}
	b.pid, b.key, b.params, b.status = info.PID, info.Key, info.Params, info.TxStatus
	rows, err := pgwire.SimpleQuery(b.conn, b.reader, checkSQL)
	if err != nil {
		return fmt.Errorf("check backend: %w", err)
	}
	if len(rows) != 1 || len(rows[0]) != 3 {
		return fmt.Errorf("check backend: %w", errWrongServer)
	}
	if string(rows[0][1]) != "f" {
		return fmt.Errorf("check backend: server is in recovery: %w", errWrongServer)
	}
	if got := string(rows[0][0]); got != b.primary.Incarnation {
		return fmt.Errorf("check backend: incarnation %s instead of %s: %w", got,
			b.primary.Incarnation, errWrongServer)
	}
	b.started = string(rows[0][2])
	return nil
}

// loginBodyMax bounds the messages of a backend outside the relay.
const loginBodyMax = 4 << 20

// close ends the connection once: politely where the server has nothing outstanding, else so
// that nothing on its way can still arrive.
func (b *backend) close(polite bool) {
	b.closeOnce.Do(func() {
		close(b.closed)
		if polite {
			_ = b.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			_, _ = b.conn.Write(pgwire.AppendTerminate(nil))
			_ = b.conn.Close()
			return
		}
		reset(b.conn)
	})
}

// relayFromHere hands what was read ahead to the relay; exchange works again afterwards.
func (b *backend) relayFromHere() {
	ahead := append(slices.Clone(b.in.bytes()), b.reader.Buffered()...)
	b.in.release()
	b.in.attach(b.conn, ahead)
	b.reader = pgwire.NewReader(b.conn, loginBodyMax)
}

// exchange sends messages that end in n ReadyForQuery and collects the errors in between; the
// backend must be idle and not attached. Parameters that change are noted by report.
func (b *backend) exchange(out []byte, n int, report func(name, value string),
) ([]*pgwire.Error, byte, error) {
	if _, err := b.conn.Write(out); err != nil {
		return nil, 0, fmt.Errorf("write to backend: %w", err)
	}
	var errs []*pgwire.Error
	for {
		typ, body, err := b.reader.ReadMessage()
		if err != nil {
			return errs, 0, fmt.Errorf("read from backend: %w", err)
		}
		switch typ {
		case pgwire.SrvError:
			e, err := pgwire.ParseError(body)
			if err != nil {
				return errs, 0, err
			}
			if e.Severity == "FATAL" || e.Severity == "PANIC" {
				return errs, 0, e
			}
			errs = append(errs, e)
		case pgwire.SrvParameterStatus:
			if name, value, err := pgwire.ParseParameterStatus(body); err == nil {
				report(name, value)
			}
		case pgwire.SrvReadyForQuery:
			if n--; n > 0 {
				continue
			}
			st, err := pgwire.ParseReadyForQuery(body)
			return errs, st, err
		}
	}
}

// isServerFull tells that the server has no connection left for this login.
func isServerFull(err error) bool {
	var pe *pgwire.Error
	return errors.As(err, &pe) && pe.Code == pgwire.CodeTooManyConnections
}

// isServerAway tells that a failure to connect may pass: nobody listens, the server starts or
// stops, or it is not the right one yet. Anything else is an answer about this login.
func isServerAway(err error) bool {
	if errors.Is(err, pgwire.ErrAuthMethod) {
		return false
	}
	var pe *pgwire.Error
	if errors.As(err, &pe) {
		return pe.Code == pgwire.CodeCannotConnectNow || strings.HasPrefix(pe.Code, "57P") ||
			pe.Code == pgwire.CodeTooManyConnections || strings.HasPrefix(pe.Code, "08")
	}
	return true
}
