package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"holdfast/pgwire"
)

// backend is a server process side of a session: a connection that was logged in, checked to
// reach the very server that the lock names, and belongs to one epoch.
type backend struct {
	proxy   *Proxy
	primary *Primary
	conn    link
	pid     uint32
	key     string // for cancel requests
	started string // backend_start in microseconds since 1970: with pid it names the process
	role    string // which it began with: that of SET ROLE, by ALTER ROLE or the client's options
	params  []pgwire.Param
	born    int64 // CLOCK_BOOTTIME before it logged in
	// syncCommit is synchronous_commit as it began: of the server, the role, the database, or the
	// client's options.
	syncCommit string

	status  byte           // transaction status, while it is not attached
	streams bool           // it is one of replication, of which the flow knows nothing
	reader  *pgwire.Reader // for exchanges while it is not attached; nil else

	// innerFailed tells that a question of our own failed, which may have left its statement behind.
	innerFailed bool
	isOld       bool // a server before 14 (oldcopy.go)
	// unproved tells that the server was a standby when this was made, and has to show that it is
	// the primary before anything else is believed (prewarm.go).
	unproved bool

	session  *session // to which it is attached, or was
	delivery          // of what it sends
	quiet    silence  // Proxy.runWatch's own
	isClosed atomic.Bool
}

// checkSQL tells whether this is the server and the start of it that the lock names, when this
// process was started, and which role it begins with. Every role may ask it. Times are numbers: as
// text they depend on DateStyle and TimeZone, which the session may have other than who reads them.
const checkSQL = "SELECT (extract(epoch FROM pg_catalog.pg_postmaster_start_time())" +
	" OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8, pg_catalog.pg_is_in_recovery(), (" +
	startedSQL + "), pg_catalog.current_setting('role')," +
	" pg_catalog.current_setting('synchronous_commit')"

const startedSQL = "SELECT (extract(epoch FROM backend_start) OPERATOR(pg_catalog.*) 1000000)" +
	"::pg_catalog.int8 FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())"

// startedAsSelfSQL asks as the role that logged in: another one that ALTER ROLE ... SET role has
// put in its place need not be allowed to see it.
const startedAsSelfSQL = "BEGIN; SET LOCAL ROLE NONE; " + startedSQL + "; ROLLBACK"

// errWrongServer is a server that answers at the primary's address and is not the one that the
// lock names.
var errWrongServer = errors.New("not the server that the lock names")

// connect logs in to the primary; the caller owns the result, whose socket is on that loop.
func (p *Proxy) connect(ctx context.Context, on *loop, pr *Primary, login []pgwire.Param,
	cred pgwire.Credentials,
) (*backend, error) {
	b, err := p.tryConnect(ctx, on, pr, login, cred)
	p.blind.note(pr.Epoch, err, bootNow())
	return b, err
}

func (p *Proxy) tryConnect(ctx context.Context, on *loop, pr *Primary, login []pgwire.Param,
	cred pgwire.Credentials,
) (*backend, error) {
	b, err := p.logInTo(ctx, on, pr, func(b *backend, opts pgwire.LoginOptions) error {
		return b.login(login, cred, opts)
	})
	if isServerFull(err) {
		p.pool.clear() // there is room for whoever asks next
		p.prewarm.clear()
	}
	return b, err
}

// logInTo connects to a server and logs in by that function, within dial_timeout.
func (p *Proxy) logInTo(ctx context.Context, on *loop, pr *Primary,
	login func(*backend, pgwire.LoginOptions) error,
) (*backend, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout)
	defer cancel()
	return p.logIn(ctx, on, pr.Addr, func(ctx context.Context, conn link,
		opts pgwire.LoginOptions,
	) (*backend, error) {
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		b := &backend{proxy: p, primary: pr, conn: conn, born: bootNow()}
		err := login(b, opts)
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			conn.reset()
			return nil, err
		}
		return b, nil
	})
}

// login authenticates and checks the server's incarnation (DESIGN.md I2).
func (b *backend) login(login []pgwire.Param, cred pgwire.Credentials, opts pgwire.LoginOptions,
) error {
	if err := b.authenticate(login, cred, opts); err != nil {
		return err
	}
	rows, err := pgwire.SimpleQuery(b.conn, b.reader, checkSQL)
	if err != nil {
		return fmt.Errorf("check backend: %w", err)
	}
	if err := b.identify(rows); err != nil {
		return err
	}
	return b.noteStart(rows[0][2])
}

