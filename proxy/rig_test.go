package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// rig is a proxy before a real server, with a line between them that can be cut.
type rig struct {
	t      *testing.T
	server *proxytest.Server
	line   *proxytest.Line
	topo   *proxytest.Topology
	lease  *proxytest.Lease
	proxy  *proxy.Proxy
	bounds []proxy.Boundary
	epoch  uint64
	// metrics are those of proxy.
	metrics *prometheus.Registry
}

func newRig(t *testing.T, change func(*proxy.Config)) *rig {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	r := &rig{t: t, server: proxytest.StartServer(t), topo: proxytest.NewTopology(),
		metrics: prometheus.NewRegistry()}
	r.line = proxytest.NewLine(t, fmt.Sprintf("127.0.0.1:%d", r.server.Port))
	cfg := proxy.DefaultConfig()
	cfg.Listen = []string{"127.0.0.1:0"}
	cfg.LookupPassword = proxytest.Password
	cfg.HoldTimeout = 20 * time.Second
	cfg.ShutdownTimeout = time.Second
	if change != nil {
		change(&cfg)
	}
	r.start(cfg)
	r.lead(0, 0)
	return r
}

// start starts the proxy, which is closed when the test ends.
func (r *rig) start(cfg proxy.Config) {
	r.t.Helper()
	p, err := proxy.New(cfg, proxy.Deps{Topology: r.topo, Targets: r.topo, Log: zaptest.NewLogger(r.t),
		Registerer: r.metrics})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := p.Start(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	r.proxy = p
	r.t.Cleanup(func() { _ = p.Close() })
}

// lead begins a new epoch at the server as it runs now.
func (r *rig) lead(lo, hi uint64) {
	r.t.Helper()
	r.epoch++
	r.lease = proxytest.NewLease(time.Hour)
	r.bounds = append(r.bounds, proxy.Boundary{Epoch: r.epoch, Lo: lo, Hi: hi})
	r.topo.Set(&proxy.Primary{
		Name: "pg", Addr: r.line.Addr(), Epoch: r.epoch, Incarnation: r.server.Incarnation(),
		Lease: r.lease, Boundaries: append([]proxy.Boundary(nil), r.bounds...),
	})
}

// count is the value of a counter of the proxy with that label's value; empty: without a label.
func (r *rig) count(name, label string) float64 {
	r.t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "holdfast_proxy_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" || len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	r.t.Fatalf("no metric %s of %q", name, label)
	return 0
}

// change is a failover as the proxy sees it: the old epoch is cut, the server dies and comes
// back as another start of itself, and a new epoch begins.
func (r *rig) change() {
	r.t.Helper()
	r.proxy.Cut(r.epoch)
	r.server.Kill()
	r.server.Start()
	next := r.server.NextXID()
	r.lead(next, next)
}

// sleepers are the processes of the server that are in pg_sleep.
func (r *rig) sleepers() string {
	r.t.Helper()
	return r.server.Exec("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")[0][0]
}

// connect is a client of the proxy.
func (r *rig) connect(options string) *pgconn.PgConn {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := dial(ctx, r.dsn(options))
	if err != nil {
		r.t.Fatalf("connect: %v", err)
	}
	r.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Close(ctx)
	})
	return c
}

func (r *rig) dsn(options string) string { return r.dsnOf(r.proxy, options) }

func (r *rig) dsnOf(p *proxy.Proxy, options string) string {
	_, port, _ := net.SplitHostPort(p.Addrs()[0].String())
	return fmt.Sprintf("host=127.0.0.1 port=%s user=app dbname=app password='%s' "+
		"sslmode=disable %s", port, proxytest.Password, options)
}

// exec runs a simple query and returns the first column of the last result's first row.
func exec(t *testing.T, c *pgconn.PgConn, sql string) string {
	t.Helper()
	v, err := tryExec(c, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func tryExec(c *pgconn.PgConn, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	res, err := c.Exec(ctx, sql).ReadAll()
	if err != nil {
		return "", err
	}
	if n := len(res); n > 0 && len(res[n-1].Rows) > 0 && len(res[n-1].Rows[0]) > 0 {
		return string(res[n-1].Rows[0][0]), nil
	}
	return "", nil
}

func code(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.Code
	}
	return fmt.Sprint(err)
}

// wantCode checks that the statement fails with that SQLSTATE and the connection stays.
func wantCode(t *testing.T, c *pgconn.PgConn, sql, want string) {
	t.Helper()
	_, err := tryExec(c, sql)
	if got := code(err); got != want {
		t.Fatalf("%s: got %s, want %s", sql, got, want)
	}
	if c.IsClosed() {
		t.Fatalf("%s: the connection is gone", sql)
	}
}
