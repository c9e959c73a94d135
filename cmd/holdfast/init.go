package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/config"
	"holdfast/election"
)

// secretNames are the files that hold the passwords of the agent's roles.
var secretNames = []string{"superuser", "replication", "rewind", "lookup"}

// InitCommand is the subcommand that makes what all nodes share before the first start: a CA, a
// certificate for each node, and the passwords of the agent's roles.
type InitCommand struct {
	Dir     string
	Cluster string
	// Nodes are NAME=HOST[,HOST...], or a NAME alone.
	Nodes []string
	// Secrets makes missing passwords beside a CA that is there already, too.
	Secrets bool
	// CertsOnly makes no passwords at all, and Renew makes certificates anew that are there: `cert`.
	CertsOnly, Renew bool
	Out              io.Writer
}

// name is that of the subcommand, for its errors.
func (c InitCommand) name() string {
	if c.CertsOnly {
		return "cert"
	}
	return "init"
}

// nodeSpec is one node to make a certificate for.
type nodeSpec struct {
	name  string
	hosts []string
}

// Run writes what is missing and says what it was. What is there is kept, so that it can be
// repeated to add a node, and after it was stopped half way. The passwords are made before a new
// CA and not beside one that is there: where only the CA was copied to, for a sidecar's
// certificate, new ones would be none of the cluster's.
func (c InitCommand) Run(context.Context) error {
	nodes, err := c.parse()
	if err != nil {
		return fmt.Errorf("%s: %w", c.name(), err)
	}
	for _, d := range []string{c.Dir, c.secretsDir()} {
		if d == c.secretsDir() && !c.makesSecrets() {
			continue
		}
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("%s: %w", c.name(), err)
		}
	}
	if !c.CertsOnly {
		if err := c.makeSecrets(); err != nil {
			return fmt.Errorf("%s: %w", c.name(), err)
		}
	}
	ca, err := c.loadCA()
	if err != nil {
		return fmt.Errorf("%s: %w", c.name(), err)
	}
	var wrong []error
	for _, n := range nodes {
		if err := c.issue(ca, n); err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", c.name(), err))
		}
	}
	what := "ca.crt, the node's own .crt and .key, and secrets/ to each node"
	if c.CertsOnly {
		what = "ca.crt and the node's own .crt and .key to each node, which reads them when it starts"
	}
	fmt.Fprintf(c.Out, "copy %s; keep ca.key apart\n", what)
	return errors.Join(wrong...)
}

