package election_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"

	"holdfast/election"
)

// agentSource is a scripted replicated state.
type agentSource struct {
	mu    sync.Mutex
	state election.State
	next  chan struct{}
}

func (s *agentSource) State() (*election.State, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.state
	return &c, s.next
}

func (s *agentSource) set(change func(*election.State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Lock != nil { // a state that was given out is not changed
		lock := *s.state.Lock
		s.state.Lock = &lock
	}
	change(&s.state)
	close(s.next)
	s.next = make(chan struct{})
}

// agentCluster is some members with real PostgreSQL servers and one scripted state.
type agentCluster struct {
	t       *testing.T
	dir     string
	src     *agentSource
	members []election.Member
	agents  map[string]*election.PostgresAgent
	cfgs    map[string]election.AgentConfig
	epoch   uint64
	// segments are of servers that a test killed: nobody else frees their shared memory.
	segments []int
	// core takes the agents' log, if a test sets it.
	core zapcore.Core
}

func agentNeedPostgres(t *testing.T) {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pg_ctl")
	if _, err := exec.LookPath("pg_ctl"); err == nil || len(found) > 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("PostgreSQL's server programs are missing: install postgresql")
	}
	t.Skip("PostgreSQL's server programs are missing: install postgresql")
}

func agentFreePort(t *testing.T, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// newAgentCluster makes the members n1, n2, ... on loopback addresses of their own; no agent is
// started yet.
func newAgentCluster(t *testing.T, n int) *agentCluster {
	t.Helper()
	agentNeedPostgres(t)
	t.Cleanup(func() { goleak.VerifyNone(t) })
	dir, err := os.MkdirTemp("/tmp", "hfa")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if _, err := user.Lookup("postgres"); err != nil {
			t.Skip("running as root without an account postgres")
		}
	}
	if err := election.GenerateAgentSecrets(filepath.Join(dir, "secrets")); err != nil {
		t.Fatal(err)
	}
	c := &agentCluster{t: t, dir: dir, agents: map[string]*election.PostgresAgent{},
		cfgs: map[string]election.AgentConfig{},
		src:  &agentSource{next: make(chan struct{})}}
	c.src.state.Cluster = "test"
	for i := 1; i <= n; i++ {
		host := fmt.Sprintf("127.0.0.%d", i+1)
		m := election.Member{Name: fmt.Sprintf("n%d", i), Address: host + ":7400",
			Postgres: agentFreePort(t, host)}
		c.members = append(c.members, m)
		cfg := election.DefaultAgentConfig()
		cfg.Cluster, cfg.Name, cfg.Listen = "test", m.Name, m.Postgres
		cfg.DataDir = filepath.Join(dir, m.Name, "data")
		cfg.SecretsDir = filepath.Join(dir, "secrets")
		cfg.StopTimeout, cfg.SampleInterval = 4*time.Second, 100*time.Millisecond
		cfg.AllowFrom = []string{"127.0.0.1"}
		// mmap: a killed server's dynamic shared memory goes with its data directory.
		cfg.Settings = []string{"shared_buffers = 16MB", "max_connections = 40",
			"dynamic_shared_memory_type = mmap",
			"log_min_messages = info"}
		c.cfgs[m.Name] = cfg
	}
	c.src.state.Members = c.members
	return c
}

func (c *agentCluster) log() *zap.Logger {
	if c.core != nil {
		return zap.New(c.core)
	}
	if os.Getenv("HOLDFAST_TEST_LOG") == "" {
		return zap.NewNop()
	}
	return zaptest.NewLogger(c.t)
}

func (c *agentCluster) start(names ...string) {
	c.t.Helper()
	for _, name := range names {
		a, err := election.NewPostgresAgent(c.cfgs[name],
			election.AgentDeps{Source: c.src, Log: c.log().Named(name)})
		if err != nil {
			c.t.Fatal(err)
		}
		if err := a.Start(context.Background()); err != nil {
			c.t.Fatal(err)
		}
		c.agents[name] = a
		c.t.Cleanup(func() {
			c.close(name)
			c.killServer(name)
		})
	}
}

// close ends an agent; its server lives on.
func (c *agentCluster) close(name string) {
	a := c.agents[name]
	if a == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := a.Close(ctx); err != nil {
		c.t.Error(err)
	}
	delete(c.agents, name)
}

func (c *agentCluster) pid(name string) int {
	b, err := os.ReadFile(filepath.Join(c.cfgs[name].DataDir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.SplitN(string(b), "\n", 2)[0])
	return pid
}

// killServer ends what is left of a server whose agent is closed, and its shared memory.
func (c *agentCluster) killServer(name string) {
	c.noteSegment(name)
	if pid := c.pid(name); pid > 0 {
		election.KillServerForTest(pid, c.cfgs[name].DataDir)
	}
	left := c.segments[:0]
	for _, id := range c.segments {
		if !election.FreeSegmentForTest(id) { // another member's server still runs
			left = append(left, id)
		}
	}
	c.segments = left
}

func (c *agentCluster) noteSegment(name string) {
	id := election.SegmentForTest(c.cfgs[name].DataDir)
	if id >= 0 && !slices.Contains(c.segments, id) {
		c.segments = append(c.segments, id)
	}
}

// signalProcess signals one process; a pid of 0, which kill(2) takes as the group of all that runs
// the tests, is an error.
func signalProcess(pid int, sig os.Signal) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Signal(sig)
}

