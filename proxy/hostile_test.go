package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// peer is a connection to the proxy that says whatever it likes.
func (r *rig) peer(t *testing.T, said ...[]byte) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.proxy.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	for _, p := range said {
		_, _ = c.Write(p) // the proxy may have had enough
	}
	return c
}

// lastWords reads to the end of the connection, and returns the SQLSTATE of the last ErrorResponse;
// it fails if there is no end.
func lastWords(t *testing.T, c net.Conn) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	last := ""
	for r := pgwire.NewReader(c, 1<<20); ; {
		typ, body, err := r.ReadMessage()
		var late net.Error
		switch {
		case errors.As(err, &late) && late.Timeout():
			t.Fatal("the connection lives on")
		case err != nil:
			return last
		case typ == 'E':
			last = string(pgwire.ErrorCode(body))
		}
	}
}

// heap is what is in use after a collection.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// well checks that a session of before and a new one work.
func (r *rig) well(t *testing.T, c *pgconn.PgConn) {
	t.Helper()
	if v := exec(t, c, "SELECT 7"); v != "7" {
		t.Errorf("the other session: %q", v)
	}
	fresh, err := dial(context.Background(), r.dsn(""))
	if err != nil {
		t.Fatalf("a new session: %v", err)
	}
	defer fresh.Close(context.Background())
	if v := exec(t, fresh, "SELECT 8"); v != "8" {
		t.Errorf("a new session: %q", v)
	}
}

// bare takes the line between the proxy and the server out of the way, whose memory would count.
func (r *rig) bare() {
	r.epoch++
	r.proxy.Cut(r.epoch - 1)
	r.topo.Set(&proxy.Primary{
		Name: "pg", Addr: fmt.Sprintf("127.0.0.1:%d", r.server.Port), Epoch: r.epoch,
		Incarnation: r.server.Incarnation(), Lease: proxytest.NewLease(time.Hour),
		Boundaries: []proxy.Boundary{{Epoch: r.epoch}},
	})
}

func startupOf(params ...string) []byte {
	var list []pgwire.Param
	for i := 0; i+1 < len(params); i += 2 {
		list = append(list, pgwire.Param{Name: params[i], Value: params[i+1]})
	}
	return pgwire.AppendStartup(nil, pgwire.Protocol3, list)
}

