package election_test

import (
	"testing"
	"time"

	"holdfast/election"
)

func TestLeaseIsSafe(t *testing.T) {
	if at, err := runLease(leaseSound, *leaseSeed, *leaseRuns); err != nil {
		t.Fatalf("%v; again: go test ./election -run LeaseIsSafe -lease.seed=%d -lease.runs=1",
			err, at)
	}
}

func TestLeaseSimulationFindsSeededBugs(t *testing.T) {
	for _, bug := range []leaseBug{
		bugPromiseFromSend, bugLeaseFromAnswer, bugNoSilence, bugForgotEndorsed,
		bugReleaseNewer, bugFormerSelf, bugShortened, bugLostDisk, bugShortPromise,
		bugRelayFirst, bugRelayWhole, bugRelayOn, bugBorrowAnswer, bugRelayReach,
	} {
		first := *leaseSeed
		if bug == bugRelayReach {
			first += 40000 // it is rare: one schedule of some ten thousand shows it
		}
		at, err := runLease(bug, first, *leaseRuns)
		if err == nil {
			t.Errorf("%s: not found in %d schedules", bug, *leaseRuns)
			continue
		}
		t.Logf("%s: found by schedule %d: %v", bug, at, err)
		if again, _ := runLease(bug, at, 1); again != at {
			t.Errorf("%s: schedule %d does not show it again", bug, at)
		}
	}
}

func lanPromises(first bool) (*election.Promises, election.Timing) {
	tm, _ := election.TimingOf(election.ProfileLAN)
	return election.NewPromises(tm, 0, 1, first), tm
}

// TestReleaseTakesBackOnlyWhatCameBefore shows rule 2 of DESIGN 10 (I5).
func TestReleaseTakesBackOnlyWhatCameBefore(t *testing.T) {
	p, _ := lanPromises(true)
	r := election.Renewal{Lessee: "a", Incarnation: 7, Seq: 5, Epoch: 1}
	if !p.Renew(1, r).Granted {
		t.Fatal("not granted")
	}
	for what, old := range map[string]election.Renewal{
		"another incarnation":      {Lessee: "a", Incarnation: 8, Seq: 99, Epoch: 1},
		"a lower sequence number":  {Lessee: "a", Incarnation: 7, Seq: 4, Epoch: 1},
		"another lessee":           {Lessee: "b", Incarnation: 7, Seq: 99, Epoch: 1},
		"no incarnation, no order": {Lessee: "a"},
	} {
		p.Release(2, old)
		if p.MayEndorse(3, 2) == 0 {
			t.Fatalf("a release of %s took the promise back", what)
		}
	}
	p.Release(4, election.Renewal{Lessee: "a", Incarnation: 7, Seq: 6, Epoch: 1})
	if p.MayEndorse(5, 2) != 0 {
		t.Error("a release had no effect")
	}
	if p.Renew(6, r).Granted {
		t.Error("a renewal that the release overtook was granted")
	}
	if r.Seq = 7; !p.Renew(7, r).Granted {
		t.Error("a renewal after the release was not granted")
	}
}

func TestAnswersBeforeAReleaseAreIgnored(t *testing.T) {
	tm, _ := election.TimingOf(election.ProfileLAN)
	for what, giveUp := range map[string]func(*election.Tally){
		"release":       func(y *election.Tally) { y.Release() },
		"another epoch": func(y *election.Tally) { y.Begin(2) },
	} {
		y := election.NewTally(tm, 3)
		y.Begin(1)
		seq, _ := y.Send(100)
		answers := func() {
			for _, v := range []string{"a", "b", "c"} {
				y.Answer(v, election.RenewalAnswer{Seq: seq, Granted: true})
			}
		}
		giveUp(y)
		answers()
		if _, until := y.Deadlines(); until != 0 {
			t.Errorf("%s: a lease came back", what)
		}
		y.Send(200)
		answers()
		if _, until := y.Deadlines(); until != 0 {
			t.Errorf("%s: a lease came back by an older answer", what)
		}
	}
}

