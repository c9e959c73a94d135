package election

import (
	"encoding/json"
	"strings"
	"testing"
)

func syncState() *State {
	s := &State{V: Version, LastEpoch: 4, Lock: &Lock{Epoch: 4, Holder: "pg1", Timeline: 1}}
	for _, n := range []string{"pg1", "pg2", "pg3", "pg4"} {
		s.Members = append(s.Members, Member{Name: n, Postgres: n + ":5432"})
	}
	s.Members = append(s.Members, Member{Name: "witness"})
	return s
}

func anyOf(wait int, names ...string) SyncRule { return SyncRule{Wait: wait, Names: names} }

func setSync(s *State, rules ...SyncRule) (*State, Result) {
	return apply(s, Command{Kind: CommandSync, Sync: &SetSync{Epoch: lockEpoch(s), Seq: syncSeq(s),
		Rules: rules}})
}

var (
	syncBoth = anyOf(1, "pg2", "pg3")
	syncOne  = anyOf(1, "pg2")
	syncTwo  = anyOf(2, "pg2", "pg3")
	syncFar  = anyOf(1, "pg4")
)

var stateSyncCases = map[string]struct {
	have, next []SyncRule
	words      string
}{
	"first":            {nil, []SyncRule{syncBoth}, ""},
	"first of two":     {nil, []SyncRule{syncBoth, syncTwo}, ""},
	"first unsure":     {nil, []SyncRule{syncTwo}, "only the rule that was"},
	"first joint":      {nil, []SyncRule{syncOne, syncBoth}, "only the rule that was"},
	"narrower":         {[]SyncRule{syncBoth}, []SyncRule{syncBoth, syncOne}, ""},
	"wider":            {[]SyncRule{syncOne}, []SyncRule{syncOne, syncBoth}, ""},
	"more":             {[]SyncRule{syncBoth}, []SyncRule{syncBoth, syncTwo}, ""},
	"nobody":           {[]SyncRule{syncBoth}, []SyncRule{syncBoth, {}}, ""},
	"back from nobody": {[]SyncRule{{}}, []SyncRule{{}, syncTwo}, ""},
	"without the old": {[]SyncRule{syncBoth},
		[]SyncRule{syncOne}, "only the rule that was entered"},
	"another":    {[]SyncRule{syncOne}, []SyncRule{syncOne, syncFar}, "in one step"},
	"left alone": {[]SyncRule{syncBoth, syncOne}, []SyncRule{syncOne}, ""},
	"the older alone": {[]SyncRule{syncBoth, syncOne},
		[]SyncRule{syncBoth}, "only the rule that was"},
	"back":     {[]SyncRule{syncBoth, syncOne}, []SyncRule{syncOne, syncBoth}, ""},
	"given up": {[]SyncRule{syncBoth, syncOne}, []SyncRule{syncBoth, syncOne, {}}, ""},
	"a third": {[]SyncRule{syncBoth, syncOne},
		[]SyncRule{syncBoth, syncOne, syncTwo}, "in one step"},
	"the holder itself":  {nil, []SyncRule{anyOf(1, "pg1")}, "no standby"},
	"a witness":          {nil, []SyncRule{anyOf(1, "witness")}, "no standby"},
	"twice":              {nil, []SyncRule{anyOf(1, "pg2", "pg2")}, "there twice"},
	"more than there is": {nil, unrecorded(anyOf(3, "pg2", "pg3")), "wait for 3 of 2"},
	"none":               {nil, nil, "no rule"},
}

// TestStateSync: the record changes by joint steps only, by compare-and-set (DESIGN.md I40, I41).
func TestStateSync(t *testing.T) {
	for name, tc := range stateSyncCases {
		t.Run(name, func(t *testing.T) {
			s := syncState()
			if tc.have != nil {
				s.Sync = &SyncRecord{Seq: 7, Epoch: 4, Rules: tc.have}
			}
			before, _ := json.Marshal(s)
			next, res := setSync(s, tc.next...)
			if !strings.Contains(res.Refused, tc.words) || (res.Refused == "") != (tc.words == "") {
				t.Fatalf("answer is %q, want %q", res.Refused, tc.words)
			}
			if after, _ := json.Marshal(s); string(after) != string(before) {
				t.Error("the old state was changed")
			}
			if tc.words == "" && (next.Sync.Seq != syncSeq(s)+1 || len(next.Sync.Rules) != len(tc.next)) {
				t.Errorf("record is %+v", next.Sync)
			}
		})
	}
}

