package proxy_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// Those of a login need no server, and a short time would end the logins of others.
func TestLimitsOfLoginsAreCounted(t *testing.T) {
	r := &rig{t: t, topo: proxytest.NewTopology(), metrics: prometheus.NewRegistry()}
	cfg := proxy.DefaultConfig()
	cfg.Listen, cfg.StartupTimeout = []string{"127.0.0.1:0"}, time.Second
	cfg.LookupPassword = proxytest.Password
	r.start(cfg)
	for name, said := range map[string][][]byte{
		"startup_timeout": nil,
		"startup_packet":  {[]byte("GET / HTTP/1.1\r\n\r\n")},
	} {
		if n := r.count("limits_total", name); n != 0 {
			t.Errorf("%s counts what does not reach it", name)
		}
		r.peer(t, said...)
		r.eventually(func() bool { return r.count("limits_total", name) == 1 }, name+" is counted")
	}
}

// Each bound that is reached is counted, and nothing else. Those of portals and of outstanding
// messages are far below what they are by default, so that it is the settings that count.
func TestLimitsAreCounted(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.PreparedBytesMax, c.InspectBytesMax = 1000, 2000
		c.PortalsMax, c.OutstandingMax = 10, 2048
	})
	c := r.connect("")
	ctx := context.Background()
	batch := func(n int) {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "%d", i%10)
		}
		exec(t, c, "SELECT '"+b.String()+"'")
	}
	for name, reach := range map[string]func(){
		"inspect_bytes": func() { batch(200000) },
		"prepared_bytes": func() {
			if _, err := c.Prepare(ctx, "p", "SELECT '"+strings.Repeat("x", 1000)+"'", nil); err != nil {
				t.Fatal(err)
			}
		},
		"portals": func() {
			w := hijack(t, r.connect(""))
			msg := pgwire.AppendParse(nil, "s", "SELECT 1", nil)
			for i := range 12 {
				msg = pgwire.AppendBind(msg, fmt.Sprint("c", i), "s")
			}
			w.send(pgwire.AppendSync(msg))
			w.until(1, 20*time.Second)
		},
		"outstanding": func() {
			w := hijack(t, r.connect(""))
			msg := pgwire.AppendQuery(nil, "SELECT pg_sleep(0.5)")
			for range 6000 {
				msg = pgwire.AppendSync(msg)
			}
			w.send(msg)
			w.until(6001, 20*time.Second)
		},
	} {
		before := r.count("limits_total", name)
		batch(10)
		if r.count("limits_total", name) != before {
			t.Errorf("%s counts what does not reach it", name)
		}
		reach()
		r.eventually(func() bool { return r.count("limits_total", name) > before }, name+" is counted")
	}
}

// What a server may tell of its parameters, in a session and at a login, is what the settings say:
// the same server is given up or not.
func TestParametersOfServersAreBounded(t *testing.T) {
	for name, most := range map[string]struct {
		number, bytes int
		isTooMany     bool
	}{
		"a small number": {50, 1 << 20, true}, "few bytes": {1000, 16 << 10, true},
		"the defaults": {1000, 1 << 20, false},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := liarRigWith(t, func(c *proxy.Config) {
				c.ServerParametersMax, c.ServerParametersBytesMax = most.number, most.bytes
				c.HoldTimeout = time.Second
			})
			var params []byte
			for i := range 60 {
				params = pgwire.AppendParameterStatus(params, fmt.Sprint("p", i),
					strings.Repeat("x", 400))
			}
			s.logins = map[string][]byte{"told": bytes.Join([][]byte{
				pgwire.AppendAuthOK(nil), params,
				pgwire.AppendBackendKeyData(nil, 1, []byte{1, 2, 3, 4}),
				pgwire.AppendReadyForQuery(nil, 'I')}, nil)}
			limit := "server_parameters_bytes"
			if most.number < 60 {
				limit = "server_parameters"
				s.lies["parameters"] = func(c net.Conn) {
					_, _ = c.Write(append(params, pgwire.AppendReadyForQuery(nil, 'I')...))
				}
				if _, err := tryExec(r.connect(""), "parameters"); code(err) != "08007" {
					t.Errorf("in a session: %v", err)
				}
				if n := r.count("limits_total", limit); n == 0 {
					t.Error("not counted in a session")
				}
			}
			before := r.count("limits_total", limit)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			c, err := dial(ctx, r.dsn("dbname=told")) // which fails in any case: nothing more is said
			closeConn(c)
			if n := r.count("limits_total", limit) - before; err == nil || n > 0 != most.isTooMany {
				t.Errorf("at a login: %v, counted %v times", err, n)
			}
		})
	}
}

// stuckPeers are other nodes that do not come back until they are told to.
type stuckPeers struct{ stuck chan struct{} }

func (p *stuckPeers) RelayCancel(ctx context.Context, _ func(string) bool, _ uint32, _ []byte,
) error {
	select {
	case <-p.stuck:
	case <-ctx.Done():
	}
	return nil
}

// As many cancel requests as the setting says are passed on at a time, and others are dropped.
func TestCancelsThatArePassedOnAreBounded(t *testing.T) {
	for _, most := range []int{1, 3} {
		r := &rig{t: t, topo: proxytest.NewTopology(), metrics: prometheus.NewRegistry()}
		cfg := proxy.DefaultConfig()
		cfg.Listen, cfg.NodeName, cfg.CancelsMax = []string{"127.0.0.1:0"}, "node1", most
		peers := &stuckPeers{stuck: make(chan struct{})}
		p, err := proxy.New(cfg, proxy.Deps{Topology: r.topo, Log: zap.NewNop(), Peers: peers,
			Registerer: r.metrics})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			conn, err := net.Dial("tcp", p.Addrs()[0].String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write(pgwire.AppendCancelRequest(nil, 1, make([]byte, 32))); err != nil {
				t.Fatal(err)
			}
		}
		r.eventually(func() bool {
			return r.count("cancels_total", "passed_on")+r.count("cancels_total", "dropped") == 4
		}, "all are counted")
		if n := r.count("cancels_total", "passed_on"); n != float64(most) {
			t.Errorf("%v of 4 are passed on, may be %d", n, most)
		}
		close(peers.stuck)
		_ = p.Close()
	}
}
