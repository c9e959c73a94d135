package election

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// checkRoundTrip takes a state through a snapshot.
func checkRoundTrip(s *State) error {
	f, g := newFSM(), newFSM()
	f.publishLocked(s, 42)
	snap, err := f.Snapshot()
	if err != nil {
		return err
	}
	var sink memorySink
	if err := snap.Persist(&sink); err != nil {
		return err
	}
	_, changed := g.State()
	if err := g.Restore(io.NopCloser(&sink.Buffer)); err != nil {
		return err
	}
	select {
	case <-changed:
	default:
		return errors.New("a restored state was not published")
	}
	got, index, _ := g.at()
	if index != 42 || !reflect.DeepEqual(got, s) {
		return fmt.Errorf("restored %+v at %d, saved %+v", got, index, s)
	}
	return nil
}

// memorySink is a raft.SnapshotSink in memory.
type memorySink struct {
	bytes.Buffer
	fail                error
	cancelled, isClosed bool
}

var _ raft.SnapshotSink = (*memorySink)(nil)

func (m *memorySink) Write(p []byte) (int, error) {
	if m.fail != nil {
		return 0, m.fail
	}
	return m.Buffer.Write(p)
}

func (m *memorySink) ID() string { return "test" }

func (m *memorySink) Cancel() error {
	m.cancelled = true
	return nil
}

func (m *memorySink) Close() error {
	m.isClosed = true
	return nil
}

func TestFSMSnapshotErrors(t *testing.T) {
	f := newFSM()
	snap, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	full := &memorySink{fail: errDisk}
	if err := snap.Persist(full); !errors.Is(err, errDisk) || !full.cancelled || full.isClosed {
		t.Errorf("on a full disk: %v, %+v", err, full)
	}
	before, _ := f.State()
	for text, words := range map[string]string{
		`{"v":1,"index":3,"state":`:     "read snapshot",
		`{"v":2,"state":{"v":2}}`:       "newer than 1; upgrade",
		`{"v":1,"index":3}`:             "no state",
		`{"v":1,"index":"x","state":0}`: "read snapshot",
	} {
		wantError(t, f.Restore(io.NopCloser(strings.NewReader(text))), words)
		if s, _ := f.State(); s != before {
			t.Errorf("%s took effect", text)
		}
	}
}

