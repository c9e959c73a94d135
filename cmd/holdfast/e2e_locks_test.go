package main_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	holdfast "holdfast/cmd/holdfast"
)

// TestE2ELocks: a session keeps its advisory lock, with its count, over kills and switchovers,
// while clients of the other proxies try for it all the time and never get it (DESIGN 10.10).
func TestE2ELocks(t *testing.T) {
	needCluster(t)
	t.Cleanup(func() { goleak.VerifyNone(t) })
	c, err := holdfast.StartCluster(t.Context(), holdfast.ClusterConfig{
		Binary: buildBinary(t), Prefix: "holdfast-e2e",
		// A machine that is busy must not decide whether the holder was in time.
		LockBarrier: 30 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	endWithTest(t, c)
	waitHealthy(t, c)
	makeDatabase(t, c)
	holder := connect(t, e2eDSN(c.Nodes[0]))
	for range 2 {
		exec1(t, holder, "SELECT pg_advisory_lock(7)")
	}
	var stolen, tries atomic.Int64
	stop := make(chan struct{})
	done := make(chan struct{}, 2)
	for _, n := range c.Nodes[1:] {
		conn := connect(t, e2eDSN(n))
		go func() {
			defer func() { done <- struct{}{} }()
			tryForLock(t, conn, stop, &tries, &stolen)
		}()
	}
	for i := range 4 {
		before := tries.Load()
		if i%2 == 0 {
			change(t, c, (*holdfast.ClusterNode).KillPostmaster)
		} else {
			change(t, c, func(*holdfast.ClusterNode) error {
				return c.Switchover(t.Context(), away(t, c).Name)
			})
		}
		if got := queryText(t, holder, "SELECT count(*)::text FROM pg_locks WHERE pid = "+
			"pg_backend_pid() AND locktype = 'advisory' AND objid = 7"); got != "1" {
			t.Errorf("change %d: the holder has %s locks", i, got)
		}
		for tries.Load() < before+20 { // behind the barrier
			waitUntil(t, time.Now().Add(10*time.Millisecond))
		}
	}
	st := waitHealthy(t, c)
	close(stop)
	<-done
	<-done
	for i, want := range []string{"true", "true", "false"} {
		if got := queryText(t, holder, "SELECT pg_advisory_unlock(7)::text"); got != want {
			t.Errorf("release %d: %s", i, got)
		}
	}
	if n := stolen.Load(); n > 0 {
		t.Errorf("others got the lock %d times", n)
	}
	for _, p := range st.Problems {
		if strings.Contains(p, "advisory") {
			t.Error(p)
		}
	}
	t.Logf("%d tries of others", tries.Load())
}

// tryForLock asks for the lock until stop. What a change interrupts is unknown, or not executed.
func tryForLock(t *testing.T, conn *pgx.Conn, stop <-chan struct{}, tries, stolen *atomic.Int64) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var got bool
		err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock(7)").Scan(&got)
		cancel()
		switch state := sqlState(err); {
		case err == nil:
			tries.Add(1)
		case state != "08007" && state != "40001":
			t.Errorf("try: %v", err)
			return
		}
		if got {
			stolen.Add(1)
			return
		}
		time.Sleep(time.Millisecond) // the load is bounded
	}
}
