package proxy

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func (p *rampPlace) isGiven() bool {
	select {
	case <-p.got:
		return true
	default:
		return false
	}
}

// TestRampOrder: who is waited for goes first, in the order of coming; every eighth place is for
// one of the others; one that hurries goes behind those who were urgent before it.
func TestRampOrder(t *testing.T) {
	r := newRamp(1)
	if !r.queue(false).isGiven() {
		t.Fatal("a free place is not given")
	}
	places := make(map[string]*rampPlace)
	ask := func(name string, urgent bool) { places[name] = r.queue(urgent) }
	next := func() (given []string) {
		before := make(map[string]bool)
		for name, p := range places {
			before[name] = p.isGiven()
		}
		r.leave()
		for name, p := range places {
			if p.isGiven() && !before[name] {
				given = append(given, name)
			}
		}
		return given
	}
	ask("idle 1", false)
	ask("idle 2", false)
	ask("urgent 1", true)
	ask("idle 3", false)
	ask("urgent 2", true)
	r.hurry(places["idle 2"])
	r.cancel(places["urgent 2"])
	for _, want := range []string{"urgent 1", "idle 2", "idle 1", "idle 3"} {
		if got := next(); !slices.Equal(got, []string{want}) {
			t.Fatalf("got %q, not %s", got, want)
		}
	}
	ask("idle", false)
	for i := range 20 {
		ask(string(rune('a'+i)), true)
	}
	for i := range rampShare {
		got := next()
		if isIdle := slices.Equal(got, []string{"idle"}); isIdle != (i == rampShare-1) {
			t.Fatalf("place %d goes to %q", i, got)
		}
	}
}

// TestRampKeepsItsPlaces: whatever is asked, given up, given back and hurried, there are never more
// than so many places, and none is lost.
func TestRampKeepsItsPlaces(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		r := newRamp(3)
		var all []*rampPlace
		held := 0
		for range 300 {
			switch n := rng.IntN(10); {
			case n < 4:
				all = append(all, r.queue(rng.IntN(2) == 0))
			case n < 5 && len(all) > 0:
				r.hurry(all[rng.IntN(len(all))])
			case len(all) > 0:
				i := rng.IntN(len(all))
				if p := all[i]; p.isGiven() && rng.IntN(2) == 0 {
					r.leave()
				} else {
					r.cancel(p)
				}
				all = slices.Delete(all, i, i+1)
			}
			held = 0
			for _, p := range all {
				if p.isGiven() {
					held++
				}
			}
			if held > 3 || held < min(3, len(all)) || r.free != 3-held {
				t.Fatalf("seed %d: %d of %d have a place, %d are free", seed, held, len(all), r.free)
			}
		}
	}
}