func TestFSMAppliesTheLog(t *testing.T) {
	f := newFSM()
	_, changed := f.State()
	b, err := encodeCommand(beginCommand(f.state, "a", IntentBootstrap, "x"))
	if err != nil {
		t.Fatal(err)
	}
	a, ok := f.Apply(&raft.Log{Index: 7, Data: b}).(applied)
	if !ok || a.err != nil || a.result.Epoch != 1 {
		t.Fatalf("%+v", a)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	s, index, changed := f.at()
	if s.LastEpoch != 1 || index != 7 {
		t.Errorf("state %+v at %d", s, index)
	}
	// What changes nothing wakes nobody, and garbage is an error and not a panic.
	if a, _ := f.Apply(&raft.Log{Index: 8, Data: b}).(applied); a.result.Epoch != 1 {
		t.Errorf("repeated: %+v", a)
	}
	for _, data := range []string{"", "{", `{"v":`} {
		if a, _ := f.Apply(&raft.Log{Index: 9, Data: []byte(data)}).(applied); a.err == nil {
			t.Errorf("%q was taken", data)
		}
	}
	select {
	case <-changed:
		t.Error("somebody was told of nothing")
	default:
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

// An entry of a newer release stops the state for good: what follows rests on it, and a snapshot
// would hide it from the release that understands it.
func TestFSMStopsAtAnEntryOfANewerRelease(t *testing.T) {
	for _, newer := range []string{`{"v":9,"kind":"begin"}`, `{"v":1,"kind":"merge"}`} {
		f := newFSM()
		before, _ := f.State()
		if a, _ := f.Apply(&raft.Log{Index: 3, Data: []byte(newer)}).(applied); a.err == nil {
			t.Fatalf("%s was taken", newer)
		}
		b, err := encodeCommand(beginCommand(f.state, "a", IntentBootstrap, "x"))
		if err != nil {
			t.Fatal(err)
		}
		a, _ := f.Apply(&raft.Log{Index: 4, Data: b}).(applied)
		wantError(t, a.err, "entry 3")
		wantError(t, f.problem(), "upgrade this node")
		if s, _ := f.State(); s != before {
			t.Error("the state went on")
		}
		if _, err := f.Snapshot(); err == nil {
			t.Error("a snapshot hides the entry")
		}
		// What a newer leader has already put into a snapshot, this release can read or refuses.
		if err := f.Restore(io.NopCloser(strings.NewReader(`{"v":1,"state":{"v":1}}`))); err != nil {
			t.Error(err)
		}
		if f.problem() != nil {
			t.Error("a whole state does not help")
		}
	}
}

// TestUnplannedChangesAreCountedHere: each node counts what it saw entered; what was in its log
// when it started has an unknown age, and what an operator asked for does not count.
func TestUnplannedChangesAreCountedHere(t *testing.T) {
	f := newFSM()
	index := uint64(0)
	do := func(c Command) {
		t.Helper()
		b, err := encodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		index++
		a := f.Apply(&raft.Log{Index: index, Data: b}).(applied)
		if a.err != nil || a.result.Refused != "" {
			t.Fatalf("%s: %+v", c.Kind, a)
		}
	}
	change := func(kind IntentKind, planned bool) {
		t.Helper()
		s, _ := f.State()
		do(Command{Kind: CommandBegin, Begin: &BeginIntent{
			Kind: kind, To: "pg1", FromEpoch: lockEpoch(s), StopsHolder: planned,
		}})
		s, _ = f.State()
		do(Command{Kind: CommandCommitLock, Commit: &CommitLock{Lock: Lock{
			Epoch: s.Intent.Epoch, Holder: "pg1",
		}}})
	}
	f.startAt(4)
	change(IntentFailover, false)
	change(IntentFailover, false) // both are replayed
	for _, tc := range []struct {
		kind    IntentKind
		planned bool
		want    int
	}{
		{IntentFailover, false, 1}, {IntentRestart, false, 2}, {IntentRestart, true, 2},
		{IntentSwitchover, false, 2}, {IntentBootstrap, false, 2},
	} {
		change(tc.kind, tc.planned)
		if ages := f.unplannedAges(); len(ages) != tc.want {
			t.Errorf("after %s, planned %v: %v", tc.kind, tc.planned, ages)
		}
	}
	for range 3 * unplannedKept {
		change(IntentFailover, false)
	}
	if n := len(f.unplannedAges()); n != unplannedKept {
		t.Errorf("%d are kept", n)
	}
}

func TestMaintenanceCommand(t *testing.T) {
	on := Command{Kind: CommandMaintenance, Maintenance: &SetMaintenance{On: true, Reason: "r"}}
	off := Command{Kind: CommandMaintenance, Maintenance: &SetMaintenance{}}
	s := &State{V: Version}
	next, r := apply(s, on)
	if r.Refused != "" || next.Maintenance == nil || next.Maintenance.Reason != "r" ||
		s.Maintenance != nil {
		t.Fatalf("%+v %+v", next, r)
	}
	if again, _ := apply(next, on); again != next {
		t.Error("the same again changes the state")
	}
	if ended, _ := apply(next, off); ended.Maintenance != nil || next.Maintenance == nil {
		t.Errorf("%+v", ended)
	}
	long := Command{Kind: CommandMaintenance, Maintenance: &SetMaintenance{
		On: true, Reason: strings.Repeat("x", textBytesMax+1),
	}}
	if _, r := apply(s, long); r.Refused == "" {
		t.Error("a reason without bounds is taken")
	}
}
