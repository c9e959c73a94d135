package election

import (
	"testing"
	"time"
)

// TestOldWordSaysNothingOfNow: a host that is lost has reported just before that it works. That is
// the newest sign of it, and none that it can be used now.
func TestOldWordSaysNothingOfNow(t *testing.T) {
	timing, err := TimingOf(ProfileCloud)
	if err != nil {
		t.Fatal(err)
	}
	p := DefaultPolicy(timing)
	in := Input{State: &State{Lock: &Lock{Epoch: 7, Holder: "pg1", Incarnation: "100"}}}
	for _, name := range []string{"pg1", "pg2", "pg3"} {
		in.State.Members = append(in.State.Members, Member{Name: name, Postgres: name + ":5432"})
	}
	for age, want := range map[time.Duration]bool{0: true, p.ReportFresh: true, time.Minute: false} {
		in.Observations = []Observation{{Age: age, Report: Report{V: Version, Node: "pg1", Epoch: 7,
			Probe: ProbeOK, Member: MemberStatus{Phase: PhasePrimary, Incarnation: "100"}}}}
		if d := Decide(in, p); d.IsPrimaryUsable != want || !d.WasUsable || d.UsableAge != age {
			t.Errorf("%s ago: usable %t, %s", age, d.IsPrimaryUsable, d.UsableAge)
		}
	}
}

// TestLastUsableIsKnownToNodesThatFail: a leader that was elected when the primary was gone has
// heard of failed probes only; they say when the last one succeeded, and none that it works now.
func TestLastUsableIsKnownToNodesThatFail(t *testing.T) {
	in := Input{State: &State{Lock: &Lock{Epoch: 7, Holder: "pg1", Incarnation: "100"}}}
	report := func(node string, epoch uint64, age, ago time.Duration) {
		in.Observations = append(in.Observations, Observation{Age: age, Report: Report{
			V: Version, Node: node, Epoch: epoch, Probe: ProbeRefused, UsableAgo: ago,
		}})
	}
	timing, err := TimingOf(ProfileCloud)
	if err != nil {
		t.Fatal(err)
	}
	p := DefaultPolicy(timing)
	report("pg1", 7, 0, 0) // was started meanwhile
	if d := Decide(in, p); d.WasUsable {
		t.Errorf("nobody has seen it: %s ago", d.UsableAge)
	}
	report("pg2", 7, 20*time.Millisecond, time.Second)
	report("pg3", 7, 200*time.Millisecond, 700*time.Millisecond)
	report("pg4", 6, 0, time.Millisecond) // of another primary
	if d := Decide(in, p); d.IsPrimaryUsable || !d.WasUsable || d.UsableAge != 900*time.Millisecond {
		t.Errorf("usable %t; was usable %t, %s ago", d.IsPrimaryUsable, d.WasUsable, d.UsableAge)
	}
}
