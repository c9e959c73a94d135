package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/pgwire"
)

// Kinds of connections, by the parameter replication of a StartupMessage.
type replication uint8

const (
	notReplication replication = iota
	// physicalReplication has no database and takes no SQL.
	physicalReplication
	// logicalReplication is one to a database, which takes SQL as well.
	logicalReplication
)

// replicationOf reads the parameter as PostgreSQL does (ProcessStartupPacket, parse_bool). Where it
// is there more than once, the last one decides whether, but any one that it is one to a database.
func replicationOf(st *pgwire.Startup) (replication, error) {
	kind, toDatabase := notReplication, false
	for _, p := range st.Params {
		if p.Name != "replication" {
			continue
		}
		v := strings.ToLower(p.Value)
		is := func(word string, least int) bool {
			return len(v) >= least && strings.HasPrefix(word, v)
		}
		switch {
		case p.Value == "database":
			kind, toDatabase = physicalReplication, true
		case v == "1", is("true", 1), is("yes", 1), v == "on":
			kind = physicalReplication
		case v == "0", is("false", 1), is("no", 1), is("off", 2):
			kind = notReplication
		default:
			return notReplication, errReplicationValue(p.Value)
		}
	}
	if kind == physicalReplication && toDatabase {
		kind = logicalReplication
	}
	return kind, nil
}

func errReplicationValue(value string) error {
	e := pgwire.NewError(pgwire.CodeInvalidParameterValue,
		fmt.Sprintf("invalid value for parameter \"replication\": %q", value))
	e.Hint = `Valid values are: "false", 0, "true", 1, "database".`
	return fatal(e)
}

// passThrough serves a replication connection: what it streams is the primary's own, and its
// position means nothing on another server, so that it cannot be held. It is relayed under the
// lease, as all is (DESIGN.md I3), and told when the primary changes.
func (s *session) passThrough(ctx context.Context, kind replication) {
	s.proxy.metrics.replication.Inc()
	b, err := s.openReplication(ctx, kind)
	if err == nil {
		err = s.stream(b, kind)
	}
	s.sayGoodbye(err)
	s.finish()
}

// openReplication waits for a primary, as other logins do, and begins to relay. One that takes SQL
// waits for the barrier as well (DESIGN.md I22).
func (s *session) openReplication(ctx context.Context, kind replication) (*backend, error) {
	if err := s.writeClient(pgwire.AppendAuthOK(nil)); err != nil {
		return nil, err
	}
	h := holding{s: s, loss: &loss{status: pgwire.TxIdle}, login: true}
	defer h.end()
	for attempt := 0; ; {
		pr, changed := s.proxy.topo.Current()
		if s.isUsable(pr) {
			b, err := s.proxy.connectReplication(ctx, s, pr)
			if err == nil && kind == logicalReplication {
				if err = h.passBarrier(ctx, b); err != nil {
					b.close(false)
				}
			}
			switch {
			case err == nil:
				return b, s.beginReplication(b)
			case b != nil && !errors.Is(err, errOvertaken):
				return nil, err
			}
			if h.isAnswer(err) {
				return nil, asRefusal(err)
			}
			attempt++
			h.full = isServerFull(err)
		}
		if err := h.wait(ctx, changed, attempt); err != nil {
			return nil, err
		}
	}
}

// connectReplication logs in. A walsender cannot be asked which server it belongs to (DESIGN.md
// I2), so another connection proves it: that one was checked when it was made, and answers after
// this one was made, when only the same postmaster had the address.
func (p *Proxy) connectReplication(ctx context.Context, s *session, pr *Primary,
) (*backend, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout)
	defer cancel()
	return p.logIn(ctx, s.loop, pr.Addr, func(ctx context.Context, conn link,
		opts pgwire.LoginOptions,
	) (*backend, error) {
		b := newReplicationBackend(p, pr, conn)
		if !s.isOpening(b) {
			conn.reset()
			return nil, errOvertaken
		}
		stop := context.AfterFunc(ctx, func() { b.close(false) })
		b.reader = pgwire.NewReader(conn, loginBodyMax)
		info, err := pgwire.LoginWith(conn, b.reader, s.login, s.cred, opts)
		if err == nil {
			_, err = p.secretsAt.query(ctx, pr, "SELECT 1")
		}
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			b.close(false)
			return nil, fmt.Errorf("replication connection: %w", err)
		}
		b.pid, b.key, b.params, b.status = info.PID, string(info.Key), info.Params, info.TxStatus
		return b, nil
	})
}

// newReplicationBackend is one of which nobody knows whether something is outstanding.
func newReplicationBackend(p *Proxy, pr *Primary, conn link) *backend {
	return &backend{proxy: p, primary: pr, conn: conn, streams: true}
}

// beginReplication tells the client that it is logged in, and makes the backend the session's.
func (s *session) beginReplication(b *backend) error {
	out := []byte(nil)
	for _, p := range b.params {
		out = pgwire.AppendParameterStatus(out, p.Name, p.Value)
	}
	b.params = nil
	out = s.appendKey(out, b)
	out = pgwire.AppendReadyForQuery(out, b.status)
	s.mu.Lock()
	s.flow = newFlow(pgwire.TxIdle) // always at a safe point: nobody waits for it in a drain
	closing, cut := s.closing, s.proxy.isCut(b.primary.Epoch)
	if !closing && !cut {
		s.backend, s.opening = b, nil
		b.session = s
	}
	s.mu.Unlock()
	switch {
	case closing:
		b.close(true)
		return errClosing
	case cut:
		b.close(false)
		return errReplicationEnds("The primary changed.")
	}
	return s.writeClient(out)
}

