package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"

	"holdfast/config"
)

// This file gives the tests, which are outside of the package, what the demonstration does not do
// with its cluster.

// AddNode makes keys and configuration of one more node, on the next address after the last one.
// It is not started, and not in the group. Not for clusters of given addresses.
func (c *Cluster) AddNode(ctx context.Context, edit func(*config.Config)) (*ClusterNode, error) {
	last := net.ParseIP(c.Nodes[len(c.Nodes)-1].Host).To4()
	host := fmt.Sprintf("%d.%d.%d.%d", last[0], last[1], last[2], last[3]+1)
	n := newClusterNode(c, fmt.Sprintf("node%d", last[3]+1), host, c.ports)
	out, err := c.run(ctx, "init", "--dir", c.pkiDir(), "--node", n.Name+"="+n.Host)
	if err != nil {
		return nil, fmt.Errorf("make keys of %s: %w: %s", n.Name, err, out)
	}
	c.Nodes = append(c.Nodes, n)
	return n, n.Configure(edit)
}

// NewSidecar makes certificate and configuration of a proxy that is no part of the group, on the
// address after the last node's. It is not started, and not in Nodes; whoever starts it ends it.
func (c *Cluster) NewSidecar(ctx context.Context, name string) (*ClusterNode, error) {
	last := net.ParseIP(c.Nodes[len(c.Nodes)-1].Host).To4()
	host := fmt.Sprintf("%d.%d.%d.%d", last[0], last[1], last[2], last[3]+1)
	n := newClusterNode(c, name, host, c.ports)
	out, err := c.run(ctx, "cert", "--dir", c.pkiDir(), "--node", n.Name+"="+n.Host)
	if err != nil {
		return nil, fmt.Errorf("make certificate of %s: %w: %s", n.Name, err, out)
	}
	return n, n.ConfigureSidecar()
}

// ConfigureSidecar writes the configuration of a proxy that is no part of the group.
func (n *ClusterNode) ConfigureSidecar() error {
	return n.Configure(func(cfg *config.Config) {
		cfg.Raft.Enabled = false
		cfg.Postgres = config.Default().Postgres
		cfg.Postgres.Enabled = false
		cfg.Proxy.LookupPasswordFile = filepath.Join(n.cluster.pkiDir(), "secrets", "lookup")
	})
}

// RemoveNode ends a node and its server for good and forgets it.
func (c *Cluster) RemoveNode(ctx context.Context, n *ClusterNode) error {
	c.Nodes = slices.DeleteFunc(slices.Clone(c.Nodes), func(o *ClusterNode) bool { return o == n })
	return n.KillNode(ctx)
}

// StartIn runs the node in a control group, given by its directory, as systemd would: what the
// node starts begins its life there too.
func (n *ClusterNode) StartIn(cgroup string) error {
	return n.StartUnder("/bin/sh", "-c", `echo $$ > "$0"/cgroup.procs && exec "$@"`, cgroup)
}

// Changes asks the node for the history of the lock, the newest change first.
func (n *ClusterNode) Changes(ctx context.Context) ([]ChangeStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var a historyAnswer
	err := n.call(ctx, http.MethodGet, "/v1/history", nil, &a)
	return a.Changes, err
}
