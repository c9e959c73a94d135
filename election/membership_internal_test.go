package election

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// memberState is a group of pg1, the primary, to pg4 and a witness, all voters.
func memberState() *State {
	s := syncState()
	for i := range s.Members {
		s.Members[i].Address = s.Members[i].Name + ":7400"
	}
	s.Voters = &VoterSet{Names: memberNames(s.Members)}
	return s
}

func addOf(name string) *MemberChange {
	return &MemberChange{Kind: MemberAdd, Request: "add " + name, Member: Member{
		Name: name, Address: name + ":7400",
	}}
}

func removeOf(name string) *MemberChange {
	return &MemberChange{Kind: MemberRemove, Request: "remove " + name, Member: Member{Name: name}}
}

func beginMember(s *State, c *MemberChange) (*State, Result) {
	return apply(s, Command{Kind: CommandMembers, Members: &ChangeMembers{Begin: c}})
}

func changeVoters(s *State, c ChangeVoters) (*State, Result) {
	c.Version = setVersion(s)
	return apply(s, Command{Kind: CommandVoters, Voters: &c})
}

// TestMemberChangeBegins: one change at a time, of what there is, and never of the primary
// (DESIGN.md I65).
func TestMemberChangeBegins(t *testing.T) {
	intent := func(s *State) { s.Intent = &Intent{Epoch: 5, Kind: IntentFailover, Cause: "x"} }
	under := func(c *MemberChange) func(*State) { return func(s *State) { s.MemberChange = c } }
	twin := addOf("pg5")
	twin.Member.Address = "pg2:7400"
	replace := addOf("pg5")
	replace.Replaces = "pg1"
	for name, tc := range map[string]struct {
		change *MemberChange
		state  func(*State)
		words  string
	}{
		"add":                    {addOf("pg5"), nil, ""},
		"remove":                 {removeOf("pg2"), nil, ""},
		"remove a witness":       {removeOf("witness"), nil, ""},
		"the same again":         {addOf("pg5"), under(addOf("pg5")), ""},
		"add what is there":      {addOf("pg2"), nil, "a member already"},
		"an address twice":       {twin, nil, "has the address"},
		"no name":                {addOf(""), nil, "needs a name"},
		"too long":               {addOf(strings.Repeat("x", 3000)), nil, "longer than"},
		"remove the primary":     {removeOf("pg1"), nil, "switch over to another member first"},
		"replace the primary":    {replace, nil, "switch over to another member first"},
		"remove who is not":      {removeOf("pg9"), nil, "no member"},
		"under an intent":        {addOf("pg5"), intent, "change of the primary"},
		"remove under an intent": {removeOf("pg2"), intent, "change of the primary"},
		"beside another":         {removeOf("pg2"), under(removeOf("pg3")), "pg3 is being removed"},
		"unknown":                {&MemberChange{Kind: "swap"}, nil, "not known"},
	} {
		s := memberState()
		if tc.state != nil {
			tc.state(s)
		}
		_, r := beginMember(s, tc.change)
		if (r.Refused == "") != (tc.words == "") || !strings.Contains(r.Refused, tc.words) {
			t.Errorf("%s: %q, want %q", name, r.Refused, tc.words)
		}
	}
}

