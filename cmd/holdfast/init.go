package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

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
	Out   io.Writer
}

// Run writes what is missing. What is there is kept, so that it can be repeated to add a node.
func (c InitCommand) Run(context.Context) error {
	if len(c.Nodes) == 0 {
		return errors.New("init: at least one --node is needed")
	}
	secrets := filepath.Join(c.Dir, "secrets")
	for _, d := range []string{c.Dir, secrets} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("init: %w", err)
		}
	}
	ca, err := c.loadCA()
	if err != nil {
		return err
	}
	for _, spec := range c.Nodes {
		name, hosts, _ := strings.Cut(spec, "=")
		if err := c.issue(ca, name, hosts); err != nil {
			return err
		}
	}
	for _, s := range secretNames {
		if err := makeSecret(filepath.Join(secrets, s)); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.Out, "made CA, certificates and secrets in %s\n", c.Dir)
	fmt.Fprintln(c.Out, "copy ca.crt, the node's own .crt and .key, and secrets/ to each node;"+
		" keep ca.key apart")
	return nil
}

// loadCA reads the CA of the directory, or makes it.
func (c InitCommand) loadCA() (*election.CA, error) {
	certFile, keyFile := filepath.Join(c.Dir, "ca.crt"), filepath.Join(c.Dir, "ca.key")
	cert, err1 := os.ReadFile(certFile)
	key, err2 := os.ReadFile(keyFile)
	switch {
	case err1 == nil && err2 == nil:
		return election.LoadCA(cert, key)
	case os.IsNotExist(err1) && os.IsNotExist(err2):
	default:
		return nil, fmt.Errorf("init: %s has a part of a CA: %w", c.Dir,
			errors.Join(err1, err2))
	}
	ca, err := election.NewCA(c.Cluster)
	if err != nil {
		return nil, fmt.Errorf("init: %w", err)
	}
	if err := writeNew(certFile, ca.CertPEM, 0o644); err != nil {
		return nil, err
	}
	return ca, writeNew(keyFile, ca.KeyPEM, 0o600)
}

// issue makes a node's certificate unless it has one.
func (c InitCommand) issue(ca *election.CA, name, hosts string) error {
	if name == "" || strings.ContainsAny(name, "/\\ ") {
		return fmt.Errorf("init: %q is no name for a node", name)
	}
	certFile := filepath.Join(c.Dir, name+".crt")
	if _, err := os.Stat(certFile); err == nil {
		return nil
	}
	var list []string
	if hosts != "" {
		list = strings.Split(hosts, ",")
	}
	cert, key, err := ca.Issue(name, list)
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if err := writeNew(filepath.Join(c.Dir, name+".key"), key, 0o600); err != nil {
		return err
	}
	return writeNew(certFile, cert, 0o644)
}

// makeSecret writes a random password unless there is one.
func makeSecret(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	b := make([]byte, 24)
	if _, err := rand.Read(b); err != nil {
		return fmt.Errorf("init: make password: %w", err)
	}
	text := base64.RawURLEncoding.EncodeToString(b) + "\n"
	return writeNew(path, []byte(text), 0o600)
}

// writeNew writes a file that must not exist yet.
func writeNew(path string, b []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	return nil
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
	cmd.Flags().StringVar(&c.Dir, "dir", "/etc/holdfast", "where to write")
	cmd.Flags().StringVar(&c.Cluster, "cluster", "main", "name of the cluster, for the CA")
	cmd.Flags().StringArrayVar(&c.Nodes, "node", nil, "NAME=HOST[,HOST...]; once per node")
	return cmd
}
