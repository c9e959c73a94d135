package proxy_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
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
	said []byte
	// waits says nothing before the client waits for it, as a server; else a message for each.
	waits bool
	ended chan struct{}
}

// play answers the messages that come until all is said.
func (p *part) play(c net.Conn, r *pgwire.Reader) {
	defer close(p.ended)
	for rest := p.said; len(rest) > 0; {
		typ, _, err := r.ReadMessage()
		if err != nil {
			return
		}
		n := p.answer(rest, typ)
		if _, err := c.Write(rest[:n]); err != nil {
			return
		}
		rest = rest[n:]
	}
}

// answer is how much of the rest is said to a message of that type: up to where the client, who
// waits for it, goes on.
func (p *part) answer(rest []byte, typ byte) int {
	if p.waits && !strings.ContainsRune("QSHcf", rune(typ)) {
		return 0
	}
	n := 0
	for len(rest)-n >= pgwire.HeaderLen {
		said, size, err := pgwire.Header(rest[n:])
		if err != nil {
			break
		}
		n = min(len(rest), n+pgwire.HeaderLen+size)
		switch {
		case !p.waits, said == 'Z', said == 'G', typ == 'H' && (said == 's' || said == 'C'):
			return n
		}
	}
	return len(rest)
}

// FuzzSession lets a client and a server have any conversation through a proxy, which may end it as
// it likes: it ends, and another session works. What it begins with are conversations that were
// recorded of PostgreSQL (TestFuzzConversations).
func FuzzSession(f *testing.F) {
	f.Add([]byte{'Q', 0, 0, 0, 3}, []byte{'Z', 0, 0, 0, 5, 'X'}, false)
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
	f.Fuzz(func(t *testing.T, client, answers []byte, waits bool) {
		client, answers = client[:min(len(client), 64<<10)], answers[:min(len(answers), 64<<10)]
		now := &part{said: answers, waits: waits, ended: make(chan struct{})}
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
	c, err := dial(context.Background(), "host=127.0.0.1 user=app sslmode=disable port="+
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
