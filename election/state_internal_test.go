package election

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// begin announces an intent as somebody would who has seen s.
func begin(s *State, request string, kind IntentKind, to string) (*State, Result) {
	return apply(s, beginCommand(s, request, kind, to))
}

func beginCommand(s *State, request string, kind IntentKind, to string) Command {
	return Command{Kind: CommandBegin, Begin: &BeginIntent{
		Request: request, Kind: kind, FromEpoch: lockEpoch(s), Replaces: intentEpoch(s), To: to,
		Cause: "test",
	}}
}

func targetCommand(epoch uint64, to string) Command {
	return Command{Kind: CommandTarget, Target: &SetTarget{Epoch: epoch, To: to}}
}

func commitCommand(epoch uint64, holder string) Command {
	return Command{Kind: CommandCommitLock, Commit: &CommitLock{
		Lock: Lock{Epoch: epoch, Holder: holder}, At: time.Unix(1, 0).UTC(),
		PhasesMS: map[string]int64{"total": 5},
	}}
}

func commit(s *State, epoch uint64, holder string) (*State, Result) {
	return apply(s, commitCommand(epoch, holder))
}

// stateWith is a state after whole changes to those holders.
func stateWith(t *testing.T, holders ...string) *State {
	t.Helper()
	s := &State{V: Version}
	for i, h := range holders {
		next, r := begin(s, fmt.Sprint("r", i), IntentFailover, h)
		next, c := commit(next, r.Epoch, h)
		if r.Refused != "" || c.Refused != "" {
			t.Fatal(r.Refused, c.Refused)
		}
		s = next
	}
	return s
}

func TestStateBegin(t *testing.T) {
	locked := stateWith(t, "a", "b") // lock of epoch 2
	intent, _ := begin(locked, "mine", IntentFailover, "c")
	for name, tc := range map[string]struct {
		s     *State
		c     BeginIntent
		epoch uint64
		words string
	}{
		"fresh":        {locked, BeginIntent{FromEpoch: 2}, 3, ""},
		"older lock":   {locked, BeginIntent{FromEpoch: 1}, 0, "the lock is of epoch 2, not 1"},
		"no lock":      {locked, BeginIntent{}, 0, "the lock is of epoch 2, not 0"},
		"intent stood": {locked, BeginIntent{FromEpoch: 2, Replaces: 1}, 0, "epoch 0, not 1"},
		"unseen intent": {
			intent, BeginIntent{FromEpoch: 2, Request: "b"}, 0, "intent is of epoch 3, not 0",
		},
		"replacement": {intent, BeginIntent{FromEpoch: 2, Replaces: 3}, 4, ""},
		"repeated":    {intent, BeginIntent{FromEpoch: 2, Request: "mine"}, 3, ""},
		"no request twice": {
			intent, BeginIntent{FromEpoch: 2}, 0, "intent is of epoch 3, not 0",
		},
		"unknown kind": {locked, BeginIntent{FromEpoch: 2, Kind: "reinit"}, 0, "not known"},
		"long cause": {
			locked, BeginIntent{FromEpoch: 2, Cause: strings.Repeat("x", 3000)}, 0, "longer than",
		},
	} {
		if tc.c.Kind == "" {
			tc.c.Kind = IntentFailover
		}
		next, r := apply(tc.s, Command{Kind: CommandBegin, Begin: &tc.c})
		if r.Epoch != tc.epoch || !strings.Contains(r.Refused, tc.words) ||
			(r.Refused == "") != (tc.words == "") {
			t.Errorf("%s: epoch %d, %q", name, r.Epoch, r.Refused)
		}
		if r.Refused != "" && next != tc.s {
			t.Errorf("%s: refused, but it took effect", name)
		}
	}
}

func TestStateTarget(t *testing.T) {
	open, r := begin(stateWith(t, "a"), "r", IntentFailover, "")
	chosen, _ := apply(open, targetCommand(r.Epoch, "b"))
	for name, tc := range map[string]struct {
		s     *State
		c     Command
		words string
	}{
		"chosen":         {open, targetCommand(2, "b"), ""},
		"repeated":       {chosen, targetCommand(2, "b"), ""},
		"another":        {chosen, targetCommand(2, "c"), `is "b" already`},
		"older intent":   {open, targetCommand(1, "b"), "no longer current"},
		"intent to come": {open, targetCommand(3, "b"), "no longer current"},
		"no intent":      {stateWith(t, "a"), targetCommand(1, "b"), "no longer current"},
		"nobody":         {open, targetCommand(2, ""), "needs a name"},
	} {
		next, r := apply(tc.s, tc.c)
		if (r.Refused == "") != (tc.words == "") || !strings.Contains(r.Refused, tc.words) {
			t.Errorf("%s: %q", name, r.Refused)
		}
		if want := tc.words == ""; want != (next.Intent != nil && next.Intent.To == "b") &&
			tc.s != chosen {
			t.Errorf("%s: intent %+v", name, next.Intent)
		}
	}
}

