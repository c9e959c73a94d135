package main

import (
	"testing"

	"holdfast/proxy"
)

// A proxy hears of a synchronous mode that changes while the epoch stays, and of nothing twice.
func TestTopologyPublishesWhatChanged(t *testing.T) {
	top := newTopology("")
	isNews := func(p *proxy.Primary) bool {
		_, changed := top.Current()
		top.publish(p)
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
