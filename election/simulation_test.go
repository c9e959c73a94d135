package election_test

import (
	"flag"
	"runtime"
	"runtime/debug"
	"testing"
)

var simTwice = flag.Int("sim.twice", 0, "schedules that TestSimulationReplays runs twice; 0: some")

// oneThread makes the goroutines of a schedule run one at a time, which is faster, and without the
// pauses of a small heap.
func oneThread() (end func()) {
	threads, percent := runtime.GOMAXPROCS(1), debug.SetGCPercent(800)
	return func() {
		runtime.GOMAXPROCS(threads)
		debug.SetGCPercent(percent)
	}
}

// TestSimulationReplays: a seed gives the same schedule again, step by step, also where goroutines
// of a moment run side by side. Every step is in the digest that is compared: each message that
// arrives, order, write, endorsement, acknowledged commit and fault, and how every node is at each
// tick. A seed that differs is run until the first step that does is known.
func TestSimulationReplays(t *testing.T) {
	runs := 300
	if testing.Short() {
		runs = 40
	}
	if *simTwice > 0 {
		runs = *simTwice
	}
	defer oneThread()()
	steps := 0
	for i := range runs {
		seed := *simSeed + uint64(i)
		_, _, _, w := runSim(t, seed, bugNone)
		runtime.GOMAXPROCS(3)
		_, _, _, v := runSim(t, seed, bugNone)
		runtime.GOMAXPROCS(1)
		steps += w.trace.steps
		if w.trace.digest() != v.trace.digest() {
			t.Errorf("seed %d is another schedule when it runs again%s", seed, differAt(t, seed))
		}
	}
	t.Logf("%d schedules of %d steps in the mean run twice", runs, steps/runs)
}

// differAt runs a schedule until two runs of it differ, and says where.
func differAt(t *testing.T, seed uint64) string {
	record := func(w *simWorld) { w.trace.isRecorded = true }
	_, _, _, w := runSim(t, seed, bugNone, record)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(3))
	for range 200 {
		_, _, _, v := runSim(t, seed, bugNone, record)
		if at := w.trace.firstDifference(&v.trace); at != "" {
			return at
		}
	}
	return ", and then for 200 times the same one"
}