// TestVoterSetChanges: by one voter at a time, once the set before is settled, and not while an
// intent stands (DESIGN.md I60, I62).
func TestVoterSetChanges(t *testing.T) {
	s, _ := beginMember(memberState(), addOf("pg5"))
	for words, c := range map[string]ChangeVoters{
		"changes by one member": {Add: "pg9"},
		"by one member that":    {Remove: "pg9"},
		"changes by":            {Add: "pg5", Remove: "pg2"},
	} {
		if _, r := changeVoters(s, c); !strings.Contains(r.Refused, words) {
			t.Errorf("%+v: %q", c, r.Refused)
		}
	}
	stale := ChangeVoters{Version: 7, Add: "pg5"}
	if _, r := apply(s, Command{Kind: CommandVoters, Voters: &stale}); r.Refused == "" {
		t.Error("a set changes that the sender did not see")
	}
	intent := *s
	intent.Intent = &Intent{Epoch: 5, Kind: IntentFailover, Cause: "x"}
	if _, r := changeVoters(&intent, ChangeVoters{Add: "pg5"}); r.Refused == "" {
		t.Error("the set changes under an intent")
	}
	joined, r := changeVoters(s, ChangeVoters{Add: "pg5"})
	if r.Refused != "" || setVersion(joined) != 1 || isSettled(joined) ||
		len(joined.Voters.Prev) != 5 || len(joined.Voters.Names) != 6 || len(s.Voters.Names) != 5 {
		t.Fatalf("%s: %+v after %+v", r.Refused, joined.Voters, s.Voters)
	}
	if _, r := changeVoters(joined, ChangeVoters{Remove: "pg2"}); r.Refused == "" {
		t.Error("the set changes again before it is settled")
	}
	end := Command{Kind: CommandMembers, Members: &ChangeMembers{End: "add pg5"}}
	if _, r := apply(joined, end); r.Refused == "" {
		t.Error("the change ends before the set is settled")
	}
	settled, _ := changeVoters(joined, ChangeVoters{Settle: true})
	if done, r := apply(settled, end); r.Refused != "" || done.MemberChange != nil {
		t.Errorf("the change does not end: %s", r.Refused)
	}
}

// TestMemberStays: a member does not leave while the sync set names it, or when it has become
// the primary (DESIGN.md I67).
func TestMemberStays(t *testing.T) {
	s, _ := beginMember(memberState(), removeOf("pg2"))
	s, _ = changeVoters(s, ChangeVoters{Remove: "pg2"})
	s, _ = changeVoters(s, ChangeVoters{Settle: true})
	end := Command{Kind: CommandMembers, Members: &ChangeMembers{End: "remove pg2"}}
	named := *s
	named.Sync = &SyncRecord{Epoch: 4, Rules: []SyncRule{syncOne, syncFar}}
	if _, r := apply(&named, end); !strings.Contains(r.Refused, "in the sync set") {
		t.Errorf("it leaves while commits may be on it alone: %q", r.Refused)
	}
	if why := syncNeedsMember(&named, Policy{}, "pg2"); why == "" {
		t.Error("the leader lets it leave while commits may be on it alone")
	}
	primary := *s
	primary.Lock = &Lock{Epoch: 4, Holder: "pg2"}
	if _, r := apply(&primary, end); !strings.Contains(r.Refused, "is the primary") {
		t.Errorf("the primary leaves: %q", r.Refused)
	}
	if step := nextMemberStep(&primary, nil, nil); step.do != stepAbandon {
		t.Errorf("next step %v", step)
	}
	done, r := apply(s, end)
	if _, isMember := memberOf(done.Members, "pg2"); r.Refused != "" || isMember {
		t.Errorf("it does not leave: %q", r.Refused)
	}
}

// TestRegisterKeepsMembers: a configuration file that is older than the group changes no names and
// no addresses.
func TestRegisterKeepsMembers(t *testing.T) {
	s := memberState()
	old := []Member{{Name: "pg1", Address: "pg1:7400", Priority: 3}, {Name: "pg8", Address: "x:1"}}
	list := registerList(s, old)
	if len(list) != len(s.Members) || list[0].Priority != 3 {
		t.Errorf("registered %+v", list)
	}
	_, r := apply(s, Command{Kind: CommandRegister, Register: &RegisterMembers{Members: old}})
	if !strings.Contains(r.Refused, "changed at run time") {
		t.Errorf("a leader of an older release takes changes back: %q", r.Refused)
	}
}

// TestReplaceRemovesTheOther: what is replaced begins to leave when the new member votes.
func TestReplaceRemovesTheOther(t *testing.T) {
	c := addOf("pg5")
	c.Replaces = "pg2"
	s, _ := beginMember(memberState(), c)
	inRaft := map[string]bool{}
	for _, n := range voterNames(s) {
		inRaft[n] = true
	}
	isReady := false
	var steps []string
	for range 30 {
		step := nextMemberStep(s, inRaft, func(string) bool { return isReady })
		if len(steps) == 0 || steps[len(steps)-1] != string(step.do)+" "+step.name {
			steps = append(steps, string(step.do)+" "+step.name)
		}
		isReady = isReady || step.do == stepWait
		s = doStep(s, inRaft, step)
		if step.do == stepNone {
			break
		}
	}
	want := []string{
		"learner pg5", "wait pg5", "raft-voter pg5", "join pg5", "settle ", "end pg5",
		"leave pg2", "settle ", "raft-leave pg2", "end pg2", " ",
	}
	if !slices.Equal(steps, want) {
		t.Errorf("steps %q, want %q", steps, want)
	}
	if _, isMember := memberOf(s.Members, "pg2"); isMember || inRaft["pg2"] || !inRaft["pg5"] {
		t.Errorf("members %q, in Raft %v", memberNames(s.Members), inRaft)
	}
}

