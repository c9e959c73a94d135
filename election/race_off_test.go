//go:build !race

package election_test

const isRace = false