// crash kills a postmaster as a lack of memory would, and returns its pid once it has ended: an
// agent that begins meanwhile refuses what is asked of it, and is asked again by a group only.
func (c *agentCluster) crash(name string) int {
	c.t.Helper()
	c.noteSegment(name)
	pid := c.pid(name)
	if err := signalProcess(pid, syscall.SIGKILL); err != nil {
		c.t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); isRunning(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("the postmaster %d of %s outlives SIGKILL", pid, name)
		}
	}
	return pid
}

// isRunning tells of a process that has not ended; a zombie has.
func isRunning(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

func (c *agentCluster) do(name string, o election.Order) election.OrderResult {
	c.t.Helper()
	res, err := c.tryDo(name, o)
	if err != nil {
		c.t.Fatalf("%s: %v", name, err)
	}
	return res
}

func (c *agentCluster) tryDo(name string, o election.Order) (election.OrderResult, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if o.Epoch == 0 {
		o.Epoch = c.epoch
	}
	o.V, o.Members = 1, c.members
	return c.agents[name].Do(ctx, o)
}

// commit puts an order's result into the lock.
func (c *agentCluster) commit(holder string, r election.OrderResult) {
	c.src.set(func(s *election.State) {
		s.SystemID = r.SystemID
		s.Lock = &election.Lock{Epoch: c.epoch, Holder: holder, Incarnation: r.Incarnation,
			Timeline: r.Timeline, PromotionLSN: r.LSN, XidLo: r.XidLo, XidHi: r.XidHi}
	})
}

func (c *agentCluster) bootstrap(sync string) {
	c.t.Helper()
	c.epoch = 1
	c.commit("n1", c.do("n1", election.Order{Kind: election.OrderBootstrap, SyncNames: sync}))
}

func (c *agentCluster) member(name string) election.Member {
	for _, m := range c.members {
		if m.Name == name {
			return m
		}
	}
	c.t.Fatalf("no member %q", name)
	return election.Member{}
}

// wait waits until a member's status fits.
func (c *agentCluster) wait(name, what string, ok func(election.MemberStatus) bool) time.Duration {
	c.t.Helper()
	begin := time.Now()
	for {
		changed := c.agents[name].Changed()
		st := c.agents[name].Status()
		if ok(st) {
			return time.Since(begin)
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond):
		}
		if time.Since(begin) > 25*time.Second {
			c.t.Fatalf("%s does not get %s: %+v\n%s", name, what, st, c.serverLog(name))
		}
	}
}

func (c *agentCluster) serverLog(name string) string {
	b, _ := os.ReadFile(c.cfgs[name].DataDir + ".holdfast/postgresql.log")
	if len(b) > 3000 {
		b = b[len(b)-3000:]
	}
	return string(b)
}

func (c *agentCluster) waitStreaming(name string, from string) {
	c.t.Helper()
	up := c.member(from).Postgres
	c.wait(name, "streaming from "+from, func(s election.MemberStatus) bool {
		return s.Phase == election.PhaseStandby && s.Streaming && s.Upstream == up
	})
}

func (c *agentCluster) dial(name, role string) (*pgconn.PgConn, error) {
	file := map[string]string{"postgres": "superuser", "holdfast_lookup": "lookup"}[role]
	pw, err := os.ReadFile(filepath.Join(c.dir, "secrets", file))
	if err != nil {
		c.t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(c.member(name).Postgres)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return pgconn.Connect(ctx, fmt.Sprintf("host=%s port=%s user=%s password=%s "+
		"dbname=postgres sslmode=disable", host, port, role, strings.TrimSpace(string(pw))))
}

// sql runs a statement over TCP as the superuser and returns the first value.
func (c *agentCluster) sql(name, text string) string {
	c.t.Helper()
	conn, err := c.dial(name, "postgres")
	if err != nil {
		c.t.Fatalf("%s: %v", name, err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	return c.on(conn, text)
}

func (c *agentCluster) on(conn *pgconn.PgConn, text string) string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	res, err := conn.Exec(ctx, text).ReadAll()
	if err != nil {
		c.t.Fatalf("%s: %v", text, err)
	}
	out := ""
	for _, r := range res {
		if len(r.Rows) > 0 && len(r.Rows[0]) > 0 {
			out = string(r.Rows[0][0])
		}
	}
	return out
}

// open waits until the door of the primary is open.
func (c *agentCluster) open(name string) {
	c.t.Helper()
	for begin := time.Now(); ; {
		conn, err := c.dial(name, "postgres")
		if err == nil {
			_ = conn.Close(context.Background())
			return
		}
		if time.Since(begin) > 10*time.Second {
			c.t.Fatalf("the door of %s stays closed: %v: %+v", name, err,
				c.agents[name].Status())
		}
		time.Sleep(10 * time.Millisecond)
	}
}
