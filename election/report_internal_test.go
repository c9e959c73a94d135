package election

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestReportWaitsForALeader: a report that comes while there is no leader goes to the next one as
// soon as there is one, not only with the next probe; a newer one takes its place meanwhile, and
// one that is done is not sent again.
func TestReportWaitsForALeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		mail, done := make(chan Report, 1), make(chan struct{})
		var sent []int
		var at time.Duration
		go func() {
			defer close(done)
			sendReports(ctx, mail, func(r Report) bool {
				if time.Since(begin) < 320*time.Millisecond {
					return false // nobody leads yet
				}
				sent, at = append(sent, r.ProbeCount), time.Since(begin)
				return true
			})
		}()
		mail <- Report{ProbeCount: 1}
		time.Sleep(200 * time.Millisecond)
		mail <- Report{ProbeCount: 2}
		time.Sleep(800 * time.Millisecond)
		cancel()
		<-done
		if !slices.Equal(sent, []int{2}) || at > 320*time.Millisecond+leaderLook {
			t.Errorf("sent %v, after %v; the newest once, as soon as there is a leader, is expected",
				sent, at)
		}
	})
}

// TestReportLeavesALeaderThatIsGone: a call to a host that answers nothing ends when another node
// leads, and one to a leader that is only slow does not.
func TestReportLeavesALeaderThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		call := func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			defer cancel()
			<-ctx.Done()
		}
		begin := time.Now()
		leads := func() bool { return time.Since(begin) < 100*time.Millisecond }
		if isLeft := whileLeads(t.Context(), leads, call); !isLeft ||
			time.Since(begin) > 100*time.Millisecond+leaderLook {
			t.Errorf("left: %t after %v", isLeft, time.Since(begin))
		}
		begin = time.Now()
		isLeft := whileLeads(t.Context(), func() bool { return true }, call)
		if isLeft || time.Since(begin) != 500*time.Millisecond {
			t.Errorf("the same leader: left: %t after %v", isLeft, time.Since(begin))
		}
	})
}

// TestNearlyBlind: the agent is asked to look closely when a standby may be about to notice the
// same silence, and not for as long as the primary is away.
func TestNearlyBlind(t *testing.T) {
	p, now := prober{}, int64(time.Hour)
	note := func(r ProbeResult, after time.Duration) bool {
		now += int64(after)
		p.note(probed{epoch: 1, result: r}, now)
		return p.nearlyBlind(time.Second)
	}
	for i, step := range []struct {
		result ProbeResult
		after  time.Duration
		want   bool
	}{
		{ProbeOK, 0, false},
		{ProbeTimeout, 300 * time.Millisecond, false},
		{ProbeOK, 300 * time.Millisecond, false},
		{ProbeTimeout, 300 * time.Millisecond, false},
		{ProbeError, 300 * time.Millisecond, true}, // nobody has answered either
		{ProbeTimeout, 300 * time.Millisecond, true},
		{ProbeTimeout, 1500 * time.Millisecond, false},
		{ProbeOK, 300 * time.Millisecond, false},
	} {
		if got := note(step.result, step.after); got != step.want {
			t.Errorf("step %d, %s: %t", i, step.result, got)
		}
	}
}

type countingAgent struct {
	Agent
	looks int
}

func (a *countingAgent) LookClosely() { a.looks++ }

// TestLooksCloselyAtStandbysOnly: a holder that cannot reach its own server asks its agent nothing.
func TestLooksCloselyAtStandbysOnly(t *testing.T) {
	for holder, want := range map[string]int{"n1": 0, "n2": 1, "": 0} {
		a := &countingAgent{}
		n := &Node{timing: Timing{Silence: time.Second}}
		n.cfg.Name, n.deps.Agent = "n1", a
		r := reporter{n: n}
		for i := range int64(probeRepeats) {
			r.note(probed{epoch: 1, result: ProbeTimeout}, i+1)
		}
		s := &State{}
		if holder != "" {
			s.Lock = &Lock{Epoch: 1, Holder: holder}
		}
		r.lookClosely(s)
		if a.looks != want {
			t.Errorf("holder %q: %d looks", holder, a.looks)
		}
	}
}