// TestTallyCountsMajorities: of distinct voters, for one renewal, from when it was sent.
func TestTallyCountsMajorities(t *testing.T) {
	tm, _ := election.TimingOf(election.ProfileLAN)
	y := election.NewTally(tm, 3)
	y.Begin(1)
	grant := func(voter string, seq uint64) int64 {
		y.Answer(voter, election.RenewalAnswer{Seq: seq, Granted: true})
		_, until := y.Deadlines()
		return until
	}
	first, _ := y.Send(100)
	second, _ := y.Send(200)
	for _, answer := range []struct {
		voter string
		seq   uint64
	}{{"a", first}, {"a", first}, {"b", second}} {
		if grant(answer.voter, answer.seq) != 0 {
			t.Fatal("a minority granted a lease")
		}
	}
	y.Answer("c", election.RenewalAnswer{Seq: second})
	if _, until := y.Deadlines(); until != 0 {
		t.Fatal("a refusal counted")
	}
	if got := grant("a", second); got != 200+int64(tm.Lease) {
		t.Errorf("lease until %d", got)
	}
	if got := grant("b", first); got != 200+int64(tm.Lease) {
		t.Errorf("an older renewal moved the lease to %d", got)
	}
	if y.Begin(1); grant("c", 99999) == 0 {
		t.Error("the same epoch again ended its lease")
	}
	for range 40 {
		y.Send(300)
	}
	if got := grant("a", 99999); got != 200+int64(tm.Lease) {
		t.Errorf("an answer to nothing moved the lease to %d", got)
	}
	y.Begin(2)
	if doubt, until := y.Deadlines(); doubt != 0 || until != 0 {
		t.Error("the lease of one epoch holds for the next")
	}
}

// TestPromiseMemoryIsBounded: lessees that are gone make room; living ones are never forgotten.
func TestPromiseMemoryIsBounded(t *testing.T) {
	p, tm := lanPromises(true)
	for i := range uint64(20000) {
		if !p.Renew(1, election.Renewal{Lessee: "a", Incarnation: i, Seq: 1, Epoch: 1}).Granted {
			t.Fatalf("lessee %d was not granted", i)
		}
	}
	next := election.Renewal{Lessee: "b", Seq: 1, Epoch: 1}
	if a := p.Renew(2, next); a.Granted || a.Reason != "too many lessees" {
		t.Errorf("one too many: %+v", a)
	}
	if p.MayEndorse(2, 2) == 0 {
		t.Error("a promise was forgotten")
	}
	if a := p.Renew(2*int64(tm.Promise)+1, next); !a.Granted {
		t.Errorf("no room after all have gone: %+v", a)
	}
}

// TestForbiddenEpochsAreNoEndorsement: a voter that lost its disk promises nothing below what the
// others know of, and yet has to wait before it endorses that itself.
func TestForbiddenEpochsAreNoEndorsement(t *testing.T) {
	p, tm := lanPromises(false)
	p.Forbid(5)
	after := int64(tm.Promise)
	if p.Renew(after, election.Renewal{Lessee: "a", Seq: 1, Epoch: 4}).Granted {
		t.Error("promised below")
	}
	if p.Endorsed() != 1 || p.MayEndorse(after-1, 5) == 0 || p.MayEndorse(after, 5) != 0 {
		t.Error("counts as endorsed")
	}
	if !p.Renew(after, election.Renewal{Lessee: "a", Seq: 2, Epoch: 5}).Granted {
		t.Error("not promised at")
	}
}

func TestTimingsAreSafe(t *testing.T) {
	for _, p := range []string{election.ProfileLAN, election.ProfileCloud, election.ProfileWAN} {
		tm, err := election.TimingOf(p)
		if err != nil || tm.Validate() != nil {
			t.Errorf("%s: %v %v", p, err, tm.Validate())
		}
		tm.Promise = tm.Lease + 50*time.Millisecond
		if tm.Validate() == nil {
			t.Errorf("%s: a promise hardly longer than the lease is taken", p)
		}
	}
}