// TestStateCommit shows rule 1 of DESIGN 10: the lock of an intent that was replaced is void.
func TestStateCommit(t *testing.T) {
	base := stateWith(t, "a") // lock of epoch 1
	first, _ := begin(base, "r1", IntentSwitchover, "b")
	second, _ := begin(first, "r2", IntentRestart, "a")
	done, _ := commit(second, 3, "a")
	open, _ := begin(base, "r3", IntentFailover, "")
	for name, tc := range map[string]struct {
		s     *State
		c     Command
		words string
	}{
		"current":         {first, commitCommand(2, "b"), ""},
		"replaced":        {second, commitCommand(2, "b"), "epoch 2 is no longer current"},
		"replacement":     {second, commitCommand(3, "a"), ""},
		"repeated":        {done, commitCommand(3, "a"), ""},
		"replaced, later": {done, commitCommand(2, "b"), "no longer current"},
		"other holder":    {first, commitCommand(2, "c"), `is for "b", not "c"`},
		"no target":       {open, commitCommand(2, ""), `is for ""`},
		"no intent":       {base, commitCommand(2, "b"), "no longer current"},
		"same epoch, other lock": {done, Command{
			Kind: CommandCommitLock, Commit: &CommitLock{Lock: Lock{Epoch: 3, Holder: "b"}},
		}, "no longer current"},
	} {
		next, r := apply(tc.s, tc.c)
		if (r.Refused == "") != (tc.words == "") || !strings.Contains(r.Refused, tc.words) {
			t.Errorf("%s: %q", name, r.Refused)
		}
		if r.Refused != "" && next != tc.s {
			t.Errorf("%s: refused, but it took effect", name)
		}
		if r.Refused == "" && (next.Lock.Epoch != r.Epoch || next.Intent != nil) {
			t.Errorf("%s: lock %+v, intent %+v", name, next.Lock, next.Intent)
		}
	}
	if n := len(done.History); n != 2 || done.History[1].Kind != IntentRestart {
		t.Errorf("history: %+v", done.History)
	}
}

func TestStateCommitChecksTheSystem(t *testing.T) {
	s, r := begin(&State{V: Version}, "a", IntentBootstrap, "x")
	c := commitCommand(r.Epoch, "x")
	c.Commit.SystemID = "70"
	s, _ = apply(s, c)
	if s.SystemID != "70" {
		t.Fatalf("system identifier %q", s.SystemID)
	}
	s, r = begin(s, "b", IntentFailover, "y")
	c = commitCommand(r.Epoch, "y")
	c.Commit.SystemID = "71"
	if next, r := apply(s, c); next != s || !strings.Contains(r.Refused, "is 70, not 71") {
		t.Errorf("another system: %q", r.Refused)
	}
}

// TestStateCollectsTried: whoever may have been promoted under a replaced intent stays named.
func TestStateCollectsTried(t *testing.T) {
	s := stateWith(t, "a")
	for i, to := range []string{"b", "", "c", "b", "d"} {
		s, _ = begin(s, fmt.Sprint("t", i), IntentFailover, to)
	}
	if got := s.Intent.Tried; !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("tried: %v", got)
	}
	s, r := apply(s, commitCommand(s.Intent.Epoch, "d"))
	if r.Refused != "" {
		t.Fatal(r.Refused)
	}
	if s, _ = begin(s, "next", IntentFailover, ""); len(s.Intent.Tried) != 0 {
		t.Errorf("tried under the next lock: %v", s.Intent.Tried)
	}
}

