package main_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	holdfast "holdfast/cmd/holdfast"
)

// TestE2ELocks: a session keeps its advisory lock, with its count, over kills and switchovers,
// while clients of the other proxies try for it all the time and never get it (DESIGN 10.10). One
// may get it from a server whose postmaster was killed, where the holder's process may have ended
// before its own; then it is told that its session ends, and the holder has the lock still.
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
	var tries atomic.Int64
	stop := make(chan struct{})
	grants := make(chan grant, 2)
	killed := map[string]bool{} // by the start of the postmaster
	var trying sync.WaitGroup
	try := func(n *holdfast.ClusterNode) {
		conn := connect(t, e2eDSN(n))
		trying.Go(func() { tryForLock(t, conn, stop, &tries, grants) })
	}
	for _, n := range c.Nodes[1:] {
		try(n)
	}
	for i := range 4 {
		before := tries.Load()
		if i%2 == 0 {
			killed[queryText(t, holder, "SELECT pg_postmaster_start_time()::text")] = true
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
		for len(grants) > 0 {
			checkGrant(t, <-grants, killed)
			try(c.Nodes[1])
		}
		for tries.Load() < before+20 { // behind the barrier
			waitUntil(t, time.Now().Add(10*time.Millisecond))
		}
	}
	st := waitHealthy(t, c)
	close(stop)
	trying.Wait()
	for i, want := range []string{"true", "true", "false"} {
		if got := queryText(t, holder, "SELECT pg_advisory_unlock(7)::text"); got != want {
			t.Errorf("release %d: %s", i, got)
		}
	}
	if len(grants) > 0 {
		t.Errorf("another got the lock, of the server of %s", (<-grants).start)
	}
	for _, p := range st.Problems {
		if strings.Contains(p, "advisory") {
			t.Error(p)
		}
	}
	t.Logf("%d tries of others", tries.Load())
}

// grant is the lock as another session got it, of the server that started then; without a session
// it is one that was told right away.
type grant struct {
	conn  *pgx.Conn
	start string
}

// checkGrant makes sure that the lock came from a server that was killed, and that who got it is
// told.
func checkGrant(t *testing.T, g grant, killed map[string]bool) {
	t.Helper()
	if g.conn == nil {
		if len(killed) == 0 {
			t.Error("the session of another ended before a server did")
		}
		return
	}
	if _, err := tryText(t, g.conn, "SELECT 'here'"); !killed[g.start] || sqlState(err) != "57P01" {
		t.Errorf("another got the lock, of the server of %s (%v), and is told: %v", g.start, killed,
			err)
	}
	t.Log("a server whose postmaster was killed gave the lock away")
}

// tryText is queryText with an error.
func tryText(t *testing.T, conn *pgx.Conn, sql string) (text string, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = conn.QueryRow(ctx, sql, pgx.QueryExecModeSimpleProtocol).Scan(&text)
	return text, err
}

// tryForLock asks for the lock until stop. What a change interrupts is unknown, or not executed.
func tryForLock(t *testing.T, conn *pgx.Conn, stop <-chan struct{}, tries *atomic.Int64,
	grants chan<- grant,
) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var got bool
		var start string
		err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock(7),"+
			" pg_postmaster_start_time()::text").Scan(&got, &start)
		cancel()
		switch state := sqlState(err); {
		case err == nil:
			tries.Add(1)
		case state == "57P01":
			grants <- grant{} // it may have got the lock, and was told in the place of an answer
			return
		case state != "08007" && state != "40001":
			t.Errorf("try: %v", err)
			return
		}
		if got {
			grants <- grant{conn, start}
			return
		}
		time.Sleep(time.Millisecond) // the load is bounded
	}
}
