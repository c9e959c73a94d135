package election

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// testVoter is a voter over a state that the test sets; its clock is that of the bubble.
type testVoter struct {
	*voter
	fsm  *fsm
	path string
}

func bubbleNow() int64 { return time.Now().UnixNano() }

// newTestVoter makes a voter that knows what there is to know, in a group without a lock.
func newTestVoter(t *testing.T) *testVoter {
	t.Helper()
	v := &testVoter{fsm: newFSM(), path: filepath.Join(t.TempDir(), "endorsed.json")}
	v.restart(t)
	if err := v.admit(t.Context(), 0, 0, ""); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *testVoter) restart(t *testing.T) {
	t.Helper()
	tm, err := TimingOf(ProfileLAN)
	if err != nil {
		t.Fatal(err)
	}
	if v.voter, err = newVoter(v.path, tm, v.fsm, bubbleNow); err != nil {
		t.Fatal(err)
	}
}

// begin puts an intent into the voter's FSM and returns its epoch.
func (v *testVoter) begin(request string) uint64 {
	s, r := begin(v.fsm.state, request, IntentFailover, "x")
	v.fsm.publishLocked(s, v.fsm.index+1)
	return r.Epoch
}

func (v *testVoter) renewOf(lessee string, seq, epoch uint64) RenewalAnswer {
	return v.renew(Renewal{V: 1, Lessee: lessee, Incarnation: 7, Seq: seq, Epoch: epoch})
}

// endorseFor tries to endorse for a while.
func (v *testVoter) endorseFor(t *testing.T, epoch uint64, d time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return v.endorse(ctx, epoch)
}

// TestVoterEndorsesOnlyWhatItsLogHas shows I2 (DESIGN 10.1).
func TestVoterEndorsesOnlyWhatItsLogHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newTestVoter(t)
		if err := v.endorseFor(t, 1, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("an epoch whose intent is not there: %v", err)
		}
		first := v.begin("a")
		if err := v.endorseFor(t, first, time.Second); err != nil {
			t.Fatal(err)
		}
		second := v.begin("b")
		if err := v.endorseFor(t, first, time.Second); err == nil ||
			!strings.Contains(err.Error(), "no longer current") {
			t.Errorf("an intent that was overtaken: %v", err)
		}
		if err := v.endorseFor(t, second, time.Second); err != nil {
			t.Fatal(err)
		}
		if err := v.endorseFor(t, first, time.Second); err == nil {
			t.Error("an epoch below the endorsed one is endorsed")
		}
	})
}

// TestVoterEndorsesWhenTheIntentArrives: a log that is behind is waited for.
func TestVoterEndorsesWhenTheIntentArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newTestVoter(t)
		done := make(chan error, 1)
		go func() { done <- v.endorseFor(t, 1, time.Minute) }()
		synctest.Wait()
		start := time.Now()
		v.fsm.mu.Lock()
		v.begin("a")
		v.fsm.mu.Unlock()
		if err := <-done; err != nil || time.Since(start) > endorsePoll {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

func TestVoterKeepsItsPromise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newTestVoter(t)
		epoch := v.begin("a")
		if err := v.endorseFor(t, epoch, time.Second); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if a := v.renewOf("p", 1, epoch); !a.Granted {
			t.Fatal(a.Reason)
		}
		next := v.begin("b")
		if err := v.endorseFor(t, next, time.Minute); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < v.timing.Promise {
			t.Errorf("endorsed %s after a promise of %s", d, v.timing.Promise)
		}
		if v.renewOf("p", 2, epoch).Granted {
			t.Error("a promise below the endorsed epoch")
		}
	})
}

// TestVoterTakesAReleaseAtOnce: with everybody there nobody waits for a promise.
func TestVoterTakesAReleaseAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newTestVoter(t)
		v.renewOf("p", 1, 1)
		next := v.begin("a") + 1
		v.begin("b")
		done := make(chan error, 1)
		go func() { done <- v.endorseFor(t, next, time.Minute) }()
		synctest.Wait()
		start := time.Now()
		v.release(Renewal{Lessee: "p", Incarnation: 7, Seq: 2})
		if err := <-done; err != nil || time.Since(start) != 0 {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

// TestVoterIsSilentAfterAStart shows I3.
func TestVoterIsSilentAfterAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newTestVoter(t)
		epoch := v.begin("a")
		if err := v.endorseFor(t, epoch, time.Second); err != nil {
			t.Fatal(err)
		}
		v.restart(t)
		start := time.Now()
		if e, blank := v.memory(); e != epoch || blank {
			t.Errorf("remembers epoch %d, blank %t", e, blank)
		}
		if v.renewOf("p", 1, epoch).Granted {
			t.Error("a promise at once after a start")
		}
		if err := v.endorseFor(t, v.begin("b"), time.Minute); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < v.timing.Promise {
			t.Errorf("endorsed %s after a start", d)
		}
	})
}

// TestVoterEndorsementIsDurableFirst: what could not be written is not answered, and the next
// attempt does not take the memory for the disk.
func TestVoterEndorsementIsDurableFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newTestVoter(t)
		epoch := v.begin("a")
		save := v.save
		v.save = func(endorsement) error { return errDisk }
		for range 2 {
			if err := v.endorseFor(t, epoch, time.Second); !errors.Is(err, errDisk) {
				t.Fatalf("an endorsement that is not on disk: %v", err)
			}
		}
		v.save = save
		if err := v.endorseFor(t, epoch, time.Second); err != nil {
			t.Fatal(err)
		}
		v.restart(t)
		if e, _ := v.memory(); e != epoch {
			t.Errorf("remembers epoch %d", e)
		}
	})
}

