package proxy

import (
	"testing"

	"holdfast/pgwire"
)

// A session whose last answer waits until the server has said what it has is not at its safe point
// yet, as far as a drain goes: it may have temporary tables.
func TestDrainWaitsForWhatIsAsked(t *testing.T) {
	s := &session{proxy: &Proxy{}, backend: &backend{primary: &Primary{Epoch: 3}},
		flow: newFlow(pgwire.TxIdle)}
	if s.awaitsDrain(3) {
		t.Error("open, though idle")
	}
	s.endHeld = true
	if !s.awaitsDrain(3) || s.awaitsDrain(2) {
		t.Error("not open, though what it has is not known")
	}
}
