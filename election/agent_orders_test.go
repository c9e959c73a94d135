package election_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// TestAgentRecruitIsDurable shows DESIGN 10.4 and 10.5: a recruited standby keeps its pledge and
// stays away from the old primary over the death of its server and its agent, and its position
// counts only once its local WAL is replayed: right after a start it knows no received position.
func TestAgentRecruitIsDurable(t *testing.T) {
	c := newAgentCluster(t, 2)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.waitStreaming("n2", "n1")
	c.sql("n1", "CHECKPOINT; CREATE TABLE t AS SELECT i, repeat('x', 500) x FROM "+
		"generate_series(1, 60000) i")
	end := c.sql("n1", "SELECT pg_current_wal_flush_lsn()")
	c.wait("n2", "all WAL", func(s election.MemberStatus) bool {
		return s.LSN.String() >= end && len(s.LSN.String()) >= len(end)
	})
	c.epoch = 5
	first := c.do("n2", election.Order{Kind: election.OrderRecruit})
	if first.LSN.String() != end {
		t.Errorf("recruited at %v, the primary wrote up to %s", first.LSN, end)
	}

	c.close("n2")
	pid := c.crash("n2")
	c.start("n2")
	c.wait("n2", "standby", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStandby && s.Pid != pid && s.Pledged == 5
	})
	if got := c.sql("n2", "SELECT pg_last_wal_receive_lsn()"); got != "" {
		t.Errorf("receive position after a restart: %s, NULL expected", got)
	}
	if _, err := c.tryDo("n2", election.Order{Kind: election.OrderRecruit, Epoch: 4}); !errors.Is(
		err, election.ErrAgentStaleEpoch) {
		t.Errorf("recruit of an older epoch: %v", err)
	}
	again := c.do("n2", election.Order{Kind: election.OrderRecruit})
	if again.LSN != first.LSN || again.XidLo != first.XidLo || again.Timeline != 1 {
		t.Errorf("position after a restart %+v, before %+v", again, first)
	}
	if c.agents["n2"].Status().Streaming {
		t.Error("it streams although it is recruited")
	}
	c.do("n2", election.Order{Kind: election.OrderFollow, Upstream: c.member("n1")})
	c.waitStreaming("n2", "n1")
}

// awaitActive waits until a backend executes something.
func (c *agentCluster) awaitActive(name string, backend int) {
	c.t.Helper()
	electiontest.Wait(c.t, "a busy backend", 20*time.Second, func() bool {
		return c.sql(name, fmt.Sprintf("SELECT state FROM pg_stat_activity WHERE pid = %d",
			backend)) == "active"
	})
}

// TestAgentRestartInPlace shows DESIGN 10.8 and 10.11a: after the postmaster's death a busy
// backend lives on; the agent ends it, starts nothing by itself, and starts behind the closed
// door when ordered.
func TestAgentRestartInPlace(t *testing.T) {
	c := newAgentCluster(t, 1)
	c.start("n1")
	c.bootstrap("")
	c.open("n1")
	busy, err := c.dial("n1", "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Conn().Close() }()
	backend, _ := strconv.Atoi(c.on(busy, "SELECT pg_backend_pid()"))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	running := make(chan error, 1)
	go func() {
		_, err := busy.Exec(ctx, "SELECT count(*) FROM generate_series(1, 1000000000)").ReadAll()
		running <- err
	}()
	c.awaitActive("n1", backend)
	before := c.agents["n1"].Status()
	c.close("n1") // nobody is there who would end the orphan
	c.crash("n1")
	time.Sleep(100 * time.Millisecond)
	if signalProcess(backend, syscall.Signal(0)) != nil {
		t.Fatal("the busy backend did not outlive its postmaster: the test shows nothing")
	}
	c.start("n1")
	c.wait("n1", "stopped", func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStopped
	})
	if err := <-running; err == nil {
		t.Error("the orphan answered its client")
	}
	time.Sleep(300 * time.Millisecond)
	if s := c.agents["n1"].Status(); s.Phase != election.PhaseStopped {
		t.Fatalf("it was started without an order: %+v", s)
	}
	c.epoch = 2
	res := c.do("n1", election.Order{Kind: election.OrderStartPrimary})
	if res.XidLo != res.XidHi || res.XidLo == 0 || res.Incarnation == before.Incarnation {
		t.Errorf("start-primary: %+v", res)
	}
	again := c.do("n1", election.Order{Kind: election.OrderStartPrimary})
	if !reflect.DeepEqual(again, res) {
		t.Errorf("start-primary again: %+v, was %+v", again, res)
	}
	time.Sleep(300 * time.Millisecond) // a pass of the reconcile loop under the old lock
	if conn, err := c.dial("n1", "postgres"); err == nil {
		_ = conn.Close(ctx)
		t.Error("the door is open before the lock of the new epoch")
	}
	c.commit("n1", res)
	c.open("n1")

	// A new epoch of the running server: its sessions are ended behind the closed door.
	held, err := c.dial("n1", "postgres")
	if err != nil {
		t.Fatal(err)
	}
	c.epoch = 3
	res3 := c.do("n1", election.Order{Kind: election.OrderStartPrimary})
	if res3.Incarnation != res.Incarnation || res3.XidHi <= res.XidHi {
		t.Errorf("start-primary of a running server: %+v", res3)
	}
	if _, err := held.Exec(ctx, "SELECT 1").ReadAll(); err == nil {
		t.Error("an old session lives on in the new epoch")
	}
	_ = held.Conn().Close()
}

