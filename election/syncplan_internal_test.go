package election

import (
	"maps"
	"slices"
	"testing"
	"time"
)

// syncScene is a plan with standbys that have been there (+) or away (-) for some seconds.
func syncScene(mode string, wait int, rules []SyncRule, seen map[string]int) syncPlan {
	p := DefaultPolicy(Timing{})
	p.SyncMode, p.SyncWait = mode, wait
	sp := syncPlan{policy: p, members: syncState().Members, holder: "pg1", rules: rules,
		seen: map[string]syncSeen{}, returnAfter: p.SyncReturnAfter}
	for name, s := range seen {
		sp.seen[name] = syncSeen{s > 0, time.Duration(max(s, -s)) * time.Second}
	}
	return sp
}

type planRules = []SyncRule

// Who is there: everybody, nobody, only pg2.
var (
	planHere     = map[string]int{"pg2": 60, "pg3": 60, "pg4": 60}
	planAway     = map[string]int{"pg2": -60, "pg3": -60, "pg4": -60}
	planOnly2    = map[string]int{"pg2": 60, "pg3": -60, "pg4": -60}
	planAll      = anyOf(1, "pg2", "pg3", "pg4")
	planTwoOfAll = anyOf(2, "pg2", "pg3", "pg4")
	planThree    = anyOf(3, "pg2", "pg3", "pg4")
)

// planWith is everybody there, but one as given.
func planWith(name string, s int) map[string]int {
	out := maps.Clone(planHere)
	out[name] = s
	return out
}

var syncPlanCases = map[string]struct {
	mode   string
	wait   int
	rules  planRules
	seen   map[string]int
	proved bool
	want   planRules
}{
	"steady":            {SyncQuorum, 1, planRules{planAll}, planHere, true, nil},
	"away for a moment": {SyncQuorum, 1, planRules{planAll}, planWith("pg4", -9), true, nil},
	"away for long": {SyncQuorum, 1, planRules{planAll},
		planWith("pg4", -11), true, planRules{planAll, syncBoth}},
	"back for a moment": {SyncQuorum, 1, planRules{syncBoth}, planWith("pg4", 1), true, nil},
	"back": {SyncQuorum, 1, planRules{syncBoth},
		planWith("pg4", 3), true, planRules{syncBoth, planAll}},
	"not proved":  {SyncQuorum, 1, planRules{syncBoth, planAll}, planHere, false, nil},
	"proved":      {SyncQuorum, 1, planRules{syncBoth, planAll}, planHere, true, planRules{planAll}},
	"nobody left": {SyncQuorum, 1, planRules{planAll}, planAway, true, planRules{planAll, {}}},
	"nobody left, in between": {SyncQuorum, 1, planRules{syncBoth, planAll},
		planAway, false, planRules{syncBoth, planAll, {}}},
	"degraded":                {SyncQuorum, 1, planRules{{}}, planAway, true, nil},
	"healed":                  {SyncQuorum, 1, planRules{{}}, planHere, true, planRules{{}, planAll}},
	"strict waits":            {SyncStrict, 1, planRules{planAll}, planAway, true, nil},
	"strict waits in between": {SyncStrict, 1, planRules{syncBoth, planAll}, planAway, false, nil},
	"strict narrows": {SyncStrict, 1, planRules{planAll},
		planWith("pg4", -11), true, planRules{planAll, syncBoth}},
	"strict does not wait less": {SyncStrict, 3, planRules{planThree},
		planWith("pg4", -11), true, nil},
	"waits for fewer": {SyncQuorum, 3, planRules{planThree},
		planWith("pg4", -11), true, planRules{planThree, planTwoOfAll}},
	"waits for all again": {SyncQuorum, 2, planRules{syncBoth},
		planWith("pg4", -60), true, planRules{syncBoth, syncTwo}},
	"stuck on the way to more": {SyncQuorum, 2, planRules{syncBoth, syncTwo},
		planOnly2, false, planRules{syncTwo, syncBoth}},
	"on names one": {SyncOn, 1, planRules{planAll},
		planHere, true, planRules{planAll, anyOf(1, "pg2")}},
	"on keeps it": {SyncOn, 1, planRules{anyOf(1, "pg3")}, planHere, true, nil},
	"on takes another": {SyncOn, 1, planRules{anyOf(1, "pg3")},
		planWith("pg3", -11), true, planRules{anyOf(1, "pg3"), anyOf(1, "pg2", "pg3")}},
	"on has the other": {SyncOn, 1, planRules{anyOf(1, "pg2", "pg3")},
		planWith("pg3", -11), true, planRules{anyOf(1, "pg2", "pg3"), anyOf(1, "pg2")}},
	"on has none": {SyncOn, 1, planRules{anyOf(1, "pg3")},
		planAway, true, planRules{anyOf(1, "pg3"), {}}},
	"off": {SyncOff, 1, planRules{{MayLose: true}}, planHere, true, nil},
	"turned off": {SyncOff, 1, planRules{planAll},
		planHere, true, planRules{planAll, {MayLose: true}}},
	"turned off on the way": {SyncOff, 1, planRules{syncBoth, planAll},
		planHere, false, planRules{syncBoth, planAll, {MayLose: true}}},
	"turned on": {SyncQuorum, 1, planRules{{MayLose: true}},
		planHere, true, planRules{{MayLose: true}, planAll}},
	"turned on, nobody is there": {SyncQuorum, 1, planRules{{MayLose: true}},
		planAway, true, planRules{{MayLose: true}, {}}},
}

