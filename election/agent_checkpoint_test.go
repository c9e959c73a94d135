package election_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// TestAgentAsksForACheckpointUntilThereIsOne: no connection can be made to the new primary when
// the CHECKPOINT behind its promotion is to be asked for, or the agent ends at that moment. The old
// primary's rewind waits for it (DESIGN 10.11), and the one that the server begins by itself is
// spread over minutes.
func TestAgentAsksForACheckpointUntilThereIsOne(t *testing.T) {
	for name, restart := range map[string]bool{"connection refused": false, "agent ends": true} {
		t.Run(name, func(t *testing.T) {
			c := newAgentCluster(t, 2)
			core, logs := observer.New(zap.WarnLevel)
			c.core = core
			c.start("n1", "n2")
			c.bootstrap("")
			c.open("n1")
			c.waitStreaming("n2", "n1")
			// Many pages that a checkpoint has to write.
			c.sql("n1",
				"CREATE TABLE t AS SELECT i, repeat('x', 500) x FROM generate_series(1, 30000) i")
			c.awaitReceived("n1", "n2")
			c.epoch = 2
			c.do("n2", election.Order{Kind: election.OrderRecruit})
			letIn := c.letNoAgentIn("n2")
			c.commit("n2", c.do("n2", election.Order{Kind: election.OrderPromote}))
			c.wait("n2", "a sample of the new timeline", func(s election.MemberStatus) bool {
				return s.Phase == election.PhasePrimary && s.Timeline == 2
			})
			electiontest.Wait(t, "an attempt that fails", 10*time.Second, func() bool {
				return logs.FilterMessage("checkpoint after promotion not done").Len() > 0
			})
			if restart {
				c.close("n2")
			}
			if tl := c.sql("n2", "SELECT timeline_id FROM pg_control_checkpoint()"); tl != "1" {
				t.Fatalf("there is a checkpoint on timeline %s already: it shows nothing", tl)
			}
			letIn()
			if restart {
				c.start("n2")
			}
			electiontest.Wait(t, "a checkpoint on the new timeline", 30*time.Second, func() bool {
				return c.sql("n2", "SELECT timeline_id FROM pg_control_checkpoint()") == "2"
			})
			c.wait("n2", "the same in a sample", func(s election.MemberStatus) bool {
				return s.CheckpointTimeline == 2
			})
			// One CHECKPOINT is enough. Two checkpoints may follow it: it hurries the promotion's own,
			// and may ask for one more.
			const asks = "SELECT count(*) FROM pg_stat_activity " +
				"WHERE query = 'CHECKPOINT' AND state = 'active'"
			electiontest.Wait(t, "the end of CHECKPOINT", 30*time.Second, func() bool {
				return c.sql("n2", asks) == "0"
			})
			const last = "SELECT checkpoint_lsn FROM pg_control_checkpoint()"
			had := c.sql("n2", last)
			time.Sleep(5 * time.Second / 2)
			if now := c.sql("n2", last); now != had {
				t.Errorf("it goes on after the checkpoint at %s: the next is at %s", had, now)
			}
		})
	}
}

// letNoAgentIn takes the socket away on which an agent makes its connections; those that it has go
// on.
func (c *agentCluster) letNoAgentIn(name string) (letIn func()) {
	c.t.Helper()
	_, port, _ := strings.Cut(c.member(name).Postgres, ":")
	socket := filepath.Join(c.cfgs[name].DataDir+".holdfast", "run", ".s.PGSQL."+port)
	if err := os.Rename(socket, socket+".away"); err != nil {
		c.t.Fatal(err)
	}
	return func() {
		if err := os.Rename(socket+".away", socket); err != nil {
			c.t.Fatal(err)
		}
	}
}
