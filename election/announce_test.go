package election_test

import (
	"testing"
	"testing/synctest"
	"time"

	"holdfast/election"
)

// simPrewarm is what the controllers of these tests leave proxies.
const simPrewarm = 300 * time.Millisecond

// announcingGroup is simGroup with announcements.
func announcingGroup(t *testing.T, f func(r *simRun, old election.Lock, to string)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newSimRun(1, bugNone)
		for _, name := range r.w.names {
			p := simPolicy(bugNone)
			p.SyncMode, p.Fence, p.PrewarmTime = simMode(1), r.w.fence, simPrewarm
			r.controllers[name] = election.NewController(r.w.nodes[name], p)
		}
		end := r.start()
		defer end()
		r.lead(false)
		if !r.waitSettled(10*time.Second, 0) {
			t.Error("no primary")
			return
		}
		old := r.newest().Lock
		f(r, old, map[string]string{"pg1": "pg2", "pg2": "pg3", "pg3": "pg1"}[old.Holder])
	})
}

// sees waits until the state is as asked for, and returns when it was.
func (r *simRun) sees(t *testing.T, what string, is func(s *election.State) bool) time.Time {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		r.w.mu.Lock()
		s := r.w.state
		r.w.mu.Unlock()
		switch {
		case is(s):
			return time.Now()
		case time.Since(begin) > 20*time.Second:
			t.Errorf("%s: not within 20 s; %+v", what, s)
			return time.Time{}
		}
	}
}

// aheadTo tells that a switchover to a member is announced, and nothing has begun.
func aheadTo(old election.Lock, to string) func(s *election.State) bool {
	return func(s *election.State) bool {
		m, epoch, ok := s.Target()
		return s.Intent == nil && ok && m.Name == to && epoch == old.Epoch
	}
}

// TestSwitchoverIsAnnounced: the proxies hear of the target while everybody works on the old
// primary, have their time and no more, and the announcement is over with the change.
func TestSwitchoverIsAnnounced(t *testing.T) {
	announcingGroup(t, func(r *simRun, old election.Lock, to string) {
		done := make(chan error, 1)
		go func() { done <- r.request(to) }()
		announced := r.sees(t, "announced", aheadTo(old, to))
		begun := r.sees(t, "begun", func(s *election.State) bool {
			m, _, ok := s.Target()
			return s.Intent != nil && s.Ahead == nil && ok && m.Name == to
		})
		if took := begun.Sub(announced); took < simPrewarm || took > 2*simPrewarm {
			t.Errorf("begun %s after the announcement, want %s", took, simPrewarm)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		r.sees(t, "over", func(s *election.State) bool {
			_, _, ok := s.Target()
			return !ok && s.Ahead == nil && s.Lock.Holder == to
		})
	})
}

// TestAnnouncementIsRecalled: of a switchover that does not begin, since the primary died or the
// leader did, nothing is left.
func TestAnnouncementIsRecalled(t *testing.T) {
	over := func(s *election.State) bool { return s.Ahead == nil }
	announcingGroup(t, func(r *simRun, old election.Lock, to string) {
		done := make(chan error, 1)
		go func() { done <- r.request(to) }()
		r.sees(t, "announced", aheadTo(old, to))
		r.lead(false)
		r.sees(t, "recalled by the next leader", over)
		if err := <-done; err == nil {
			t.Error("the switchover was done by a leader that is gone")
		}
		if r.newest().Lock != old {
			t.Errorf("changed to %+v", r.newest())
		}
		time.Sleep(2 * time.Second) // the next leader hears of all members first
		go func() { done <- r.request(to) }()
		r.sees(t, "announced again", aheadTo(old, to))
		r.w.mu.Lock()
		r.w.nodes[old.Holder].killLocked()
		r.w.mu.Unlock()
		r.sees(t, "recalled after the death", func(s *election.State) bool {
			return over(s) && s.Intent == nil && *s.Lock == old
		})
		if err := <-done; err == nil {
			t.Error("a switchover from a dead primary was done")
		}
		r.sees(t, "failover", func(s *election.State) bool { return s.Lock.Epoch > old.Epoch })
	})
}

// TestApplyAnnouncement: only what a switchover could go to is announced, under the lock that
// stands, and an intent ends it.
func TestApplyAnnouncement(t *testing.T) {
	must := func(s *election.State, c election.Command, refused bool) *election.State {
		t.Helper()
		next, r := election.ApplyCommand(s, c)
		if (r.Refused != "") != refused || refused && next != s {
			t.Fatalf("%+v: %+v", c, r)
		}
		return next
	}
	say := func(epoch uint64, to string) election.Command {
		return election.Command{Kind: election.CommandAnnounce,
			Announce: &election.Announcement{FromEpoch: epoch, To: to}}
	}
	s := &election.State{Members: []election.Member{
		{Name: "a", Postgres: "a:1"}, {Name: "b", Postgres: "b:1"}, {Name: "w"},
	}}
	must(s, say(0, "b"), true) // no lock
	s.Lock, s.LastEpoch = &election.Lock{Epoch: 3, Holder: "a"}, 3
	for _, bad := range []election.Command{
		say(2, "b"), say(3, "a"), say(3, "w"), say(3, "x"),
	} {
		must(s, bad, true)
	}
	told := must(s, say(3, "b"), false)
	if again := must(told, say(3, "b"), false); again != told {
		t.Error("the same once more made another state")
	}
	if m, epoch, ok := told.Target(); !ok || m.Postgres != "b:1" || epoch != 3 {
		t.Errorf("target %+v of %d, %v", m, epoch, ok)
	}
	if s.Ahead != nil || must(told, say(2, ""), false).Ahead == nil ||
		must(told, say(3, ""), false).Ahead != nil {
		t.Error("taken back by another, or not at all, or the state of before was changed")
	}
	begin := election.Command{Kind: election.CommandBegin, Begin: &election.BeginIntent{
		Kind: election.IntentFailover, From: "a", FromEpoch: 3}}
	failover := must(told, begin, false)
	if _, _, ok := failover.Target(); ok || failover.Ahead != nil {
		t.Errorf("a failover that has no target yet has one: %+v", failover)
	}
	must(failover, say(3, "b"), true)
}
