package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
)

// sessionKind is what a session of the load does.
type sessionKind string

// The kinds of sessions.
const (
	// kindIdle has settings, prepared statements and a LISTEN, and does nothing but check them
	// after each change.
	kindIdle sessionKind = "idle"
	// kindTransfer runs explicit transactions and repeats those that end in 40001.
	kindTransfer sessionKind = "transfer"
	// kindPrepared writes and reads by named prepared statements.
	kindPrepared sessionKind = "prepared"
	// kindListen waits for notifications and sends some to itself.
	kindListen sessionKind = "listen"
	// kindWriter inserts, one row a statement, by both sub-protocols.
	kindWriter sessionKind = "writer"
	// kindMixed writes in all the ways there are, one after the other at random.
	kindMixed sessionKind = "mixed"
)

// kindCycle is how the kinds follow one another, mixedCycle if there are mixed ones.
var (
	kindCycle = []sessionKind{
		kindIdle, kindTransfer, kindPrepared, kindListen, kindWriter, kindTransfer,
		kindIdle, kindPrepared, kindTransfer, kindListen, kindIdle, kindWriter,
	}
	mixedCycle = []sessionKind{
		kindIdle, kindTransfer, kindMixed, kindListen, kindWriter, kindMixed,
		kindIdle, kindMixed, kindPrepared, kindMixed, kindTransfer, kindMixed,
	}
)

// loadSession is one client. Its goroutine owns the connection.
type loadSession struct {
	load  *Load
	id    int
	kind  sessionKind
	home  int // index of its proxy; moves on when that proxy is killed
	run0  int // how often the proxy had been killed when the session connected
	conn  *pgx.Conn
	steps int
	tally tally
	// isLost tells that it has lost a connection before.
	isLost bool
}

// errWrongState is a session that does not have what it had set.
var errWrongState = errors.New("session state is not what was set")

// run keeps the session going until the load stops.
func (s *loadSession) run(ctx context.Context) {
	defer s.close()
	for !s.isStopping(ctx) {
		if s.conn == nil && !s.connect(ctx) {
			s.pause(ctx, 100*time.Millisecond)
			continue
		}
		err := s.step(ctx)
		s.steps++
		s.load.noteError(err)
		if s.conn.IsClosed() {
			s.lost(err)
			continue
		}
		switch {
		case err == nil:
		case errors.Is(err, errWrongState):
			s.load.stateWrong.Add(1)
			s.load.noteDrop("session %d (%s): %v", s.id, s.kind, err)
		case errors.Is(err, errWrongCount):
			s.load.miscounted.Add(1)
			s.load.noteDrop("session %d (%s): %v", s.id, s.kind, err)
		case sqlState(err) == pgwire.CodeSerializationFailure,
			errors.Is(err, pgx.ErrTxCommitRollback):
			s.load.retried.Add(1)
		case sqlState(err) == pgwire.CodeOutcomeUnknown:
			s.load.inDoubt.Add(1)
		default:
			s.load.refused.Add(1)
			s.load.noteDrop("session %d (%s) was refused: %v", s.id, s.kind, err)
		}
		s.pause(ctx, s.pace())
	}
}

func (s *loadSession) isStopping(ctx context.Context) bool {
	select {
	case <-s.load.stop:
		return true
	case <-ctx.Done():
		return true
	default:
		return false
	}
}

// pause waits about d; sessions that are all held at once must not go on in step.
func (s *loadSession) pause(ctx context.Context, d time.Duration) {
	if d == 0 {
		return
	}
	t := time.NewTimer(d/2 + mrand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.load.stop:
	case <-ctx.Done():
	}
}

// pace is the time between two steps. The numbers keep a small machine at some hundred commits
// a second with sixty sessions, enough to see a gap of some milliseconds.
func (s *loadSession) pace() time.Duration {
	switch s.kind {
	case kindWriter:
		return 40 * time.Millisecond
	case kindTransfer, kindPrepared, kindMixed:
		return 80 * time.Millisecond
	case kindIdle, kindListen:
		return 0 // they wait inside their step
	}
	panic("BUG: load: session kind " + string(s.kind))
}

