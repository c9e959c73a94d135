package main

import (
	"testing"
	"time"
)

// Of any six unplanned changes in a row, the last comes more than a minute after the first.
func TestPaceStaysBelowTheLimit(t *testing.T) {
	var p pace
	now := time.Unix(0, 0)
	var faults []time.Time
	for i := range 100 {
		if w := p.wait("switchover", now); w != 0 {
			t.Fatalf("a switchover waits %v", w)
		}
		now = now.Add(p.wait([]string{"node", "postmaster", "freeze"}[i%3], now))
		faults = append(faults, now)
		if i >= 5 && now.Sub(faults[i-5]) <= time.Minute {
			t.Fatalf("fault %d comes %v after fault %d", i, now.Sub(faults[i-5]), i-5)
		}
		now = now.Add(time.Duration(i%7) * time.Second)
	}
}
