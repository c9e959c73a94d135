package proxy_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// Clients come by a Unix socket, too, where TLS is neither offered nor required, and by IPv6.
func TestListenOnUnixSocketAndIPv6(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, ".s.PGSQL.6432")
	// A process that was killed has left its socket.
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	_ = old.Close()
	r, _ := newTLSRig(t, proxy.TLSRequire, func(c *proxy.Config) {
		c.Listen = []string{"127.0.0.1:0", sock, "[::1]:0"}
		c.HBA = []string{"local all all scram-sha-256", "hostssl all app 127.0.0.1/32 md5",
			"hostssl all app ::1/128 scram-sha-256"}
	})
	c := r.connectTo(fmt.Sprintf("host=%s port=6432 user=app dbname=app password='%s'", dir,
		proxytest.Password))
	exec(t, c, "SET application_name = 'kept'")
	r.change()
	if v := exec(t, c, "SHOW application_name"); v != "kept" {
		t.Error(v)
	}
	_, port, _ := net.SplitHostPort(r.proxy.Addrs()[2].String())
	c = r.connectTo(fmt.Sprintf("host=::1 port=%s user=app dbname=app password='%s' sslmode=require",
		port, proxytest.Password))
	if v := exec(t, c, "SELECT 1"); v != "1" {
		t.Error(v)
	}
	cfg := proxy.DefaultConfig()
	cfg.Listen = []string{sock}
	second, err := proxy.New(cfg, proxy.Deps{Topology: r.topo, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Start(context.Background()); err == nil ||
		!strings.Contains(err.Error(), "somebody listens") {
		t.Errorf("a second proxy: %v", err)
		_ = second.Close()
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Listen = []string{file}
	third, err := proxy.New(cfg, proxy.Deps{Topology: r.topo, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := third.Start(context.Background()); err == nil {
		t.Error("a file was taken for a socket")
		_ = third.Close()
	}
}

// login32 logs in by hand with a version, and tells what is negotiated and the session's key.
func login32(t *testing.T, r *rig, version uint32, more ...pgwire.Param) (negotiated string,
	info pgwire.ServerInfo, conn net.Conn,
) {
	t.Helper()
	conn, err := net.Dial("tcp", r.proxy.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	tap := &negotiation{Conn: conn}
	params := append([]pgwire.Param{{Name: "user", Value: "app"},
		{Name: "database", Value: "app"}}, more...)
	info, err = pgwire.LoginWith(tap, pgwire.NewReader(tap, 1<<16), params,
		pgwire.Credentials{Password: proxytest.Password}, pgwire.LoginOptions{Protocol: version})
	if err != nil {
		t.Fatal(err)
	}
	return tap.text, info, conn
}

// negotiation takes a NegotiateProtocolVersion out of what a client reads first.
type negotiation struct {
	net.Conn
	text string
	seen bool
}

func (n *negotiation) Read(p []byte) (int, error) {
	m, err := n.Conn.Read(p)
	if n.seen || m == 0 {
		return m, err
	}
	n.seen = true
	typ, size, herr := pgwire.Header(p[:m])
	if herr != nil || typ != pgwire.SrvNegotiateProtocol {
		return m, err
	}
	size += pgwire.HeaderLen
	version, opts, _ := pgwire.ParseNegotiateProtocol(p[pgwire.HeaderLen:size])
	n.text = fmt.Sprintf("%d.%d %v", version>>16, version&0xffff, opts)
	if m = copy(p, p[size:m]); m == 0 {
		return n.Read(p)
	}
	return m, err
}

// peerProxies is a group of proxies in one process.
type peerProxies struct {
	byName map[string]*proxy.Proxy
	asked  atomic.Int64
}

func (p *peerProxies) RelayCancel(ctx context.Context, isNode func(string) bool, pid uint32,
	key []byte,
) error {
	for name, to := range p.byName {
		if isNode(name) {
			p.asked.Add(1)
			to.CancelHere(ctx, pid, key)
		}
	}
	return nil
}

// Versions and options are negotiated, not refused, and a client of 3.2 gets a long key, with which
// it can cancel, here and by way of another node, which the key names.
func TestProtocol32(t *testing.T) {
	peers := &peerProxies{}
	r := newRig(t, func(c *proxy.Config) { c.NodeName = "node1" })
	cfg := proxy.DefaultConfig()
	cfg.Listen, cfg.NodeName = []string{"127.0.0.1:0"}, "node2"
	other, err := proxy.New(cfg, proxy.Deps{
		Topology: r.topo, Log: zap.NewNop(), Peers: peers,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	peers.byName = map[string]*proxy.Proxy{"node1": r.proxy, "node2": other}
	for _, c := range []struct {
		version    uint32
		opts       []pgwire.Param
		negotiated string
		key        int
	}{
		{pgwire.Protocol3, nil, "", 4},
		{pgwire.Protocol32, nil, "", 32},
		{3<<16 | 9999, nil, "3.2 []", 32},
		{pgwire.Protocol3, []pgwire.Param{{Name: "_pq_.x", Value: "1"}}, "3.0 [_pq_.x]", 4},
		{pgwire.Protocol32, []pgwire.Param{{Name: "_pq_.x"}}, "3.2 [_pq_.x]", 32},
	} {
		negotiated, info, conn := login32(t, r, c.version, c.opts...)
		if negotiated != c.negotiated || len(info.Key) != c.key {
			t.Errorf("%x %v: negotiated %q, key of %d bytes", c.version, c.opts, negotiated,
				len(info.Key))
		}
		for _, at := range []string{r.proxy.Addrs()[0].String(), other.Addrs()[0].String()} {
			w := &raw{t, conn, conn, pgwire.NewReader(conn, 1<<16)}
			w.send(pgwire.AppendQuery(nil, "SELECT pg_sleep(20)"))
			running := func() string {
				return r.server.Exec("SELECT count(*) FROM pg_stat_activity WHERE query LIKE " +
					"'SELECT pg_sleep(20)%' AND state = 'active'")[0][0]
			}
			r.eventually(func() bool { return running() == "1" }, "it runs")
			wrong := append([]byte(nil), info.Key...)
			wrong[len(wrong)-1]++
			for _, key := range [][]byte{wrong, info.Key} {
				if n := running(); n != "1" {
					t.Fatalf("%s statements run before the cancel request with %x", n, key)
				}
				err := pgwire.SendCancel(context.Background(), at, info.PID, key,
					(&net.Dialer{}).DialContext)
				if err != nil {
					t.Fatal(err)
				}
			}
			if got := w.until(1, 15*time.Second); !strings.Contains(got, "57014") {
				t.Errorf("cancelled at %s: %s", at, got)
			}
		}
	}
	if n := peers.asked.Load(); n != 10 {
		t.Errorf("%d requests were passed on", n)
	}
}
