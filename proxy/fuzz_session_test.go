package proxy_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// part is a conversation's side of a server that is played message by message.
type part struct {
	said  []byte
	ended chan struct{}
}

// answersTo is what a server might say to these messages.
func answersTo(said []byte) []byte {
	var out []byte
	for len(said) >= pgwire.HeaderLen {
		typ, n, err := pgwire.Header(said)
		if err != nil || pgwire.HeaderLen+n > len(said) {
			break
		}
		said = said[pgwire.HeaderLen+n:]
		switch typ {
		case 'Q':
			out = pgwire.AppendDataRow(pgwire.AppendRowDescription(out, "a"), []byte("1"))
			out = pgwire.AppendReadyForQuery(pgwire.AppendCommandComplete(out, "SELECT 1"), 'I')
		case 'P', 'B', 'C':
			out = pgwire.AppendMessage(out, map[byte]byte{'P': '1', 'B': '2', 'C': '3'}[typ], nil)
		case 'D':
			out = pgwire.AppendMessage(out, 'n', nil)
		case 'E', 'c':
			out = pgwire.AppendCommandComplete(out, "INSERT 0 1")
		case 'S':
			out = pgwire.AppendReadyForQuery(out, 'I')
		}
	}
	return out
}

// play says a message of the part for each that comes.
func (p *part) play(c net.Conn, r *pgwire.Reader) {
	defer close(p.ended)
	for rest := p.said; len(rest) > 0; {
		if _, _, err := r.ReadMessage(); err != nil {
			return
		}
		n := len(rest)
		if len(rest) >= pgwire.HeaderLen {
			if _, size, err := pgwire.Header(rest); err == nil {
				n = min(n, pgwire.HeaderLen+size)
			}
		}
		if _, err := c.Write(rest[:n]); err != nil {
			return
		}
		rest = rest[n:]
	}
}

// FuzzSession lets a client and a server have any conversation through a proxy, which may end it as
// it likes: it ends, and another session works.
func FuzzSession(f *testing.F) {
	for _, s := range scripts {
		var said []byte
		for _, step := range s.steps {
			said = append(said, step.send...)
		}
		f.Add(said, answersTo(said))
	}
	f.Add([]byte{'Q', 0, 0, 0, 3}, []byte{'Z', 0, 0, 0, 5, 'X'})
	server := newLiar(f)
	var current atomic.Pointer[part]
	server.play = func(c net.Conn, r *pgwire.Reader) bool {
		p := current.Swap(nil)
		if p != nil {
			p.play(c, r)
		}
		return p != nil // a connection that is made anew is of a server that says what it should
	}
	p := fuzzProxy(f, server.l.Addr().String())
	other := fuzzClient(f, p, "app")
	f.Fuzz(func(t *testing.T, client, answers []byte) {
		client, answers = client[:min(len(client), 64<<10)], answers[:min(len(answers), 64<<10)]
		now := &part{said: answers, ended: make(chan struct{})}
		current.Store(now)
		h, err := fuzzClient(t, p, "fuzz").Hijack()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = h.Conn.Write(client)
		select {
		case <-now.ended:
		case <-time.After(20 * time.Millisecond): // not all was asked for
		}
		_ = h.Conn.Close()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			server.endFuzz() // a server is waited for as long as it is there
			if n, _ := p.Stats(); n == 1 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the session does not end")
			}
		}
		if v, err := tryExec(other, "SELECT 7"); v != "7" {
			t.Fatalf("another session: %q, %v", v, err)
		}
	})
}

func fuzzProxy(f *testing.F, server string) *proxy.Proxy {
	f.Helper()
	users := filepath.Join(f.TempDir(), "users")
	if err := os.WriteFile(users, []byte("app:x\n"), 0o600); err != nil {
		f.Fatal(err)
	}
	cfg := proxy.DefaultConfig()
	cfg.Listen, cfg.HBA = []string{"127.0.0.1:0"}, []string{"host all all all trust"}
	cfg.ServerUsersFile, cfg.Reuse = users, false
	cfg.HoldTimeout, cfg.DialTimeout = 200*time.Millisecond, 100*time.Millisecond
	cfg.ShutdownTimeout = time.Second
	topo := proxytest.NewTopology()
	p, err := proxy.New(cfg, proxy.Deps{Topology: topo, Log: zap.NewNop()})
	if err != nil {
		f.Fatal(err)
	}
	if err := p.Start(context.Background()); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = p.Close() })
	topo.Set(&proxy.Primary{Name: "liar", Addr: server, Epoch: 1, Incarnation: liarStarted,
		Lease: proxytest.NewLease(24 * time.Hour), Boundaries: []proxy.Boundary{{Epoch: 1}}})
	return p
}

func fuzzClient(t testing.TB, p *proxy.Proxy, database string) *pgconn.PgConn {
	t.Helper()
	c, err := pgconn.Connect(context.Background(), "host=127.0.0.1 user=app sslmode=disable port="+
		portOf(p)+" dbname="+database)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func portOf(p *proxy.Proxy) string {
	_, port, _ := net.SplitHostPort(p.Addrs()[0].String())
	return port
}