// TestAgentForeignData shows that data which Holdfast did not make stays as it is, until the
// user says so; then it is put aside, not deleted.
func TestAgentForeignData(t *testing.T) {
	c := newAgentCluster(t, 2)
	file := filepath.Join(c.cfgs["n2"].DataDir, "PG_VERSION")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start("n1", "n2")
	c.bootstrap("")
	s := c.agents["n2"].Status()
	if s.Phase != election.PhaseForeign || !strings.Contains(s.Problem, "move it away") {
		t.Errorf("status of foreign data: %+v", s)
	}
	for _, k := range []election.OrderKind{election.OrderRecruit, election.OrderStartPrimary,
		election.OrderPromote, election.OrderStop} {
		if _, err := c.tryDo("n2", election.Order{Kind: k, Epoch: 2}); !errors.Is(err,
			election.ErrAgentForeign) {
			t.Errorf("%s over foreign data: %v", k, err)
		}
	}
	time.Sleep(500 * time.Millisecond)
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("foreign data was touched: %v", err)
	}
	c.close("n2")
	cfg := c.cfgs["n2"]
	cfg.AdoptForeign = true
	c.cfgs["n2"] = cfg
	c.start("n2")
	c.waitStreaming("n2", "n1")
	if _, err := os.Stat(filepath.Join(cfg.DataDir+".foreign", "PG_VERSION")); err != nil {
		t.Errorf("foreign data was not kept aside: %v", err)
	}
}

