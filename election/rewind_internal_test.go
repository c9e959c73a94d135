package election

import (
	"testing"

	"holdfast/pgwire"
)

// TestDivergedOfOneNumber: two promotions can begin timelines of one number. They are told apart by
// where they began, and where that is the same, by who began them (DESIGN.md I98).
func TestDivergedOfOneNumber(t *testing.T) {
	holder := pgHolderView{timeline: 3, forks: []pgFork{{1, 100}, {2, 200}}}
	for _, tc := range []struct {
		name            string
		own             pgOwnLine
		end             pgwire.LSN
		diverged, hides bool
	}{
		{"the same", pgOwnLine{tl: 3, forks: []pgFork{{1, 100}, {2, 200}}}, 900, false, false},
		{"an ancestor", pgOwnLine{tl: 2, forks: []pgFork{{1, 100}}}, 200, false, false},
		{"an ancestor, past the fork", pgOwnLine{tl: 2, forks: []pgFork{{1, 100}}}, 201, true, false},
		{"the first", pgOwnLine{tl: 1}, 100, false, false},
		{"the first, past the fork", pgOwnLine{tl: 1}, 101, true, false},
		{"a newer one", pgOwnLine{tl: 4, forks: []pgFork{{1, 100}, {2, 200}, {3, 300}}}, 350, true,
			false},
		{"another 3, begun before", pgOwnLine{tl: 3, forks: []pgFork{{1, 100}, {2, 150}}}, 160, true,
			false},
		{"another 3, begun behind", pgOwnLine{tl: 3, forks: []pgFork{{1, 100}, {2, 250}}}, 300, true,
			false},
		{"another 3, of another 2", pgOwnLine{tl: 3, forks: []pgFork{{1, 90}, {2, 200}}}, 210, true,
			false},
		{"another 2, begun before", pgOwnLine{tl: 2, forks: []pgFork{{1, 90}}}, 95, true, false},
		{"nothing is on another 3", pgOwnLine{tl: 3, forks: []pgFork{{1, 100}, {2, 150}}}, 150, false,
			false},
		{"another 3, begun there", pgOwnLine{tl: 3, forks: []pgFork{{1, 100}, {2, 200}},
			isOwn: true}, 900, false, true},
		{"another 2, begun there", pgOwnLine{tl: 2, forks: []pgFork{{1, 100}},
			isOwn: true, isUnentered: true}, 150, false, true},
		{"an old primary's 2", pgOwnLine{tl: 2, forks: []pgFork{{1, 100}}, isOwn: true}, 201, true,
			false},
		{"another 2 of its own, begun before", pgOwnLine{tl: 2, forks: []pgFork{{1, 90}},
			isOwn: true, isUnentered: true}, 150, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := holder.diverged(tc.own, tc.end); got != tc.diverged {
				t.Errorf("diverged: %v", got)
			}
			if got := holder.hides(tc.own); got != tc.hides {
				t.Errorf("hides: %v", got)
			}
		})
	}
}
