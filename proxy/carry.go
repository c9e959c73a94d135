package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// carry is the temporary tables of a session between two primaries, in a planned change: all of
// them, exactly as they were, or none (DESIGN.md I29). The session's lock guards it until it is
// packed; then it does not change any more. nil is none, and that nobody has asked for it.
type carry struct {
	tables   []carriedTable
	bytes    int // what it takes of Proxy.carried
	isPacked bool
	why      string // why not, for the client
}

// carriedTable is a temporary table in parts that are SQL, and its rows.
type carriedTable struct {
	name  string // for SQL
	owner string // a role, for SQL
	// create makes it but for the end of the statement, ON COMMIT; drop takes away columns that
	// stand for dropped ones; finish makes what is checked of rows, or sorted by them, and then
	// everything else.
	create, drop, finish, rest string
	isEmptied                  bool // ON COMMIT DELETE ROWS

	rows      []byte // of COPY in its binary form
	sum       rowSum
	generated string // columns that COPY leaves out, which have to come out the same
	made      rowSum
	bare      string            // leaves it no column
	describes [sha256.Size]byte // of what it has to look like in the catalogue
	types     [2]string
}

// packed tells that all of it is there.
func (c *carry) packed() bool { return c != nil && c.isPacked }

// explain adds to why a session cannot be carried what is known of its temporary tables.
func (c *carry) explain(why reason) string {
	text := why.String()
	if c == nil || c.why == "" || why&reasonTemp == 0 {
		return text
	}
	return text + " (" + c.why + ")"
}

// mayCarry tells that temporary tables are all that keeps the session from being restored. The
// caller holds s.mu.
func (s *session) mayCarry() bool {
	return s.proxy.cfg.CarryTempBytesMax > 0 && s.track.unmovable == reasonTemp
}

// mustPack tells the owner to pack now: nothing begins on this backend any more. The caller holds
// s.mu.
func (s *session) mustPack() bool {
	b := s.backend
	return s.carry != nil && b != nil && !s.lost && !s.closing && s.flow.isSafePoint() &&
		!s.endHeld && s.unsent == 0 && s.cancels == 0 && !s.again.isOpen() &&
		s.proxy.isDraining(b.primary.Epoch) && s.mayCarry()
}

// errPack tells that the session is to leave its backend with its temporary tables.
var errPack = errors.New("temporary tables are to be packed")

// pack takes the session's temporary tables from its backend, which it leaves, whatever comes of
// it: nothing can begin there any more. Only rows of the session's own leave the server, so that
// no lease has to be looked at. The owner calls it; it returns why the backend is of no use, and
// nil if it did not come to packing.
func (s *session) pack(ctx context.Context) error {
	select {
	case s.proxy.packs <- struct{}{}:
		defer func() { <-s.proxy.packs }()
	case <-ctx.Done():
		return errClosing
	}
	s.mu.Lock()
	b, c := s.backend, s.carry
	if !s.mustPack() {
		c.why = "the drain was over before they were packed"
		s.mu.Unlock()
		return nil
	}
	s.noCancel, s.planned = true, true
	s.mu.Unlock()
	b.takeOver()
	stop := context.AfterFunc(ctx, func() { b.close(false) })
	defer stop()
	p := packer{s: s, b: b, c: c}
	began := time.Now()
	err := p.run()
	s.packed(c, b, err, time.Since(began))
	return errBackendLost
}

// packed notes what came of it.
func (s *session) packed(c *carry, b *backend, err error, took time.Duration) {
	m := s.proxy.metrics.carries
	var no *cannotCarry
	var pe *pgwire.Error
	s.mu.Lock()
	switch {
	case err == nil:
		c.isPacked = true
	case errors.As(err, &no):
		c.why = no.why
	case errors.As(err, &pe) && pe.Severity != "FATAL" && pe.Severity != "PANIC":
		c.why = fmt.Sprintf("%s, SQLSTATE %s", pe.Message, pe.Code)
	case errors.As(err, &pe):
		s.losing().fatal = pe // an order to this session, or to the whole server
	default:
		c.why = "the server did not tell them in time"
	}
	hasLocks := s.hasLocks
	s.mu.Unlock()
	if err != nil {
		m.WithLabelValues("refused").Inc()
		if no != nil && no.limit != "" {
			s.proxy.metrics.limit(no.limit)
		}
		s.dropCarried(c)
		s.lose(b, no != nil && !no.cutsOff)
		return
	}
	m.WithLabelValues("packed").Inc()
	s.log().Info("temporary tables were taken along", zap.Int("tables", len(c.tables)),
		zap.Int("bytes", c.bytes), zap.Duration("duration", took))
	if hasLocks {
		s.loseKeepingLocks(b) // others may still use this primary
	}
}

// dropCarried gives back what the tables take.
func (s *session) dropCarried(c *carry) {
	if c == nil {
		return
	}
	s.proxy.carried.Add(-int64(c.bytes))
	c.tables, c.bytes = nil, 0
}

// endCarry forgets tables that are on a server again, or belong to nobody any more.
func (s *session) endCarry() {
	s.mu.Lock()
	c := s.carry
	s.carry = nil
	s.mu.Unlock()
	s.dropCarried(c)
}

// carriedOver takes that the session has a backend with all that it had.
func (s *session) carriedOver() {
	s.mu.Lock()
	if s.carry.packed() && len(s.carry.tables) == 0 {
		s.track.unmovable &^= reasonTemp // they were dropped since they were asked for
	}
	s.mu.Unlock()
	s.endCarry()
}

// takeOver ends the delivery of an idle backend, as detach does, and leaves it to the owner for
// exchanges. What the client has not read yet waits for detach: a client that is slow must not keep
// its place from others that pack.
func (b *backend) takeOver() {
	b.conn.handle(nil)
	b.mu.Lock()
	b.stopped = true
	ahead := b.in.bytes()
	if len(b.out) > 0 {
		ahead = ahead[b.taken:]
	}
	ahead = slices.Clone(ahead)
	b.out = slices.Clone(b.out) // a part of b.in
	b.in.release()
	b.mu.Unlock()
	b.reader = pgwire.NewReader(io.MultiReader(bytes.NewReader(ahead), b.conn), loginBodyMax)
}

// cannotCarry tells why tables cannot be carried, in words for the client.
type cannotCarry struct {
	why     string
	limit   string // of limits_total, if it is one
	cutsOff bool   // the server is in the middle of an answer
}

func (e *cannotCarry) Error() string { return e.why }
