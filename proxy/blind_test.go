package proxy_test

import (
	"testing"
	"time"
)

// TestBlind: a proxy whose clients lost the primary's host says for how long, and says so no more
// once it has a connection again; a proxy that does not try says nothing.
func TestBlind(t *testing.T) {
	r := newRig(t, nil)
	if _, d := r.proxy.Blind(); d != 0 {
		t.Errorf("blind for %s before anybody tried", d)
	}
	c := r.connect("")
	if _, d := r.proxy.Blind(); d != 0 {
		t.Errorf("blind for %s with a connection", d)
	}
	well, _ := r.topo.Current()
	lost := *well
	lost.Addr = "127.0.0.1:1" // nobody listens there
	r.topo.Set(&lost)
	r.line.Cut()
	answer := make(chan error, 1)
	go func() {
		_, err := tryExec(c, "SELECT 1")
		answer <- err
	}()
	last := time.Duration(0)
	for last < 300*time.Millisecond {
		_, d := r.proxy.Blind()
		if d < last {
			t.Fatalf("blind for %s after %s", d, last)
		}
		last = d
		time.Sleep(10 * time.Millisecond)
	}
	r.topo.Set(well)
	if err := <-answer; err != nil {
		t.Errorf("held statement: %v", err)
	}
	if _, d := r.proxy.Blind(); d != 0 {
		t.Errorf("blind for %s with a connection again", d)
	}
}
