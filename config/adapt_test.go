package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"holdfast/config"
	"holdfast/election"
	"holdfast/proxy"
)

// What the owners have as defaults comes back from the tree unchanged: nothing is lost between.
func TestDefaultsComeBackToTheirOwners(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "lookup")
	writeSecret(t, secret, "pw\n", 0o600)
	cfg, err := load(t, group+"proxy: {lookup_password_file: "+secret+"}\n")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := cfg.ProxyConfig()
	if err != nil {
		t.Fatal(err)
	}
	wantProxy := proxy.DefaultConfig()
	wantProxy.LookupPassword, wantProxy.NodeName = "pw", "node1"
	if !reflect.DeepEqual(pc, wantProxy) {
		t.Errorf("proxy gets\n%+v\nwant\n%+v", pc, wantProxy)
	}
	ac, err := cfg.AgentConfig()
	if err != nil {
		t.Fatal(err)
	}
	wantAgent := election.DefaultAgentConfig()
	wantAgent.Name, wantAgent.Listen = "node1", "10.0.0.1:5432"
	wantAgent.SecretsDir = "/var/lib/holdfast/secrets"
	if !reflect.DeepEqual(ac, wantAgent) {
		t.Errorf("agent gets\n%+v\nwant\n%+v", ac, wantAgent)
	}
	ec, err := cfg.ElectionConfig()
	if err != nil {
		t.Fatal(err)
	}
	wantElection := election.DefaultConfig()
	wantElection.Name, wantElection.Nodes = "node1", ec.Nodes
	wantElection.CAFile, wantElection.CertFile = "/etc/hf/ca.pem", "/etc/hf/n.pem"
	wantElection.KeyFile = "/etc/hf/n.key"
	if !reflect.DeepEqual(ec, wantElection) {
		t.Errorf("election gets\n%+v\nwant\n%+v", ec, wantElection)
	}
	wantNode := election.Member{Name: "node3", Address: "10.0.0.3:7400",
		Postgres: "10.0.0.3:5432"}
	if len(ec.Nodes) != 3 || ec.Nodes[2] != wantNode {
		t.Errorf("nodes are %+v", ec.Nodes)
	}
}

func TestLookupPasswordMustBePrivate(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name, text string
		mode       os.FileMode
		words      string
	}{
		{"open", "pw\n", 0o644, "chmod 0600"},
		{"empty", "\n", 0o600, "one line with a password"},
		{"two-lines", "a\nb\n", 0o600, "one line with a password"},
		{"long", strings.Repeat("x", 2000), 0o600, "at most 1024"},
		{"missing", "", 0, "holdfast init"},
	} {
		path := filepath.Join(dir, c.name)
		if c.mode != 0 {
			writeSecret(t, path, c.text, c.mode)
		}
		cfg := config.Default()
		cfg.Proxy.LookupPasswordFile = path
		if _, err := cfg.ProxyConfig(); err == nil || !strings.Contains(err.Error(), c.words) ||
			!strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func writeSecret(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}