func doStep(s *State, inRaft map[string]bool, step memberStep) *State {
	switch step.do {
	case stepSettle:
		s, _ = changeVoters(s, ChangeVoters{Settle: true})
	case stepLearner:
		inRaft[step.name] = false
	case stepRaftVoter:
		inRaft[step.name] = true
	case stepRaftLeave:
		delete(inRaft, step.name)
	case stepJoin:
		s, _ = changeVoters(s, ChangeVoters{Add: step.name})
	case stepLeave:
		s, _ = changeVoters(s, ChangeVoters{Remove: step.name})
	case stepEnd:
		c := ChangeMembers{End: s.MemberChange.Request}
		s, _ = apply(s, Command{Kind: CommandMembers, Members: &c})
	case stepNone, stepWait, stepAbandon:
	}
	return s
}

// TestLostMemberHoldsUpNobody: after a recovery one that never comes back does not keep another
// from being removed.
func TestLostMemberHoldsUpNobody(t *testing.T) {
	s := recoverState(memberState(), "pg1", endorsement{Endorsed: 9, Set: 3})
	if s.LastEpoch != 9+recoverJump || setVersion(s) != 3+recoverJump || s.Recovered != 1 {
		t.Errorf("recovered as %+v, %+v", s, s.Voters)
	}
	s, r := beginMember(s, removeOf("pg2"))
	if r.Refused != "" {
		t.Fatal(r.Refused)
	}
	inRaft := map[string]bool{"pg1": true}
	var step memberStep
	for range 20 {
		step = nextMemberStep(s, inRaft, func(string) bool { return false })
		s = doStep(s, inRaft, step)
	}
	if _, isMember := memberOf(s.Members, "pg2"); isMember || step.do != stepWait {
		t.Errorf("members %q, step %v", memberNames(s.Members), step)
	}
}

// TestStandbysMissing: what commits would lack without a member is said.
func TestStandbysMissing(t *testing.T) {
	stream := func(names ...string) []Observation {
		var list []StandbyStatus
		for _, n := range names {
			list = append(list, StandbyStatus{Name: n, State: "streaming"})
		}
		return []Observation{{Report: Report{Node: "pg1", Member: MemberStatus{Standbys: list}}}}
	}
	small := memberState()
	small.Members = small.Members[:3]
	for name, tc := range map[string]struct {
		state   *State
		mode    string
		wait    int
		obs     []Observation
		leaving string
		words   string
	}{
		"enough":      {memberState(), SyncQuorum, 1, stream("pg3"), "pg2", ""},
		"none":        {memberState(), SyncQuorum, 1, stream("pg2"), "pg2", "pg3, pg4 does not stream"},
		"too few":     {memberState(), SyncQuorum, 2, stream("pg3"), "pg2", "pg4 does not stream"},
		"lost to two": {small, SyncQuorum, 1, stream("pg3"), "pg2", "--accept-fewer-standbys"},
		"strict":      {small, SyncStrict, 2, stream("pg3"), "pg2", "no longer for 2"},
		"a witness":   {memberState(), SyncQuorum, 1, stream("pg2"), "witness", ""},
	} {
		p := DefaultPolicy(Timing{Interval: time.Second})
		p.SyncMode, p.SyncWait = tc.mode, tc.wait
		why := standbysMissing(tc.state, p, tc.obs, tc.leaving)
		if (why == "") != (tc.words == "") || !strings.Contains(why, tc.words) {
			t.Errorf("%s: %q, want %q", name, why, tc.words)
		}
	}
}

