package proxy

import (
	"net"
	"testing"
	"time"
)

// noTopology is a group without a primary.
type noTopology struct{}

func (noTopology) Current() (*Primary, <-chan struct{}) { return nil, nil }

// Close ends a client that has begun to log in and does not go on; it does not wait until
// startup_timeout does.
func TestCloseFindsClientsThatBeganToLogIn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Listen, cfg.StartupTimeout, cfg.ShutdownTimeout = nil, time.Hour, time.Hour
	p, err := New(cfg, Deps{Topology: noTopology{}, Listeners: []net.Listener{l}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	began := func() bool {
		p.arrivals.mu.Lock()
		defer p.arrivals.mu.Unlock()
		return p.conns.Load() == 1 && len(p.arrivals.all) == 0
	}
	for !began() {
		time.Sleep(time.Millisecond) // until the loop has read, or the test's own end
	}
	closed := make(chan struct{})
	go func() { defer close(closed); _ = p.Close() }()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatal("Close waits for a client that says nothing")
	}
}