// TestVoterPromisesWhileItsDiskHangs: leases of other epochs must not wait for the disk.
func TestVoterPromisesWhileItsDiskHangs(t *testing.T) {
	defer goleak.VerifyNone(t)
	synctest.Test(t, func(t *testing.T) {
		v := newTestVoter(t)
		epoch := v.begin("a")
		hang := make(chan struct{})
		save := v.save
		v.save = func(e endorsement) error {
			<-hang
			return save(e)
		}
		if err := v.endorseFor(t, epoch, time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("an endorsement on a disk that hangs: %v", err)
		}
		if a := v.renewOf("p", 1, epoch); !a.Granted {
			t.Errorf("no promise while the disk hangs: %s", a.Reason)
		}
		if v.renewOf("p", 2, epoch-1).Granted {
			t.Error("a promise below an endorsement that may land any time")
		}
		close(hang)
		if err := v.endorseFor(t, epoch, time.Second); err != nil {
			t.Fatal(err)
		}
		if err := v.close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestVoterThatLostItsDiskPromisesNothingOld: the group goes by what it endorsed before (10.3).
func TestVoterThatLostItsDiskPromisesNothingOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &testVoter{fsm: newFSM(), path: filepath.Join(t.TempDir(), "endorsed.json")}
		v.restart(t)
		v.begin("a")
		v.begin("b")
		time.Sleep(v.timing.Promise)
		if v.renewOf("p", 1, 2).Granted {
			t.Error("a voter without a memory promised")
		}
		if err := v.endorseFor(t, 2, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a voter without a memory endorsed: %v", err)
		}
		if err := v.admit(t.Context(), 2, 0, ""); err != nil {
			t.Fatal(err)
		}
		if v.renewOf("p", 2, 1).Granted {
			t.Error("a promise below what the others know of")
		}
		if a := v.renewOf("p", 3, 2); !a.Granted {
			t.Error(a.Reason)
		}
		v.restart(t)
		if e, blank := v.memory(); e != 2 || blank {
			t.Errorf("remembers epoch %d, blank %t", e, blank)
		}
		if v.promises.Endorsed() != 0 {
			t.Error("what others know of counts as endorsed by this voter")
		}
	})
}

// TestVoterThatLostItsDiskEndorsesNothingOld: below what the others know it may have endorsed a
// later epoch, and refuses as one that remembers would, even if its log is so far behind that the
// intent is still the current one there. The epoch that the others know of may be the current one:
// it is endorsed, but only once what this voter may have promised has ended.
func TestVoterThatLostItsDiskEndorsesNothingOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &testVoter{fsm: newFSM(), path: filepath.Join(t.TempDir(), "endorsed.json")}
		v.restart(t)
		old := v.begin("a")
		if err := v.admit(t.Context(), old+1, 0, ""); err != nil { // which is not in its log yet
			t.Fatal(err)
		}
		err := v.endorseFor(t, old, time.Minute)
		if err == nil || !strings.Contains(err.Error(), "was begun already") {
			t.Errorf("an endorsement below the floor: %v", err)
		}
		v.restart(t)
		start := time.Now()
		if err = v.endorseFor(t, old, time.Minute); err == nil {
			t.Error("an endorsement below the floor, after another start")
		}
		if now := v.begin("b"); now != old+1 {
			t.Fatalf("the next epoch is %d", now)
		}
		if err := v.endorseFor(t, old+1, time.Minute); err != nil {
			t.Errorf("the epoch that the others know of: %v", err)
		}
		if after := time.Since(start); after < v.timing.Promise {
			t.Errorf("endorsed %s after the start", after)
		}
		if v.renewOf("p", 1, old).Granted {
			t.Error("a promise below what is endorsed")
		}
	})
}

func TestBlankVoterNeedsEnoughAnswers(t *testing.T) {
	knows := func(e uint64) helloAnswer { return helloAnswer{Epoch: e} }
	blank := helloAnswer{Blank: true}
	for name, tc := range map[string]struct {
		voters  int
		answers map[string]helloAnswer
		epoch   uint64
		ok      bool
	}{
		"alone":              {1, nil, 0, true},
		"nobody answers":     {3, nil, 0, false},
		"one of two":         {3, map[string]helloAnswer{"b": knows(4)}, 4, false},
		"both":               {3, map[string]helloAnswer{"b": knows(4), "c": knows(5)}, 5, true},
		"first start of all": {3, map[string]helloAnswer{"b": blank, "c": blank}, 0, true},
		"three of four": {5, map[string]helloAnswer{
			"b": knows(1), "c": knows(3), "d": knows(2),
		}, 3, true},
		"three of four, one blank": {5, map[string]helloAnswer{
			"b": knows(1), "c": knows(3), "d": blank,
		}, 3, false},
	} {
		if epoch, ok := mayAdmit(tc.voters, tc.answers); ok != tc.ok || epoch != tc.epoch {
			t.Errorf("%s: epoch %d, %t", name, epoch, ok)
		}
	}
}