// TestAgentSwitchover hands over by a fast stop although one standby hangs (DESIGN 10.11), and
// the old primary rejoins without a rewind.
func TestAgentSwitchover(t *testing.T) {
	c := newAgentCluster(t, 3)
	c.start("n1", "n2", "n3")
	c.bootstrap("")
	c.open("n1")
	c.waitStreaming("n2", "n1")
	c.waitStreaming("n3", "n1")
	c.sql("n1", "CREATE TABLE t AS SELECT generate_series(1, 10) i")
	c.testSlotsAdvance()
	receiver, _ := strconv.Atoi(c.sql("n3",
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'"))
	if err := signalProcess(receiver, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = signalProcess(receiver, syscall.SIGCONT) }()
	c.epoch = 2
	c.do("n1", election.Order{Kind: election.OrderCheckpoint, Epoch: 1})
	begin := time.Now()
	stop := c.do("n1", election.Order{Kind: election.OrderStop})
	t.Logf("stopped in %v at %v", time.Since(begin), stop.LSN)
	if log := c.serverLog("n1"); stop.LSN == 0 || strings.Contains(log, "immediate shutdown request") {
		t.Errorf("stop with a hung standby: %+v\n%s", stop, log)
	}
	if again := c.do("n1", election.Order{Kind: election.OrderStop}); !reflect.DeepEqual(again, stop) {
		t.Errorf("stopped again: %+v, was %+v", again, stop)
	}
	r := c.do("n2", election.Order{Kind: election.OrderRecruit, WaitLSN: stop.LSN})
	if r.LSN <= stop.LSN {
		t.Errorf("recruited at %v, shutdown checkpoint at %v", r.LSN, stop.LSN)
	}
	if _, err := c.tryDo("n2", election.Order{Kind: election.OrderRecruit,
		WaitLSN: r.LSN + 1<<30}); err == nil {
		t.Error("recruited without the position that was asked for")
	}
	p := c.do("n2", election.Order{Kind: election.OrderPromote})
	_ = signalProcess(receiver, syscall.SIGCONT)
	c.do("n3", election.Order{Kind: election.OrderFollow, Upstream: c.member("n2")})
	c.commit("n2", p)
	c.waitStreaming("n3", "n2")
	c.waitStreaming("n1", "n2")
	log := c.serverLog("n1")
	if _, err := os.Stat(c.cfgs["n1"].DataDir + "/backup_label.old"); err == nil ||
		strings.Contains(log, "starting backup recovery") {
		t.Error("the old primary was rewound or cloned, though it had not diverged")
	}
	if got := c.sql("n1", "SELECT count(*) FROM t"); got != "10" {
		t.Errorf("the old primary has %s rows", got)
	}

	// A primary that learns of a newer lock while it runs: stopped, rewound, a standby again.
	c.epoch = 3
	c.do("n3", election.Order{Kind: election.OrderRecruit})
	p = c.do("n3", election.Order{Kind: election.OrderPromote})
	// Acknowledged by a primary that was replaced.
	lostXID := c.sql("n2", "WITH i AS (INSERT INTO t VALUES (666) RETURNING 1) "+
		"SELECT pg_current_xact_id() FROM i")
	time.Sleep(300 * time.Millisecond)
	if s := c.agents["n2"].Status(); s.Phase != election.PhasePrimary {
		t.Fatalf("it was stopped before the lock was committed: %+v", s)
	}
	c.commit("n3", p)
	c.waitStreaming("n2", "n3")
	c.waitStreaming("n1", "n3")
	if got := c.sql("n2", "SELECT count(*) FROM t"); got != "10" {
		t.Errorf("the diverged member has %s rows", got)
	}
	c.checkLost("n2", lostXID)
}

// checkLost shows that what a member gave up is told: the transaction, and its WAL.
func (c *agentCluster) checkLost(name, xid string) {
	c.t.Helper()
	s := c.agents[name].Status()
	if s.Lost == nil || s.Lost.Commits != 1 || s.Lost.Epoch != 3 {
		c.t.Fatalf("status tells of %+v", s.Lost)
	}
	b, err := os.ReadFile(s.Lost.File)
	if err != nil {
		c.t.Fatal(err)
	}
	var r election.LostReport
	if err := json.Unmarshal(b, &r); err != nil {
		c.t.Fatal(err)
	}
	if len(r.XIDs) != 1 || strconv.FormatUint(uint64(r.XIDs[0]), 10) != xid || r.To <= r.From ||
		r.Timeline != 2 || len(r.Segments) == 0 || r.Problem != "" {
		c.t.Errorf("report of xid %s: %s", xid, b)
	}
	for _, seg := range r.Segments {
		if _, err := os.Stat(filepath.Join(filepath.Dir(s.Lost.File), seg)); err != nil {
			c.t.Error(err)
		}
	}
}

// testSlotsAdvance shows that the slots which a standby carries for others move on, so that they
// keep no more WAL than the primary's.
func (c *agentCluster) testSlotsAdvance() {
	const ask = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'holdfast_n3'"
	c.wait("n2", "slots", func(s election.MemberStatus) bool { return len(s.Slots) == 2 })
	before := c.sql("n2", ask)
	want := c.sql("n1", "INSERT INTO t VALUES (10); DELETE FROM t WHERE ctid = '(0,11)';"+
		"SELECT pg_current_wal_lsn()")
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if c.sql("n2", "SELECT ("+ask+") >= '"+want+"'") == "t" {
			return
		}
		if time.Since(begin) > 8*time.Second {
			c.t.Fatalf("the slot on the standby stays at %s", before)
		}
	}
}

// TestAgentInterruptedRewind shows that a directory in which pg_rewind was cut off is never
// started as it is: when it cannot be rewound again it is cloned, and the old one is kept aside.
func TestAgentInterruptedRewind(t *testing.T) {
	c := newAgentCluster(t, 2)
	c.start("n1", "n2")
	c.bootstrap("")
	c.open("n1")
	c.waitStreaming("n2", "n1")
	c.close("n1")
	c.crash("n1")
	record := c.markRewinding("n1")
	if err := os.Remove(c.cfgs["n1"].DataDir + "/global/pg_control"); err != nil {
		t.Fatal(err)
	}
	c.epoch = 2
	c.do("n2", election.Order{Kind: election.OrderRecruit})
	c.commit("n2", c.do("n2", election.Order{Kind: election.OrderPromote}))
	c.start("n1")
	c.waitStreaming("n1", "n2")
	if _, err := os.Stat(c.cfgs["n1"].DataDir + ".lost-2/PG_VERSION"); err != nil {
		t.Errorf("the old data was not kept aside: %v", err)
	}
	if got, err := os.ReadFile(record); err != nil || strings.Contains(string(got), "rewinding") {
		t.Errorf("the mark of the rewind is left: %s %v", got, err)
	}
}

func TestAgentConfigValidate(t *testing.T) {
	good := election.DefaultAgentConfig()
	good.Name, good.Listen, good.SecretsDir = "n1", "127.0.0.1:5432", "/etc/holdfast/secrets"
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*election.AgentConfig){
		"primary_conninfo is managed": func(c *election.AgentConfig) {
			c.Settings = []string{"primary_conninfo = 'x'"}
		},
		"restart_after_crash is managed": func(c *election.AgentConfig) {
			c.Settings = []string{"Restart_After_Crash=on"}
		},
		"recovery_target_xid is managed": func(c *election.AgentConfig) {
			c.Settings = []string{"recovery_target_xid = 5"}
		},
		"single quotes": func(c *election.AgentConfig) {
			c.Settings = []string{"work_mem = 1MB # port = 1"}
		},
		"the form is name = value": func(c *election.AgentConfig) {
			c.Settings = []string{"work_mem"}
		},
		"wal_level": func(c *election.AgentConfig) { c.Settings = []string{"wal_level=minimal"} },
		"hba[0]":    func(c *election.AgentConfig) { c.HBA = []string{"a\nb"} },
		"allow_from[0]": func(c *election.AgentConfig) {
			c.AllowFrom = []string{"10.0.0.0/8 trust"}
		},
		"listen":        func(c *election.AgentConfig) { c.Listen = "5432" },
		"outside":       func(c *election.AgentConfig) { c.StatePath = c.DataDir + "/x" },
		"stop_timeout":  func(c *election.AgentConfig) { c.StopTimeout = 0 },
		"absolute path": func(c *election.AgentConfig) { c.DataDir = "data" },
		"socket":        func(c *election.AgentConfig) { c.SocketDir = "/" + strings.Repeat("x", 100) },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
	for _, s := range []string{"work_mem = 64MB", "log_line_prefix = '%m ''x'' '",
		"shared_preload_libraries='auto_explain'", "auto_explain.log_min_duration = -1"} {
		c := good
		c.Settings = []string{s}
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
	}
}

// TestAgentBadInput shows that what the user got wrong is said with its remedy.
func TestAgentBadInput(t *testing.T) {
	c := newAgentCluster(t, 1)
	cfg := c.cfgs["n1"]
	secret := filepath.Join(cfg.SecretsDir, "superuser")
	try := func() string {
		a, err := election.NewPostgresAgent(cfg, election.AgentDeps{Source: c.src})
		if err == nil {
			_ = a.Close(context.Background())
			return ""
		}
		return err.Error()
	}
	if got := try(); got != "" {
		t.Fatal(got)
	}
	_ = os.Chmod(secret, 0o644)
	if got := try(); !strings.Contains(got, "chmod 0600") {
		t.Errorf("open secret: %q", got)
	}
	_ = os.Remove(secret)
	if got := try(); !strings.Contains(got, "holdfast init") {
		t.Errorf("missing secret: %q", got)
	}
	if err := election.GenerateAgentSecrets(cfg.SecretsDir); err != nil {
		t.Fatal(err)
	}
	cfg.BinDir = "/nonexistent"
	if got := try(); !strings.Contains(got, "bin_dir") {
		t.Errorf("missing programs: %q", got)
	}
	// A busy port: the order fails with the server's own words, and nothing is damaged.
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	c.start("n1")
	c.epoch = 1
	_, err = c.tryDo("n1", election.Order{Kind: election.OrderBootstrap})
	_ = l.Close()
	if err == nil || !strings.Contains(err.Error(), "Address already in use") {
		t.Errorf("busy port: %v", err)
	}
	c.do("n1", election.Order{Kind: election.OrderBootstrap})
}
