package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/config"
)

// The files that are installed with the units load as they are.
func TestDeployedExamplesLoad(t *testing.T) {
	files, err := filepath.Glob("../deploy/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("found %q, %v", files, err)
	}
	for _, file := range files {
		if _, err := config.Load(file); err != nil {
			t.Error(err)
		}
	}
}

// Between the nodes only what the head of node.yaml names may have to differ, and what only some
// installations want is not in force in what everybody copies.
func TestDeployedNodeIsCopied(t *testing.T) {
	text := read(t, "../deploy/node.yaml")
	first, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	if len(first.Postgres.AllowFrom) > 0 || len(first.Proxy.HBA) > 0 {
		t.Errorf("%q may connect to PostgreSQL, the proxy's rules are %q", first.Postgres.AllowFrom,
			first.Proxy.HBA)
	}
	second, err := load(t, strings.NewReplacer("name: node1\n", "name: node2\n",
		"/node1.", "/node2.").Replace(text))
	if err != nil {
		t.Fatal(err)
	}
	one := strings.Split(string(first.YAML()), "\n")
	two := strings.Split(string(second.YAML()), "\n")
	if len(one) != len(two) {
		t.Fatalf("%d lines and %d", len(one), len(two))
	}
	var differs []string
	for i := range one {
		key, _, _ := strings.Cut(strings.TrimSpace(one[i]), ":")
		if one[i] != two[i] && key != "listen" { // derived from group.nodes
			differs = append(differs, key)
		}
	}
	head, _, _ := strings.Cut(text, "\nname:")
	if want := []string{"name", "cert_file", "key_file"}; !slices.Equal(differs, want) ||
		!strings.Contains(head, "name, cert_file and key_file differ") {
		t.Errorf("%q differ, and the file says: %s", differs, head)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// unit is what a unit file sets, the last of a name.
type unit map[string]string

func readUnit(t *testing.T, name string) unit {
	t.Helper()
	u := unit{}
	for line := range strings.Lines(read(t, "../deploy/"+name)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && !strings.HasPrefix(key, "#") && !strings.HasPrefix(key, ";") {
			u[key] = value
		}
	}
	return u
}

func (u unit) want(t *testing.T, name string, settings ...string) {
	t.Helper()
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		if u[key] != value {
			t.Errorf("%s: %s is %q, not %q", name, key, u[key], value)
		}
	}
}

// The directory that the documentation puts Unix sockets into is there and others get to it, for
// each unit; and each runs the file that is installed with it.
func TestUnitsHaveADirectoryForSockets(t *testing.T) {
	clients, example := read(t, "../docs/clients.md"), string(config.Example())
	for name, file := range map[string]string{
		"holdfast.service": "node.yaml", "holdfast-sidecar.service": "sidecar.yaml",
	} {
		u := readUnit(t, name)
		dir := strings.TrimSuffix(name, ".service")
		u.want(t, name, "RuntimeDirectory="+dir, "RuntimeDirectoryMode=0755", "KillMode=process",
			"StateDirectory="+dir, "StateDirectoryMode=0700")
		socket := "/run/" + u["RuntimeDirectory"] + "/.s.PGSQL.6432"
		if !strings.Contains(clients, socket) {
			t.Errorf("docs/clients.md does not name %s", socket)
		}
		if file == "node.yaml" && !strings.Contains(example, socket) {
			t.Errorf("config/example.yaml does not name %s", socket)
		}
		text := read(t, "../deploy/"+file)
		_, installed, _ := strings.Cut(u["ExecStart"], " -c ")
		if !strings.HasPrefix(text, "# "+installed+" of a ") {
			t.Errorf("%s: runs with %q, and %s begins with %.60q", name, installed, file, text)
		}
		if !strings.Contains(text, "data_dir: /var/lib/"+u["StateDirectory"]+"\n") {
			t.Errorf("%s: data_dir is not the StateDirectory of %s", file, name)
		}
	}
	// PostgreSQL goes on while the node restarts.
	node := readUnit(t, "holdfast.service")
	node.want(t, "holdfast.service", "RuntimeDirectoryPreserve=yes", "RemoveIPC=no", "PrivateTmp=")
}

// A stop ends by itself before systemd sends SIGKILL: after the drain each of the roles and HTTP
// may take 15 s, and a drain for which TimeoutStopSec leaves too little is warned of.
func TestUnitsWaitForTheDrain(t *testing.T) {
	for name, tt := range map[string]struct {
		file string
		rest time.Duration
	}{
		"holdfast.service":         {"node.yaml", 45 * time.Second},
		"holdfast-sidecar.service": {"sidecar.yaml", 30 * time.Second},
	} {
		stop, err := time.ParseDuration(readUnit(t, name)["TimeoutStopSec"] + "s")
		if err != nil {
			t.Fatal(err)
		}
		text := read(t, "../deploy/"+tt.file)
		for _, more := range []time.Duration{0, time.Second} {
			drain := stop - tt.rest + more
			cfg, err := load(t, strings.Replace(text, "\nproxy:\n",
				fmt.Sprintf("\nproxy:\n  shutdown_timeout: %s\n", drain), 1))
			if err != nil {
				t.Fatal(err)
			}
			warns := strings.Contains(strings.Join(cfg.Warnings(), "\n"), "shutdown_timeout")
			if cfg.Proxy.ShutdownTimeout != drain || warns != (more > 0) {
				t.Errorf("%s: a drain of %s with TimeoutStopSec=%s: warns %v", name, drain, stop,
					warns)
			}
		}
	}
}