func TestStateSyncCompareAndSet(t *testing.T) {
	s := syncState()
	first := Command{Kind: CommandSync, Sync: &SetSync{Epoch: 4, Rules: []SyncRule{anyOf(1, "pg2")}}}
	s, _ = apply(s, first)
	b, err := encodeCommand(first)
	if err != nil {
		t.Fatal(err)
	}
	if read, err := decodeCommand(b); err != nil || len(read.Sync.Rules) != 1 {
		t.Errorf("from the log it is read as %+v: %v", read, err)
	}
	if again, res := apply(s, first); again != s || res.Refused != "" {
		t.Errorf("repeated: %q", res.Refused)
	}
	joint := *first.Sync
	joint.Seq, joint.Rules = 1, []SyncRule{anyOf(1, "pg2"), {}}
	for name, change := range map[string]func(*SetSync, *State){
		"another lock": func(c *SetSync, _ *State) { c.Epoch = 3 },
		"older change": func(c *SetSync, _ *State) { c.Seq = 0 },
		"under an intent": func(_ *SetSync, s *State) {
			s.Intent = &Intent{Epoch: 5, Kind: IntentFailover}
		},
		"newer release": func(c *SetSync, _ *State) { c.V = SyncVersion + 1 },
		"no lock":       func(_ *SetSync, s *State) { s.Lock = nil },
		"a long text": func(c *SetSync, _ *State) {
			c.Degraded = &SyncDegraded{Why: strings.Repeat("x", textBytesMax+1)}
		},
	} {
		c, st := joint, *s
		change(&c, &st)
		if _, res := apply(&st, Command{Kind: CommandSync, Sync: &c}); res.Refused == "" {
			t.Errorf("%s: not refused", name)
		}
	}
	if _, res := apply(s, Command{Kind: CommandSync, Sync: &joint}); res.Refused != "" {
		t.Error(res.Refused)
	}
}

// TestSyncAfterCommit: a new holder begins with the rule of its promotion; one that is restarted
// keeps all of its own; what an older release commits says nothing.
func TestSyncAfterCommit(t *testing.T) {
	s := syncState()
	s.Sync = &SyncRecord{Seq: 7, Epoch: 4, Rules: []SyncRule{{}, anyOf(1, "pg2")},
		Degraded: &SyncDegraded{Why: "test"}}
	next := syncAfterCommit(s, Lock{Epoch: 6, Holder: "pg1"}, nil)
	if next.Seq != 8 || next.Epoch != 6 || len(next.Rules) != 2 || next.Degraded == nil {
		t.Errorf("after a restart: %+v", next)
	}
	rule := anyOf(1, "pg1", "pg3")
	next = syncAfterCommit(s, Lock{Epoch: 6, Holder: "pg2"}, &rule)
	if next.Seq != 8 || next.Epoch != 6 || len(next.Rules) != 1 || !next.Rules[0].equal(rule) ||
		next.Degraded != nil {
		t.Errorf("after a promotion: %+v", next)
	}
	st := *s
	st.Lock = &Lock{Epoch: 6, Holder: "pg2"}
	st.Sync = syncAfterCommit(s, *st.Lock, nil)
	p := DefaultPolicy(Timing{})
	if got := SyncRules(&st, p); st.Sync.Seq != 8 || len(got) != 1 || got[0].Setting() !=
		`ANY 1 ("pg1","pg3","pg4")` {
		t.Errorf("after a promotion by an older release: %+v, rules %v", st.Sync, got)
	}
	s.Sync = nil
	if got := syncAfterCommit(s, Lock{Epoch: 6, Holder: "pg2"}, nil); got != nil {
		t.Errorf("without a record: %+v", got)
	}
}

// TestSyncOfOldState: a state without the record is read as before there was one.
func TestSyncOfOldState(t *testing.T) {
	var s State
	text := `{"v":1,"lock":{"epoch":3,"holder":"pg1"},"members":[{"name":"pg1","postgres":"a:1"},
		{"name":"pg2","postgres":"b:1"},{"name":"pg3","postgres":"c:1"}]}`
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	p := DefaultPolicy(Timing{})
	if got := SyncRules(&s, p); len(got) != 1 || got[0].Setting() != `ANY 1 ("pg2","pg3")` {
		t.Errorf("rules are %v", got)
	}
	// The configuration may ask for more than it did when commits were acknowledged.
	p.SyncWait = 2
	sel := Selection{Lock: *s.Lock, Sync: SyncRules(&s, p), Recruits: []Recruit{
		{Member: Member{Name: "pg3"}, LSN: 5}}, Silent: map[string]string{"pg2": "is down"}}
	if c := Choose(sel); c.To != "" || len(sel.Sync) != 2 || sel.Sync[1].Wait != 2 {
		t.Errorf("by %v one of two standbys is promoted: %+v", sel.Sync, c)
	}
	b, _ := json.Marshal(&s)
	if strings.Contains(string(b), "sync") {
		t.Errorf("it is written as %s", b)
	}
}

func TestParseSyncSetting(t *testing.T) {
	for _, r := range []SyncRule{{MayLose: true}, anyOf(1, "a"), anyOf(2, "a-1", "b.c", "d")} {
		if got, ok := parseSyncSetting(r.Setting()); !ok || !got.equal(r) {
			t.Errorf("%q is read as %+v", r.Setting(), got)
		}
	}
	for _, s := range []string{"*", "a", "FIRST 1 (a)", `ANY x ("a")`, `ANY 1 "a"`} {
		if _, ok := parseSyncSetting(s); ok {
			t.Errorf("%q is read", s)
		}
	}
}
