package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"holdfast/config"
)

// writeNode makes a node's certificates and secrets in a directory, and its configuration.
func writeNode(t *testing.T, edit func(*config.Config)) string {
	t.Helper()
	dir := t.TempDir()
	c := InitCommand{Dir: dir, Cluster: "main", Out: io.Discard,
		Nodes: []string{"node1=127.0.0.1", "node2=127.0.0.2"}}
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	// PostgreSQL's programs are files here: they are looked for and not run.
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range postgresPrograms {
		if err := os.WriteFile(filepath.Join(bin, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config.Default()
	cfg.Name, cfg.DataDir = "node1", filepath.Join(dir, "data")
	cfg.Group.Nodes = []config.Node{
		{Name: "node1", Address: "127.0.0.1:7400", Postgres: "127.0.0.1:5432"},
		{Name: "node2", Address: "127.0.0.2:7400", Postgres: "127.0.0.2:5432"},
		{Name: "node3", Address: "127.0.0.3:7400", Postgres: "127.0.0.3:5432"},
	}
	cfg.Group.TLS = config.TLS{CAFile: filepath.Join(dir, "ca.crt"),
		CertFile: filepath.Join(dir, "node1.crt"), KeyFile: filepath.Join(dir, "node1.key")}
	cfg.Postgres.BinDir, cfg.Postgres.SecretsDir = bin, filepath.Join(dir, "secrets")
	cfg.Postgres.OSUser = "nobody"
	if edit != nil {
		edit(&cfg)
	}
	path := filepath.Join(dir, "holdfast.yaml")
	if err := os.WriteFile(path, cfg.YAML(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestConfigCheckLooksAround: what `serve` would refuse to run without, `config check` tells first,
// each under its key.
func TestConfigCheckLooksAround(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*config.Config)
		want string // empty: nothing is wrong
	}{
		{"all there", nil, ``},
		{"no CA", func(c *config.Config) { c.Group.TLS.CAFile = "/none/ca.crt" },
			`group\.tls: read CA of the group: .*/none/ca\.crt`},
		{"another's certificate", func(c *config.Config) {
			c.Group.TLS.CertFile = strings.ReplaceAll(c.Group.TLS.CertFile, "node1.", "node2.")
			c.Group.TLS.KeyFile = strings.ReplaceAll(c.Group.TLS.KeyFile, "node1.", "node2.")
		}, `group\.tls: .*node2.*node1`},
		{"no secrets", func(c *config.Config) { c.Postgres.SecretsDir = "/none" },
			`postgres\.secrets_dir: .*/none/superuser.*\n.*lookup_password_file: .*/none/lookup`},
		{"secret open to others", func(c *config.Config) {
			if err := os.Chmod(filepath.Join(c.Postgres.SecretsDir, "rewind"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, `postgres\.secrets_dir: .*rewind.*chmod 0600`},
		{"no file of roles", func(c *config.Config) { c.Proxy.UsersFile = "/none/users" },
			`proxy\.users_file: .*/none/users`},
		{"no PostgreSQL", func(c *config.Config) { c.Postgres.BinDir = "/none" },
			`postgres\.bin_dir: .* is not in /none`},
	} {
		path := writeNode(t, tt.edit)
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), []string{"config", "check", "-q", "-c", path}, &stdout, &stderr)
		ok := tt.want == "" && code == 0 && stderr.Len() == 0
		if tt.want != "" {
			ok = code == 1 && regexp.MustCompile(`(?s)`+tt.want).MatchString(stderr.String())
		}
		if !ok {
			t.Errorf("%s: exit code %d, want %q: %s", tt.name, code, tt.want, &stderr)
		}
		stderr.Reset()
		code = run(t.Context(), []string{"config", "check", "-q", "--no-files", "-c", path},
			&stdout, &stderr)
		if code != 0 {
			t.Errorf("%s: --no-files: exit code %d: %s", tt.name, code, &stderr)
		}
	}
}

// TestConfigCheckName: a file that all nodes share is checked for one of them.
func TestConfigCheckName(t *testing.T) {
	t.Setenv("HOLDFAST_NAME", "") // the command sets it
	path := writeNode(t, nil)
	var stdout, stderr bytes.Buffer
	args := []string{"config", "check", "-q", "-c", path, "--name", "node2"}
	if code := run(t.Context(), args, &stdout, &stderr); code != 1 ||
		!strings.Contains(stderr.String(), `"node2"`) {
		t.Errorf("node1's certificate for node2: exit code %d: %s", code, &stderr)
	}
}