// replicationTurn is what both directions of a replication connection know.
type replicationTurn struct {
	kind replication
	// asked tells that the client has sent something that the server has not dealt with yet.
	asked   atomic.Bool
	copying atomic.Bool // the server streams
	down    framer      // of the server's bytes, for whoever writes to the client
	up      framer      // of the client's
}

// stream relays both ways until one side ends, or the primary changes; the error is what the
// client is to be told. This goroutine reads from the client, another one from the server.
func (s *session) stream(b *backend, kind replication) error {
	t := &replicationTurn{kind: kind}
	var work sync.WaitGroup
	var serverErr error
	work.Go(func() {
		serverErr = s.streamDown(b, t)
		s.mu.Lock()
		s.lost = s.lost || errors.Is(serverErr, errBackendLost)
		s.gone = s.gone || errors.Is(serverErr, errClientGone)
		s.mu.Unlock()
		s.interrupt()
	})
	err := s.streamUp(b, t)
	if errors.Is(err, errBackendLost) && !b.isClosed.Load() {
		_ = b.conn.SetReadDeadline(time.Now().Add(goodbyeTime))
		work.Wait() // the server's last words may be on their way
	}
	_ = s.client.SetWriteDeadline(time.Now().Add(goodbyeTime))
	b.close(errors.Is(err, errClientGone))
	work.Wait()
	s.mu.Lock()
	s.backend = nil
	s.mu.Unlock()
	switch {
	case errors.Is(err, errClientGone), errors.Is(serverErr, errClientGone):
		return errClientGone
	case !t.down.isWhole():
		return errCutMessage()
	case errors.Is(err, errBackendLost) && t.down.typ == pgwire.SrvError && t.down.fatal:
		return errClientGone // the server itself has said why
	case errors.Is(err, errClosing), t.up.lie != nil:
		return err
	case kind == logicalReplication && t.asked.Load() && !t.copying.Load():
		return fatal(errOutcomeUnknown("Replication connections are not held."))
	case s.proxy.isCut(b.primary.Epoch):
		return errReplicationEnds("The primary changed.")
	}
	return errReplicationEnds("The connection to the primary was lost.")
}

// streamUp relays from the client; it returns when it is told to by a flag.
func (s *session) streamUp(b *backend, t *replicationTurn) error {
	for {
		if err := s.signals(); err != nil {
			return err
		}
		if len(s.in.bytes()) == 0 {
			err := s.fillClient()
			if errors.Is(err, errWake) {
				continue
			}
			if err != nil {
				return err
			}
		}
		t.asked.Store(true)
		if err := b.awaitLease(s); err != nil {
			return err
		}
		ended := false
		t.up.pass(s.in.bytes(), func(typ byte) { ended = ended || typ == pgwire.CliTerminate })
		if t.up.lie != nil { // PostgreSQL would end it without a word
			return fatalProtocol(t.up.lie)
		}
		if _, err := b.conn.Write(s.in.bytes()); err != nil {
			return errBackendLost
		}
		if s.in.take(len(s.in.bytes())); ended {
			return errClientGone
		}
	}
}

// streamDown relays from the server: read, clock, write.
func (s *session) streamDown(b *backend, t *replicationTurn) error {
	b.relayFromHere()
	defer b.in.release()
	for {
		if len(b.in.bytes()) == 0 {
			if err := b.in.fill(b.conn); err != nil {
				return errBackendLost
			}
		}
		if err := b.awaitLease(s); err != nil {
			return err
		}
		data := b.in.bytes()
		t.down.pass(data, func(typ byte) {
			switch typ {
			case pgwire.SrvCopyBothResponse, pgwire.SrvCopyOutResponse:
				t.copying.Store(true)
			case pgwire.SrvReadyForQuery:
				t.copying.Store(false)
				t.asked.Store(false)
			}
		})
		if err := s.writeClient(data); err != nil {
			return err
		}
		b.in.take(len(data))
	}
}

// framer follows the messages of a stream.
type framer struct {
	head  [pgwire.HeaderLen]byte
	got   int
	left  int  // of the body
	typ   byte // of the message that is under way, or was last
	fatal bool // it is an error that ends the connection
	text  []byte
	lie   error // a length that no message has
}

// pass follows bytes and tells the type of each message that begins in them.
func (f *framer) pass(p []byte, began func(typ byte)) {
	for len(p) > 0 {
		if f.left == 0 {
			n := copy(f.head[f.got:], p)
			f.got, p = f.got+n, p[n:]
			if f.got < len(f.head) {
				return
			}
			if _, _, err := pgwire.Header(f.head[:]); err != nil && f.lie == nil {
				f.lie = err
			}
			f.got, f.typ = 0, f.head[0]
			f.left = max(0, int(binary.BigEndian.Uint32(f.head[1:]))-4)
			f.fatal, f.text = false, f.text[:0]
			began(f.typ)
		}
		n := min(f.left, len(p))
		if f.typ == pgwire.SrvError && len(f.text)+n <= loginMessageMax {
			f.text = append(f.text, p[:n]...)
		}
		f.left, p = f.left-n, p[n:]
		if f.left == 0 && f.typ == pgwire.SrvError {
			e, err := pgwire.ParseError(f.text)
			f.fatal = err == nil && (e.Severity == "FATAL" || e.Severity == "PANIC")
		}
	}
}

// isWhole tells that no message is under way.
func (f *framer) isWhole() bool { return f.got == 0 && f.left == 0 }

// errReplicationEnds is the end of a replication connection.
func errReplicationEnds(why string) *pgwire.Error {
	e := fatal(pgwire.NewError(pgwire.CodeAdminShutdown,
		"terminating replication connection because of its primary"))
	e.Detail = why + " Replication connections cannot be held, since what they stream is one server's."
	e.Hint = "Reconnect, and go on from the position that you have confirmed."
	return e
}
