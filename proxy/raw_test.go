package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"holdfast/pgwire"
)

// raw speaks to the proxy message by message.
type raw struct {
	t    *testing.T
	c    net.Conn
	from io.Reader // what comes from c
	r    *pgwire.Reader
}

// incoming is where dial keeps what reads of a connection: where a write of pgconn's took 15 ms, it
// has a read of its own under way, which would take an answer away from whoever reads beside it.
const incoming = "incoming"

// dial logs in; the connection can be hijacked.
func dial(ctx context.Context, dsn string) (*pgconn.PgConn, error) {
	cfg, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	return dialConfig(ctx, cfg)
}

func dialConfig(ctx context.Context, cfg *pgconn.Config) (*pgconn.PgConn, error) {
	var from io.Reader
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		from = r
		return pgproto3.NewFrontend(r, w)
	}
	c, err := pgconn.ConnectConfig(ctx, cfg)
	if err == nil {
		c.CustomData()[incoming] = from
	}
	return c, err
}

// hijack takes over what pgconn has logged in.
func hijack(t *testing.T, c *pgconn.PgConn) *raw {
	t.Helper()
	h, err := c.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Conn.Close() })
	from := c.CustomData()[incoming].(io.Reader)
	return &raw{t, h.Conn, from, pgwire.NewReader(from, 1<<20)}
}

func (r *raw) send(p []byte) {
	r.t.Helper()
	if _, err := r.c.Write(p); err != nil {
		r.t.Fatal(err)
	}
}

// rest reads to the end of the connection and returns what came; it fails at the timeout.
func (r *raw) rest(d time.Duration) string {
	r.t.Helper()
	var b strings.Builder
	_ = r.c.SetReadDeadline(time.Now().Add(d))
	for {
		typ, body, err := r.r.ReadMessage()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			r.t.Fatalf("after %s: %v", b.String(), err)
		}
		if err != nil {
			return b.String()
		}
		describeTo(&b, typ, body)
	}
}

// until reads to n ReadyForQuery and returns what came; it fails at the timeout.
func (r *raw) until(n int, d time.Duration) string {
	r.t.Helper()
	var b strings.Builder
	_ = r.c.SetReadDeadline(time.Now().Add(d))
	defer r.c.SetReadDeadline(time.Time{})
	for n > 0 {
		typ, body, err := r.r.ReadMessage()
		if err != nil {
			r.t.Fatalf("after %s: %v", b.String(), err)
		}
		describeTo(&b, typ, body)
		if typ == 'Z' {
			n--
		}
	}
	return b.String()
}

// describeTo writes a message of the server.
func describeTo(b *strings.Builder, typ byte, body []byte) {
	b.WriteByte(typ)
	switch typ {
	case 'Z':
		b.Write(body)
	case 'E', 'N':
		e, _ := pgwire.ParseError(body)
		b.WriteString("(" + e.Code + " " + e.Message + ")")
	case 'C':
		b.WriteString("(" + string(bytes.TrimRight(body, "\x00")) + ")")
	}
	b.WriteByte(' ')
}

// extended is a batch of statements in the extended protocol.
func extended(sqls ...string) []byte {
	var out []byte
	for _, q := range sqls {
		out = pgwire.AppendParse(out, "", q, nil)
		out = pgwire.AppendBind(out, "", "")
		out = pgwire.AppendExecute(out, "", 0)
	}
	return pgwire.AppendSync(out)
}

// executedThenLost sends a message, lets the server execute it, and cuts the line at the answer
// that at names.
func executedThenLost(t *testing.T, r *rig, w *raw, msg []byte,
	at func(typ byte, body []byte) bool,
) string {
	t.Helper()
	cut := make(chan struct{})
	var done atomic.Bool // the line has another connection once the first is cut
	r.line.Watch(nil, func(typ byte, body []byte) bool {
		if at(typ, body) && done.CompareAndSwap(false, true) {
			time.Sleep(300 * time.Millisecond) // meanwhile the server executes all of it
			close(cut)
			return false
		}
		return true
	})
	w.send(msg)
	<-cut
	r.line.Watch(nil, nil)
	return w.until(1, 8*time.Second)
}

// answer is a look at the type of a message.
func answer(want byte) func(byte, []byte) bool {
	return func(typ byte, _ []byte) bool { return typ == want }
}

// committed is a look at CommandComplete of a COMMIT.
func committed(typ byte, body []byte) bool {
	return typ == 'C' && strings.HasPrefix(string(body), "COMMIT")
}

// inBlock is a session with an open transaction, in a table t.
func (r *rig) inBlock(stmts ...string) *raw {
	r.t.Helper()
	c := r.connect("")
	exec(r.t, c, "CREATE TABLE t (a int)")
	exec(r.t, c, "BEGIN")
	for _, s := range stmts {
		_, _ = tryExec(c, s)
	}
	return hijack(r.t, c)
}

// rows is how many rows of t there are.
func (r *rig) rows() string {
	r.t.Helper()
	return exec(r.t, r.connect(""), "SELECT count(*) FROM t")
}

// lateWriter is a connection whose writes return late, after the answer has come.
type lateWriter struct{ net.Conn }

func (c lateWriter) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	time.Sleep(60 * time.Millisecond)
	return n, err
}

// TestHijackLosesNothing: what pgconn reads on its own is not lost to whoever has taken over.
func TestHijackLosesNothing(t *testing.T) {
	r := newRig(t, nil)
	cfg, err := pgconn.ParseConfig(r.dsn(""))
	if err != nil {
		t.Fatal(err)
	}
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		return lateWriter{c}, err
	}
	c, err := dialConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := hijack(t, c)
	if got := w.play([]scriptStep{q("SELECT 1")}); len(got) != 4 {
		t.Errorf("got %q", got)
	}
}
