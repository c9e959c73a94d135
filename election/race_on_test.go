//go:build race

package election_test

// isRace tells that the race detector is on, with which the scheduler picks goroutines at random
// (runtime/proc.go, randomizeScheduler).
const isRace = true