// TestStrangers: a node of another group is not taken in.
func TestStrangers(t *testing.T) {
	s := memberState()
	s.SystemID = "7"
	for words, a := range map[string]helloAnswer{
		"belongs to cluster": {Cluster: "b", Membership: 1},
		"another group":      {Cluster: "a", SystemID: "8", Membership: 1},
		"upgrade it":         {Cluster: "a", SystemID: "7"},
	} {
		if why := strangerText(s, "a", "pg5", a); !strings.Contains(why, words) {
			t.Errorf("%+v: %q", a, why)
		}
	}
	ok := helloAnswer{Cluster: "a", Membership: 1}
	if why := strangerText(s, "a", "pg5", ok); why != "" {
		t.Errorf("a new node is refused: %s", why)
	}
}

// TestVoterOutsideOfTheSet: a voter that its own log does not have in the set promises and endorses
// nothing, and one in a set that is not settled endorses nothing (DESIGN.md I61, I63).
func TestVoterOutsideOfTheSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newTestVoter(t)
		v.name = "pg5"
		s, _ := beginMember(memberState(), addOf("pg5"))
		publish := func(s *State) { v.fsm.publishLocked(s, v.fsm.index+1) }
		intend := func(s *State) *State {
			next := *s
			next.LastEpoch, next.Intent = 5, &Intent{Epoch: 5, Kind: IntentFailover, Cause: "x"}
			return &next
		}
		publish(intend(s))
		if a := v.renewOf("p", 1, 4); a.Granted {
			t.Error("a voter outside of the set promises")
		}
		if err := v.endorseFor(t, 5, time.Minute); err == nil ||
			!strings.Contains(err.Error(), "not in the voter set") {
			t.Errorf("a voter outside of the set endorses: %v", err)
		}
		joined, _ := changeVoters(s, ChangeVoters{Add: "pg5"})
		publish(intend(joined))
		if a := v.renewOf("p", 2, 4); !a.Granted {
			t.Errorf("a voter of the set does not promise: %s", a.Reason)
		}
		if err := v.endorseFor(t, 5, time.Minute); err == nil {
			t.Error("a set that is not settled endorses")
		}
		settled, _ := changeVoters(joined, ChangeVoters{Settle: true})
		publish(intend(settled))
		if err := v.endorseFor(t, 5, time.Minute); err != nil {
			t.Error(err)
		}
	})
}

// TestLeavingMemberLeavesTheSyncSet: commits are no longer waited for on a member that is being
// removed, but only if there are enough others (DESIGN.md I67).
func TestLeavingMemberLeavesTheSyncSet(t *testing.T) {
	s, _ := beginMember(memberState(), removeOf("pg2"))
	s.Lock.Incarnation = "i"
	s.Sync = &SyncRecord{Seq: 3, Epoch: 4, Rules: []SyncRule{planAll}}
	for name, there := range map[string][]string{
		"enough": {"pg2", "pg3", "pg4"}, "only itself": {"pg2"},
	} {
		c := &Controller{policy: DefaultPolicy(Timing{Interval: time.Second})}
		c.policy.SyncDegradeAfter = 0
		st := MemberStatus{Phase: PhasePrimary, Incarnation: "i", LSN: 9}
		for _, n := range there {
			st.Standbys = append(st.Standbys, StandbyStatus{Name: n, State: "streaming"})
		}
		cmd := c.syncStep(Input{State: s, Observations: []Observation{{Report: Report{V: 1,
			Node: "pg1", Epoch: 4, SyncV: SyncVersion, Member: st}}}})
		if cmd == nil {
			t.Fatalf("%s: no step", name)
		}
		last := cmd.Rules[len(cmd.Rules)-1]
		if slices.Contains(last.Names, "pg2") != (name == "only itself") || last.Wait != 1 {
			t.Errorf("%s: goes to %s", name, last)
		}
	}
}

// TestRecoveryReusesNothing: an intent or a change of the sync set that was never committed may
// have the number of another one, which the lost nodes carried out (DESIGN.md I68).
func TestRecoveryReusesNothing(t *testing.T) {
	before := memberState()
	before.LastEpoch = 7
	before.Intent = &Intent{Epoch: 7, Kind: IntentFailover, To: "pg2"}
	before.Sync = &SyncRecord{Seq: 4}
	s := recoverState(before, "pg1", endorsement{Endorsed: 9})
	if s.Intent.Epoch <= 9+recoverJump-1 || s.Intent.Epoch != s.LastEpoch || s.Intent.To != "pg2" {
		t.Errorf("intent %+v, last epoch %d", s.Intent, s.LastEpoch)
	}
	if s.Sync.Seq < 4+recoverJump {
		t.Errorf("the sync set goes on at change %d", s.Sync.Seq)
	}
	if before.Intent.Epoch != 7 || before.Sync.Seq != 4 {
		t.Error("the state before was changed")
	}
}

