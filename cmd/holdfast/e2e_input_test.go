package main_test

import (
	"context"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/config"
)

// badInput is a mistake in a node's surroundings, and what the node has to say about it.
type badInput struct {
	name string
	// make makes the mistake and undoes it by t.Cleanup.
	make func(*testing.T, *holdfast.Cluster, *holdfast.ClusterNode)
	// want is in what the node prints before it ends.
	want string
	// code is the exit code; 0 stands for 1, the usual one.
	code int
}

var badInputs = []badInput{
	{"busy proxy port", func(t *testing.T, _ *holdfast.Cluster, n *holdfast.ClusterNode) {
		listen(t, n.Proxy)
	}, `proxy\.listen.*address already in use`, 0},
	{"busy node port", func(t *testing.T, _ *holdfast.Cluster, n *holdfast.ClusterNode) {
		listen(t, n.Raft)
	}, `group\.nodes.*address already in use|address already in use.*group\.nodes`, 0},
	{"busy HTTP port", func(t *testing.T, _ *holdfast.Cluster, n *holdfast.ClusterNode) {
		listen(t, n.HTTP)
	}, `http\.listen.*address already in use`, 0},
	{"no certificate", func(t *testing.T, _ *holdfast.Cluster, n *holdfast.ClusterNode) {
		configure(t, n, func(c *config.Config) { c.Group.TLS.CertFile = n.Dir + "/none.crt" })
	}, `none\.crt.*(group\.tls|holdfast init)|(group\.tls|holdfast init).*none\.crt`, 0},
	{"unreadable key", func(t *testing.T, _ *holdfast.Cluster, n *holdfast.ClusterNode) {
		configure(t, n, func(c *config.Config) { c.Group.TLS.KeyFile = n.Dir })
	}, `key.*(directory|not a file)`, 0},
	{"certificate of another node", func(t *testing.T, _ *holdfast.Cluster,
		n *holdfast.ClusterNode,
	) {
		configure(t, n, func(c *config.Config) {
			c.Group.TLS.CertFile = strings.Replace(c.Group.TLS.CertFile, n.Name, "node2", 1)
			c.Group.TLS.KeyFile = strings.Replace(c.Group.TLS.KeyFile, n.Name, "node2", 1)
		})
	}, `certificate.*node2.*node1|certificate.*node1.*node2`, 0},
	{"no password file", func(t *testing.T, _ *holdfast.Cluster, n *holdfast.ClusterNode) {
		secretsWithout(t, n, func(dir string) error {
			return os.Remove(filepath.Join(dir, "rewind"))
		})
	}, `secrets/rewind.*no such file`, 0},
	{"password file open to others", func(t *testing.T, _ *holdfast.Cluster,
		n *holdfast.ClusterNode,
	) {
		secretsWithout(t, n, func(dir string) error {
			return os.Chmod(filepath.Join(dir, "superuser"), 0o644)
		})
	}, `superuser.*(chmod|mode|0600|600)`, 0},
	{"empty password file", func(t *testing.T, _ *holdfast.Cluster, n *holdfast.ClusterNode) {
		secretsWithout(t, n, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "lookup"), nil, 0o600)
		})
	}, `secrets/lookup must hold one line`, 0},
	{"no PostgreSQL", func(t *testing.T, _ *holdfast.Cluster, n *holdfast.ClusterNode) {
		configure(t, n, func(c *config.Config) { c.Postgres.BinDir = n.Dir })
	}, `bin_dir.*install`, 0},
	{"no such account", func(t *testing.T, _ *holdfast.Cluster, n *holdfast.ClusterNode) {
		if os.Geteuid() != 0 {
			t.Skip("only root runs PostgreSQL as another user")
		}
		configure(t, n, func(c *config.Config) { c.Postgres.OSUser = "no-such-user" })
	}, `os_user.*no-such-user`, 0},
	{"read-only raft directory", func(t *testing.T, _ *holdfast.Cluster,
		n *holdfast.ClusterNode,
	) {
		configure(t, n, func(c *config.Config) {
			c.Raft.Dir = mount(t, n, syscall.MS_RDONLY, "")
		})
	}, `read-only file system.*raft\.dir`, 0},
	{"full raft directory", func(t *testing.T, _ *holdfast.Cluster, n *holdfast.ClusterNode) {
		configure(t, n, func(c *config.Config) {
			c.Raft.Dir = mount(t, n, 0, "size=16k")
		})
	}, `no space left.*raft\.dir`, 0},
	{"garbage in the raft directory", func(t *testing.T, _ *holdfast.Cluster,
		n *holdfast.ClusterNode,
	) {
		configure(t, n, func(c *config.Config) {
			c.Raft.Dir = filepath.Join(n.Dir, "garbage")
			for _, name := range []string{"raft.db", "log.db", "raft-log.db"} {
				writeFile(t, filepath.Join(c.Raft.Dir, name), strings.Repeat("garbage ", 9000))
			}
		})
	}, `raft\.db.*remove this node's raft directory`, 0},
	{"misspelt key", func(t *testing.T, _ *holdfast.Cluster, n *holdfast.ClusterNode) {
		writeFile(t, n.ConfigPath, "proxi: {}\n")
	}, `proxi: unknown key; did you mean proxy`, 78},
	{"data of somebody else", func(t *testing.T, _ *holdfast.Cluster, n *holdfast.ClusterNode) {
		writeFile(t, filepath.Join(n.DataDir, "PG_VERSION"), "15\n")
		writeFile(t, filepath.Join(n.DataDir, "base", "1", "precious"), "do not touch")
		before := snapshot(t, n.DataDir)
		t.Cleanup(func() {
			if after := snapshot(t, n.DataDir); after != before {
				t.Errorf("the foreign data directory was changed:\n%s\n%s", before, after)
			}
			if err := os.RemoveAll(n.DataDir); err != nil {
				t.Error(err)
			}
		})
	}, `data_dir.*did not make.*adopt_foreign`, 78},
}

