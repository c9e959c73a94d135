package election_test

import (
	"strings"
	"testing"

	"holdfast/election"
	"holdfast/pgwire"
)

func recruit(name string, timeline uint32, lsn pgwire.LSN) election.Recruit {
	return election.Recruit{Member: election.Member{Name: name}, Timeline: timeline, LSN: lsn}
}

func barred(name string, timeline uint32, lsn pgwire.LSN) election.Recruit {
	r := recruit(name, timeline, lsn)
	r.Member.NoFailover = true
	return r
}

func preferred(name string, timeline uint32, lsn pgwire.LSN) election.Recruit {
	r := recruit(name, timeline, lsn)
	r.Member.Priority = 9
	return r
}

var (
	chooseLock = election.Lock{Holder: "pg1", Epoch: 7, Timeline: 3, PromotionLSN: 50}
	choosePair = []election.SyncRule{{Wait: 1, Names: []string{"pg2", "pg3"}}}
	chooseFive = []election.SyncRule{{Wait: 1, Names: []string{"pg2", "pg3", "pg4", "pg5"}}}
	// chooseJoint is between two rules, chooseAlone is degraded.
	chooseJoint = append(choosePair[:1:1], election.SyncRule{Wait: 1, Names: []string{"pg3"}})
	chooseAlone = []election.SyncRule{{}}
	// chooseSilent is why pg3 did not answer.
	chooseSilent = map[string]string{"pg3": "its agent is silent"}
)

type rs = []election.Recruit

var chooseCases = []struct {
	name    string
	sel     election.Selection
	to      string
	missing string
}{
	{"furthest position", election.Selection{Sync: choosePair,
		Recruits: rs{recruit("pg2", 3, 100), recruit("pg3", 3, 101)}}, "pg3", ""},
	{"name among equals", election.Selection{Sync: choosePair,
		Recruits: rs{recruit("pg3", 3, 100), recruit("pg2", 3, 100)}}, "pg2", ""},
	{"priority among equals", election.Selection{Sync: choosePair,
		Recruits: rs{recruit("pg2", 3, 100), preferred("pg3", 3, 100)}}, "pg3", ""},
	{"priority never before position", election.Selection{Sync: choosePair,
		Recruits: rs{recruit("pg2", 3, 101), preferred("pg3", 3, 100)}}, "pg2", ""},
	{"one of two is not enough", election.Selection{Sync: choosePair, Silent: chooseSilent,
		Recruits: rs{recruit("pg2", 3, 100)}}, "",
		"needs 2 of pg2, pg3 to be sure of every acknowledged commit, and has 1: pg3: its agent"},
	{"a member outside the sync set does not count", election.Selection{Sync: choosePair,
		Recruits: rs{recruit("pg2", 3, 100), recruit("pg9", 3, 100)}}, "", "has 1"},
	{"each rule of a joint set counts", election.Selection{Sync: chooseJoint, Silent: chooseSilent,
		Recruits: rs{recruit("pg2", 3, 100)}}, "", "needs 2 of pg2, pg3"},
	{"two of three standbys are waited for", election.Selection{Sync: []election.SyncRule{
		{Wait: 2, Names: []string{"pg2", "pg3", "pg4"}}},
		Recruits: rs{recruit("pg2", 3, 100), recruit("pg4", 3, 90)}}, "pg2", ""},
	{"degraded: nobody", election.Selection{Sync: chooseAlone,
		Recruits: rs{recruit("pg2", 3, 100), recruit("pg3", 3, 100)}}, "",
		"degraded: pg1 acknowledges commits alone"},
	{"degraded, but stopped in order", election.Selection{Sync: chooseAlone, Only: "pg3",
		ShutdownLSN: 100, Recruits: rs{recruit("pg3", 3, 100)}}, "pg3", ""},
	{"off: loss is accepted", election.Selection{Sync: []election.SyncRule{{MayLose: true}},
		Recruits: rs{recruit("pg2", 3, 100)}}, "pg2", ""},
	{"three of four are not enough", election.Selection{Sync: chooseFive, Recruits: rs{
		recruit("pg2", 3, 1), recruit("pg3", 3, 1), recruit("pg4", 3, 1)}}, "", "has 3"},
	{"an older timeline fences, but is no candidate", election.Selection{Sync: choosePair,
		Recruits: rs{recruit("pg2", 2, 900), recruit("pg3", 3, 100)}}, "pg3", ""},
	{"only older timelines", election.Selection{Sync: choosePair,
		Recruits: rs{recruit("pg2", 2, 900), recruit("pg3", 2, 100)}}, "",
		"pg3 is on timeline 2, the lock is on 3"},
	{"before the lock's timeline begins", election.Selection{Sync: choosePair,
		Recruits: rs{recruit("pg2", 3, 49), recruit("pg3", 2, 49)}}, "",
		"pg2 is at 0/31, before the lock's timeline begins at 0/32"},
	{"promoted by somebody else", election.Selection{Sync: choosePair,
		Recruits: rs{recruit("pg2", 4, 100), recruit("pg3", 3, 100)}}, "",
		"pg2 is on timeline 4, past the lock's 3"},
	{"promoted under a replaced intent comes first", election.Selection{Sync: choosePair,
		Tried:    []string{"pg2"},
		Recruits: rs{recruit("pg3", 3, 900), recruit("pg2", 4, 100)}}, "pg2", ""},
	{"tried in vain comes last among equals", election.Selection{Sync: choosePair,
		Tried:    []string{"pg2"},
		Recruits: rs{recruit("pg2", 3, 100), recruit("pg3", 3, 100)}}, "pg3", ""},
	{"tried in vain, but further", election.Selection{Sync: choosePair,
		Tried:    []string{"pg2"},
		Recruits: rs{recruit("pg2", 3, 101), recruit("pg3", 3, 100)}}, "pg2", ""},
	{"the furthest is barred", election.Selection{Sync: choosePair,
		Recruits: rs{barred("pg2", 3, 900), recruit("pg3", 3, 100)}}, "",
		"pg2 is tagged nofailover; pg3 lacks 800 bytes that pg2 has"},
	{"nobody answers", election.Selection{Silent: chooseSilent}, "",
		"no member is eligible: pg3: its agent is silent"},
	{"asynchronous: one is enough", election.Selection{
		Recruits: rs{recruit("pg2", 3, 100)}}, "pg2", ""},
	{"asynchronous: the lag limit", election.Selection{LagMaxBytes: 1 << 20,
		KnownLSN: 100 + 5<<20, Recruits: rs{recruit("pg2", 3, 100)}}, "",
		"pg2 lacks 5.0 MB that pg1 had; the limit is 1.0 MB"},
	{"after a clean stop the candidate alone is enough", election.Selection{Sync: choosePair,
		Only: "pg3", ShutdownLSN: 100, Recruits: rs{recruit("pg3", 3, 100)}}, "pg3", ""},
	{"after a clean stop only the candidate", election.Selection{Sync: choosePair,
		Only: "pg3", ShutdownLSN: 100, Recruits: rs{recruit("pg2", 3, 100)}}, "",
		"pg3 does not have the shutdown checkpoint at 0/64 of pg1"},
	{"the candidate lacks the shutdown checkpoint", election.Selection{Sync: choosePair,
		Only: "pg3", ShutdownLSN: 100,
		Recruits: rs{recruit("pg2", 3, 100), recruit("pg3", 3, 99)}}, "", "does not have"},
}

