package election

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fenceState is a group whose primary is a, with commits that wait for any one of b and c, and an
// intent to replace it.
func fenceState() *State {
	return &State{
		V: 1, LastEpoch: 3,
		Lock: &Lock{Epoch: 2, Holder: "a"},
		Sync: &SyncRecord{V: 1, Seq: 1, Epoch: 2,
			Rules: []SyncRule{{Wait: 1, Names: []string{"b", "c"}}}},
		Intent: &Intent{Epoch: 3, Kind: IntentFailover, From: "a", FromEpoch: 2},
	}
}

// TestVoterWaivesUnderAFence shows I70: what a voter promised to a proxy that it cannot hear is
// waited for, unless it is of the lock that is replaced, and enough standbys of each rule in the
// record are recruited.
func TestVoterWaivesUnderAFence(t *testing.T) {
	both := []string{"b", "c"}
	for _, c := range []struct {
		name     string
		fence    string
		promised uint64
		recruits []string
		change   func(*State)
		isWaived bool
	}{
		{"the fence is complete", FenceRecruit, 2, both, nil, true},
		{"this voter is to wait", FenceLease, 2, both, nil, false},
		{"nothing is claimed", FenceRecruit, 2, nil, nil, false},
		{"one standby may still acknowledge", FenceRecruit, 2, both[:1], nil, false},
		{"others were recruited", FenceRecruit, 2, []string{"b", "d"}, nil, false},
		{"a promise of an epoch before", FenceRecruit, 1, both, nil, false},
		{"the operator accepted a loss", FenceRecruit, 2, both,
			func(s *State) { s.Intent.AcceptLoss = true }, false},
		{"going back to the old primary", FenceRecruit, 2, both,
			func(s *State) { s.Intent.Kind = IntentRestart }, false},
		{"a switchover", FenceRecruit, 2, both,
			func(s *State) { s.Intent.Kind = IntentSwitchover }, false},
		{"degraded", FenceRecruit, 2, both,
			func(s *State) { s.Sync.Rules = append(s.Sync.Rules, SyncRule{}) }, false},
		{"asynchronous", FenceRecruit, 2, both,
			func(s *State) { s.Sync.Rules = []SyncRule{{MayLose: true}} }, false},
		{"no rule", FenceRecruit, 2, both, func(s *State) { s.Sync.Rules = nil }, false},
		{"the record is of another lock", FenceRecruit, 2, both,
			func(s *State) { s.Sync.Epoch = 1 }, false},
		{"no record", FenceRecruit, 2, both, func(s *State) { s.Sync = nil }, false},
		{"a second rule with another standby", FenceRecruit, 2, both,
			func(s *State) {
				s.Sync.Rules = append(s.Sync.Rules, SyncRule{Wait: 1, Names: []string{"d"}})
			}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newTestVoter(t)
				v.fence = c.fence
				if a := v.renewOf("p", 1, c.promised); !a.Granted {
					t.Fatal(a.Reason)
				}
				s := fenceState()
				if c.change != nil {
					c.change(s)
				}
				v.fsm.publishLocked(s, 1)
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := v.endorse(ctx, 3, c.recruits...); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); (took == 0) != c.isWaived {
					t.Errorf("waited for %s", took)
				}
				if a := v.renewOf("p", 2, c.promised); a.Granted {
					t.Error("the old epoch is promised once more")
				}
			})
		})
	}
}

// TestWaivedPromiseStands: what was waived is waited for by the next change that has no fence, as
// going back to the old primary; and a voter that has just started keeps silent, fence or not.
func TestWaivedPromiseStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newTestVoter(t)
		v.fence = FenceRecruit
		v.renewOf("p", 1, 2)
		start := time.Now()
		v.fsm.publishLocked(fenceState(), 1)
		if err := v.endorse(t.Context(), 3, "b", "c"); err != nil || time.Since(start) != 0 {
			t.Fatalf("%v after %s", err, time.Since(start))
		}
		s := fenceState()
		s.LastEpoch, s.Intent.Epoch, s.Intent.Kind, s.Intent.To = 4, 4, IntentRestart, "a"
		v.fsm.publishLocked(s, 2)
		err := v.endorseFor(t, 4, 2*time.Second)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("the promise does not stand: %v", err)
		}
		if err := v.endorseFor(t, 4, time.Second); err != nil {
			t.Fatal(err)
		}
		v.restart(t)
		v.fence = FenceRecruit
		s = fenceState()
		s.LastEpoch, s.Intent.Epoch = 5, 5
		v.fsm.publishLocked(s, 3)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if err := v.endorse(ctx, 5, "b", "c"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a voter that has just started endorses: %v", err)
		}
	})
}

func TestFenceNeedsSynchronousCommits(t *testing.T) {
	for _, c := range []struct {
		mode    string
		members int
		isWrong bool
	}{
		{SyncOff, 3, true}, {SyncQuorum, 2, true}, {SyncStrict, 1, true}, {SyncQuorum, 3, false},
		{SyncOn, 2, false}, {SyncStrict, 2, false}, {SyncOff, 0, false},
	} {
		cfg := DefaultConfig()
		cfg.SyncMode, cfg.Fence = c.mode, FenceRecruit
		for _, n := range []string{"a", "b", "c"}[:c.members] {
			cfg.Nodes = append(cfg.Nodes, Member{Name: n, Postgres: n + ":5432"})
		}
		errs := cfg.validateFence()
		if (len(errs) > 0) != c.isWrong {
			t.Errorf("%s with %d members: %v", c.mode, c.members, errs)
		}
		if c.isWrong && !strings.HasPrefix(errs[0].Error(), "group.fence: ") {
			t.Errorf("no key in %q", errs[0])
		}
		if cfg.Fence = "clock"; len(cfg.validateFence()) != 1 {
			t.Error("an unknown fence is taken")
		}
	}
}
