package proxy_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// pair is a rig with a hot standby to which a planned change goes.
type pair struct {
	*rig
	standby *proxytest.Server
	target  *proxy.Target
}

func newPair(t *testing.T, change func(*proxy.Config)) *pair {
	t.Helper()
	p := &pair{rig: newRig(t, change)}
	p.standby = p.server.StartStandby(t)
	p.target = &proxy.Target{
		Name: "standby", Addr: fmt.Sprintf("127.0.0.1:%d", p.standby.Port), Epoch: p.epoch,
	}
	return p
}

// results are the connections that were made, by what became of them.
func (p *pair) results() map[string]int {
	p.t.Helper()
	out := map[string]int{}
	for _, r := range []string{"made", "refused", "used", "stale", "closed"} {
		out[r] = int(p.count("prewarmed_total", r))
	}
	return out
}

// await waits until the connections that were made are as asked for.
func (p *pair) await(what string, is func(r map[string]int) bool) {
	p.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !is(p.results()); {
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: %v", what, p.results())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// wantLaw checks that each connection that was made had one end, when none waits any more.
func (p *pair) wantLaw() {
	p.t.Helper()
	p.await("a connection has no end, or two", func(r map[string]int) bool {
		return r["made"] == r["used"]+r["stale"]+r["closed"]
	})
	if n := p.gauge("prewarmed_connections"); n != 0 {
		p.t.Errorf("%v connections wait", n)
	}
}

// gauge is the value of a gauge of the proxy.
func (p *pair) gauge(name string) float64 {
	p.t.Helper()
	families, err := p.metrics.Gather()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "holdfast_proxy_"+name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	p.t.Fatalf("no metric %s", name)
	return 0
}

// announce tells of the change and waits until n connections were made.
func (p *pair) announce(n int) {
	p.t.Helper()
	before := p.results()["made"]
	p.topo.Announce(p.target)
	p.await("connections made", func(r map[string]int) bool { return r["made"] == before+n })
}

// stop takes the primary away as a switchover does.
func (p *pair) stop() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	p.proxy.Drain(ctx, p.epoch)
	p.proxy.Cut(p.epoch)
	p.server.Exec("CHECKPOINT")
	p.server.Follow(p.standby)
	p.server.Stop("fast")
}

// enter makes the promoted standby the primary.
func (p *pair) enter() {
	p.t.Helper()
	p.epoch++
	p.lease = proxytest.NewLease(time.Hour)
	next := p.standby.NextXID()
	p.bounds = append(p.bounds, proxy.Boundary{Epoch: p.epoch, Lo: next, Hi: next})
	p.topo.Set(&proxy.Primary{
		Name: p.target.Name, Addr: p.target.Addr, Epoch: p.epoch, Lease: p.lease,
		Incarnation: p.standby.Incarnation(), Boundaries: append([]proxy.Boundary(nil), p.bounds...),
	})
}

// switchOver goes to the standby.
func (p *pair) switchOver() {
	p.t.Helper()
	p.stop()
	p.standby.Promote()
	p.enter()
}

// backends counts the backends of the role app on the standby that are older than its
// promotion, and those that are not.
func (p *pair) backends(since string) (ahead, later int) {
	p.t.Helper()
	rows := p.standby.Exec("SELECT count(*) FILTER (WHERE backend_start < '" + since + "')," +
		" count(*) FILTER (WHERE backend_start >= '" + since + "') FROM pg_stat_activity" +
		" WHERE usename = 'app'")
	_, err := fmt.Sscan(strings.Join(rows[0], " "), &ahead, &later)
	if err != nil {
		p.t.Fatal(err)
	}
	return ahead, later
}

func (p *pair) now() string {
	p.t.Helper()
	return p.standby.Exec("SELECT clock_timestamp()")[0][0]
}

// crowd are clients with some state of their own.
func (p *pair) crowd(n int) []*pgconn.PgConn {
	p.t.Helper()
	var all []*pgconn.PgConn
	for i := range n {
		c := p.connect("")
		exec(p.t, c, fmt.Sprintf("SET app.tenant = '%d'", i))
		exec(p.t, c, "PREPARE p AS SELECT current_setting('app.tenant')")
		all = append(all, c)
	}
	return all
}

// TestPrewarmedConnectionsAreUsed: after a planned change the sessions go on with connections that
// were made before, and a client sees nothing of that: not its settings, not what the server
// reports, and it writes.
func TestPrewarmedConnectionsAreUsed(t *testing.T) {
	p := newPair(t, nil)
	p.server.Exec("CREATE DATABASE other")
	p.server.Exec("ALTER ROLE app SET default_transaction_isolation = 'serializable'")
	all := p.crowd(3)
	exec(t, all[0], "CREATE TABLE t (n int)")
	exec(t, all[1], "SELECT pg_advisory_lock(7)")
	exec(t, all[2], "LISTEN news")
	p.server.Follow(p.standby)
	reported := map[string]string{}
	for _, name := range []string{"in_hot_standby", "default_transaction_read_only", "is_superuser",
		"server_version", "TimeZone", "standard_conforming_strings"} {
		reported[name] = all[0].ParameterStatus(name)
	}
	p.announce(3)
	for _, c := range all { // clients work on meanwhile
		exec(t, c, "INSERT INTO t VALUES (1)")
	}
	since := p.now()
	p.switchOver()
	for i, c := range all {
		exec(t, c, "INSERT INTO t VALUES (2)")
		if got := exec(t, c, "EXECUTE p"); got != fmt.Sprint(i) {
			t.Errorf("session %d: the prepared statement says %q", i, got)
		}
		if got := exec(t, c, "SHOW transaction_read_only"); got != "off" {
			t.Errorf("session %d: transaction_read_only is %s", i, got)
		}
		for name, want := range reported {
			if got := c.ParameterStatus(name); got != want {
				t.Errorf("session %d: %s is %q, was %q", i, name, got, want)
			}
		}
	}
	if n := exec(t, all[0], "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"); n != "1" {
		t.Errorf("%s advisory locks", n)
	}
	if ahead, later := p.backends(since); ahead != 3 || later != 0 {
		t.Errorf("%d of the sessions' backends were there before the change, %d came later", ahead,
			later)
	}
	if r := p.results(); r["used"] != 3 || r["refused"] != 0 {
		t.Errorf("results are %v", r)
	}
	p.wantLaw()
}

// TestPrewarmedConnectionOfAnotherStart: the standby is restarted before it is promoted, and so are
// its processes; nobody waits for the connections that ended, and each session logs in.
func TestPrewarmedConnectionOfAnotherStart(t *testing.T) {
	p := newPair(t, nil)
	all := p.crowd(2)
	p.announce(2)
	p.standby.Stop("fast")
	p.standby.Start()
	since := p.now()
	p.switchOver()
	for i, c := range all {
		if got := exec(t, c, "EXECUTE p"); got != fmt.Sprint(i) {
			t.Errorf("session %d: the prepared statement says %q", i, got)
		}
	}
	if ahead, later := p.backends(since); ahead != 0 || later != 2 {
		t.Errorf("%d backends of before the restart, %d of later", ahead, later)
	}
	if r := p.results(); r["used"] != 0 || r["stale"] != 2 {
		t.Errorf("results are %v", r)
	}
	p.wantLaw()
}

// TestPrewarmedConnectionToAStandby: the lock names the target while its server is a standby still,
// as a coordinator with a fault might. What was made ahead proves nothing then, and is not used.
func TestPrewarmedConnectionToAStandby(t *testing.T) {
	p := newPair(t, nil)
	all := p.crowd(2)
	p.announce(2)
	p.proxy.Cut(p.epoch)
	p.server.Follow(p.standby)
	p.epoch++
	p.topo.Set(&proxy.Primary{
		Name: p.target.Name, Addr: p.target.Addr, Epoch: p.epoch, Lease: proxytest.NewLease(time.Hour),
		Incarnation: p.standby.Incarnation(),
		Boundaries:  append(p.bounds, proxy.Boundary{Epoch: p.epoch, Lo: 1 << 40, Hi: 1 << 40}),
	})
	p.await("both stale", func(r map[string]int) bool { return r["stale"] == 2 })
	p.wantLaw()
	p.standby.Promote()
	for i, c := range all {
		if got := exec(t, c, "EXECUTE p"); got != fmt.Sprint(i) {
			t.Errorf("session %d: the prepared statement says %q", i, got)
		}
	}
	if r := p.results(); r["used"] != 0 {
		t.Errorf("results are %v", r)
	}
}

// TestPrewarmedConnectionToAnotherServer: the lock names another start of the server at the
// target's address than the one that connections were made to, and these live.
func TestPrewarmedConnectionToAnotherServer(t *testing.T) {
	p := newPair(t, nil)
	all := p.crowd(2)
	p.announce(2)
	p.stop()
	p.standby.Promote()
	next := p.standby.NextXID()
	p.epoch++
	p.topo.Set(&proxy.Primary{
		Name: p.target.Name, Addr: p.target.Addr, Epoch: p.epoch, Lease: proxytest.NewLease(time.Hour),
		Incarnation: "1",
		Boundaries:  append(p.bounds, proxy.Boundary{Epoch: p.epoch, Lo: next, Hi: next}),
	})
	p.await("both stale", func(r map[string]int) bool { return r["stale"] == 2 })
	p.enter()
	for i, c := range all {
		if got := exec(t, c, "EXECUTE p"); got != fmt.Sprint(i) {
			t.Errorf("session %d: the prepared statement says %q", i, got)
		}
	}
	if r := p.results(); r["used"] != 0 {
		t.Errorf("results are %v", r)
	}
	p.wantLaw()
}

// TestPrewarmingCalledOff: of a change that does not come, or goes to another server, no connection
// is left, nor of sessions that end.
func TestPrewarmingCalledOff(t *testing.T) {
	p := newPair(t, nil)
	p.crowd(3)
	p.announce(3)
	none := func() {
		t.Helper()
		p.wantLaw()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			n := p.standby.Exec("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'")[0][0]
			if n == "0" {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s connections are left", n)
			}
		}
	}
	p.topo.Announce(nil)
	none()
	p.announce(3)
	p.change() // to the old primary, as another start of itself
	none()
	p.target.Epoch = p.epoch
	p.await("sessions are back", func(map[string]int) bool {
		return p.count("sessions_restored_total", "") == 3
	})
	p.announce(3)
	if err := p.proxy.Close(); err != nil {
		t.Error(err)
	}
	none()
	if r := p.results(); r["used"] != 0 || r["stale"] != 0 {
		t.Errorf("results are %v", r)
	}
}

