package election

import (
	"fmt"
	"slices"
	"strings"
)

// Problems tells in words what somebody should look at about this node's part in the group; none
// of it keeps the node from serving. Safe for concurrent use.
func (n *Node) Problems() []string {
	var out []string
	if n.store != nil && n.store.isSilent() {
		out = append(out, fmt.Sprintf("the disk of %s fails or hangs: this node takes no part in "+
			"Raft until it can write again; its proxy serves on", n.cfg.Dir))
	}
	if late := n.lessee.lateLocks(); late != "" {
		out = append(out, late)
	}
	if why := n.regain.Load().waits(); why != "" {
		out = append(out, "this node has no Raft log of its own yet, and no vote until it knows "+
			"what the others have: "+why)
	}
	if n.fsm == nil {
		return out
	}
	if err := n.fsm.problem(); err != nil {
		out = append(out, "this node follows the group no more: "+err.Error())
	}
	s, _ := n.fsm.State()
	n.mu.Lock()
	waits := n.memberProblem
	n.mu.Unlock()
	switch {
	case n.IsRemoved():
		out = append(out, "this node was removed from the group: it votes no more and its proxy "+
			"gets no lease; stop it and its PostgreSQL")
		return out
	case len(s.Members) == 0 && len(n.raftServers()) == 0 && n.raft.Load() != nil:
		out = append(out, "this node is not in the group yet: add it with holdfast member add")
		return out
	}
	if c := s.MemberChange; c != nil {
		text := changeText(c)
		if waits != "" {
			text += ": " + waits
		}
		out = append(out, text)
	}
	members := s.Members
	if len(members) == 0 {
		for _, srv := range n.raftServers() {
			members = append(members, Member{Name: string(srv.ID), Address: string(srv.Address)})
		}
	}
	if why := nodesDiffer(members, n.cfg.Nodes); why != "" {
		out = append(out, "group.nodes is not what the group has: "+why+"; the group's own list "+
			"counts, and the file should follow it")
	}
	return out
}

// nodesDiffer tells how the configured nodes differ from the members; "" if they do not.
func nodesDiffer(members, nodes []Member) string {
	var here, there []string
	for _, m := range nodes {
		here = append(here, m.Name+" at "+m.Address)
	}
	for _, m := range members {
		there = append(there, m.Name+" at "+m.Address)
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
