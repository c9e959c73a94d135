package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"holdfast/config"
	"holdfast/election"
	"holdfast/proxy"
)

// TestLockLossIsWired: with postgres.on_lock_loss stop a lease is given back only once the agent's
// server has stopped, and the proxy's gate before it; with hold the gate is the proxy's alone.
func TestLockLossIsWired(t *testing.T) {
	dir := t.TempDir()
	mustInit(t, dir, "--node", "n1=127.0.0.1")
	text := "name: n1\ndata_dir: DIR/data\ngroup:\n  nodes:\n" +
		"    - {name: n1, address: \"127.0.0.1:7400\", postgres: \"127.0.0.1:5433\"}\n" +
		"  tls: {ca_file: DIR/ca.crt, cert_file: DIR/n1.crt, key_file: DIR/n1.key}\n" +
		"postgres: {listen: \"127.0.0.1:5433\", secrets_dir: DIR/secrets}\n"
	path := filepath.Join(dir, "holdfast.yaml")
	err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{election.OnLockLossHold, election.OnLockLossStop} {
		t.Setenv("HOLDFAST_POSTGRES_ON_LOCK_LOSS", what)
		cfg, err := config.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		n := &node{cfg: cfg, log: zap.NewNop(), registry: prometheus.NewRegistry()}
		n.proxy = new(proxy.Proxy)
		deps, err := n.electionDeps()
		if err != nil {
			t.Fatal(err)
		}
		if what == election.OnLockLossHold {
			if deps.Gate != election.Gate(n.proxy) {
				t.Errorf("%s: the gate is %T", what, deps.Gate)
			}
			continue
		}
		gate, isLoss := deps.Gate.(election.LossGate)
		if !isLoss || gate.Gate != election.Gate(n.proxy) || gate.Agent != n.agent || n.agent == nil {
			t.Errorf("%s: the gate is %T", what, deps.Gate)
		}
		if ac, err := cfg.AgentConfig(); err != nil || ac.OnLockLoss != what {
			t.Errorf("the agent gets %q: %v", ac.OnLockLoss, err)
		}
	}
}
