package election

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func sightState() *State {
	s := &State{Lock: &Lock{Epoch: 7, Holder: "pg1"}}
	for _, n := range []string{"pg1", "pg2", "pg3"} {
		s.Members = append(s.Members, Member{Name: n, Postgres: n + ":5432"})
	}
	return s
}

// TestFleetCounts: what a node tells of its sidecars are counts of those that it lends to now, of
// the lock's epoch and of members that there are.
func TestFleetCounts(t *testing.T) {
	timing, err := TimingOf(ProfileLAN)
	if err != nil {
		t.Fatal(err)
	}
	f, s := newFleet(timing), sightState()
	if v := f.view(0, s, time.Second); v != nil {
		t.Errorf("of nobody: %+v", v)
	}
	far := reachText([]string{"pg3", "pg9"})
	f.note(1, Renewal{Lessee: "a", Epoch: 7, BlindFor: 30 * time.Second, Reaches: far})
	f.note(1, Renewal{Lessee: "b", Epoch: 7, BlindFor: 9 * time.Second, Reaches: far})
	f.note(1, Renewal{Lessee: "c", Epoch: 6, BlindFor: 30 * time.Second, Reaches: far})
	f.note(1, Renewal{Lessee: "d", Epoch: 7})
	v := f.view(2, s, 10*time.Second)
	if v.Total != 4 || v.CutOff != 1 || v.Longest != 30*time.Second || len(v.Reach) != 1 ||
		v.Reach["pg3"] != 1 {
		t.Errorf("%+v", v)
	}
	if v := f.view(2, s, 0); v.CutOff != 0 {
		t.Errorf("though it is switched off: %+v", v)
	}
	f.forget("d")
	f.note(int64(timing.Lease), Renewal{Lessee: "b", Epoch: 7})
	if v := f.view(int64(timing.Lease)+2, s, time.Second); v.Total != 1 {
		t.Errorf("after a lease without a word: %+v", v)
	}
	for i := range lesseesMax + 10 {
		f.note(0, Renewal{Lessee: fmt.Sprint(i)})
	}
	if len(f.byName) > lesseesMax {
		t.Errorf("%d entries", len(f.byName))
	}
}

// TestLoanSight: what a blind sidecar says survives its way, and what does not fit is left out as
// whole names.
func TestLoanSight(t *testing.T) {
	names := []string{"pg2", "pg3"}
	for range 60 {
		names = append(names, "a-name-of-some-length")
	}
	r := Renewal{V: 1, Epoch: 7, Holds: true, BlindFor: 1234 * time.Millisecond,
		Reaches: reachText(names)}
	b := appendLoanRequest(nil, loanBorrow, r)
	if len(b) > 2+loanMax {
		t.Fatalf("a message of %d bytes", len(b))
	}
	_, got, err := parseLoanRequest(b[2:])
	if err != nil || got.BlindFor != 1200*time.Millisecond || !got.Holds || got.Retakes {
		t.Errorf("%+v, %v", got, err)
	}
	have := reachNames(got.Reaches)
	if len(have) < 10 || !slices.Equal(have, names[:len(have)]) {
		t.Errorf("names %q", have)
	}
	if have := reachNames(strings.Repeat("x,", 10*membersMax)); len(have) != membersMax {
		t.Errorf("%d names", len(have))
	}
}

// TestAutomaticSwitchoverCounts: a switchover that nobody asked for is no planned change in the
// history, and counts for the limit on changes.
func TestAutomaticSwitchoverCounts(t *testing.T) {
	s := sightState()
	for _, isAuto := range []bool{true, false} {
		s, r := apply(s, Command{Kind: CommandBegin, Begin: &BeginIntent{
			Kind: IntentSwitchover, From: "pg1", FromEpoch: 7, To: "pg2", Auto: isAuto,
		}})
		s, _ = apply(s, Command{Kind: CommandCommitLock, Commit: &CommitLock{
			Lock: Lock{Epoch: r.Epoch, Holder: "pg2"},
		}})
		if len(s.History) != 1 || s.History[0].Asked == isAuto ||
			s.History[0].isUnplanned() != isAuto {
			t.Errorf("automatic %t: %+v", isAuto, s.History)
		}
	}
}

// TestReachNeedsRepetition: a member counts as reached once it has answered often enough in a row.
func TestReachNeedsRepetition(t *testing.T) {
	var p prober
	for i, names := range [][]string{{"pg2"}, {"pg2", "pg3"}, {"pg3"}, {"pg2", "pg3"}, {"pg2"}} {
		p.note(probed{7, ProbeTimeout, names}, int64(i+1))
		want := ""
		if i == 3 {
			want = "pg3"
		}
		if got := strings.Join(p.reaches(3), ","); got != want {
			t.Errorf("look %d: %q, want %q", i, got, want)
		}
	}
	if p.blindAt != 1 {
		t.Errorf("blind since %d", p.blindAt)
	}
	p.note(probed{8, ProbeRefused, nil}, 9)
	if p.blindAt != 9 || p.count != 1 {
		t.Errorf("under another epoch blind since %d, %d", p.blindAt, p.count)
	}
	p.note(probed{8, ProbeOK, nil}, 10)
	if p.isBlind() || len(p.reaches(1)) > 0 {
		t.Errorf("after a success: %+v", p)
	}
}

