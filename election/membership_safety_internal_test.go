package election

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	setRuns = flag.Int("set.runs", 1500, "schedules of the simulation of voter sets")
	setSeed = flag.Int("set.seed", 0, "seed of its first schedule")
)

// lead does the leader's next step toward the members of the state, or begins a change.
func (w *setWorld) lead() {
	s := w.head()
	step := nextMemberStep(s, w.inRaft, func(name string) bool {
		n := w.nodes[name]
		return n.v.isReady(w.log[n.at])
	})
	voters := func(c ChangeVoters) {
		c.Version = setVersion(s)
		w.apply(Command{Kind: CommandVoters, Voters: &c})
	}
	switch step.do {
	case stepSettle:
		w.settle(s, voters)
	case stepLearner:
		w.inRaft[step.name] = false
	case stepRaftVoter:
		w.inRaft[step.name] = true
	case stepJoin:
		voters(ChangeVoters{Add: step.name})
	case stepLeave:
		voters(ChangeVoters{Remove: step.name})
	case stepRaftLeave:
		delete(w.inRaft, step.name)
	case stepEnd:
		w.apply(Command{Kind: CommandMembers, Members: &ChangeMembers{End: s.MemberChange.Request}})
	case stepAbandon:
		w.apply(Command{Kind: CommandMembers,
			Members: &ChangeMembers{Abandon: s.MemberChange.Request}})
	case stepNone:
		w.beginChange(s)
	case stepWait:
	}
}

func (w *setWorld) settle(s *State, voters func(ChangeVoters)) {
	version := setVersion(s)
	if w.took[version] == nil {
		w.took[version] = map[string]bool{}
	}
	if w.bug == bugUnfenced || isMajority(w.took[version], s.Voters.Prev) {
		voters(ChangeVoters{Settle: true})
		return
	}
	for _, name := range s.Voters.Prev {
		w.send(func() {
			n := w.nodes[name]
			if !w.hears(n.side) {
				return
			}
			left, _ := n.v.setLeft(version)
			if w.bug == bugOldStands && n.v.takenSet() >= version {
				left = 0
			}
			w.took[version][name] = w.took[version][name] || left == 0
		})
	}
}

// beginChange adds a node, or removes one; several of the same kind come one after the other.
func (w *setWorld) beginChange(s *State) {
	switch {
	case len(s.Members) >= 5:
		w.shrinks = true
	case len(s.Members) <= 2:
		w.shrinks = false
	}
	name := w.order[w.r.IntN(len(w.order))]
	w.changes++
	c := MemberChange{Kind: MemberAdd, Request: fmt.Sprint("m", w.changes),
		Member: Member{Name: name, Address: name + ":1"}}
	if w.shrinks {
		c.Kind = MemberRemove
	}
	w.apply(Command{Kind: CommandMembers, Members: &ChangeMembers{Begin: &c}})
}

// tend does what the goroutines of a node do: it takes sets, and the memory of the others.
func (w *setWorld) tend(n *setNode) {
	s, _ := n.State()
	_ = n.v.takeSet(context.Background())
	request, needs := n.v.needsAdmission(s)
	if _, isMember := memberOf(s.Members, n.name); !needs || !isMember {
		return
	}
	answers := map[string]helloAnswer{}
	for _, o := range w.order {
		if w.r.IntN(4) > 0 && (!w.isCut || w.nodes[o].side == n.side) {
			answers[o] = w.nodes[o].hello()
		}
	}
	epoch, set, ok := admission(s, n.name, answers)
	if w.bug == bugUnknown {
		epoch, set, ok = 0, 0, true
	}
	if ok {
		_ = n.v.admit(context.Background(), epoch, set, request)
	}
}

// hello is what Node.hello says of this voter.
func (n *setNode) hello() helloAnswer {
	s, _ := n.State()
	a := helloAnswer{SetVersion: setVersion(s), Set: n.v.takenSet()}
	a.Epoch, a.Blank = n.v.memory()
	a.Epoch = max(a.Epoch, s.LastEpoch)
	return a
}

// runSets runs schedules until the invariant breaks; it returns the one that broke it.
func runSets(bug setBug, first, runs int) (at int, sets, locks uint64, err error) {
	for seed := first; seed < first+runs; seed++ {
		w := newSetWorld(seed, bug)
		for i := range 700 {
			if err := w.step(); err != nil {
				return seed, sets, locks, fmt.Errorf("step %d: %w", i, err)
			}
		}
		sets += setVersion(w.head())
		locks += uint64(len(w.head().History))
	}
	return -1, sets, locks, nil
}

// TestVoterSetsAreSafe: whatever the order of changes of the voter set, renewals, endorsements,
// crashes, lost disks and messages, an epoch is endorsed only after every lease of an older one
// has ended (DESIGN 10.3, DESIGN.md I60 to I64).
func TestVoterSetsAreSafe(t *testing.T) {
	at, sets, locks, err := runSets(setSound, *setSeed, *setRuns)
	if err != nil {
		t.Fatalf("schedule %d: %v", at, err)
	}
	t.Logf("%d schedules, %d changes of the voter set, %d of the lock", *setRuns, sets, locks)
	// Below that the schedules show nothing.
	if runs := uint64(*setRuns); sets < 3*runs || locks < 3*runs {
		t.Errorf("only %d changes of the voter set and %d of the lock", sets, locks)
	}
}

// TestVoterSetSimulationFindsBugs: the rules of the fence are needed. The first schedule is where
// to look, since some show in one of thousands only.
func TestVoterSetSimulationFindsBugs(t *testing.T) {
	for _, b := range []struct {
		bug   setBug
		first int
	}{
		{bugUnfenced, 0}, {bugOldStands, 6900}, {bugAnySet, 1900}, {bugUnknown, 0},
		{bugLateSet, 9600},
	} {
		at, _, _, err := runSets(b.bug, *setSeed+b.first, *setRuns)
		if at < 0 {
			t.Errorf("not found: %s", b.bug)
			continue
		}
		t.Logf("%s: schedule %d: %v", b.bug, at, err)
	}
}

// TestVoterRemembersItsSet: a voter that restarts with an older log promises nothing under a set
// that it helped to end (DESIGN 10.3, DESIGN.md I61).
func TestVoterRemembersItsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newTestVoter(t)
		v.name = "n0"
		old := &State{V: Version, Members: []Member{{Name: "n0"}, {Name: "n1"}},
			Voters: &VoterSet{Names: []string{"n0", "n1"}}}
		next := *old
		next.Voters = &VoterSet{Version: 1, Names: []string{"n0"}, Prev: old.Voters.Names}
		v.fsm.publishLocked(&next, v.fsm.index+1)
		if err := v.takeSet(t.Context()); err != nil {
			t.Fatal(err)
		}
		if left, _ := v.setLeft(1); left != v.timing.Promise {
			t.Errorf("promises under older sets stand for %s", left)
		}
		v.fsm.publishLocked(old, v.fsm.index+1)
		v.restart(t)
		v.name = "n0"
		time.Sleep(2 * v.timing.Promise) // in the bubble; it is silent after a start
		if a := v.renewOf("p", 1, 1); a.Granted || !strings.Contains(a.Reason, "set has changed") {
			t.Errorf("promised under an older set: %+v", a)
		}
		if a := v.renew(Renewal{V: 1, Lessee: "p", Seq: 2, Epoch: 1, Set: 1}); !a.Granted {
			t.Errorf("not promised: %s", a.Reason)
		}
	})
}
