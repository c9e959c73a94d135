package election

import (
	"bytes"
	"encoding/json"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// fuzzMembers are those of the seeds.
var fuzzMembers = []Member{
	{Name: "a", Address: "127.0.0.1:1", Postgres: "127.0.0.1:2"},
	{Name: "b", Address: "127.0.0.1:3", Postgres: "127.0.0.1:4", Priority: 2},
	{Name: "w", Address: "127.0.0.1:5"},
}

// fuzzCommands are a group's life in commands, each of which is taken.
func fuzzCommands() []Command {
	c := MemberChange{Kind: MemberAdd, Request: "m1", Member: Member{Name: "c", Address: "c:1"}}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))
	rules := unrecorded(SyncRule{Wait: 1, Names: []string{"b"}})
	return []Command{
		{Kind: CommandRegister, Register: &RegisterMembers{Cluster: "x", Members: fuzzMembers}},
		{Kind: CommandBegin, Begin: &BeginIntent{Request: "r1", Kind: IntentBootstrap, To: "a",
			Cause: "new", Evidence: []string{"all answer"}}},
		{Kind: CommandCommitLock, Commit: &CommitLock{Lock: Lock{Epoch: 1, Holder: "a", Timeline: 1,
			PromotionLSN: 7, XidLo: 3, XidHi: 9, Incarnation: "17"}, SystemID: "7", At: at,
			PhasesMS: map[string]int64{"promote": 5}, Slots: []string{"s lost"}}},
		{Kind: CommandSync, Sync: &SetSync{V: 1, Epoch: 1, Rules: rules}},
		{Kind: CommandMaintenance, Maintenance: &SetMaintenance{On: true, Reason: "disk", At: at}},
		{Kind: CommandMembers, Members: &ChangeMembers{Begin: &c}},
		{Kind: CommandAnnounce, Announce: &Announcement{FromEpoch: 1, To: "b"}},
		{Kind: CommandVoters, Voters: &ChangeVoters{Add: "c"}},
		{Kind: CommandVoters, Voters: &ChangeVoters{Version: 1, Settle: true}},
		{Kind: CommandMembers, Members: &ChangeMembers{End: "m1"}},
		{Kind: CommandBegin, Begin: &BeginIntent{Request: "r2", Kind: IntentFailover, From: "a",
			FromEpoch: 1, Cause: "lost", Slots: []LogicalSlot{{Name: "l"}}}},
		{Kind: CommandTarget, Target: &SetTarget{Epoch: 2, To: "b"}},
		{Kind: CommandCommitLock, Commit: &CommitLock{Lock: Lock{Epoch: 2, Holder: "b", Timeline: 2},
			At: at, Sync: &SyncRule{Wait: 1, Names: []string{"a"}}}},
	}
}

// fuzzLog is the log of the commands, and the snapshot of what they make.
func fuzzLog(f testing.TB) (entries [][]byte, snap []byte) {
	f.Helper()
	m := newFSM()
	for i, c := range fuzzCommands() {
		b, err := encodeCommand(c)
		if err != nil {
			f.Fatal(err)
		}
		a, _ := m.Apply(&raft.Log{Index: uint64(i + 1), Data: b}).(applied)
		if a.err != nil || a.result.Refused != "" {
			f.Fatalf("%s: %+v", b, a)
		}
		entries = append(entries, b)
	}
	return entries, snapshotOf(f, m)
}

// snapshotOf is what is written of a state.
func snapshotOf(t testing.TB, m *fsm) []byte {
	t.Helper()
	snap, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var sink memorySink
	if err := snap.Persist(&sink); err != nil {
		t.Fatal(err)
	}
	return sink.Bytes()
}

// stateText is a state as it is written; times are the same in it whatever their location is.
func stateText(t testing.TB, m *fsm) string {
	t.Helper()
	b, err := json.Marshal(m.state)
	if err != nil {
		t.Fatalf("a state that cannot be written: %v", err)
	}
	return string(b)
}

// fuzzRestore gives an FSM the snapshot; one that is refused leaves the state alone.
func fuzzRestore(t *testing.T, snap []byte) *fsm {
	t.Helper()
	m := newFSM()
	before := m.state
	if err := m.Restore(io.NopCloser(bytes.NewReader(snap))); err != nil && m.state != before {
		t.Errorf("a snapshot that is refused (%v) took effect: %s", err, stateText(t, m))
	}
	return m
}

// FuzzFSM: a snapshot and a log of any bytes make the same state on each node, whether it has
// applied all of the log or begun with a snapshot in its middle; an entry that is refused changes
// nothing, and none changes a state that readers have.
func FuzzFSM(f *testing.F) {
	entries, snap := fuzzLog(f)
	f.Add([]byte(nil), bytes.Join(entries, []byte("\n")))
	f.Add(snap, bytes.Join(entries[10:], []byte("\n")))
	for i, e := range entries {
		f.Add([]byte(nil), bytes.Join(entries[:i], []byte("\n")))
		f.Add(snap, e)
	}
	f.Add(snap[:len(snap)/2], []byte(`{"v":2,"kind":"begin"}`+"\n"+`{"v":1,"kind":"drop"}`))
	f.Fuzz(func(t *testing.T, snap, log []byte) {
		a, b := fuzzRestore(t, snap), fuzzRestore(t, snap)
		lines := bytes.Split(log, []byte("\n"))
		var c *fsm // begins in the middle
		for i, line := range lines {
			if i == len(lines)/2 && a.problem() == nil {
				c = fuzzRestore(t, snapshotOf(t, a))
				if got, want := stateText(t, c), stateText(t, a); got != want {
					t.Fatalf("restored %s, was %s", got, want)
				}
			}
			shared, was := a.state, stateText(t, a)
			entry := &raft.Log{Index: a.index + 1, Data: line}
			ra, _ := a.Apply(entry).(applied)
			rb, _ := b.Apply(entry).(applied)
			if ra.result != rb.result || (ra.err == nil) != (rb.err == nil) {
				t.Fatalf("%s: %+v on one, %+v on the other", line, ra, rb)
			}
			if (ra.err != nil || ra.result.Refused != "") && a.state != shared {
				t.Fatalf("%s: refused (%+v), and took effect", line, ra)
			}
			if now := stateText(t, &fsm{state: shared}); now != was {
				t.Fatalf("%s changed the state that readers have from %s to %s", line, was, now)
			}
			if c != nil {
				if rc, _ := c.Apply(entry).(applied); rc.result != ra.result {
					t.Fatalf("%s: %+v, behind a snapshot %+v", line, ra, rc)
				}
			}
		}
		want := stateText(t, a)
		if got := stateText(t, b); got != want {
			t.Errorf("%s on one, %s on the other", want, got)
		}
		if c != nil && stateText(t, c) != want {
			t.Errorf("%s, behind a snapshot %s", want, stateText(t, c))
		}
	})
}