// What comes before a login is bounded in length and time, and ends with a clear error where the
// peer has said enough to be told.
func TestHostileBeforeLogin(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.StartupTimeout = time.Second })
	other := r.connect("")
	app := startupOf("user", "app", "database", "app")
	ssl := pgwire.AppendSSLRequest(nil)
	many := []string{"user", "app"}
	for range 300 {
		many = append(many, "a", "b")
	}
	for name, c := range map[string]struct {
		said []byte
		want string
	}{
		"length 0":             {[]byte{0, 0, 0, 0, 0, 3, 0, 0}, ""},
		"length 3":             {[]byte{0, 0, 0, 3, 0, 3, 0, 0}, ""},
		"length 0xffffffff":    {[]byte{255, 255, 255, 255, 0, 3, 0, 0}, ""},
		"negative length":      {[]byte{128, 0, 0, 0, 0, 3, 0, 0}, ""},
		"an oversized startup": {[]byte{0, 1, 0, 0, 0, 3, 0, 0}, ""},
		"too many parameters":  {startupOf(many...), "08P01"},
		"no user":              {startupOf("database", "app"), "28000"},
		"no terminator":        {[]byte("\x00\x00\x00\x0d\x00\x03\x00\x00user\x00"), "08P01"},
		"version 2":            {[]byte{0, 0, 0, 9, 0, 2, 0, 0, 0}, "0A000"},
		"half a startup":       {app[:20], ""},
		"a Query":              {pgwire.AppendQuery(nil, "SELECT 1"), ""},
		"Terminate":            {pgwire.AppendTerminate(nil), ""},
		"Bind for a password": {append(app[:len(app):len(app)], extended("SELECT 1")...),
			"08P01"},
		"a password of length 0": {append(app[:len(app):len(app)], 'p', 0, 0, 0, 0), "08P01"},
		"a password of length -1": {append(app[:len(app):len(app)], 'p', 255, 255, 255, 255),
			"08P01"},
		"a password of 16 MB": {append(app[:len(app):len(app)], 'p', 1, 0, 0, 0), "08P01"},
		"half a password":     {append(app[:len(app):len(app)], 'p', 0, 0, 0, 99, 'S'), ""},
		"an unknown mechanism": {pgwire.AppendPassword(app[:len(app):len(app)],
			[]byte("SCRAM-MD4\x00\x00\x00\x00\x00")), "08P01"},
		"a lie inside SASL": {pgwire.AppendPassword(app[:len(app):len(app)],
			[]byte("SCRAM-SHA-256\x00\x7f\xff\xff\xffn,,")), "08P01"},
		"nonsense in SASL": {pgwire.AppendPassword(app[:len(app):len(app)],
			[]byte("SCRAM-SHA-256\x00\x00\x00\x00\x03\xff\x00,")), "*"},
		"garbage behind SSLRequest":  {append(ssl[:8:8], 0xff, 0, 0xff), "08P01"},
		"SSLRequest twice":           {append(ssl[:8:8], ssl...), "08P01"},
		"SSLRequest with a body":     {[]byte{0, 0, 0, 9, 4, 210, 22, 47, 0}, "08P01"},
		"a cancel request too short": {[]byte{0, 0, 0, 8, 4, 210, 22, 46}, "*"},
		"a cancel key of 1000":       {pgwire.AppendCancelRequest(nil, 1, make([]byte, 1000)), "*"},
		"a cancel request by chance": {pgwire.AppendCancelRequest(nil, 1, []byte{1, 2, 3, 4}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			conn := r.peer(t, c.said)
			if strings.HasPrefix(name, "garbage") || strings.HasPrefix(name, "SSLRequest twice") {
				_, _ = io.ReadFull(conn, make([]byte, 1)) // 'N'
			}
			if got := lastWords(t, conn); got != c.want && c.want != "*" {
				t.Errorf("got %q, want %q", got, c.want)
			}
			r.well(t, other)
		})
	}
	t.Run("a byte at a time", func(t *testing.T) {
		conn := r.peer(t)
		begun := time.Now()
		for i := 0; time.Since(begun) < 15*time.Second; i++ {
			if _, err := conn.Write(app[i%30 : i%30+1]); err != nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if lastWords(t, conn); time.Since(begun) > 10*time.Second {
			t.Errorf("it had %v", time.Since(begun))
		}
		r.well(t, other)
	})
}

// hostileSaid is what a client may not say once it is logged in, and how it is told.
var hostileSaid = map[string]struct {
	said []byte
	want string
}{
	"length 0":          {[]byte{'Q', 0, 0, 0, 0}, "08P01"},
	"length 3":          {[]byte{'Q', 0, 0, 0, 3}, "08P01"},
	"length 0xffffffff": {[]byte{'Q', 255, 255, 255, 255}, "08P01"},
	"negative length":   {[]byte{'P', 128, 0, 0, 0}, "08P01"},
	"a lie behind a statement": {append(pgwire.AppendQuery(nil, "SELECT 1"), 'Q', 0, 0, 0, 1),
		"08P01"},
	"a type that is none":    {[]byte{0, 0, 0, 0, 4}, "08P01"},
	"a type of a server":     {pgwire.AppendReadyForQuery(nil, 'I'), "08P01"},
	"a password":             {pgwire.AppendPassword(nil, []byte("x\x00")), "08P01"},
	"a Query without an end": {[]byte("Q\x00\x00\x00\x05a"), "08P01"},
	"a Parse with lies": {
		pgwire.AppendMessage(nil, 'P', []byte("\x00x\x00\x00\x09")), "08P01"},
	"a startup packet": {startupOf("user", "app"), "08P01"},
	"a Query in a COPY": {append(pgwire.AppendQuery(nil, "COPY t FROM STDIN"),
		pgwire.AppendQuery(nil, "SELECT 1")...), "08P01"},
	"a Parse in a COPY": {append(pgwire.AppendQuery(nil, "COPY t FROM STDIN"),
		pgwire.AppendSync(pgwire.AppendParse(nil, "", "SELECT 1", nil))...), "08P01"},
	"Terminate in a transaction": {pgwire.AppendTerminate(
		pgwire.AppendQuery(nil, "BEGIN; INSERT INTO t VALUES (1)")), ""},
}