// TestE2EWrongPeer runs a node beside a peer with a certificate of another authority, and beside
// one that is another node than it was told: neither is talked to, and the log says why.
func TestE2EWrongPeer(t *testing.T) {
	needCluster(t)
	bin := buildBinary(t)
	cluster := func(t *testing.T) *holdfast.Cluster {
		t.Helper()
		c, err := holdfast.NewCluster(t.Context(), holdfast.ClusterConfig{
			Binary: bin, Prefix: "holdfast-e2e",
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
		return c
	}
	for _, tt := range []struct {
		name string
		peer func(ours, theirs *holdfast.Cluster) *holdfast.ClusterNode
		want string
		late bool // the peer is up only when it has been asked for the first time
	}{
		{"another authority", func(_, theirs *holdfast.Cluster) *holdfast.ClusterNode {
			return theirs.Node("node2")
		}, `node2.*(authority|another CA|ca_file)`, false},
		{"another authority, late", func(_, theirs *holdfast.Cluster) *holdfast.ClusterNode {
			return theirs.Node("node2")
		}, `node2.*(authority|another CA|ca_file)`, true},
		{"another node", func(ours, _ *holdfast.Cluster) *holdfast.ClusterNode {
			return ours.Node("node3")
			// The nodes compare their lists too, and whichever finds the difference ends.
		}, `certificate.*node3.*not.*node2|node2.*certificate.*node3|another group\.nodes`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ours, theirs := cluster(t), cluster(t)
			peer := tt.peer(ours, theirs)
			started := make(chan error, 1)
			start := func() { started <- peer.Start() }
			if tt.late {
				time.AfterFunc(1500*time.Millisecond, start) // of the 5 s that node1 runs
			} else {
				start()
			}
			n := ours.Node("node1")
			configure(t, n, func(c *config.Config) {
				c.Group.Nodes[1].Address = peer.Raft
				c.Group.Nodes[2].Address = theirs.Node("node3").Raft
			})
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			out, _, _ := n.Serve(ctx)
			if err := <-started; err != nil {
				t.Fatal(err)
			}
			out += "\nthe peer says:\n" + peer.LogTail(20)
			if !regexp.MustCompile(tt.want).MatchString(out) {
				t.Errorf("nothing says %q:\n%s", tt.want, out)
			}
			if _, err := os.Stat(n.DataDir); err == nil {
				t.Error("the node made a database beside a peer that is none")
			}
		})
	}
}

// TestE2EBadMember starts a group in which one member's port is taken and another has a wrong
// password for replication: the first member works, status says what is wrong with the others,
// and once it is mended they take their places.
func TestE2EBadMember(t *testing.T) {
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
	busy, wrong := c.Node("node2"), c.Node("node3")
	l, err := net.Listen("tcp", busy.Postgres)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	secretsWithout(t, wrong, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "replication"), []byte("wrong\n"), 0o600)
	})
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	waitProblems(t, c, map[string]string{
		busy.Name:  `Address already in use.*postgres\.listen`,
		wrong.Name: `password authentication failed.*postgres\.secrets_dir`,
	})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := wrong.Terminate(ctx); err != nil {
		t.Fatal(err)
	}
	configure(t, wrong, nil)
	if err := wrong.Start(); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, c)
}