// authenticate logs in.
func (b *backend) authenticate(login []pgwire.Param, cred pgwire.Credentials,
	opts pgwire.LoginOptions,
) error {
	b.reader = pgwire.NewReader(b.conn, loginBodyMax)
	info, err := pgwire.LoginWith(b.conn, b.reader, login, cred, opts)
	if err != nil {
		return fmt.Errorf("log in to backend: %w", err)
	}
	b.pid, b.key, b.params, b.status = info.PID, string(info.Key), info.Params, info.TxStatus
	return nil
}

// identify takes the answer to checkSQL.
func (b *backend) identify(rows [][][]byte) error {
	if len(rows) != 1 || len(rows[0]) < 4 {
		return fmt.Errorf("check backend: %w", errWrongServer)
	}
	if string(rows[0][1]) != "f" {
		return fmt.Errorf("check backend: server is in recovery: %w", errWrongServer)
	}
	if got := string(rows[0][0]); got != b.primary.Incarnation {
		return fmt.Errorf("check backend: incarnation %s instead of %s: %w", got,
			b.primary.Incarnation, errWrongServer)
	}
	b.role = string(rows[0][3])
	if len(rows[0]) > 4 {
		b.syncCommit = string(rows[0][4])
	}
	return nil
}

// noteStart takes when the server process was started, and asks again if that was hidden.
func (b *backend) noteStart(started []byte) error {
	if started == nil {
		rows, err := pgwire.SimpleQuery(b.conn, b.reader, startedAsSelfSQL)
		if err != nil || len(rows) != 1 || len(rows[0]) != 1 {
			return fmt.Errorf("check backend: ask for its start: %w", errors.Join(err, errWrongServer))
		}
		started = rows[0][0]
	}
	// It goes into questions to another server.
	if _, err := strconv.ParseInt(string(started), 10, 64); err != nil {
		return fmt.Errorf("check backend: its start is no number: %w", errWrongServer)
	}
	b.started = string(started)
	return nil
}

// loginBodyMax bounds the messages of a backend outside the relay.
const loginBodyMax = 4 << 20

// close ends the connection once: politely where the server has nothing outstanding, else so
// that nothing on its way can still arrive.
func (b *backend) close(polite bool) {
	if b.isClosed.Swap(true) {
		return
	}
	if polite {
		_, _ = b.conn.tryWrite(pgwire.AppendTerminate(nil))
		_ = b.conn.Close()
		return
	}
	b.conn.reset()
}

// relayFromHere hands what was read ahead to the relay; exchange works again afterwards.
func (b *backend) relayFromHere() {
	var ahead []byte
	if b.reader != nil {
		ahead = b.reader.Buffered()
	}
	ahead = append(slices.Clone(b.in.bytes()), ahead...)
	b.in.release()
	b.in.begin(ahead)
	b.reader = nil
}

// exchange sends messages that end in n ReadyForQuery and collects the errors in between; the
// backend must be idle and not attached. Parameters that change are noted by report.
func (b *backend) exchange(out []byte, n int, report func(name, value string),
) ([]*pgwire.Error, byte, error) {
	errs, status, err := b.exchangeAll(out, n, report)
	return slices.DeleteFunc(errs, func(e *pgwire.Error) bool { return e == nil }), status, err
}

// exchangeAll is exchange with the last error before each ReadyForQuery, nil where there was none.
func (b *backend) exchangeAll(out []byte, n int, report func(name, value string),
) ([]*pgwire.Error, byte, error) {
	if b.unproved { // in the same flight; nothing behind it is believed if that fails
		out = append(pgwire.AppendQuery(nil, checkSQL), out...)
	}
	if _, err := b.conn.Write(out); err != nil {
		return nil, 0, fmt.Errorf("write to backend: %w", err)
	}
	if b.reader == nil {
		b.reader = pgwire.NewReader(b.conn, loginBodyMax)
	}
	if b.unproved {
		if err := b.readProof(report); err != nil {
			return nil, 0, err
		}
	}
	errs := make([]*pgwire.Error, n)
	if n == 0 {
		return errs, b.status, nil
	}
	at, told := 0, 0
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
			errs[at] = e
		case pgwire.SrvParameterStatus:
			if err := b.countParam(&told, body); err != nil {
				return errs, 0, err
			}
			if name, value, err := pgwire.ParseParameterStatus(body); err == nil {
				report(name, value)
			}
		case pgwire.SrvReadyForQuery:
			if at++; at < n {
				continue
			}
			st, err := pgwire.ParseReadyForQuery(body)
			return errs, st, err
		}
	}
}

// paramCost is what a parameter takes besides its text, about.
const paramCost = 64

// countParam adds a parameter to what was told in an exchange, and bounds that.
func (b *backend) countParam(told *int, body []byte) error {
	if *told += len(body) + paramCost; *told > b.proxy.cfg.ServerParametersBytesMax {
		b.proxy.metrics.limit(limitParameterBytes)
		return errTooManyParams
	}
	return nil
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
