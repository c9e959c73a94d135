package election

import "testing"

// TestGrowthIsVain: a restart is of no use if the server has less than that start was to bring; the
// next growth, of a start that brought what it should, is another matter (DESIGN.md I110).
func TestGrowthIsVain(t *testing.T) {
	const name = "max_connections"
	a := &PostgresAgent{grownStart: "one", grownTo: map[string]int{name: 60}}
	for _, c := range []struct {
		start string
		have  int
		want  bool
	}{{"one", 40, true}, {"one", 60, false}, {"two", 40, false}} {
		if got := a.isVain(c.start, agentSize{name: name, need: 100, have: c.have}); got != c.want {
			t.Errorf("start %s with %d: %v", c.start, c.have, got)
		}
	}
}
