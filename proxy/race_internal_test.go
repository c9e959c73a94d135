//go:build race

package proxy

// isRace tells that the race detector is on: it makes sync.Pool forget what it was given.
const isRace = true
