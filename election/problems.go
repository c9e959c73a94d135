package election

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/raft"
)

// Problems tells in words what somebody should look at about this node's part in the group; none
// of it keeps the node from serving. Safe for concurrent use.
func (n *Node) Problems() []string {
	var out []string
	if n.store != nil && n.store.isSilent() {
		out = append(out, fmt.Sprintf("the disk of %s fails or hangs: this node takes no part in "+
			"Raft until it can write again; its proxy serves on", n.cfg.Dir))
	}
	r := n.raft.Load()
	if r == nil {
		return out
	}
	if err := n.fsm.problem(); err != nil {
		out = append(out, "this node follows the group no more: "+err.Error())
	}
	future := r.GetConfiguration()
	if future.Error() != nil {
		return out
	}
	if why := nodesDiffer(future.Configuration(), n.cfg.Nodes); why != "" {
		out = append(out, "group.nodes is not what the group was formed with: "+why+
			"; the list must be the same on all nodes")
	}
	return out
}

// nodesDiffer tells how the configured voters differ from those that Raft has; "" if they do not.
func nodesDiffer(c raft.Configuration, nodes []Member) string {
	var here, there []string
	for _, m := range nodes {
		here = append(here, m.Name+" at "+m.Address)
	}
	for _, s := range c.Servers {
		there = append(there, string(s.ID)+" at "+string(s.Address))
	}
	var out []string
	for _, s := range here {
		if !slices.Contains(there, s) {
			out = append(out, s+" is only in group.nodes")
		}
	}
	for _, s := range there {
		if !slices.Contains(here, s) {
			out = append(out, s+" is only in the group")
		}
	}
	return strings.Join(out, ", ")
}