// connect logs in and sets the session's state.
func (s *loadSession) connect(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	addr := s.load.cfg.Proxies[s.home%len(s.load.cfg.Proxies)]
	s.run0 = s.load.proxyRun(addr)
	conn, err := pgx.Connect(ctx, s.load.dsn(s.home))
	if err != nil {
		if s.load.proxyRun(addr) == 0 && s.steps == 0 {
			s.load.noteDrop("session %d cannot log in at %s: %v", s.id, hostOfProxy(addr), err)
		}
		s.home++
		return false
	}
	if err := s.setUp(ctx, conn); err != nil {
		closeConn(conn)
		if s.load.proxyRun(addr) == s.run0 && sqlState(err) == "" {
			s.load.noteDrop("session %d (%s) cannot set its state: %v", s.id, s.kind, err)
		}
		return false
	}
	s.conn = conn
	s.load.connected.Add(1)
	return true
}

// lost counts a connection that ended: with its proxy, or though that lived.
func (s *loadSession) lost(err error) {
	if !s.isLost {
		s.isLost = true
		s.load.everLost.Add(1)
	}
	addr := s.load.cfg.Proxies[s.home%len(s.load.cfg.Proxies)]
	if s.load.proxyRun(addr) != s.run0 || s.run0 > 0 && isProxyStopping(err) {
		s.load.cut.Add(1)
		s.home++
	} else {
		s.load.dropped.Add(1)
		s.load.noteDrop("session %d (%s) lost its connection: %v", s.id, s.kind, err)
	}
	s.close()
}

func (s *loadSession) close() {
	if s.conn == nil {
		return
	}
	closeConn(s.conn)
	s.conn = nil
	s.load.connected.Add(-1)
}

// isProxyStopping tells that the proxy has said that it is told to stop. One that is announced to
// stop may take a login in the moment before it does.
func isProxyStopping(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && pe.Code == pgwire.CodeAdminShutdown &&
		strings.Contains(pe.Message, "proxy is shutting down")
}

// sqlState is the code of an error that a server or proxy sent; empty for another.
func sqlState(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.Code
	}
	return ""
}

// outcomeOf is what an error of a write that may have been committed means for it.
func outcomeOf(err error) Outcome {
	var pe *pgconn.PgError
	switch {
	case err == nil:
		return OutcomeAcknowledged
	case errors.Is(err, pgx.ErrTxCommitRollback):
		return OutcomeRefused
	case errors.As(err, &pe):
		// A server that ends the session says nothing of what was under way.
		if pe.Code == pgwire.CodeOutcomeUnknown || pe.Severity == "FATAL" {
			return OutcomeInDoubt
		}
		return OutcomeRefused
	}
	// pgconn.SafeToRetry is not asked: pgx also says so of a connection that broke before the
	// answer to a write that was sent.
	return OutcomeInDoubt
}

// settle records what became of a write and passes the error on.
func (s *loadSession) settle(id int64, o Outcome, err error) error {
	s.load.ledger.SettleCode(id, o, codeOf(err), s.explain(err))
	if o == OutcomeAcknowledged {
		s.load.clock.Record()
	}
	return err
}

// codeOf is the SQLSTATE of an error, or what there was in place of one.
func codeOf(err error) string {
	switch code := sqlState(err); {
	case err == nil:
		return ""
	case code != "":
		return code
	case errors.Is(err, errTakenBack):
		return "rolled back"
	case errors.Is(err, pgx.ErrTxCommitRollback):
		return "COMMIT rolled back"
	case errors.Is(err, errWrongState):
		return "wrong"
	}
	return "connection lost"
}

// explain is all that is known of a write that was not acknowledged.
func (s *loadSession) explain(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf("session %d (%s) through %s at %s, backend %d: %v", s.id, s.kind,
		s.conn.PgConn().Conn().RemoteAddr(), time.Now().Format(time.StampMilli),
		s.conn.PgConn().PID(), err)
}

// randomName is a text that nobody else chooses.
func randomName() (string, error) {
	b := make([]byte, 12)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("choose a random text: %w", err)
	}
	return hex.EncodeToString(b), nil
}
