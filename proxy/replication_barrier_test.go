package proxy_test

import (
	"context"
	"testing"
	"time"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// A replication connection to a database takes SQL, advisory locks among it: it waits for the
// barrier as other logins do. A physical one takes none, and does not.
func TestReplicationWaitsForTheBarrier(t *testing.T) {
	r := newReplicationRig(t, nil)
	barrier := make(chan struct{})
	r.epoch++
	r.topo.Set(&proxy.Primary{
		Name: "pg", Addr: r.line.Addr(), Epoch: r.epoch, Incarnation: r.server.Incarnation(),
		Lease: proxytest.NewLease(time.Hour), Barrier: barrier,
	})
	login := func(options string) <-chan error {
		done := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			c, err := dial(ctx, r.dsn(options))
			if err == nil {
				_ = c.Close(ctx)
			}
			done <- err
		}()
		return done
	}
	if err := <-login("replication=true"); err != nil {
		t.Errorf("physical: %v", err)
	}
	logical := login("replication=database")
	mustWait(t, logical, 500*time.Millisecond)
	close(barrier)
	if err := <-logical; err != nil {
		t.Errorf("logical: %v", err)
	}
}
