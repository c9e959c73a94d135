package election

import "testing"

// TestAdoptRule: the first lock over an adopted primary does not wait for members that have no data
// before there is a lock; it waits for all others, and never makes a server wait for fewer that
// waits already (DESIGN.md I100).
func TestAdoptRule(t *testing.T) {
	members := []Member{{Name: "a", Postgres: "a:1"}, {Name: "b", Postgres: "b:1"},
		{Name: "c", Postgres: "c:1"}, {Name: "w"}}
	one := map[string]MemberPhase{"b": PhaseEmpty, "c": PhaseStandby}
	down := map[string]MemberPhase{"b": PhaseStopped, "c": PhaseStandby}
	silent := map[string]MemberPhase{"c": PhaseStandby}
	alone := map[string]MemberPhase{"b": PhaseEmpty, "c": PhaseEmpty}
	for name, c := range map[string]struct {
		mode   string
		wait   int
		phases map[string]MemberPhase
		before string
		want   string
		isLess bool
	}{
		"nobody has data":         {SyncQuorum, 1, alone, "", "nobody (degraded)", true},
		"mode on":                 {SyncOn, 1, alone, "", "nobody (degraded)", true},
		"mode off":                {SyncOff, 1, alone, "", "nobody", false},
		"mode strict":             {SyncStrict, 1, alone, "", "any 1 of b, c", false},
		"it waits already":        {SyncQuorum, 1, alone, "*", "any 1 of b, c", false},
		"one standby":             {SyncQuorum, 1, one, "", "any 1 of b, c", false},
		"one standby, two wanted": {SyncQuorum, 2, one, "", "c", true},
		"one that is down":        {SyncQuorum, 2, down, "", "any 2 of b, c", false},
		"one that is not heard":   {SyncQuorum, 2, silent, "", "any 2 of b, c", false},
	} {
		t.Run(name, func(t *testing.T) {
			in := Input{State: &State{V: Version, Members: members}}
			see := func(node string, st MemberStatus) {
				var o Observation
				o.Node, o.Member = node, st
				in.Observations = append(in.Observations, o)
			}
			see("a", MemberStatus{Phase: PhasePrimary, Sync: MemberSync{Names: c.before}})
			for node, phase := range c.phases {
				see(node, MemberStatus{Phase: phase})
			}
			rule, isLess := adoptRule(in, Policy{SyncMode: c.mode, SyncWait: c.wait}, "a")
			if rule.String() != c.want || isLess != c.isLess {
				t.Errorf("commits wait for %s, less %v", rule, isLess)
			}
		})
	}
}
