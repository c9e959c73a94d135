package main

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/pgwire"
)

func printed(t *testing.T, st *Status) string {
	t.Helper()
	var out bytes.Buffer
	if err := st.print(&out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestStatusPrintsProblems: what is in the JSON as a problem is in the table's text too.
func TestStatusPrintsProblems(t *testing.T) {
	st := Status{Problems: []string{
		"members were not asked: no leader", "node1: the raft disk fails",
	}}
	text := printed(t, &st)
	for _, p := range st.Problems {
		if !strings.Contains(text, "\nproblem: "+p+"\n") {
			t.Errorf("%q is not printed:\n%s", p, text)
		}
	}
}

// TestStatusTellsWhatWaitsForARestart: settings that a member has not taken yet are in the JSON and
// below the table, and are no problem.
func TestStatusTellsWhatWaitsForARestart(t *testing.T) {
	o := observed("node2", time.Second, 0x500, election.PhaseStandby)
	o.Member.PendingRestart = []string{"max_connections", "shared_buffers"}
	member := memberStatus(statusState().Members[1], &o, nil)
	text := printed(t, &Status{Members: []MemberStatus{member}})
	want := "\nnode2 waits for holdfast restart node2: max_connections, shared_buffers\n"
	if !strings.Contains(text, want) || strings.Contains(text, "problem") {
		t.Errorf("%q is not printed:\n%s", want, text)
	}
	if js, err := json.Marshal(member); err != nil ||
		!strings.Contains(string(js), `"pending_restart":["max_connections","shared_buffers"]`) {
		t.Errorf("%v: %s", err, js)
	}
}

// TestStatusDoubt: a primary that nobody confirms is marked; a sidecar, which knows no leader, has
// a lease to go by.
func TestStatusDoubt(t *testing.T) {
	for _, tt := range []struct {
		leader, lease string
		want          bool
	}{
		{"", "none", true}, {"", "closed", true}, {"", "ok", false}, {"", "doubt", false},
		{"node2", "none", false}, {"node2", "ok", false},
	} {
		st := Status{Primary: "node1", Leader: tt.leader, Lease: LeaseStatus{State: tt.lease}}
		text := printed(t, &st)
		if got := strings.Contains(text, "primary node1 (not confirmed"); got != tt.want {
			t.Errorf("leader %q, lease %s: marked %v, want %v:\n%s", tt.leader, tt.lease, got,
				tt.want, text)
		}
	}
}

// observed is what the leader heard of a member of statusState.
func observed(name string, age time.Duration, lsn pgwire.LSN, phase election.MemberPhase,
) election.Observation {
	return election.Observation{Age: age, Report: election.Report{
		Node: name, Sessions: 3, Held: 2,
		Member: election.MemberStatus{Phase: phase, LSN: lsn, Timeline: 1, Streaming: true,
			Standbys: []election.StandbyStatus{{Name: "node2", SyncState: "quorum"}}},
	}}
}

func statusState() *election.State {
	return &election.State{
		Cluster: "main", Lock: &election.Lock{Epoch: 4, Holder: "node1", Timeline: 1},
		Members: []election.Member{
			{Name: "node1", Address: "h1:7400", Postgres: "h1:5432"},
			{Name: "node2", Address: "h2:7400", Postgres: "h2:5432"},
			{Name: "node3", Address: "h3:7400"},
		},
	}
}

// TestStatusOfMembers: what is not known is a dash and no zero, which would read as caught up.
func TestStatusOfMembers(t *testing.T) {
	const now, old = 100 * time.Millisecond, 6 * time.Second
	primary := observed("node1", now, 0x500, election.PhasePrimary)
	standby := observed("node2", now, 0x400, election.PhaseStandby)
	witness := observed("node3", now, 0, "")
	for _, tt := range []struct {
		name string
		obs  []election.Observation
		want []string
	}{
		{"all well", []election.Observation{primary, standby, witness}, []string{
			`node1 +h1:5432 +primary +- +1 +0/500 +0 +3 +2`,
			`node2 +h2:5432 +standby +quorum +1 +0/400 +256 +3 +2`,
			`node3 +- +witness +- +- +- +- +3 +2`,
		}},
		{"nobody was asked", nil, []string{
			`node1 +h1:5432 +unknown +- +- +- +- +- +-`,
			`node3 +- +unknown +- +- +- +- +- +-`,
		}},
		{"members lost", []election.Observation{primary,
			observed("node2", old, 0x400, election.PhaseStandby), observed("node3", old, 0, "")},
			[]string{
				`node2 +h2:5432 +lost +- +- +- +- +- +-`,
				`node3 +- +lost +- +- +- +- +- +-`,
				`problem: node2: no report for 6 s, it was standby`,
				`problem: node3: no report for 6 s, it was witness`,
			}},
		{"no report of the primary", []election.Observation{standby, witness}, []string{
			`node2 +h2:5432 +standby +- +1 +0/400 +- +3 +2`,
		}},
		{"an old report of the primary", []election.Observation{
			observed("node1", old, 0x500, election.PhasePrimary), standby}, []string{
			`node1 +h1:5432 +lost +- +- +- +- +- +-`,
			`node2 +h2:5432 +standby +- +1 +0/400 +- +3 +2`,
		}},
	} {
		st := buildStatus(statusState(), tt.obs)
		text := printed(t, &st)
		for _, want := range tt.want {
			if !regexp.MustCompile(`(?m)^` + want + ` *$`).MatchString(text) {
				t.Errorf("%s: no line %q:\n%s", tt.name, want, text)
			}
		}
	}
	st := buildStatus(statusState(), nil)
	if b, err := json.Marshal(st); err != nil || !strings.Contains(string(b), `"lag_bytes":null`) {
		t.Errorf("an unknown lag in JSON: %s, %v", b, err)
	}
}

// TestStatusLongProblem: a server's log stays out of the table, and has lines again.
func TestStatusLongProblem(t *testing.T) {
	bad := observed("node2", time.Second, 0, election.PhaseStopped)
	bad.Member.Problem = "start: pg_ctl: exit status 1: LOG:  one | FATAL:  two"
	st := buildStatus(statusState(), []election.Observation{bad})
	text := printed(t, &st)
	if !strings.Contains(text, "problem: node2: start: pg_ctl: exit status 1: LOG:  one\n"+
		"         FATAL:  two\n") || strings.Count(text, "pg_ctl") != 1 {
		t.Errorf("printed is\n%s", text)
	}
}

// TestDecisionIsPrinted: while all is well nothing is said; a primary that most proxies cannot use
// is no such time, though its own node uses it.
func TestDecisionIsPrinted(t *testing.T) {
	for _, tc := range []struct {
		d    election.Decision
		want string
	}{
		{election.Decision{Do: election.ActHold, Summary: "s", IsPrimaryUsable: true}, ""},
		{election.Decision{Do: election.ActHold, Summary: "s"}, "leader: s\n"},
		{election.Decision{Do: election.ActHold, Summary: "s", IsPrimaryUsable: true,
			IsCutOff: true}, "leader: s\n"},
		{election.Decision{}, ""},
	} {
		var b strings.Builder
		decisionStatus(&tc.d).print(&b)
		if b.String() != tc.want {
			t.Errorf("%+v: %q", tc.d, b.String())
		}
	}
}
