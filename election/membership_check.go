package election

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
)

// memberChecks are the preconditions of a change, each with what is missing for it, and the change
// with what the new node says of itself.
func (n *Node) memberChecks(ctx context.Context, s *State, r MemberRequest,
) (MemberChange, []Check) {
	c := r.Change
	var checks []Check
	add := func(what, why string) { checks = append(checks, Check{What: what, Why: why}) }
	if c.Kind == MemberAdd {
		m, why := n.newMember(ctx, s, c.Member)
		c.Member = m
		add(fmt.Sprintf("%s runs at %s and belongs to no other group", m.Name, m.Address), why)
	}
	leaving := c.Replaces
	if c.Kind == MemberRemove {
		leaving = c.Member.Name
	}
	_, res := apply(s, Command{Kind: CommandMembers, Members: &ChangeMembers{Begin: &c}})
	add("the group's members can change so now", res.Refused)
	add("every node that stays can follow changes of the members", n.releasesMissing(ctx, s, leaving))
	if c.Kind == MemberRemove {
		rest := slices.DeleteFunc(slices.Clone(voterNames(s)), func(v string) bool {
			return v == leaving
		})
		add("the voters that are left are a majority by themselves", n.silentVoters(ctx, rest))
	}
	if why, isAsked := n.syncMissing(s, c, leaving, r.AcceptFewer); isAsked {
		add("commits are on as many standbys as synchronous replication asks for", why)
	}
	return c, checks
}

// syncMissing tells what a change of data members lacks for synchronous replication.
func (n *Node) syncMissing(s *State, c MemberChange, leaving string, acceptFewer bool,
) (why string, isAsked bool) {
	p := n.policy()
	out, _ := memberOf(s.Members, leaving)
	isData := c.Kind == MemberAdd && c.Member.Postgres != "" || out.Postgres != ""
	if s.Lock == nil || !isData || p.SyncMode == SyncOff {
		return "", false
	}
	// Without a record the rule follows from the members, and would change with them at once.
	if s.Sync == nil || s.Sync.Epoch != s.Lock.Epoch || len(s.Sync.Rules) == 0 {
		return "the sync set of this primary is not recorded yet: all nodes must report first", true
	}
	if c.Kind == MemberAdd || acceptFewer {
		return "", true
	}
	obs, _ := n.Observations()
	return standbysMissing(s, p, obs, leaving), true
}

// standbysMissing tells which standbys commits would lack without a member.
func standbysMissing(s *State, p Policy, obs []Observation, leaving string) string {
	staying := slices.DeleteFunc(slices.Clone(s.Members), func(m Member) bool {
		return m.Name == leaving
	})
	holder := s.Lock.Holder
	before, after := FullRule(p.forGroup(s), s.Members, holder),
		FullRule(p.forGroup(s), staying, holder)
	if after.Wait < before.Wait {
		return fmt.Sprintf("without %s commits would wait for %s, and no longer for %d of the "+
			"standbys: add another member with PostgreSQL first, or accept it "+
			"(--accept-fewer-standbys)", leaving, after, before.Wait)
	}
	var streaming []StandbyStatus
	for _, o := range obs {
		if o.Node == holder && o.Age <= p.ReportFresh {
			streaming = o.Member.Standbys
		}
	}
	var there, away []string
	for _, name := range otherNames(staying, holder) {
		if slices.ContainsFunc(streaming, func(st StandbyStatus) bool {
			return st.Name == name && st.State == "streaming"
		}) {
			there = append(there, name)
		} else {
			away = append(away, name)
		}
	}
	if len(there) >= after.Wait {
		return ""
	}
	return fmt.Sprintf("without %s commits on %s lack a standby: they wait for %d, and %s does not "+
		"stream", leaving, holder, after.Wait, strings.Join(away, ", "))
}

// releasesMissing tells which node cannot follow changes of the members. The one that leaves need
// not.
func (n *Node) releasesMissing(ctx context.Context, s *State, leaving string) string {
	for _, name := range voterNames(s) {
		if name == leaving {
			continue
		}
		a, err := n.helloOf(ctx, name)
		if err != nil {
			return fmt.Sprintf("%s does not answer: all nodes must run, but the one that is "+
				"removed or replaced (%v)", name, err)
		}
		if a.Membership < MembershipVersion {
			return name + " is of a release that cannot change members at run time: upgrade it"
		}
	}
	return ""
}

// newMember asks a node that is to be added for its own entry, and tells why it cannot be added.
func (n *Node) newMember(ctx context.Context, s *State, m Member) (Member, string) {
	if _, _, err := net.SplitHostPort(m.Address); err != nil {
		return m, fmt.Sprintf("address %q: %v", m.Address, err)
	}
	p := newPeer(m, n.id)
	defer p.close()
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	var a helloAnswer
	err := p.call(ctx, "/v1/hello", empty{Version}, &a)
	if err != nil {
		return m, fmt.Sprintf("%s does not answer at %s: start it first, with itself and the nodes of "+
			"this group in its group.nodes (%v)", m.Name, m.Address, err)
	}
	if why := strangerText(s, n.cfg.Cluster, m.Name, a); why != "" {
		return m, why
	}
	i := slices.IndexFunc(a.Nodes, func(c Member) bool { return c.Name == m.Name })
	if i < 0 || a.Nodes[i].Address != m.Address {
		return m, fmt.Sprintf("%s has not the address %s for itself in its group.nodes", m.Name,
			m.Address)
	}
	return a.Nodes[i], ""
}

// strangerText tells why a node that answers cannot join the group.
func strangerText(s *State, cluster, name string, a helloAnswer) string {
	switch {
	case a.Cluster != cluster:
		return fmt.Sprintf("%s belongs to cluster %q and this group to %q", name, a.Cluster, cluster)
	case a.SystemID != "" && a.SystemID != s.SystemID:
		return fmt.Sprintf("%s belongs to another group, whose system id is %s: remove its raft "+
			"directory if it is to leave that", name, a.SystemID)
	case a.Membership < MembershipVersion:
		return name + " is of a release that cannot be added at run time: upgrade it"
	}
	return ""
}