func TestStateRegister(t *testing.T) {
	register := func(s *State, cluster string, n int) (*State, Result) {
		c := Command{Kind: CommandRegister, Register: &RegisterMembers{Cluster: cluster}}
		for i := range n {
			m := Member{Name: fmt.Sprint("n", i)}
			c.Register.Members = append(c.Register.Members, m)
		}
		return apply(s, c)
	}
	s, r := register(&State{V: Version}, "main", 3)
	if r.Refused != "" || s.Cluster != "main" || len(s.Members) != 3 {
		t.Fatalf("%+v, %q", s, r.Refused)
	}
	if next, r := register(s, "main", 3); next != s || r.Refused != "" {
		t.Error("the same members again are a change")
	}
	if next, r := register(s, "other", 3); next != s || r.Refused == "" {
		t.Error("another cluster was taken")
	}
	if next, r := register(s, "main", membersMax+1); next != s || r.Refused == "" {
		t.Error("too many members were taken")
	}
}

func TestStateHistoryIsBounded(t *testing.T) {
	s := &State{V: Version}
	for i := range historyMax + 20 {
		var r Result
		s, r = begin(s, fmt.Sprint(i), IntentFailover, "n")
		s, _ = commit(s, r.Epoch, "n")
	}
	n := len(s.History)
	if n != historyMax || s.History[n-1].Lock.Epoch != historyMax+20 ||
		s.History[0].Lock.Epoch != 21 {
		t.Errorf("%d entries, from epoch %d", n, s.History[0].Lock.Epoch)
	}
}

func TestStateUnknownCommandsChangeNothing(t *testing.T) {
	s := stateWith(t, "a")
	for _, c := range []Command{
		{}, {Kind: "x"}, {Kind: CommandBegin}, {Kind: CommandTarget}, {Kind: CommandRegister},
		{Kind: CommandCommitLock}, {Kind: CommandBegin, Target: &SetTarget{Epoch: 1}},
		{Kind: "X", Begin: &BeginIntent{Kind: IntentFailover, FromEpoch: 1}},
	} {
		if next, r := apply(s, c); next != s || !errors.Is(r.Err(), ErrConflict) {
			t.Errorf("%+v took effect", c)
		}
	}
	for text, words := range map[string]string{
		`{"v":99,"kind":"begin"}`: "version 99, this node knows 1",
		`{`:                       "decode command",
		`[]`:                      "decode command",
		``:                        "decode command",
	} {
		_, err := decodeCommand([]byte(text))
		wantError(t, err, words)
	}
}

// randomCommand is one that somebody might send who has seen what or something older.
func randomCommand(r *rand.Rand, seen *State) Command {
	names := []string{"", "a", "b", "c"}
	name := names[r.IntN(len(names))]
	switch r.IntN(8) {
	case 0:
		return Command{Kind: "unknown"}
	case 1:
		return Command{Kind: CommandRegister, Register: &RegisterMembers{
			Cluster: "main", Members: []Member{{Name: "a"}, {Name: name}},
		}}
	case 2, 3:
		return targetCommand(intentEpoch(seen)+uint64(r.IntN(3))-1, name)
	case 4, 5:
		to := name
		if seen.Intent != nil && r.IntN(4) > 0 {
			to = seen.Intent.To
		}
		return commitCommand(intentEpoch(seen), to)
	}
	return beginCommand(seen, fmt.Sprint(r.IntN(50)), IntentFailover, name)
}

