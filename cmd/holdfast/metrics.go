package main

import (
	"github.com/prometheus/client_golang/prometheus"
)

func groupDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("holdfast_"+name, help, labels, nil)
}

// The series of the group; docs/monitoring.md lists them all.
var (
	descPrimary = groupDesc("group_primary_info",
		"1 for the primary as this node knows it; no series without one.", "primary")
	descEpoch    = groupDesc("group_epoch", "Epoch of the leader lock as this node knows it.")
	descTimeline = groupDesc("group_timeline",
		"Timeline of the primary as the leader lock has it.")
	descChange = groupDesc("group_change_under_way",
		"1 while a change of the primary is under way.")
	descMaintenance = groupDesc("group_maintenance",
		"1 while nobody but an operator changes anything.")
	descMembers  = groupDesc("group_members", "Members of the group as this node knows them.")
	descProblems = groupDesc("group_problems",
		"Problems that holdfast status prints, as far as this node knows them without asking.")
	descUsable = groupDesc("group_primary_usable",
		"1 if a node uses the primary or its agent sees it in its place; from the leader only.")
	descSilent = groupDesc("group_members_silent",
		"Members that the leader has no recent report of; from the leader only.")
	descLease = groupDesc("lease_usable",
		"1 while this process has a lease by which its clients may use the primary.")
	descLeaseLeft = groupDesc("lease_left_seconds",
		"How long the lease may still be used; it is renewed all the time.")
	descLeaderKnown = groupDesc("raft_leader_known",
		"1 if this voter knows the leader of Raft.")
	descIsLeader = groupDesc("raft_is_leader", "1 if this voter leads and is heard.")
	descRole     = groupDesc("member_role", "1 for what a member is or does now: its own, and on "+
		"the leader everybody's.", "member", "role")
	descLag = groupDesc("member_lag_bytes", "How far a standby is behind the primary, from the "+
		"leader; no series where that is not known.", "member")
	descSyncMode = groupDesc("sync_mode_info",
		"1 for the group's synchronous.mode.", "mode")
	descExpires = groupDesc("certificate_expires_timestamp_seconds", "When a certificate that this "+
		"node uses ends: its own, the authority's (ca), or the one for clients.", "certificate")
)

var groupDescs = []*prometheus.Desc{
	descPrimary, descEpoch, descTimeline, descChange, descMaintenance, descMembers, descProblems,
	descUsable, descSilent, descLease, descLeaseLeft, descLeaderKnown, descIsLeader, descRole,
	descLag, descSyncMode, descExpires,
}

// groupMetrics are the node's view of its group as gauges. They are made when they are asked for,
// from what `holdfast status` is made from, and nobody is asked: what is not known here has no
// series, since a 0 would read as good or as bad.
type groupMetrics struct {
	look    func() (st Status, isLeader bool)
	isVoter bool
}

var _ prometheus.Collector = groupMetrics{}

// Describe implements prometheus.Collector.
func (g groupMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range groupDescs {
		ch <- d
	}
}

// gaugeSink takes gauges; one that cannot be made must not cost the others.
type gaugeSink chan<- prometheus.Metric

func (s gaugeSink) set(d *prometheus.Desc, v float64, labels ...string) {
	if m, err := prometheus.NewConstMetric(d, prometheus.GaugeValue, v, labels...); err == nil {
		s <- m
	}
}

func (s gaugeSink) is(d *prometheus.Desc, v bool, labels ...string) {
	if v {
		s.set(d, 1, labels...)
	} else {
		s.set(d, 0, labels...)
	}
}

// Collect implements prometheus.Collector.
func (g groupMetrics) Collect(ch chan<- prometheus.Metric) {
	st, isLeader := g.look()
	out := gaugeSink(ch)
	if st.Primary != "" {
		out.set(descPrimary, 1, st.Primary)
		out.set(descTimeline, float64(st.Timeline))
	}
	out.set(descEpoch, float64(st.Epoch))
	out.is(descChange, st.Intent != nil)
	out.is(descMaintenance, st.Maintenance != nil)
	out.set(descMembers, float64(len(st.Members)))
	out.set(descProblems, float64(len(st.Problems)))
	if st.Sync != nil {
		out.set(descSyncMode, 1, st.Sync.Mode)
	}
	out.is(descLease, st.Lease.isUsable())
	out.set(descLeaseLeft, float64(st.Lease.LeftMS)/1000)
	if g.isVoter {
		out.is(descLeaderKnown, st.Leader != "")
		out.is(descIsLeader, isLeader)
	}
	if isLeader && st.Decision != nil {
		out.is(descUsable, st.Decision.PrimaryUsable)
	}
	for _, c := range st.Certificates {
		out.set(descExpires, float64(c.Ends.Unix()), c.Certificate)
	}
	g.collectMembers(out, &st, isLeader)
}

func (g groupMetrics) collectMembers(out gaugeSink, st *Status, isLeader bool) {
	silent := 0
	for i := range st.Members {
		m := &st.Members[i]
		if !m.isHeard() {
			silent++
		}
		if isLeader || m.Name == st.Node {
			out.set(descRole, 1, m.Name, m.Role)
		}
		if isLeader && m.LagBytes != nil && m.Name != st.Primary {
			out.set(descLag, float64(*m.LagBytes), m.Name)
		}
	}
	if isLeader {
		out.set(descSilent, float64(silent))
	}
}
