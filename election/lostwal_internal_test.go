package election

import (
	"slices"
	"testing"
	"time"
)

// A clone that failed is tried again after a pause that grows.
func TestWALClonePauses(t *testing.T) {
	var g walGap
	now := time.Now()
	var got []time.Duration
	for range 8 {
		g.tries(now)
		got = append(got, g.again.Sub(now)/time.Minute)
	}
	if want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60}; !slices.Equal(got, want) {
		t.Errorf("pauses of %v minutes, want %v", got, want)
	}
}
