package main_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestE2ESignals: SIGHUP changes nothing and says so, SIGTERM waits for an open transaction, and a
// second one does not.
func TestE2ESignals(t *testing.T) {
	needCluster(t)
	c := startCluster(t)
	makeDatabase(t, c)
	n := c.Nodes[1]
	conn := connect(t, e2eDSN(n))
	exec1(t, conn, "BEGIN")
	if err := n.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(10 * time.Second); !strings.Contains(n.LogTail(20), "SIGHUP"); {
		if time.Now().After(until) || !n.Running() {
			t.Fatalf("running: %v; nothing is said of SIGHUP:\n%s", n.Running(), n.LogTail(20))
		}
		time.Sleep(10 * time.Millisecond) // polls, with an end
	}
	exec1(t, conn, "SELECT 1")
	if err := n.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, time.Now().Add(time.Second))
	if !n.Running() {
		t.Fatalf("SIGTERM did not wait for the transaction:\n%s", n.LogTail(20))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if code, err := n.Terminate(ctx); err != nil || code != -1 {
		t.Errorf("after the second SIGTERM: exit code %d, want by the signal (-1); %v", code, err)
	}
}
