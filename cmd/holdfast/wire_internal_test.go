package main

import (
	"slices"
	"testing"

	"holdfast/election"
	"holdfast/proxy"
)

// A proxy hears of a synchronous mode that changes while the epoch stays, and of nothing twice.
func TestTopologyPublishesWhatChanged(t *testing.T) {
	top := newTopology("")
	isNews := func(p *proxy.Primary) bool {
		_, changed := top.Current()
		top.publish(p, nil)
		select {
		case <-changed:
			now, _ := top.Current()
			return now == p
		default:
			return false
		}
	}
	steps := []struct {
		primary *proxy.Primary
		news    bool
	}{
		{nil, false},
		{&proxy.Primary{Epoch: 1}, true},
		{&proxy.Primary{Epoch: 1}, false},
		{&proxy.Primary{Epoch: 1, SyncQuorum: 1}, true},
		{&proxy.Primary{Epoch: 1, SyncQuorum: 1}, false},
		{nil, true},
		{&proxy.Primary{Epoch: 2, SyncQuorum: 1}, true},
	}
	for i, s := range steps {
		if got := isNews(s.primary); got != s.news {
			t.Errorf("step %d: news %v, want %v", i, got, s.news)
		}
	}
}

// A proxy hears of the target from the announcement to the lease of the next epoch, always as the
// same one, and of none if the change leads elsewhere.
func TestTopologyTellsOfTheTarget(t *testing.T) {
	members := []election.Member{{Name: "a", Postgres: "a:1"}, {Name: "b", Postgres: "b:1"}}
	a, b := &election.Lock{Epoch: 1, Holder: "a"}, &election.Lock{Epoch: 3, Holder: "b"}
	back := &election.Lock{Epoch: 3, Holder: "a"}
	ahead := &election.State{Members: members, Lock: a,
		Ahead: &election.Announcement{FromEpoch: 1, To: "b"}}
	begun := &election.State{Members: members, Lock: a, Intent: &election.Intent{
		Epoch: 2, Kind: election.IntentSwitchover, To: "b", FromEpoch: 1}}
	failing := &election.State{Members: members, Lock: a, Intent: &election.Intent{
		Epoch: 3, Kind: election.IntentRestart, To: "a", FromEpoch: 1}}
	steps := []struct {
		what    string
		state   *election.State
		granted uint64
		has     bool
	}{
		{"quiet", &election.State{Members: members, Lock: a}, 1, false},
		{"announced", ahead, 1, true},
		{"begun", begun, 1, true},
		{"entered, no lease yet", &election.State{Members: members, Lock: b}, 1, true},
		{"lease", &election.State{Members: members, Lock: b}, 3, false},
		{"another one", begun, 1, true},
		{"called off", &election.State{Members: members, Lock: a}, 1, false},
		{"announced once more", ahead, 1, true},
		{"it goes back", failing, 1, false},
		{"and again", begun, 1, true},
		{"to the old one", &election.State{Members: members, Lock: back}, 1, false},
	}
	top := newTopology("")
	var last *proxy.Target
	for _, s := range steps {
		top.publish(nil, top.targetOf(s.state, s.granted))
		got, _ := top.Next()
		switch {
		case (got != nil) != s.has:
			t.Errorf("%s: target is %+v", s.what, got)
		case got != nil && *got != proxy.Target{Name: "b", Addr: "b:1", Epoch: 1}:
			t.Errorf("%s: target is %+v", s.what, got)
		case got != nil && last != nil && got != last:
			t.Errorf("%s: another target, though it is the same", s.what)
		}
		last = got
	}
}

// A proxy hears which epochs began with a failover that may have lost commits: where these wait for
// nobody, or where an operator asked for it, who may accept that. Others lose none.
func TestTopologyTellsWhatMayBeLost(t *testing.T) {
	var history []election.Change
	for i, c := range []election.Change{
		{Kind: election.IntentBootstrap}, {Kind: election.IntentFailover},
		{Kind: election.IntentFailover, Asked: true}, {Kind: election.IntentSwitchover, Asked: true},
		{Kind: election.IntentRestart}, {Kind: election.IntentSwitchover},
	} {
		c.Lock.Epoch = uint64(i + 1)
		history = append(history, c)
	}
	members := []election.Member{{Name: "a", Postgres: "a:1"}, {Name: "b", Postgres: "b:1"},
		{Name: "witness"}, {Name: "c", Postgres: "c:1"}}
	for _, c := range []struct {
		mode    string
		members int
		want    []uint64
	}{
		{election.SyncOff, 4, []uint64{2, 3}}, {election.SyncQuorum, 4, []uint64{3}},
		{election.SyncQuorum, 3, []uint64{2, 3}}, {election.SyncStrict, 3, []uint64{3}},
	} {
		s := &election.State{Members: members[:c.members],
			Lock: &election.Lock{Epoch: 6, Holder: "a"}, History: history}
		var got []uint64
		for _, b := range primaryOf(s, c.mode).Boundaries {
			if b.MayLose {
				got = append(got, b.Epoch)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s, %d members: epochs %v, want %v", c.mode, c.members, got, c.want)
		}
	}
}
