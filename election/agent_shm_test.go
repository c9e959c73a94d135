package election_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/election"
)

// TestAgentTestsLeaveNoSharedMemory: these tests kill servers, which then do not give their shared
// memory back; a machine that runs them every day would have none left.
func TestAgentTestsLeaveNoSharedMemory(t *testing.T) {
	var segments []int
	t.Run("servers", func(t *testing.T) {
		c := newAgentCluster(t, 2)
		note := func() {
			for name := range c.agents {
				segments = append(segments, election.SegmentForTest(c.cfgs[name].DataDir))
			}
		}
		c.start("n1", "n2")
		c.bootstrap("")
		c.open("n1")
		c.waitStreaming("n2", "n1")
		note()
		old := c.crash("n2")
		c.wait("n2", "restarted", func(s election.MemberStatus) bool {
			return s.Phase == election.PhaseStandby && s.Pid != old
		})
		note()
		// What is not in /dev/shm goes with the data directory.
		files, err := os.ReadDir(filepath.Join(c.cfgs["n1"].DataDir, "pg_dynshmem"))
		if err != nil || len(files) == 0 {
			t.Errorf("the dynamic shared memory is elsewhere: %v", err)
		}
		c.close("n1")
		c.crash("n1")
	})
	for _, id := range segments {
		var desc unix.SysvShmDesc
		if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, &desc); err == nil || id < 0 {
			t.Errorf("segment %d is still there", id)
		}
	}
}