// TestProbesRememberTheLastSuccess: a leader that is elected when the primary is gone already has
// nobody else to tell it since when.
func TestProbesRememberTheLastSuccess(t *testing.T) {
	p := prober{}
	for i, x := range []struct {
		epoch  uint64
		result ProbeResult
		want   time.Duration
	}{
		{7, ProbeRefused, 0}, {7, ProbeOK, 0}, {7, ProbeRefused, 1}, {7, ProbeTimeout, 2},
		{8, ProbeTimeout, 0}, {8, ProbeOK, 0}, {8, ProbeError, 1}, {8, ProbeOK, 0},
	} {
		if p.note(probed{x.epoch, x.result, nil}, int64(i+1)); p.usableAgo() != x.want {
			t.Errorf("probe %d: success %d ago, want %d", i, p.usableAgo(), x.want)
		}
	}
}

// TestUnansweredProbesCountTogether: a router may say of a host that is gone that it cannot be
// reached, now and then. A refused connection is an answer.
func TestUnansweredProbesCountTogether(t *testing.T) {
	p := prober{}
	for i, want := range []int{1, 2, 3, 1, 1, 2, 1} {
		r := []ProbeResult{ProbeTimeout, ProbeError, ProbeTimeout, ProbeRefused, ProbeError,
			ProbeTimeout, ProbeOK}[i]
		p.note(probed{7, r, nil}, int64(i+1))
		if p.count != want || p.result != r {
			t.Errorf("probe %d: %s, %d in a row, want %s, %d", i, p.result, p.count, r, want)
		}
	}
}

// TestBlindnessOverAPause: what a node saw before it was paused, and the probe that the pause made
// fail, are no sign that the primary was out of reach all the time.
func TestBlindnessOverAPause(t *testing.T) {
	p := prober{gap: probeGap}
	sec := int64(time.Second)
	failed := probed{7, ProbeTimeout, []string{"pg2"}}
	for i := range int64(8) {
		p.note(failed, 100*sec+i*sec)
	}
	if p.blindFor() != 7*time.Second || len(p.reaches(reachRepeats)) != 1 {
		t.Errorf("blind for %s, reaches %q", p.blindFor(), p.reaches(reachRepeats))
	}
	p.note(failed, 130*sec)
	if p.blindFor() != 0 || len(p.reaches(1)) != 0 {
		t.Errorf("after a pause: blind for %s, reaches %q", p.blindFor(), p.reaches(1))
	}
	p.note(failed, 131*sec)
	if p.blindFor() != time.Second || len(p.reaches(1)) != 1 {
		t.Errorf("and then: blind for %s, reaches %q", p.blindFor(), p.reaches(1))
	}
}

// TestSlowNetworkReachesNobody: 400 +/- 300 ms on each way between all nodes is more than a probe
// has time for with cloud: most fail, some are in time by chance. In 3000 minutes of it no two
// nodes are without the primary for as long as makes a change due, and reach another member.
func TestSlowNetworkReachesNobody(t *testing.T) {
	timing, err := TimingOf(ProfileCloud)
	if err != nil {
		t.Fatal(err)
	}
	limit := probeLimit(timing)
	dice := rand.New(rand.NewPCG(1, 1))
	isInTime := func() bool {
		took := time.Duration(0)
		for range 4 { // SYN and its answer, the request and its answer
			took += 100*time.Millisecond + time.Duration(dice.Int64N(int64(600*time.Millisecond)))
		}
		return took < limit
	}
	moved := 0
	for range 3000 {
		nodes := [2]prober{}
		due := func(now int64) bool {
			reached := 0
			for i := range nodes {
				p := &nodes[i]
				if !p.isBlind() || now-p.blindAt < int64(cutAfterDefault) {
					return false
				}
				reached += len(p.reaches(reachRepeats))
			}
			return reached > 0
		}
		for now := int64(limit); now <= int64(time.Minute); now += int64(limit) {
			for i := range nodes {
				r := probed{epoch: 7, result: ProbeTimeout}
				if isInTime() {
					r.result = ProbeOK
				}
				if nodes[i].isBlind() && isInTime() {
					r.reaches = []string{"the other one"}
				}
				nodes[i].note(r, now)
			}
			if due(now) {
				moved++
				break
			}
		}
	}
	if moved > 0 {
		t.Errorf("the primary would have been moved in %d minutes", moved)
	}
}