// waitProblems waits until status says of each node what matches.
func waitProblems(t *testing.T, c *holdfast.Cluster, want map[string]string) {
	t.Helper()
	var st holdfast.Status
	for deadline := time.Now().Add(time.Minute); ; {
		missing := 0
		var err error
		if st, err = c.Status(t.Context()); err == nil {
			for _, m := range st.Members {
				re, ok := want[m.Name]
				if ok && !regexp.MustCompile(re).MatchString(m.Problem) {
					missing++
				}
			}
		}
		if err == nil && missing == 0 && len(st.Members) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("status does not say %v:\n%+v, %v", want, st.Members, err)
		}
		waitUntil(t, time.Now().Add(100*time.Millisecond))
	}
}

// TestE2EBadInput gives a node bad surroundings: it says what is wrong and ends with a code that
// is not 0; it never panics.
func TestE2EBadInput(t *testing.T) {
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
	n := c.Nodes[0]
	for _, tt := range badInputs {
		if tt.code == 0 {
			tt.code = 1
		}
		t.Run(tt.name, func(t *testing.T) {
			configure(t, n, nil)
			tt.make(t, c, n)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			out, code, err := n.Serve(ctx)
			if err != nil || ctx.Err() != nil {
				t.Errorf("the node did not end by itself: %v", err)
			} else if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !regexp.MustCompile(tt.want).MatchString(out) {
				t.Errorf("nothing says %q:\n%s", tt.want, out)
			}
			if tt.code == 78 && strings.Contains(out, "node does not answer") {
				t.Errorf("the node spoke to others before it looked at itself:\n%s", out)
			}
			if strings.Contains(out, "goroutine ") {
				t.Errorf("the node panicked:\n%s", out)
			}
		})
	}
}

func configure(t *testing.T, n *holdfast.ClusterNode, edit func(*config.Config)) {
	t.Helper()
	if err := n.Configure(edit); err != nil {
		t.Fatal(err)
	}
}

// listen takes an address for the time of the test.
func listen(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
}

// secretsWithout gives the node secrets of its own and spoils them.
func secretsWithout(t *testing.T, n *holdfast.ClusterNode, spoil func(dir string) error) {
	t.Helper()
	dir := filepath.Join(n.Dir, "secrets")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	configure(t, n, func(c *config.Config) {
		if err := os.CopyFS(dir, os.DirFS(c.Postgres.SecretsDir)); err != nil {
			t.Fatal(err)
		}
		c.Postgres.SecretsDir = dir
		c.Proxy.LookupPasswordFile = ""
	})
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Chmod(filepath.Join(dir, e.Name()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := spoil(dir); err != nil {
		t.Fatal(err)
	}
}

// mount makes a file system of its own below the node's directory.
func mount(t *testing.T, n *holdfast.ClusterNode, flags uintptr, data string) string {
	t.Helper()
	dir := filepath.Join(n.Dir, "mounted")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", flags, data); err != nil {
		skipUnlessCI(t, "cannot mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// snapshot is all of a directory as text: names, modes, times and content.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b.WriteString(path + " " + info.Mode().String() + " " + info.ModTime().String() + "\n")
		if d.Type().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b.Write(text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
