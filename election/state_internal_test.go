package election

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"
)

func begin(s *State, request string, kind IntentKind, to string) (*State, Result) {
	return apply(s, Command{Kind: CommandBegin, Begin: &BeginIntent{
		Request: request, Kind: kind, FromEpoch: lockEpoch(s), Replaces: intentEpoch(s), To: to,
	}})
}

func commit(s *State, epoch uint64, holder string) (*State, Result) {
	return apply(s, Command{Kind: CommandCommitLock, Commit: &CommitLock{
		Lock: Lock{Epoch: epoch, Holder: holder}, At: time.Unix(1, 0),
	}})
}

// TestEpochsAreNeverReused shows I1, also when intents replace one another.
func TestEpochsAreNeverReused(t *testing.T) {
	s := &State{V: Version}
	last := uint64(0)
	for i := range 50 {
		var r Result
		s, r = begin(s, string(rune('a'+i)), IntentFailover, "n")
		if r.Refused != "" || r.Epoch <= last {
			t.Fatalf("epoch %d after %d: %s", r.Epoch, last, r.Refused)
		}
		last = r.Epoch
		if i%3 == 0 {
			if s, r = commit(s, last, "n"); r.Refused != "" {
				t.Fatal(r.Refused)
			}
		}
	}
	if len(s.History) != 17 {
		t.Errorf("%d entries of history", len(s.History))
	}
}

func TestOvertakenIntentIsVoid(t *testing.T) {
	s, first := begin(&State{V: Version}, "a", IntentFailover, "x")
	s, again := begin(s, "a", IntentFailover, "x")
	if again.Epoch != first.Epoch {
		t.Error("a repeated command took a second epoch")
	}
	s, second := begin(s, "b", IntentFailover, "y")
	if _, r := commit(s, first.Epoch, "x"); r.Refused == "" {
		t.Error("the lock of an intent that was replaced was entered")
	}
	if got := s.Intent.Tried; len(got) != 1 || got[0] != "x" {
		t.Errorf("tried: %v", got)
	}
	target := Command{Kind: CommandTarget, Target: &SetTarget{Epoch: second.Epoch, To: "z"}}
	if _, r := apply(s, target); r.Refused == "" {
		t.Error("a second target was set")
	}
	stale := Command{Kind: CommandBegin, Begin: &BeginIntent{FromEpoch: 7, Request: "c"}}
	if next, r := apply(s, stale); r.Refused == "" || next != s {
		t.Error("a command that expected another lock took effect")
	}
	if err := (Result{Refused: "x"}).Err(); !errors.Is(err, ErrConflict) {
		t.Error("a refusal is no conflict")
	}
}

func TestOldStatesStay(t *testing.T) {
	s, r := begin(&State{V: Version}, "a", IntentBootstrap, "x")
	s, _ = commit(s, r.Epoch, "x")
	before, _ := json.Marshal(s)
	next, r := begin(s, "b", IntentFailover, "y")
	next, _ = commit(next, r.Epoch, "y")
	_ = next
	if after, _ := json.Marshal(s); string(after) != string(before) {
		t.Error("a state that was handed out has changed")
	}
}

func TestUnknownCommandsChangeNothing(t *testing.T) {
	s := &State{V: Version}
	for _, c := range []Command{{}, {Kind: "x"}, {Kind: CommandBegin}, {Kind: CommandTarget}} {
		if next, r := apply(s, c); next != s || r.Refused == "" {
			t.Errorf("%+v took effect", c)
		}
	}
	if _, err := decodeCommand([]byte(`{"v":99,"kind":"begin"}`)); err == nil {
		t.Error("an entry of a newer release was read")
	}
	if _, err := decodeCommand([]byte(`{`)); err == nil {
		t.Error("garbage was read")
	}
}

func TestCommandSurvivesTheLog(t *testing.T) {
	c := Command{V: Version, Kind: CommandCommitLock, Commit: &CommitLock{
		Lock:     Lock{Epoch: 3, Holder: "a", XidLo: 1, XidHi: 2, PromotionLSN: 77},
		PhasesMS: map[string]int64{"promote": 5}, At: time.Unix(5, 0).UTC(),
	}}
	b, err := encodeCommand(c)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeCommand(b); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("%v: %+v", err, got)
	}
}