func TestChoose(t *testing.T) {
	for _, c := range chooseCases {
		t.Run(c.name, func(t *testing.T) {
			c.sel.Lock = chooseLock
			got := election.Choose(c.sel)
			if got.To != c.to || !strings.Contains(got.Missing, c.missing) ||
				(got.Missing == "") != (c.to != "") {
				t.Errorf("got %+v, want %q, missing %q", got, c.to, c.missing)
			}
		})
	}
}

func TestSyncNames(t *testing.T) {
	three := []election.Member{
		{Name: "pg3", Postgres: "c:5432"}, {Name: "wit"}, {Name: "pg1", Postgres: "a:5432"},
		{Name: `p"2`, Postgres: "b:5432"},
	}
	two := three[:3]
	for _, c := range []struct {
		mode    string
		wait    int
		members []election.Member
		want    string
	}{
		{election.SyncQuorum, 1, three, `ANY 1 ("p""2","pg3")`},
		{election.SyncQuorum, 2, three, `ANY 2 ("p""2","pg3")`},
		{election.SyncStrict, 9, three, `ANY 2 ("p""2","pg3")`},
		{election.SyncOn, 2, three, `ANY 1 ("p""2","pg3")`},
		{election.SyncOff, 1, three, ""},
		{election.SyncQuorum, 1, two, ""},
		{election.SyncOn, 1, two, `ANY 1 ("pg3")`},
		{election.SyncStrict, 1, two, `ANY 1 ("pg3")`},
		{election.SyncStrict, 1, nil, ""},
	} {
		p := election.Policy{SyncMode: c.mode, SyncWait: c.wait}
		if got := election.FullRule(p, c.members, "pg1").Setting(); got != c.want {
			t.Errorf("%s of %d: got %s, want %s", c.mode, len(c.members), got, c.want)
		}
	}
	if election.RecruitsNeeded(4, 2) != 3 || election.RecruitsNeeded(2, 1) != 2 {
		t.Error("N-W+1 is wrong")
	}
}

// TestAcceptLoss: what an operator accepts is the loss of commits, not a member that cannot be
// promoted.
func TestAcceptLoss(t *testing.T) {
	sel := election.Selection{
		Lock: election.Lock{Holder: "pg1", Timeline: 3}, Only: "pg2", AcceptLoss: true,
		Sync:     []election.SyncRule{{Names: []string{"pg2", "pg3"}, Wait: 1}},
		KnownLSN: 0x9000, LagMaxBytes: 16,
		Recruits: []election.Recruit{
			{Member: election.Member{Name: "pg2"}, Timeline: 3, LSN: 0x1000},
		},
	}
	if c := election.Choose(sel); c.To != "pg2" {
		t.Errorf("%+v", c)
	}
	ahead := sel
	ahead.Recruits = append(ahead.Recruits,
		election.Recruit{Member: election.Member{Name: "pg3"}, Timeline: 3, LSN: 0x8000})
	if c := election.Choose(ahead); c.To != "pg2" {
		t.Errorf("with one that has more: %+v", c)
	}
	behind := sel
	behind.Recruits = []election.Recruit{
		{Member: election.Member{Name: "pg2"}, Timeline: 2, LSN: 0x1000},
	}
	if c := election.Choose(behind); c.To != "" {
		t.Errorf("on an older timeline: %+v", c)
	}
	sel.AcceptLoss = false
	if c := election.Choose(sel); c.To != "" {
		t.Errorf("without it: %+v", c)
	}
}