func TestSyncPlan(t *testing.T) {
	for name, tc := range syncPlanCases {
		t.Run(name, func(t *testing.T) {
			sp := syncScene(tc.mode, tc.wait, tc.rules, tc.seen)
			sp.isProved = tc.proved
			got, ok := sp.next()
			if ok != (tc.want != nil) || !slices.EqualFunc(got, tc.want, SyncRule.equal) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
			if ok {
				if why := syncStepWrong(tc.rules, got); why != "" {
					t.Error(why)
				}
			}
		})
	}
}

// TestSyncPlanSettles: from any rules and standbys that stay as they are, the plan comes to rest
// within a few steps, each of which the state accepts (DESIGN.md I7, I41).
func TestSyncPlanSettles(t *testing.T) {
	names := []string{"pg2", "pg3", "pg4"}
	for _, mode := range SyncModes() {
		for wait := 1; wait <= 3; wait++ {
			for there := range 8 {
				for set := range 8 {
					seen, start := map[string]int{}, SyncRule{}
					for i, n := range names {
						seen[n] = -60
						if there>>i&1 == 1 {
							seen[n] = 60
						}
						if set>>i&1 == 1 {
							start.Names = append(start.Names, n)
							start.Wait = min(start.Wait+1, wait)
						}
					}
					settleSync(t, syncScene(mode, wait, []SyncRule{start}, seen))
				}
			}
		}
	}
}

func settleSync(t *testing.T, sp syncPlan) {
	t.Helper()
	s := syncState()
	s.Sync = &SyncRecord{Seq: 1, Epoch: 4, Rules: sp.rules}
	from := sp.rules
	for range 20 {
		rules, ok := sp.next()
		if !ok {
			want := sp.want()
			if len(sp.rules) != 1 || !sp.rules[0].equal(want) {
				t.Errorf("%s: from %v it rests at %v, not %v", sp.policy.SyncMode, from, sp.rules, want)
			}
			return
		}
		var res Result
		if s, res = setSync(s, rules...); res.Refused != "" {
			t.Fatalf("%s: from %v to %v: %s", sp.policy.SyncMode, sp.rules, rules, res.Refused)
		}
		sp.rules, sp.isProved = rules, true
	}
	t.Errorf("%s: from %v it does not settle", sp.policy.SyncMode, from)
}

// TestSyncBlinkingStandby: one that comes and goes writes ever fewer entries (DESIGN.md I43).
func TestSyncBlinkingStandby(t *testing.T) {
	var tr syncTracker
	p := DefaultPolicy(Timing{})
	rules := []SyncRule{anyOf(1, "pg2", "pg3", "pg4")}
	now := time.Unix(0, 0)
	entries := 0
	for s := range 3600 {
		now = now.Add(time.Second)
		standbys := []StandbyStatus{{Name: "pg2", State: "streaming"}, {Name: "pg3", State: "streaming"}}
		if s%15 < 3 {
			standbys = append(standbys, StandbyStatus{Name: "pg4", State: "streaming"})
		}
		sp := syncPlan{policy: p, members: syncState().Members, holder: "pg1", rules: rules,
			seen:        tr.look(now, 4, []string{"pg2", "pg3", "pg4"}, standbys),
			returnAfter: tr.returnAfter(now, p.SyncReturnAfter), isProved: true}
		next, ok := sp.next()
		if !ok {
			continue
		}
		if rules = next; len(next) > 1 {
			tr.entered = append(tr.entered, now)
		}
		entries++
	}
	if entries == 0 || entries > 24 {
		t.Errorf("%d entries in an hour", entries)
	}
}

// TestSyncNeedsAnAnswer: a server that does not answer says nothing about its standbys. If it were
// taken for one without any, the record would keep them from taking over.
func TestSyncNeedsAnAnswer(t *testing.T) {
	s := syncState()
	s.Lock.Incarnation = "i"
	s.Sync = &SyncRecord{Seq: 3, Epoch: 4, Rules: []SyncRule{planAll}}
	for name, st := range map[string]MemberStatus{
		"hung":     {Phase: PhasePrimary, Incarnation: "i"},
		"bad disk": {Phase: PhasePrimary, Incarnation: "i", LSN: 9, DiskBad: "a write hangs"},
		"starting": {Phase: PhaseStarting, Incarnation: "i", LSN: 9},
		"another":  {Phase: PhasePrimary, Incarnation: "j", LSN: 9},
		"answers":  {Phase: PhasePrimary, Incarnation: "i", LSN: 9},
	} {
		c := &Controller{policy: DefaultPolicy(Timing{Interval: time.Second})}
		c.policy.SyncDegradeAfter = 0
		in := Input{State: s, Observations: []Observation{{Report: Report{V: 1, Node: "pg1",
			Epoch: 4, SyncV: SyncVersion, Member: st}}}}
		if cmd := c.syncStep(in); (cmd != nil) != (name == "answers") {
			t.Errorf("%s: %+v", name, cmd)
		}
	}
}
