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
		var at, kept time.Duration
		now := func() int64 { return int64(time.Since(begin)) + int64(time.Hour) }
		go func() {
			defer close(done)
			sendReports(ctx, mail, now, func(r Report) bool {
				if time.Since(begin) < 320*time.Millisecond {
					return false // nobody leads yet
				}
				sent, at, kept = append(sent, r.ProbeCount), time.Since(begin), r.Kept
				return true
			})
		}()
		mail <- Report{ProbeCount: 1, At: now()}
		time.Sleep(200 * time.Millisecond)
		mail <- Report{ProbeCount: 2, At: now()}
		time.Sleep(800 * time.Millisecond)
		cancel()
		<-done
		if !slices.Equal(sent, []int{2}) || at > 320*time.Millisecond+leaderLook {
			t.Errorf("sent %v, after %v; the newest once, as soon as there is a leader, is expected",
				sent, at)
		}
		if want := at - 200*time.Millisecond; kept != want {
			t.Errorf("it says that it was kept for %v, not %v", kept, want)
		}
	})
}

// TestReportsTellWhenTheyWereMade, by the clock that sendReports goes by.
func TestReportsTellWhenTheyWereMade(t *testing.T) {
	n := &Node{now: bootNow}
	r := reporter{n: n, mail: make(chan Report, 1), life: 5}
	before := n.now()
	r.post(Report{})
	rep := <-r.mail
	if rep.Life != 5 || rep.At < before || rep.At > n.now() {
		t.Errorf("made at %d by process %d", rep.At, rep.Life)
	}
}

// TestKeptReportIsNoFreshOne: what a node saw before there was a leader, or before its process was
// paused, is as old for the leader as it is, so that it speaks for nobody after that.
func TestKeptReportIsNoFreshOne(t *testing.T) {
	timing, err := TimingOf(ProfileLAN)
	if err != nil {
		t.Fatal(err)
	}
	p := DefaultPolicy(timing)
	for _, kept := range []time.Duration{0, p.ReportFresh - 1, p.ReportFresh + 1, time.Hour} {
		at := int64(5 * time.Hour)
		r := Report{V: Version, Node: "n1", Epoch: 3, Probe: ProbeRefused, ProbeCount: 9, Life: 7,
			At: at}
		leader := newReports(func() int64 { return int64(time.Minute) }) // another host's clock
		leader.take(r.sentAt(at + int64(kept)))
		obs, _ := leader.all()
		if len(obs) != 1 || obs[0].Age != kept {
			t.Fatalf("kept for %v: %+v", kept, obs)
		}
		in := Input{Observations: obs, State: &State{
			Lock:    &Lock{Epoch: 3, Holder: "n1"},
			Members: []Member{{Name: "n1", Postgres: "h:1"}},
		}}
		sv := surveyNodes(in, p)
		if isFresh := kept <= p.ReportFresh; (sv.refused == 1) != isFresh ||
			(sv.silent == 1) == isFresh {
			t.Errorf("kept for %v: %+v", kept, sv)
		}
	}
}

// heardBy is a leader's view of the reports.
type heardBy struct {
	Coordinator
	obs []Observation
}

func (h heardBy) Observations() ([]Observation, <-chan struct{}) { return h.obs, nil }

// TestOldReportSaysNoSilence: a leader that has just begun does not take a node for silent whose
// last word is older than that; one that leads for longer does.
func TestOldReportSaysNoSilence(t *testing.T) {
	timing, err := TimingOf(ProfileLAN)
	if err != nil {
		t.Fatal(err)
	}
	p := DefaultPolicy(timing)
	s := &State{
		Lock: &Lock{Epoch: 3, Holder: "n1"}, Members: []Member{{Name: "n1", Postgres: "h:1"}},
	}
	refused := Report{V: Version, Node: "n1", Epoch: 3, Probe: ProbeRefused, ProbeCount: 9}
	for _, tc := range []struct {
		name            string
		led, age        time.Duration
		silent, refused int
	}{
		{"kept for long", p.ProofFresh / 2, time.Hour, 0, 0},
		{"kept for a moment", p.ProofFresh / 2, p.ProofFresh, 0, 1},
		{"silent since", p.ProofFresh + 1, time.Hour, 1, 0},
		{"silent under this leader", time.Hour, p.ReportFresh + 1, 1, 0},
	} {
		now := time.Now()
		obs := observationsFor(heardBy{obs: []Observation{{Report: refused, Age: tc.age}}}, s,
			now.Add(-tc.led), now)
		sv := surveyNodes(Input{State: s, Observations: obs}, p)
		if sv.silent != tc.silent || sv.refused != tc.refused {
			t.Errorf("%s: %+v", tc.name, sv)
		}
	}
}

// TestOvertakenReportIsDropped: a call that was given up may arrive after the next one. A process
// that has started anew counts from anywhere.
func TestOvertakenReportIsDropped(t *testing.T) {
	var now int64
	leader := newReports(func() int64 { return now })
	take := func(life uint64, at int64, count int) int {
		now++
		leader.take(Report{Node: "n1", Life: life, At: at, ProbeCount: count})
		obs, _ := leader.all()
		return obs[0].ProbeCount
	}
	for i, step := range []struct {
		life uint64
		at   int64
		want int
	}{
		{1, 100, 0}, {1, 50, 0}, {1, 100, 2}, {1, 101, 3}, {2, 10, 4}, {2, 9, 4}, {0, 0, 6},
	} {
		if got := take(step.life, step.at, i); got != step.want {
			t.Errorf("step %d: report %d is kept, %d is expected", i, got, step.want)
		}
	}
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
