package main_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/config"
)

// TestE2EDefaultLayout starts three nodes that derive every path from data_dir, which does not
// exist yet, under the unit's umask: as root too, PostgreSQL's account gets to its data.
func TestE2EDefaultLayout(t *testing.T) {
	needCluster(t)
	c, err := holdfast.NewCluster(t.Context(), holdfast.ClusterConfig{
		Binary: buildBinary(t), Prefix: "holdfast-e2e",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	raft := make([]string, 0, len(c.Nodes))
	for _, n := range c.Nodes {
		configure(t, n, func(cfg *config.Config) {
			cfg.DataDir = filepath.Join(n.Dir, "lib", "holdfast")
			cfg.Postgres.DataDir = ""
			raft = append(raft, filepath.Join(cfg.DataDir, "raft"))
		})
	}
	old := syscall.Umask(0o077)
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			syscall.Umask(old)
			t.Fatal(err)
		}
	}
	syscall.Umask(old)
	waitHealthy(t, c)
	for _, dir := range raft {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o700 {
			t.Errorf("%s has mode %v, want 0700", dir, got)
		}
	}
}
