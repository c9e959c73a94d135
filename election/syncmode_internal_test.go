package election

import (
	"testing"
	"time"
)

// TestSyncModeIsTheGroups shows I72: both standbys are gone, and the leader's own configuration
// would degrade. It does not as long as the group is strict, and the group changes its mode only
// when a majority has it and nobody that answers another one.
func TestSyncModeIsTheGroups(t *testing.T) {
	strict, quorum := &SyncMode{SyncStrict, 1}, &SyncMode{SyncQuorum, 1}
	for _, c := range []struct {
		name  string
		group *SyncMode
		nodes map[string]*SyncMode
		// isDegraded: commits wait for nobody; mode is what the command sets.
		isDegraded bool
		mode       *SyncMode
	}{
		{"the leader alone differs", strict,
			map[string]*SyncMode{"pg1": quorum, "pg2": strict, "pg3": strict}, false, nil},
		{"one is left to change", strict,
			map[string]*SyncMode{"pg1": quorum, "pg2": quorum, "pg3": strict}, false, nil},
		{"an older release", strict,
			map[string]*SyncMode{"pg1": quorum, "pg2": quorum, "pg3": nil}, false, nil},
		{"two of five", strict, map[string]*SyncMode{"pg1": quorum, "pg2": quorum}, false, nil},
		{"three of five, the others are lost", strict,
			map[string]*SyncMode{"pg1": quorum, "pg2": quorum, "pg3": quorum}, true, quorum},
		{"no mode yet", nil,
			map[string]*SyncMode{"pg1": quorum, "pg2": strict, "pg3": strict}, true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := syncState()
			s.Lock.Incarnation = "i"
			s.Sync = &SyncRecord{V: 1, Seq: 3, Epoch: s.Lock.Epoch, Rules: []SyncRule{planAll},
				Mode: c.group}
			co := &Controller{policy: DefaultPolicy(Timing{Interval: time.Second})}
			co.policy.SyncDegradeAfter = 0
			in := Input{State: s}
			for name, m := range c.nodes {
				in.Observations = append(in.Observations, Observation{Report: Report{V: 1,
					Node: name, Epoch: s.Lock.Epoch, SyncV: SyncVersion, Sync: m,
					Member: MemberStatus{Phase: PhaseStandby}}})
				if name == s.Lock.Holder {
					in.Observations[len(in.Observations)-1].Member = MemberStatus{
						Phase: PhasePrimary, Incarnation: "i", LSN: 9,
					}
				}
			}
			cmd := co.syncStep(in)
			if (cmd != nil) != c.isDegraded {
				t.Fatalf("step is %+v", cmd)
			}
			if cmd == nil {
				return
			}
			if last := cmd.Rules[len(cmd.Rules)-1]; last.Wait != 0 {
				t.Errorf("rules are %v", cmd.Rules)
			}
			next, r := applySync(s, cmd)
			if r.Refused != "" {
				t.Fatal(r.Refused)
			}
			if m := next.Sync.Mode; (m == nil) != (c.mode == nil) || m != nil && *m != *c.mode {
				t.Errorf("mode is %v", m)
			}
		})
	}
}

// TestSyncModeStays: a new lock keeps the mode, and a promotion follows it.
func TestSyncModeStays(t *testing.T) {
	s := syncState()
	s.Sync = &SyncRecord{V: 1, Seq: 3, Epoch: s.Lock.Epoch, Rules: []SyncRule{planAll},
		Mode: &SyncMode{SyncStrict, 2}}
	p := Policy{SyncMode: SyncOff}
	if r := startRule(s, p, "pg2"); r.Wait != 2 {
		t.Errorf("a promotion takes %v", r)
	}
	l := Lock{Epoch: s.Lock.Epoch + 1, Holder: "pg2"}
	next := syncAfterCommit(s, l, &SyncRule{Wait: 2, Names: []string{"pg1", "pg3"}})
	if next.Mode == nil || *next.Mode != *s.Sync.Mode {
		t.Errorf("the mode after it is %v", next.Mode)
	}
}
