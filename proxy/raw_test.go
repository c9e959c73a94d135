package proxy_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
)

// raw speaks to the proxy message by message.
type raw struct {
	t *testing.T
	c net.Conn
	r *pgwire.Reader
}

// hijack takes over what pgconn has logged in.
func hijack(t *testing.T, c *pgconn.PgConn) *raw {
	t.Helper()
	h, err := c.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Conn.Close() })
	return &raw{t, h.Conn, pgwire.NewReader(h.Conn, 1<<20)}
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
