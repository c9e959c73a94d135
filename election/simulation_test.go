package election_test

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// oneThread makes the goroutines of a schedule run one at a time, in the same order each time, and
// without the pauses of a small heap.
func oneThread() (end func()) {
	threads, percent := runtime.GOMAXPROCS(1), debug.SetGCPercent(800)
	return func() {
		runtime.GOMAXPROCS(threads)
		debug.SetGCPercent(percent)
	}
}

// TestSimulationReplays: a seed gives the same schedule again, event by event. Where the scheduler
// or a select has more than one goroutine or case to choose from at one moment of the world's time
// it may choose another one, which a few schedules in a hundred notice.
func TestSimulationReplays(t *testing.T) {
	if isRace {
		t.Skip("with the race detector the scheduler's order is random; the unit tests replay")
	}
	defer oneThread()()
	const runs = 60
	differ := 0
	for seed := range uint64(runs) {
		_, story, _, w := runSim(t, seed, bugNone)
		_, again, _, v := runSim(t, seed, bugNone)
		if w.trace != v.trace || story != again {
			differ++
		}
	}
	t.Logf("%d of %d schedules differ when they run again", differ, runs)
	if differ > runs/10 {
		t.Errorf("%d of %d schedules differ when they run again", differ, runs)
	}
}