// hostName is what the other nodes may call a node by, apart from addresses.
var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?\.?$`)

// parse checks everything before anything is made.
func (c InitCommand) parse() ([]nodeSpec, error) {
	if len(c.Nodes) == 0 {
		return nil, errors.New("at least one --node is needed")
	}
	if err := config.CheckName(c.Cluster); err != nil {
		return nil, fmt.Errorf("--cluster: %w", err)
	}
	var nodes []nodeSpec
	for _, spec := range c.Nodes {
		name, hosts, _ := strings.Cut(spec, "=")
		if err := config.CheckName(name); err != nil {
			return nil, fmt.Errorf("--node: %w", err)
		}
		if name == "ca" {
			return nil, errors.New("--node: \"ca\" is the name of the CA's files: choose another")
		}
		n := nodeSpec{name: name}
		for h := range strings.SplitSeq(hosts, ",") {
			if hosts == "" {
				break
			}
			h = strings.TrimSpace(h)
			if net.ParseIP(h) == nil && !hostName.MatchString(h) {
				return nil, fmt.Errorf("--node %s: %q is neither an address nor the name of a "+
					"host (no port belongs here)", name, h)
			}
			n.hosts = append(n.hosts, h)
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

func (c InitCommand) secretsDir() string { return filepath.Join(c.Dir, "secrets") }

func (c InitCommand) path(name string) string { return filepath.Join(c.Dir, name) }

// makesSecrets tells whether missing passwords are to be made.
func (c InitCommand) makesSecrets() bool {
	return !c.CertsOnly && (c.Secrets || !exists(c.path("ca.crt")))
}

// made says what was made.
func (c InitCommand) made(what string) { fmt.Fprintf(c.Out, "made %s\n", what) }

// makeSecrets makes the passwords that are missing or empty, which is how an older release left
// them on a full disk.
func (c InitCommand) makeSecrets() error {
	var missing []string
	for _, name := range secretNames {
		path := filepath.Join(c.secretsDir(), name)
		if info, err := os.Stat(path); err == nil && info.Size() > 0 {
			continue
		}
		if !c.makesSecrets() {
			missing = append(missing, path)
			continue
		}
		b := make([]byte, 24)
		if _, err := rand.Read(b); err != nil {
			return fmt.Errorf("make password: %w", err)
		}
		text := base64.RawURLEncoding.EncodeToString(b) + "\n"
		if err := writeWhole(path, []byte(text), 0o600); err != nil {
			return err
		}
		c.made(path)
	}
	if len(missing) > 0 {
		fmt.Fprintf(c.Out, "not made: %s: the CA is not new, so copy them from a node, or make new "+
			"ones with --secrets\n", strings.Join(missing, ", "))
	}
	return nil
}

// loadCA reads the CA of the directory, or makes it where there is none of its certificates.
func (c InitCommand) loadCA() (*election.CA, error) {
	cert, err1 := os.ReadFile(c.path("ca.crt"))
	key, err2 := os.ReadFile(c.path("ca.key"))
	switch {
	case err1 == nil && err2 == nil:
		return election.LoadCA(cert, key)
	case err1 == nil && os.IsNotExist(err2):
		return nil, fmt.Errorf("%s has ca.crt and no ca.key: put the key here, from where you keep "+
			"it, while certificates are made", c.Dir)
	case err2 == nil && os.IsNotExist(err1):
		return nil, fmt.Errorf("%s has ca.key and no ca.crt: put the certificate here from any "+
			"node, or remove the key if there is no node yet", c.Dir)
	case !os.IsNotExist(err1) || !os.IsNotExist(err2):
		return nil, errors.Join(err1, err2)
	}
	others, err := filepath.Glob(c.path("*.crt"))
	if err != nil {
		return nil, err
	}
	if len(others) > 0 {
		return nil, fmt.Errorf("%s is of a CA that is not here: put ca.crt and ca.key here, or "+
			"start in an empty directory", others[0])
	}
	ca, err := election.NewCA(c.Cluster)
	if err != nil {
		return nil, err
	}
	// The certificate is what shows that there is a CA, so it comes last.
	if err := writeWhole(c.path("ca.key"), ca.KeyPEM, 0o600); err != nil {
		return nil, err
	}
	if err := writeWhole(c.path("ca.crt"), ca.CertPEM, 0o644); err != nil {
		return nil, errors.Join(err, os.Remove(c.path("ca.key")))
	}
	c.made(c.path("ca.crt") + " and ca.key")
	return ca, nil
}

// issue makes a node's certificate unless it has one. A key without a certificate is the rest of an
// attempt that was stopped half way.
func (c InitCommand) issue(ca *election.CA, n nodeSpec) error {
	crt := c.path(n.name + ".crt")
	if exists(crt) && !c.Renew {
		return c.keep(ca, n, crt)
	}
	cert, key, err := ca.Issue(n.name, n.hosts)
	if err != nil {
		return err
	}
	if err := writeWhole(c.path(n.name+".key"), key, 0o600); err != nil {
		return err
	}
	if err := writeWhole(crt, cert, 0o644); err != nil {
		return err
	}
	c.made(crt + " and " + n.name + ".key")
	return nil
}

// keep looks whether the certificate that is there is the one that was asked for.
func (c InitCommand) keep(ca *election.CA, n nodeSpec, crt string) error {
	remedy := fmt.Sprintf("remove %s and %s.key to have it made anew", crt, n.name)
	b, err := os.ReadFile(crt)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return fmt.Errorf("%s is no certificate: %s", crt, remedy)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("%s: %w: %s", crt, err, remedy)
	}
	if err := cert.CheckSignatureFrom(ca.Cert); err != nil {
		return fmt.Errorf("%s is of another CA: %s", crt, remedy)
	}
	if key := c.path(n.name + ".key"); exists(key) { // it may be on the node alone by now
		if _, err := tls.LoadX509KeyPair(crt, key); err != nil {
			return fmt.Errorf("%s: %w: %s", crt, err, remedy)
		}
	}
	for _, h := range n.hosts {
		if cert.VerifyHostname(h) != nil {
			return fmt.Errorf("%s is kept, and does not name %s: %s", crt, h, remedy)
		}
	}
	fmt.Fprintf(c.Out, "kept %s\n", crt)
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// writeWhole writes a file such that after a crash or on a full disk there is all of it or none.
func writeWhole(path string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func newInitCommand() *cobra.Command {
	c := InitCommand{}
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make the CA, the nodes' certificates and the passwords that all nodes share",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Out = cmd.OutOrStdout()
			return c.Run(cmd.Context())
		},
	}
	c.flags(cmd)
	cmd.Flags().BoolVar(&c.Secrets, "secrets", false,
		"make missing passwords also beside a CA that is there")
	return cmd
}

func (c *InitCommand) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.Dir, "dir", "/etc/holdfast", "where to write")
	cmd.Flags().StringVar(&c.Cluster, "cluster", "main", "name of the cluster, for the CA")
	cmd.Flags().StringArrayVar(&c.Nodes, "node", nil, "NAME=HOST[,HOST...]; once per node")
}

func newCertCommand() *cobra.Command {
	c := InitCommand{CertsOnly: true}
	cmd := &cobra.Command{
		Use:   "cert",
		Short: "Make the CA if there is none, and certificates of nodes and sidecars, or renew them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Out = cmd.OutOrStdout()
			return c.Run(cmd.Context())
		},
	}
	c.flags(cmd)
	cmd.Flags().BoolVar(&c.Renew, "renew", false, "make those anew that are there")
	return cmd
}