// TestStateProperties applies commands of people who saw older states, some of them twice.
func TestStateProperties(t *testing.T) {
	runs := 300
	if testing.Short() {
		runs = 50
	}
	for seed := range runs {
		if err := runStateProperties(uint64(seed)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func runStateProperties(seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 2))
	states := []*State{{V: Version}}
	var texts []string
	owner := make(map[uint64]string) // request of each epoch
	holder := make(map[uint64]Lock)
	var last Command
	for range 150 {
		s := states[len(states)-1]
		c := last
		if r.IntN(5) > 0 {
			back := min(r.IntN(3), len(states)-1)
			c = randomCommand(r, states[len(states)-1-back])
		}
		last = c
		next, res := apply(s, c)
		again, resAgain := apply(next, c)
		if again != next && res.Refused == "" {
			return fmt.Errorf("%s repeated changes the state", c.Kind)
		}
		if res.Refused == "" && (resAgain.Refused != "" || resAgain.Epoch != res.Epoch) &&
			c.Kind != CommandRegister {
			return fmt.Errorf("%s repeated answers %+v after %+v", c.Kind, resAgain, res)
		}
		if err := checkStep(s, next, c, res, owner, holder); err != nil {
			return err
		}
		if next != s {
			b, err := json.Marshal(next)
			if err != nil {
				return err
			}
			states, texts = append(states, next), append(texts, string(b))
		}
	}
	for i, s := range states[1:] {
		if b, _ := json.Marshal(s); string(b) != texts[i] {
			return fmt.Errorf("state %d was changed after it was handed out", i)
		}
		if err := checkRoundTrip(s); err != nil {
			return err
		}
	}
	return nil
}

// checkStep checks one step: epochs grow, each has one owner, and at most one lock.
func checkStep(s, next *State, c Command, res Result, owner map[uint64]string,
	holder map[uint64]Lock,
) error {
	if res.Refused != "" && next != s {
		return fmt.Errorf("%s was refused (%s) and took effect", c.Kind, res.Refused)
	}
	if next.LastEpoch < s.LastEpoch || lockEpoch(next) < lockEpoch(s) ||
		intentEpoch(next) != 0 && intentEpoch(next) < intentEpoch(s) {
		return fmt.Errorf("an epoch went back: %+v after %+v", next, s)
	}
	if next.LastEpoch < max(lockEpoch(next), intentEpoch(next)) {
		return fmt.Errorf("an epoch beyond the counter: %+v", next)
	}
	if i := next.Intent; i != nil {
		if i.Epoch <= lockEpoch(next) || i.FromEpoch != lockEpoch(next) {
			return fmt.Errorf("intent %+v beside lock %+v", i, next.Lock)
		}
		if was, ok := owner[i.Epoch]; ok && was != i.Request {
			return fmt.Errorf("epoch %d was given to %q and %q", i.Epoch, was, i.Request)
		}
		owner[i.Epoch] = i.Request
	}
	if l := next.Lock; l != nil {
		if was, ok := holder[l.Epoch]; ok && was != *l {
			return fmt.Errorf("epoch %d is the lock of %q and %q", l.Epoch, was.Holder, l.Holder)
		}
		holder[l.Epoch] = *l
		if n := len(next.History); n == 0 || next.History[n-1].Lock != *l {
			return fmt.Errorf("lock %+v is not the end of the history", l)
		}
	}
	return nil
}

// TestStatesShareNothingThatChanges: two steps from one state do not see each other.
func TestStatesShareNothingThatChanges(t *testing.T) {
	base := stateWith(t, "a", "b", "c", "d", "e")
	var r Result
	for _, to := range []string{"t", "u", "v", "w", "x", "y", "z"} { // leaves a slice room
		base, r = begin(base, to, IntentFailover, to)
	}
	one, _ := apply(base, commitCommand(r.Epoch, "z"))
	c := commitCommand(r.Epoch, "z")
	c.Commit.Lock.XidLo = 9
	two, _ := apply(base, c)
	if one.History[5].Lock.XidLo != 0 || two.History[5].Lock.XidLo != 9 {
		t.Error("two histories share their end")
	}
	left, _ := begin(base, "l", IntentFailover, "l")
	right, _ := begin(base, "r", IntentFailover, "r")
	left, _ = begin(left, "l2", IntentFailover, "")
	right, _ = begin(right, "r2", IntentFailover, "")
	if l := left.Intent.Tried; !slices.Contains(l, "l") || slices.Contains(l, "r") ||
		!slices.Contains(right.Intent.Tried, "r") {
		t.Errorf("tried: %v, %v", l, right.Intent.Tried)
	}
}

// Evidence goes from the command to the history, and old changes lose theirs.
func TestStateKeepsEvidence(t *testing.T) {
	s := &State{V: Version}
	for i := range evidenceKept + 3 {
		c := beginCommand(s, fmt.Sprint("r", i), IntentFailover, "a")
		c.Begin.Evidence = []string{fmt.Sprint("line ", i)}
		var r Result
		s, r = apply(s, c)
		if s, r = commit(s, r.Epoch, "a"); r.Refused != "" {
			t.Fatal(r.Refused)
		}
	}
	for i, c := range s.History {
		isKept := i >= 3
		if (len(c.Evidence) == 1) != isKept || isKept && c.Evidence[0] != fmt.Sprint("line ", i) {
			t.Errorf("change %d has evidence %q", i, c.Evidence)
		}
	}
	for _, bad := range [][]string{
		make([]string, evidenceMax+1), {strings.Repeat("x", textBytesMax+1)},
	} {
		c := beginCommand(s, "bad", IntentFailover, "a")
		c.Begin.Evidence = bad
		if next, r := apply(s, c); r.Refused == "" || next != s {
			t.Error("evidence without bound was taken")
		}
		if got := boundedEvidence(bad); evidenceTooLong(got) != "" {
			t.Error("bounded evidence is refused")
		}
	}
}
