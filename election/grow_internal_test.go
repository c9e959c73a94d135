package election

import (
	"testing"
	"time"
)

// TestStandbysGrowInTurn: the standbys of a primary that was started with more than they have stop
// replaying at the same record, and are not all restarted at the same moment.
func TestStandbysGrowInTurn(t *testing.T) {
	st := &State{Lock: &Lock{Epoch: 1, Holder: "n2"}, Members: []Member{
		{Name: "n1", Postgres: "a"}, {Name: "n2", Postgres: "b"}, {Name: "n2w"},
		{Name: "n3", Postgres: "c"}, {Name: "n4", Postgres: "d"}}}
	lacks := growth{to: map[string]int{"max_connections": 60}, text: "max_connections 40 -> 60"}
	for name, rank := range map[string]int{"n1": 0, "n3": 1, "n4": 2} {
		a := &PostgresAgent{}
		a.cfg.Name, a.deps.Source = name, fixedSource{st}
		now := time.Unix(1e9, 0)
		for _, step := range []struct {
			after time.Duration
			g     growth
			isDue bool
		}{
			{0, lacks, rank == 0},
			{time.Duration(rank)*growthStagger - 1, lacks, false},
			{1, lacks, true},
			{0, growth{}, false}, // the next time counts for itself
			{time.Hour, lacks, rank == 0},
		} {
			if rank == 0 && step.after < 0 {
				continue
			}
			now = now.Add(step.after)
			problem, isDue := a.growthDue(step.g, now)
			if isDue != step.isDue || (problem == "") != (isDue || step.g.text == "") {
				t.Errorf("%s, after %v: %t, %q", name, step.after, isDue, problem)
			}
		}
	}
}

// fixedSource is a state that stays.
type fixedSource struct{ st *State }

func (s fixedSource) State() (*State, <-chan struct{}) { return s.st, nil }
