package election

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// ready is a copy that could be promoted.
func ready(name string) LogicalSlot {
	return LogicalSlot{Name: name, Failover: true, Synced: true}
}

// TestSlotMissing: only a whole copy of the primary's slot goes on with its consumer (I73).
func TestSlotMissing(t *testing.T) {
	for _, c := range []struct {
		name string
		have []LogicalSlot
		why  string
	}{
		{"ready", []LogicalSlot{ready("a"), ready("s")}, ""},
		{"none", []LogicalSlot{ready("a")}, "no copy"},
		{"incomplete", []LogicalSlot{{Name: "s", Failover: true, Synced: true, Temporary: true}},
			"not complete"},
		{"invalid", []LogicalSlot{{Name: "s", Failover: true, Synced: true, Bad: "rows_removed"}},
			"rows_removed"},
		{"its own", []LogicalSlot{{Name: "s", Failover: true}}, "of its own"},
	} {
		why := slotMissing(c.have, "s")
		if (why == "") != (c.why == "") || !strings.Contains(why, c.why) {
			t.Errorf("%s: %q, want %q", c.name, why, c.why)
		}
	}
}

// slotInput is a primary pg1 with a failover slot s and another one, and two standbys.
func slotInput(pg2, pg3 []LogicalSlot) Input {
	s := &State{V: Version, Lock: &Lock{Holder: "pg1", Epoch: 7, Timeline: 3, Incarnation: "1"}}
	in := Input{State: s}
	for name, have := range map[string][]LogicalSlot{
		"pg1": {{Name: "s", Failover: true, LSN: 500}, {Name: "plain"}}, "pg2": pg2, "pg3": pg3,
	} {
		s.Members = append(s.Members, Member{Name: name, Postgres: name + ":5432"})
		st := MemberStatus{Name: name, Phase: PhaseStandby, Timeline: 3, Streaming: true, LSN: 1000,
			Logical: have}
		if name == "pg1" {
			st.Phase, st.Incarnation, st.Pledged = PhasePrimary, "1", 7
		}
		in.Observations = append(in.Observations, Observation{Report: Report{V: Version,
			Node: name, Epoch: 7, Probe: ProbeOK, ProbeCount: 1, Member: st}})
	}
	return in
}

func slotPolicy() Policy {
	tm, _ := TimingOf(ProfileLAN)
	p := DefaultPolicy(tm)
	p.SyncMode = SyncOff
	return p
}

// TestSwitchoverLooksAtSlots: a switchover that would lose a failover slot is refused, unless the
// operator accepts it; without a name it goes where no slot is lost (I73).
func TestSwitchoverLooksAtSlots(t *testing.T) {
	p := slotPolicy()
	in := slotInput(nil, []LogicalSlot{ready("s")})
	_, checks := CheckRequest(in, p, Request{Kind: RequestSwitchover, Member: "pg2"})
	if why := firstWrong(checks); !strings.Contains(why, "the logical slot s would be lost") ||
		!onlyWaits(checks) {
		t.Errorf("to pg2: %q, waits %v", why, onlyWaits(checks))
	}
	_, checks = CheckRequest(in, p, Request{Kind: RequestSwitchover, Member: "pg2",
		AcceptSlotLoss: true})
	notes := 0
	for _, c := range checks {
		if strings.Contains(c.Note, "it is lost") || strings.Contains(c.Note, "plain") {
			notes++
		}
	}
	if why := firstWrong(checks); why != "" || notes != 2 {
		t.Errorf("with the loss accepted: %q, %d notes", why, notes)
	}
	to, checks := CheckRequest(in, p, Request{Kind: RequestSwitchover})
	if to != "pg3" || firstWrong(checks) != "" {
		t.Errorf("without a name: to %q, %q", to, firstWrong(checks))
	}
	_, checks = CheckRequest(slotInput(nil, nil), p, Request{Kind: RequestSwitchover})
	if !onlyWaits(checks) {
		t.Errorf("a slot that no standby has yet is not waited for: %v", checks)
	}
	gone := slotInput(nil, nil)
	gone.Observations = slices.DeleteFunc(gone.Observations, func(o Observation) bool {
		return o.Node == "pg2"
	})
	_, checks = CheckRequest(gone, p, Request{Kind: RequestSwitchover, Member: "pg2"})
	if firstWrong(checks) == "" || onlyWaits(checks) {
		t.Error("a silent target is waited for like a slot")
	}
}

// TestChoosePrefersSlots: of standbys that have the same WAL the one with the slots is promoted,
// whatever their priority; never one with less WAL.
func TestChoosePrefersSlots(t *testing.T) {
	in := slotInput(nil, []LogicalSlot{ready("s")})
	sel := Selection{Lock: *in.State.Lock, SlotsLacking: slotsLacking(in.Observations, slotsOf(in)),
		Sync: []SyncRule{{MayLose: true}}}
	sel.Recruits = []Recruit{
		{Member: Member{Name: "pg2", Postgres: "x", Priority: 9}, Timeline: 3, LSN: 1000},
		{Member: Member{Name: "pg3", Postgres: "x"}, Timeline: 3, LSN: 1000},
	}
	if to := Choose(sel).To; to != "pg3" {
		t.Errorf("%q is promoted, and the slot lost", to)
	}
	sel.Recruits[0].LSN++
	if to := Choose(sel).To; to != "pg2" {
		t.Errorf("%q is promoted, which has less", to)
	}
}