// What a client may not say once it is logged in ends its session with a clear error, with TLS and
// without.
func TestHostileAfterLogin(t *testing.T) {
	r, ca := newTLSRig(t, proxy.TLSAllow, nil)
	other := r.connectTo(r.secure(ca, ""))
	exec(t, other, "CREATE TABLE t (a int)")
	for kind, dsn := range map[string]string{"plain": r.dsn(""), "TLS": r.secure(ca, "")} {
		for name, c := range hostileSaid {
			t.Run(kind+"/"+name, func(t *testing.T) {
				w := hijack(t, r.connectTo(dsn))
				w.send(c.said)
				if got := lastWords(t, w.c); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
				r.well(t, other)
			})
		}
		t.Run(kind+"/Terminate inside a message", func(t *testing.T) {
			w := hijack(t, r.connectTo(dsn))
			msg := pgwire.AppendQuery(nil, "INSERT INTO t VALUES (2) "+strings.Repeat(" ", 50))
			copy(msg[40:], pgwire.AppendTerminate(nil))
			w.send(msg[:60])
			_ = w.c.(interface{ CloseWrite() error }).CloseWrite()
			if got := lastWords(t, w.c); got != "" {
				t.Errorf("got %q", got)
			}
			r.well(t, other)
		})
	}
	if n := r.rows(); n != "0" {
		t.Errorf("%s rows", n)
	}
	r.eventually(func() bool { n, _ := r.proxy.Stats(); return n <= 2 }, "the sessions end")
}

// flood writes p again and again until nothing is taken for a while, and returns how much was.
func flood(t *testing.T, c net.Conn, p []byte) int {
	t.Helper()
	total := 0
	for total < 256<<20 {
		_ = c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := c.Write(p)
		total += n
		if err != nil {
			return total
		}
	}
	t.Fatal("there is no end of what is taken")
	return 0
}

// What a client sends without reading, and without an answer that could come, costs no more than
// what the sockets hold of it, and a bounded account of it.
func TestHugePipelinesAreBounded(t *testing.T) {
	r := newRig(t, nil)
	r.bare()
	other := r.connect("")
	for name, c := range map[string]struct{ first, then []byte }{
		"Syncs behind a sleep":  {pgwire.AppendQuery(nil, "SELECT pg_sleep(5)"), pgwire.AppendSync(nil)},
		"closes behind a sleep": {unsynced("SELECT pg_sleep(5)"), pgwire.AppendClose(nil, 'P', "")},
		"queries behind a sleep": {pgwire.AppendQuery(nil, "SELECT pg_sleep(5)"),
			pgwire.AppendQuery(nil, "SELECT 1")},
		"answers that nobody reads":   {nil, pgwire.AppendQuery(nil, "SELECT repeat('x', 100000)")},
		"Describes that nobody reads": {unsynced("SELECT 1"), pgwire.AppendDescribe(nil, 'S', "")},
		"a Query of 1 GB":             {[]byte{'Q', 0x3f, 0, 0, 0}, make([]byte, 1<<16)},
	} {
		t.Run(name, func(t *testing.T) {
			w := hijack(t, r.connect(""))
			before := heap()
			if c.first != nil {
				w.send(c.first)
			}
			var many []byte
			for len(many) < 1<<16 {
				many = append(many, c.then...)
			}
			var n int
			if strings.HasPrefix(name, "a Query of") {
				for range 1600 { // 100 MB
					w.send(c.then)
				}
				n = 100 << 20
			} else {
				n = flood(t, w.c, many)
			}
			grown := int64(heap()) - int64(before)
			t.Logf("%d KB were taken, memory grew by %d KB", n>>10, grown>>10)
			if grown > 24<<20 {
				t.Errorf("memory grew by %d MB", grown>>20)
			}
			r.well(t, other)
			_ = w.c.Close()
		})
	}
	r.eventually(func() bool { n, _ := r.proxy.Stats(); return n <= 2 }, "the sessions end")
}
