package election

import (
	"testing"
	"time"
)

// TestLossWatch: a primary ends with its lease, and not before one could have been granted.
func TestLossWatch(t *testing.T) {
	timing, err := TimingOf(ProfileCloud) // T_L 4 s; the reserve is about 1 s
	if err != nil {
		t.Fatal(err)
	}
	ms := int64(time.Millisecond)
	type look struct {
		at, epoch, lease, until, want int64 // in ms, but for the epochs
	}
	for name, looks := range map[string][]look{
		"the end is the lease's": {
			{1000, 3, 3, 4500, 4500}, {1500, 3, 3, 5400, 5400}, {2400, 3, 3, 5400, 5400}},
		"a lock that is new gets the time of a lease": {
			{1000, 3, 2, 4500, 5000}, {1500, 3, 2, 4500, 5000}, {2000, 3, 3, 5900, 5900}},
		"a lease that was given up has ended": {
			{1000, 3, 3, 4500, 4500}, {1500, 3, 3, 0, 5000}, {2000, 4, 3, 0, 6000}},
		"a process that was paused asks again first": {
			{1000, 3, 3, 4500, 4500}, {1500, 3, 3, 5400, 5400}, {30000, 3, 3, 5400, 34000}},
		"a look that is a little late changes nothing": {
			{1000, 3, 3, 9000, 9000}, {1900, 3, 3, 9000, 9000}},
	} {
		w := lossWatch{timing: timing}
		for i, l := range looks {
			got := w.end(l.at*ms, uint64(l.epoch), uint64(l.lease), l.until*ms)
			if got != l.want*ms {
				t.Errorf("%s, look %d: ends at %d ms, want %d", name, i, got/ms, l.want)
			}
		}
	}
}

// TestLossReserve: with each profile the reserve covers what the safety inequality calls d.
func TestLossReserve(t *testing.T) {
	for _, p := range []string{ProfileLAN, ProfileCloud, ProfileWAN} {
		timing, err := TimingOf(p)
		if err != nil {
			t.Fatal(err)
		}
		if r := lossReserve(timing); r < reachTime || r > timing.Promise-timing.Lease {
			t.Errorf("%s: %s", p, r)
		}
	}
}
