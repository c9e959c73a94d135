package main

import (
	"testing"
	"time"

	"holdfast/election"
)

// TestLossText: a lost primary counts with its last position, and who is not known of is named.
func TestLossText(t *testing.T) {
	const now, old = 100 * time.Millisecond, 7 * time.Second
	state := statusState()
	state.Members[2].Postgres = "h3:5432"
	standby := observed("node2", now, 0x400, election.PhaseStandby)
	for name, tt := range map[string]struct {
		obs  []election.Observation
		want string
	}{
		"lost primary": {
			[]election.Observation{
				observed("node1", old, 0x500, election.PhasePrimary), standby,
				observed("node3", now, 0x400, election.PhaseStandby),
			},
			": it is at 0/400, node1 was at 0/500 7 s ago, 256 bytes further",
		},
		"another standby": {
			[]election.Observation{standby, observed("node3", now, 0x480, election.PhaseStandby)},
			": it is at 0/400, node3 was at 0/480, 128 bytes further; nothing is known of node1",
		},
		"nobody else": {
			[]election.Observation{standby, observed("node3", now, 0, election.PhaseStopped)},
			"; no node is known to have WAL behind its position 0/400; nothing is known of node1, node3",
		},
		"not even the member": {
			[]election.Observation{observed("node1", old, 0x500, election.PhasePrimary)},
			"; its own position is not known",
		},
	} {
		st := buildStatus(state, tt.obs)
		if got := st.lossText("node2"); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
