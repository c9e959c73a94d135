package election_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestAgentOOMScore: the variables by which a unit has backends killed before the postmaster reach
// the server, though it gets no other part of the environment.
func TestAgentOOMScore(t *testing.T) {
	// A score above the postmaster's, which needs no capability to be set.
	t.Setenv("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj")
	t.Setenv("PG_OOM_ADJUST_VALUE", "321")
	c := newAgentCluster(t, 1)
	c.start("n1")
	c.bootstrap("")
	c.open("n1")
	score := func(pid string) string {
		b, err := os.ReadFile("/proc/" + pid + "/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	own := score("self")
	if own == "321" {
		t.Fatal("the test itself has the score that it looks for")
	}
	if got := score(fmt.Sprint(c.pid("n1"))); got != own {
		t.Errorf("the postmaster's score is %s, want %s", got, own)
	}
	backend := c.sql("n1", "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
	if got := score(backend); got != "321" {
		t.Errorf("a server process has score %s, want 321", got)
	}
}
