package proxy_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// observed starts the rig's proxy anew, with a log that is kept.
func (r *rig) observed() *observer.ObservedLogs {
	r.t.Helper()
	_ = r.proxy.Close()
	core, logs := observer.New(zap.WarnLevel)
	r.metrics = prometheus.NewRegistry()
	cfg := proxy.DefaultConfig()
	cfg.Listen, cfg.LookupPassword = []string{"127.0.0.1:0"}, proxytest.Password
	p, err := proxy.New(cfg, proxy.Deps{Topology: r.topo, Log: zap.New(core), Registerer: r.metrics})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := p.Start(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	r.proxy = p
	r.t.Cleanup(func() { _ = p.Close() })
	return logs
}

// lossLines are the lines of failovers that may have lost commits.
func lossLines(logs *observer.ObservedLogs) []observer.LoggedEntry {
	return logs.FilterMessage("a failover may have lost commits: sessions may have read what is" +
		" not there").All()
}

// Who has read a commit that a failover loses is not told, and goes on; it is counted, and the log
// tells from where on the new primary has nothing of the old one. Who was quiet since before the
// newest commit that is there is not among them (DESIGN.md I47).
func TestReadersOfLostCommitsAreCounted(t *testing.T) {
	p := newPair(t, nil)
	logs := p.observed()
	p.server.ExecIn("app", "CREATE TABLE t (a int); GRANT ALL ON t TO app")
	quiet, reader := p.connect(""), p.connect("")
	exec(t, quiet, "SELECT count(*) FROM t")
	inBlock, listener, running := p.connect(""), p.connect(""), p.connect("")
	exec(t, inBlock, "BEGIN")
	exec(t, listener, "LISTEN news")
	ran := start(running, "SELECT pg_sleep(4)")
	time.Sleep(2500 * time.Millisecond) // the difference between clocks that is allowed for
	p.server.ExecIn("app", "INSERT INTO t VALUES (0)")
	p.server.Follow(p.standby)
	p.standby.Exec("ALTER SYSTEM SET primary_conninfo = ''")
	p.standby.Exec("SELECT pg_reload_conf()")
	p.eventually(func() bool {
		return p.server.Exec("SELECT count(*) FROM pg_stat_replication")[0][0] == "0"
	}, "nothing is replicated any more")
	p.server.ExecIn("app", "INSERT INTO t VALUES (1)")
	if n := exec(t, reader, "SELECT count(*) FROM t"); n != "2" {
		t.Fatalf("%s rows", n)
	}
	p.proxy.Cut(p.epoch)
	p.server.Kill()
	p.standby.Promote()
	next := p.standby.NextXID()
	p.bounds = append(p.bounds, proxy.Boundary{Epoch: p.epoch + 1, Lo: next, Hi: next, MayLose: true})
	p.follow()
	if n := exec(t, reader, "SELECT count(*) FROM t"); n != "1" {
		t.Fatalf("nothing is lost: %s rows", n)
	}
	exec(t, quiet, "SELECT 1")
	p.eventually(func() bool { return len(lossLines(logs)) > 0 }, "it is logged")
	if n := p.count("lost_reads_total", ""); n != 4 {
		t.Errorf("%v sessions counted, want all but the quiet one", n)
	}
	line := lossLines(logs)[0].ContextMap()
	want := map[string]any{"sessions": int64(4), "of_sessions": int64(5), "xid_lo": next,
		"xid_hi": next, "window_is_assumed": false, "epoch": p.epoch, "of_epoch": p.epoch - 1}
	for key, v := range want {
		if fmt.Sprint(line[key]) != fmt.Sprint(v) {
			t.Errorf("%s is %v, want %v", key, line[key], v)
		}
	}
	lsn := p.standby.Exec("SELECT pg_last_wal_replay_lsn(), pg_last_xact_replay_timestamp()")[0]
	if line["lsn"] != lsn[0] || line["last_commit"] == "" {
		t.Errorf("lsn %v, last commit %v; the server says %v", line["lsn"], line["last_commit"], lsn)
	}
	if err := <-ran; err != nil {
		t.Error(err)
	}
	// Another change, which loses nothing, says nothing.
	p.proxy.Cut(p.epoch)
	p.bounds = append(p.bounds, proxy.Boundary{Epoch: p.epoch + 1, Lo: next, Hi: next})
	p.follow()
	for _, c := range []*pgconn.PgConn{reader, quiet} {
		exec(t, c, "SELECT 1")
	}
	time.Sleep(1500 * time.Millisecond) // the watch looks every second
	if n := len(lossLines(logs)); n != 1 || p.count("lost_reads_total", "") != 4 {
		t.Errorf("%d lines, counted %v", n, p.count("lost_reads_total", ""))
	}
}

// follow makes the promoted standby the primary of the next epoch, of the newest boundary.
func (p *pair) follow() {
	p.epoch++
	p.lease = proxytest.NewLease(time.Hour)
	p.topo.Set(&proxy.Primary{
		Name: p.target.Name, Addr: p.target.Addr, Epoch: p.epoch, Lease: p.lease,
		Incarnation: p.standby.Incarnation(), Boundaries: append([]proxy.Boundary(nil), p.bounds...),
	})
}
