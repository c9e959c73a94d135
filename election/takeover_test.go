package election_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"holdfast/election"
)

// beginFailover writes an intent for which nobody asked, as a leader that has decided on it.
func (r *simRun) beginFailover(t *testing.T, old election.Lock) {
	t.Helper()
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	_, err := r.w.nodes[r.w.leader].applyLocked(election.Command{
		Kind: election.CommandBegin, Begin: &election.BeginIntent{
			Request: "r", Kind: election.IntentFailover, From: old.Holder,
			FromEpoch: old.Epoch, Cause: "decided before",
		},
	})
	if err != nil {
		t.Error(err)
	}
}

// TestConsentTakesOver shows I71: a failover waits for a member that is lost. Without consent the
// request is refused at once; with it the member that is left is promoted, under a further epoch.
func TestConsentTakesOver(t *testing.T) {
	t.Run("failover", func(t *testing.T) { testConsent(t, 3*time.Second) })
	// A report still says that the primary runs: the group goes back to it, in vain.
	t.Run("restart", func(t *testing.T) { testConsent(t, 0) })
}

func testConsent(t *testing.T, reported time.Duration) {
	simGroup(t, func(r *simRun) {
		old := r.newest().Lock
		next := map[string]string{"pg1": "pg2", "pg2": "pg3", "pg3": "pg1"}
		gone, to := next[old.Holder], next[next[old.Holder]]
		r.w.mu.Lock()
		for _, name := range []string{old.Holder, gone} {
			r.w.nodes[name].killLocked()
			r.w.nodes[name].pg.phase = election.PhaseEmpty // its disk is gone
		}
		r.w.mu.Unlock()
		time.Sleep(reported)
		r.beginFailover(t, old)
		time.Sleep(10 * time.Second)
		if c := r.newest(); c.Lock.Epoch != old.Epoch {
			t.Errorf("nothing waits: %+v", c)
		}
		if err := r.failover(to, false); !errors.Is(err, election.ErrRefused) {
			t.Errorf("without consent: %v", err)
		}
		if err := r.failover(gone, true); !errors.Is(err, election.ErrRefused) ||
			!strings.Contains(err.Error(), "empty") {
			t.Errorf("to a member without data: %v", err)
		}
		if err := r.failover(to, true); err != nil {
			t.Errorf("with consent: %v", err)
		}
		c := r.newest()
		if c.Lock.Holder != to || !c.Asked || c.Lock.Epoch < old.Epoch+2 {
			t.Errorf("change is %+v after epoch %d", c, old.Epoch)
		}
	})
}

// TestMaintenanceBeganBefore: a failover was decided on, and its entry comes after that of a
// maintenance. Nobody is promoted before the maintenance ends; a primary that is started by hand
// goes on (DESIGN.md I48).
func TestMaintenanceBeganBefore(t *testing.T) {
	for _, byHand := range []bool{false, true} {
		simGroup(t, func(r *simRun) {
			old := r.newest().Lock
			r.w.mu.Lock()
			_, err := r.w.nodes[r.w.leader].applyLocked(maintenanceCommand(true))
			pg := &r.w.nodes[old.Holder].pg
			r.w.nodes[old.Holder].killLocked()
			r.w.mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			r.beginFailover(t, old)
			time.Sleep(10 * time.Second)
			if c := r.newest(); c.Lock.Epoch != old.Epoch {
				t.Errorf("changed in maintenance: %+v", c)
			}
			if d := r.controllers[r.w.leader].LastDecision(); !strings.Contains(d.Summary,
				"before the maintenance ends") {
				t.Errorf("status says %q", d.Summary)
			}
			r.w.mu.Lock()
			if byHand {
				pg.phase, pg.incarnation = election.PhasePrimary, pg.incarnation+1
			} else if _, err := r.w.nodes[r.w.leader].applyLocked(
				maintenanceCommand(false)); err != nil {
				t.Error(err)
			}
			r.w.mu.Unlock()
			if !r.waitSettled(20*time.Second, r.ackedNow()) {
				t.Errorf("not settled: %s", r.controllers[r.w.leader].LastDecision().Summary)
			}
			if c := r.newest(); (c.Lock.Holder == old.Holder) != byHand {
				t.Errorf("change is %+v, by hand: %t", c, byHand)
			}
		})
	}
}

func TestMaintenanceTakesANewReason(t *testing.T) {
	s := &election.State{V: 1, LastEpoch: 4}
	at := time.Now().UTC()
	set := func(on bool, reason string, at time.Time) {
		t.Helper()
		next, res := election.ApplyCommand(s, election.Command{
			Kind:        election.CommandMaintenance,
			Maintenance: &election.SetMaintenance{On: on, Reason: reason, At: at},
		})
		if res.Refused != "" {
			t.Fatal(res.Refused)
		}
		s = next
	}
	set(true, "disks", at)
	first := s
	set(true, "", at.Add(time.Hour))
	set(true, "disks", at.Add(time.Hour))
	if s != first {
		t.Errorf("nothing new changes the state: %+v", s.Maintenance)
	}
	set(true, "kernel", at.Add(time.Hour))
	if m := s.Maintenance; m.Reason != "kernel" || !m.Since.Equal(at) || m.Epoch != 4 ||
		first.Maintenance.Reason != "disks" {
		t.Errorf("%+v after %+v", m, first.Maintenance)
	}
	if set(false, "", at); s.Maintenance != nil {
		t.Error("it does not end")
	}
}
