package proxy_test

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/proxy"
)

// zeros is so many zero bytes, a line feed behind every 999.
type zeros struct{ left atomic.Int64 }

func (z *zeros) Read(p []byte) (int, error) {
	left := z.left.Load()
	if left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), left)
	for i := range n {
		p[i] = '0'
		if (left-i)%1000 == 0 {
			p[i] = '\n'
		}
	}
	z.left.Add(-n)
	return int(n), nil
}

// stalledCopy is a COPY of 32 MB to a server that has stopped reading: the proxy's send buffer is
// full. It goes on when resume is called.
func (r *rig) stalledCopy() (done chan error, resume func()) {
	r.t.Helper()
	c := r.connect("")
	exec(r.t, c, "CREATE TABLE big (a text)")
	stalled, end := make(chan struct{}), make(chan struct{})
	var first, ended atomic.Bool
	r.line.Watch(func(typ byte, _ []byte) bool {
		if typ == 'd' && first.CompareAndSwap(false, true) {
			close(stalled)
			<-end
		}
		return true
	}, nil)
	resume = func() {
		if ended.CompareAndSwap(false, true) {
			close(end)
		}
	}
	r.t.Cleanup(resume)
	done = make(chan error, 1)
	z := &zeros{}
	z.left.Store(32 << 20)
	go func() {
		_, err := c.CopyFrom(context.Background(), z, "COPY big FROM STDIN")
		done <- err
	}()
	<-stalled
	for last := int64(-1); last != z.left.Load(); {
		last = z.left.Load()
		time.Sleep(200 * time.Millisecond) // until the buffers are full
	}
	return done, resume
}

// A primary that is alive and reads nothing for longer than any grace is only slow.
func TestBusyPrimaryKeepsItsConnection(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.KeepAlive = 500 * time.Millisecond })
	done, resume := r.stalledCopy()
	mustWait(t, done, 4*time.Second)
	resume()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if v := exec(t, r.connect(""), "SELECT count(*) FROM big"); v != "33555" {
		t.Errorf("%s rows", v)
	}
	for _, why := range []string{"lease_end", "backend_silent", "client_silent"} {
		if n := r.count("resets_total", why); n != 0 {
			t.Errorf("%v resets because of %s", n, why)
		}
	}
}

// Bytes that the primary's host has not taken do not reach it after the end of the lease, though
// nobody tells the proxy to cut; idle sessions keep their connections.
func TestBytesUnderWayEndWithTheLease(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.LeaseGrace = 200 * time.Millisecond })
	idle := r.connect("")
	pid := exec(t, idle, "SELECT pg_backend_pid()")
	done, resume := r.stalledCopy()
	r.lease.Set(-time.Hour, -time.Hour)
	for deadline := time.Now().Add(10 * time.Second); r.count("resets_total", "lease_end") == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the connection was not reset")
		}
		time.Sleep(5 * time.Millisecond) // until the proxy has looked
	}
	resume()
	r.lease.Set(time.Hour, time.Hour)
	if err := <-done; err == nil {
		t.Error("the COPY went on after the end of the lease")
	}
	if n := r.count("resets_total", "lease_end"); n != 1 {
		t.Errorf("%v connections were reset", n)
	}
	if now := exec(t, idle, "SELECT pg_backend_pid()"); now != pid {
		t.Error("an idle session lost its backend")
	}
	if v := exec(t, idle, "SELECT count(*) FROM big"); v != "0" {
		t.Errorf("%s rows", v)
	}
}

// Where commits wait for standbys such bytes are only late: when the lease comes back, so do they.
func TestBytesUnderWayWaitInSynchronousMode(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.LeaseGrace = 100 * time.Millisecond })
	pr, _ := r.topo.Current()
	now := *pr
	now.SyncQuorum = 1
	r.topo.Set(&now)
	done, resume := r.stalledCopy()
	r.lease.Set(-time.Hour, -time.Hour)
	mustWait(t, done, time.Second)
	resume()
	r.lease.Set(time.Hour, time.Hour)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