// TestPrewarmedConnectionsAreLeft: what no session took is closed some seconds after the change:
// DROP DATABASE waits five for whoever is connected.
func TestPrewarmedConnectionsAreLeft(t *testing.T) {
	p := newPair(t, nil)
	all := p.crowd(2)
	p.announce(2)
	for _, c := range all {
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
	p.await("clients are gone", func(map[string]int) bool {
		n, _ := p.proxy.Stats()
		return n == 0
	})
	p.switchOver()
	if n := p.gauge("prewarmed_connections"); n != 2 {
		t.Errorf("%v connections wait after the change", n)
	}
	p.standby.Exec("DROP DATABASE app")
	if r := p.results(); r["closed"] != 2 {
		t.Errorf("results are %v", r)
	}
	p.wantLaw()
}

// TestPrewarmedConnectionsAge: what waits for a change that does not come is closed when it is as
// old as a connection may be, and is not made again.
func TestPrewarmedConnectionsAge(t *testing.T) {
	p := newPair(t, func(c *proxy.Config) { c.ReuseLifetime = 2 * time.Second })
	p.crowd(2)
	p.announce(2)
	p.await("too old", func(r map[string]int) bool { return r["closed"] == 2 })
	p.wantLaw()
}

// TestPrewarmingIsBounded: not more connections than sessions, or than are allowed; those for whom
// all others wait come first; none for a session that cannot go on elsewhere.
func TestPrewarmingIsBounded(t *testing.T) {
	p := newPair(t, func(c *proxy.Config) { c.PrewarmMax = 2 })
	p.crowd(3)
	holder := p.connect("application_name=holder")
	exec(t, holder, "SELECT pg_advisory_lock(7)")
	p.crowd(2)
	told := p.connect("application_name=told")
	exec(t, told, "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT")
	p.server.Follow(p.standby)
	p.announce(2)
	time.Sleep(200 * time.Millisecond)
	if r := p.results(); r["made"] != 2 {
		t.Errorf("results are %v", r)
	}
	names := p.standby.Exec("SELECT string_agg(application_name, ',' ORDER BY 1) FROM" +
		" pg_stat_activity WHERE usename = 'app'")[0][0]
	if !strings.Contains(names, "holder") || strings.Contains(names, "told") {
		t.Errorf("connections for %q", names)
	}
}

// TestPrewarmingIsOff: with a bound of 0 nothing is made, nor once the drain has begun, when all
// that is done makes clients wait.
func TestPrewarmingIsOff(t *testing.T) {
	for _, most := range []int{0, 100} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			p := newPair(t, func(c *proxy.Config) { c.PrewarmMax = most })
			all := p.crowd(1)
			if most > 0 {
				p.proxy.Drain(context.Background(), p.epoch)
			}
			p.topo.Announce(p.target)
			time.Sleep(300 * time.Millisecond)
			p.switchOver()
			if got := exec(t, all[0], "EXECUTE p"); got != "0" {
				t.Errorf("the prepared statement says %q", got)
			}
			if r := p.results(); r["made"]+r["refused"] != 0 {
				t.Errorf("results are %v", r)
			}
		})
	}
}