// TestWasMember: a pledge, data of the group or a lock that was seen tells of a membership, an
// adoption alone does not.
func TestWasMember(t *testing.T) {
	for _, tc := range []struct {
		rec  agentRecord
		want bool
	}{
		{agentRecord{}, false},
		{agentRecord{Pledged: 1}, true},
		{agentRecord{SystemID: "7"}, true},
		{agentRecord{LockEpoch: 1}, true}, // of foreign data beside a group
		{agentRecord{SyncEpoch: 1}, true},
		{agentRecord{SystemID: "7", Adopted: &agentAdopted{}}, false},
		{agentRecord{Pledged: 1, SystemID: "7", Adopted: &agentAdopted{}}, true},
	} {
		a := &PostgresAgent{state: "/s", rec: tc.rec}
		if file, was := a.WasMember(); was != tc.want || file != "/s/agent.json" {
			t.Errorf("%+v: %s, %t", tc.rec, file, was)
		}
	}
}

// TestChangeThatWasNotBegun: a request that no leader has begun is not taken for done as the next
// leader is asked, and one that is done is not refused.
func TestChangeThatWasNotBegun(t *testing.T) {
	moved := addOf("pg2")
	moved.Member.Address = "elsewhere:7400"
	for name, tc := range map[string]struct {
		r    memberRequest
		want bool
	}{
		"a name that is wrong": {memberRequest{Again: true, Since: 3,
			MemberRequest: MemberRequest{Change: *removeOf("pg9")}}, false},
		"a member already": {memberRequest{Again: true, Since: 3,
			MemberRequest: MemberRequest{Change: *addOf("pg2")}}, false},
		"at another address": {memberRequest{Again: true,
			MemberRequest: MemberRequest{Change: *moved}}, false},
		"only asked about": {memberRequest{Again: true,
			MemberRequest: MemberRequest{Change: *removeOf("pg9"), DryRun: true}}, false},
		"asked for the first time": {memberRequest{
			MemberRequest: MemberRequest{Change: *removeOf("pg9")}}, false},
		"removed meanwhile": {memberRequest{Again: true, Since: 2,
			MemberRequest: MemberRequest{Change: *removeOf("pg9")}}, true},
		"added meanwhile": {memberRequest{Again: true, Since: 2,
			MemberRequest: MemberRequest{Change: *addOf("pg2")}}, true},
	} {
		s := memberState()
		s.Voters.Version = 3
		if got := wasBegun(s, tc.r); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	s, _ := beginMember(memberState(), removeOf("pg2"))
	r := memberRequest{Again: true, MemberRequest: MemberRequest{Change: *removeOf("pg2")}}
	if !wasBegun(s, r) {
		t.Error("a change that stands is begun again")
	}
}

type oneState struct{ s *State }

func (o oneState) State() (*State, <-chan struct{}) { return o.s, nil }

// TestOrdersAfterARecovery: after a recovery from an older log the lock is older than one that the
// agent saw. What belongs to that lock is obeyed, what changes it comes under a later epoch.
func TestOrdersAfterARecovery(t *testing.T) {
	a := &PostgresAgent{rec: agentRecord{LockEpoch: 6}}
	a.deps.Source = oneState{&State{Lock: &Lock{Epoch: 4}, LastEpoch: 1004}}
	under := []OrderKind{OrderCheckpoint, OrderSlots, OrderRestart, OrderReinit}
	for _, k := range append(slices.Clone(under), OrderRecruit, OrderFollow, OrderStop,
		OrderStartPrimary, OrderPromote, OrderBootstrap) {
		for _, epoch := range []uint64{3, 4, 6, 1005} {
			want := epoch > 6 || epoch >= 4 && slices.Contains(under, k)
			if err := a.checkOver(Order{Kind: k, Epoch: epoch}); (err == nil) != want {
				t.Errorf("%s of epoch %d: %v", k, epoch, err)
			}
		}
	}
}
