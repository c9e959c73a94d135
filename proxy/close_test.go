package proxy_test

import (
	"testing"
	"time"

	"holdfast/proxy"
)

// TestCloseLetsATransactionEnd closes the proxy under an open transaction: it may go on to its
// COMMIT, nothing new is begun after it, and Close returns at once then.
func TestCloseLetsATransactionEnd(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.ShutdownTimeout = 20 * time.Second })
	c := r.connect("")
	exec(t, c, "CREATE TABLE closing (a int)")
	exec(t, c, "BEGIN")
	exec(t, c, "INSERT INTO closing VALUES (1)")
	idle := r.connect("")
	closed := make(chan error, 1)
	go func() { closed <- r.proxy.Close() }()
	// An idle session ends at once; until it has, the proxy may not have begun to close.
	for i := 0; !idle.IsClosed(); i++ {
		if i == 100 {
			t.Fatal("the idle session lives on")
		}
		time.Sleep(10 * time.Millisecond) // one second in all
		_, _ = tryExec(idle, "SELECT 1")
	}
	exec(t, c, "INSERT INTO closing VALUES (2)")
	begin := time.Now()
	exec(t, c, "COMMIT")
	if _, err := tryExec(c, "SELECT 1"); err == nil {
		t.Error("a statement was begun after the last transaction")
	}
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Close waits for a session that has nothing to do")
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("Close returned %v after the last COMMIT", took)
	}
}