// TestPrewarmingThatIsRefused: a target that lets nobody in, is full, or is none, costs the clients
// nothing.
func TestPrewarmingThatIsRefused(t *testing.T) {
	p := newPair(t, nil)
	all := p.crowd(1) // one attempt each time
	refused := 0
	refuses := func(what string) {
		t.Helper()
		refused++
		p.topo.Announce(&proxy.Target{Name: "standby", Addr: p.target.Addr, Epoch: p.epoch})
		p.await(what, func(r map[string]int) bool { return r["refused"] == refused })
		p.topo.Announce(nil)
	}
	hba := "host all postgres 127.0.0.1/32 scram-sha-256\n"
	p.standby.SetHBA(hba)
	refuses("not let in")
	p.standby.SetHBA(hba + "host all app 127.0.0.1/32 scram-sha-256\n")
	p.standby.Configure("superuser_reserved_connections=90")
	refuses("few connections left")
	p.standby.Configure("superuser_reserved_connections=3", "hot_standby=off")
	refuses("nobody is let in to a standby")
	p.standby.Stop("fast")
	refuses("nobody listens")
	if got := exec(t, all[0], "EXECUTE p"); got != "0" {
		t.Errorf("the prepared statement says %q", got)
	}
	if r := p.results(); r["made"] != 0 {
		t.Errorf("results are %v", r)
	}
}