// TestSlotsOf: what a primary that is gone had is known from its last report, and from the copies.
func TestSlotsOf(t *testing.T) {
	in := slotInput([]LogicalSlot{{Name: "late", Failover: true, Synced: true, Temporary: true},
		{Name: "own", Failover: true}}, []LogicalSlot{ready("s")})
	if got := slotNames(slotsOf(in)); got != "late, plain, s" {
		t.Errorf("slots %q", got)
	}
	in.Observations = slices.DeleteFunc(in.Observations, func(o Observation) bool {
		return o.Node == "pg1"
	})
	if got := slotNames(slotsOf(in)); got != "late, s" {
		t.Errorf("without the primary's report: %q", got)
	}
}

// TestSlotsLost: history names what was lost, and what goes on behind.
func TestSlotsLost(t *testing.T) {
	old := []LogicalSlot{{Name: "a", Failover: true, LSN: 500}, {Name: "b", Failover: true},
		{Name: "c"}, {Name: "d", Failover: true, Bad: "wal_removed"}, {Name: "e", Failover: true}}
	behind := ready("a")
	behind.LSN = 100
	got := strings.Join(slotsLost(old, "pg2", []LogicalSlot{behind, ready("e")}), "\n")
	for _, want := range []string{"slot a goes on 400 bytes behind", "slot b is lost: on pg2",
		"slot c is lost: it was no failover slot"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in:\n%s", want, got)
		}
	}
	if n := strings.Count(got, "\n") + 1; n != 3 {
		t.Errorf("%d lines:\n%s", n, got)
	}
}

// TestStandbySlots: decoding waits for the standbys that commits wait for, and for no slot that is
// not there (I74).
func TestStandbySlots(t *testing.T) {
	members := []Member{{Name: "pg2", Postgres: "x"}, {Name: "pg3", Postgres: "x"}}
	all := []string{"holdfast_pg2", "holdfast_pg3", "mine"}
	quorum := SyncRule{Wait: 1, Names: []string{"pg2", "pg3"}}
	for _, c := range []struct {
		name, setting    string
		streaming, exist []string
		want             string
	}{
		{"quorum", quorum.Setting(), nil, all, "holdfast_pg2 holdfast_pg3"},
		{"one left", SyncRule{Wait: 1, Names: []string{"pg3"}}.Setting(), []string{"pg2", "pg3"}, all,
			"holdfast_pg3"},
		{"no slot yet", quorum.Setting(), nil, all[:1], "holdfast_pg2"},
		{"off", "", []string{"pg3", "barman"}, all, "holdfast_pg3"},
		{"alone", "", nil, all, ""},
	} {
		got := strings.Join(standbySlots(c.setting, members, c.streaming, c.exist), " ")
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestSlotConf: an older server is given no setting that it does not know, a server that starts
// none that could end it, and what the user turned off stays off (I75).
func TestSlotConf(t *testing.T) {
	up := &Member{Name: "pg1", Postgres: "127.0.0.1:5432"}
	for _, c := range []struct {
		name     string
		major    int
		settings []string
		conf     pgConf
		want     map[string]string
	}{
		{"16", 16, []string{"wal_level = logical"}, pgConf{upstream: up, slotSync: true}, nil},
		{"starting", 17, []string{"wal_level = logical"}, pgConf{upstream: up},
			map[string]string{"sync_replication_slots": "off", "synchronized_standby_slots": "''",
				"hot_standby_feedback": "on"}},
		{"standby", 18, []string{"wal_level = 'logical'"},
			pgConf{upstream: up, slotSync: true, waitSlots: []string{"a"}},
			map[string]string{"sync_replication_slots": "on", "synchronized_standby_slots": "''",
				"hot_standby_feedback": "on"}},
		{"primary", 18, []string{"wal_level = logical"},
			pgConf{slotSync: true, waitSlots: []string{"a", "b"}},
			map[string]string{"sync_replication_slots": "off",
				"synchronized_standby_slots": "'a,b'", "hot_standby_feedback": "on"}},
		{"turned off", 17, []string{"wal_level = logical", "hot_standby_feedback = off"},
			pgConf{upstream: up}, map[string]string{"sync_replication_slots": "off",
				"synchronized_standby_slots": "''"}},
		{"replica", 17, nil, pgConf{upstream: up}, map[string]string{
			"sync_replication_slots": "off", "synchronized_standby_slots": "''"}},
	} {
		a := &PostgresAgent{major: c.major, cfg: AgentConfig{Settings: c.settings}}
		got := map[string]string{}
		for _, kv := range a.slotConf(c.conf) {
			got[kv[0]] = kv[1]
		}
		if !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
