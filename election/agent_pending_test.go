package election_test

import (
	"slices"
	"testing"

	"holdfast/election"
)

// TestAgentTellsWhatWaitsForARestart: a setting that a DBA changes is told with the next sample
// after the server has read its files, and no more once it is as before.
func TestAgentTellsWhatWaitsForARestart(t *testing.T) {
	c := newAgentCluster(t, 1)
	c.start("n1")
	c.bootstrap("")
	c.open("n1")
	told := func(want ...string) {
		t.Helper()
		c.wait("n1", "pending settings told", func(s election.MemberStatus) bool {
			return s.Phase == election.PhasePrimary && slices.Equal(s.PendingRestart, want)
		})
	}
	told()
	c.sql("n1", "ALTER SYSTEM SET superuser_reserved_connections = 5")
	c.sql("n1", "ALTER SYSTEM SET work_mem = '5MB'")
	c.sql("n1", "SELECT pg_reload_conf()")
	told("superuser_reserved_connections")
	c.sql("n1", "ALTER SYSTEM SET superuser_reserved_connections = 3")
	c.sql("n1", "SELECT pg_reload_conf()")
	told()
}
