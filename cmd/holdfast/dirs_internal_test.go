package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"holdfast/config"
)

// TestMakeDirs: what is missing above PGDATA is made so that PostgreSQL's account can pass, under
// the narrowest umask; what is there is left as it is.
func TestMakeDirs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root runs PostgreSQL as another user")
	}
	defer syscall.Umask(syscall.Umask(0o077))
	there := t.TempDir()
	if err := os.Chmod(there, 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.DataDir = filepath.Join(there, "lib", "holdfast")
	cfg.Postgres.DataDir = filepath.Join(cfg.DataDir, "postgres", "data")
	for range 2 {
		if err := makeDirs(cfg); err != nil {
			t.Fatal(err)
		}
	}
	for dir, want := range map[string]os.FileMode{
		there: 0o700, filepath.Join(there, "lib"): 0o711, cfg.DataDir: 0o711,
		filepath.Join(cfg.DataDir, "postgres"): 0o711,
	} {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v, want %v", dir, got, want)
		}
	}
	if _, err := os.Stat(cfg.Postgres.DataDir); err == nil {
		t.Error("PGDATA was made, which is the agent's to make")
	}
	other := config.Default()
	other.Postgres.Enabled = false
	other.Postgres.DataDir = filepath.Join(there, "none", "data")
	if err := makeDirs(other); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(other.Postgres.DataDir)); err == nil {
		t.Error("a node without PostgreSQL made a directory for it")
	}
}
