package electiontest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"

	"holdfast/election"
)

// Group is a group of nodes in one process. The test owns it.
type Group struct {
	t     testing.TB
	CA    *election.CA
	Dir   string
	Nodes []election.Member
	// Change edits a node's configuration or dependencies before it is made; nil changes
	// nothing.
	Change func(cfg *election.Config, deps *election.Deps)
	// Made sees a node between New and Start; nil does nothing.
	Made func(name string, n *election.Node)

	Running map[string]*election.Node
}

// NewGroup prepares n nodes on free ports of the loopback interface.
func NewGroup(t testing.TB, n int) *Group {
	t.Helper()
	ca, err := election.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	g := &Group{t: t, CA: ca, Dir: t.TempDir(), Running: make(map[string]*election.Node)}
	for i := range n {
		g.Nodes = append(g.Nodes, election.Member{
			Name: fmt.Sprintf("node%d", i+1), Address: FreeAddr(t), Postgres: FreeAddr(t),
		})
	}
	t.Cleanup(g.Close)
	return g
}

// FreeAddr is an address on which nobody listens now. Its port is below those that connections come
// from (Linux: 32768): one of these may be taken before somebody listens on it.
func FreeAddr(t testing.TB) string {
	t.Helper()
	var err error
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err == nil {
			_ = l.Close()
			return addr
		}
	}
	t.Fatal(err)
	return ""
}

// Config is the configuration of a node, its certificate made.
func (g *Group) Config(name string) election.Config {
	g.t.Helper()
	cfg := election.DefaultConfig()
	cfg.Name, cfg.Cluster, cfg.Nodes = name, "test", g.Nodes
	cfg.Profile = election.ProfileLAN
	cfg.Dir = filepath.Join(g.Dir, name)
	cfg.CAFile, cfg.CertFile, cfg.KeyFile = WriteCert(g.t, g.Dir, g.CA, name)
	return cfg
}

// WriteCert issues a certificate and writes it into dir.
func WriteCert(t testing.TB, dir string, ca *election.CA, name string) (caF, certF, keyF string) {
	t.Helper()
	cert, key, err := ca.Issue(name, []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	path := func(s string) string { return filepath.Join(dir, s) }
	for file, b := range map[string][]byte{
		"ca.crt": ca.CertPEM, name + ".crt": cert, name + ".key": key,
	} {
		if err := os.WriteFile(path(file), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path("ca.crt"), path(name + ".crt"), path(name + ".key")
}

// Start starts a node.
func (g *Group) Start(name string) *election.Node {
	g.t.Helper()
	cfg := g.Config(name)
	deps := election.Deps{Log: zap.NewNop()}
	if g.Change != nil {
		g.Change(&cfg, &deps)
	}
	n, err := election.New(cfg, deps)
	if err != nil {
		g.t.Fatalf("make %s: %v", name, err)
	}
	if g.Made != nil {
		g.Made(name, n)
	}
	if err := n.Start(context.Background()); err != nil {
		g.t.Fatalf("start %s: %v", name, err)
	}
	g.Running[name] = n
	return n
}

// Stop closes a node.
func (g *Group) Stop(name string) {
	n := g.Running[name]
	if n == nil {
		return
	}
	delete(g.Running, name)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		g.t.Errorf("close %s: %v", name, err)
	}
}

// Close closes all nodes.
func (g *Group) Close() {
	for name := range g.Running {
		g.Stop(name)
	}
}

// Wait waits until cond is true; the test fails if it never is.
func Wait(t testing.TB, what string, limit time.Duration, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, limit)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
