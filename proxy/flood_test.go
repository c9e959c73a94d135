package proxy_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// flood is many MB of queries, each of which is answered with its number.
const (
	floodQueries = 2560
	floodBytes   = 16 << 10
)

// writeAll sends p, and tells each time that nothing of it was taken for a while. It returns once
// all of it is sent.
func writeAll(w *raw, p []byte, sent *atomic.Int64, stuck chan<- struct{}) error {
	defer func() { _ = w.c.SetWriteDeadline(time.Time{}) }()
	for len(p) > 0 {
		_ = w.c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := w.c.Write(p[:min(len(p), 256<<10)])
		p = p[n:]
		sent.Add(int64(n))
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && n == 0:
			select {
			case stuck <- struct{}{}:
			default:
			}
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		}
	}
	return nil
}

// A client that sends while it is held is made to wait: what it sends stays in its sockets and its
// own memory, whether a statement of it was in flight or not. All of it is answered, in order, once
// there is a primary.
func TestFloodWhileHeldWaits(t *testing.T) {
	for name, before := range map[string]string{
		"in a block": "BEGIN", "in flight": "",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *proxy.Config) { c.HoldTimeout, c.HoldNoticeAfter = time.Hour, 0 })
			w := hijack(t, r.connect(""))
			if before != "" {
				w.play([]scriptStep{q(before)})
			} else {
				w.send(q("SELECT 'again' FROM pg_sleep(0.3)").send)
				r.eventually(func() bool { return r.sleepers() == "1" }, "the server works")
			}
			r.unavailable()
			var all []byte
			pad := " /* " + strings.Repeat("x", floodBytes) + " */"
			for i := range floodQueries {
				all = pgwire.AppendQuery(all, fmt.Sprintf("SELECT %d%s", i, pad))
			}
			var sent atomic.Int64
			stuck, done := make(chan struct{}), make(chan error, 1)
			go func() { done <- writeAll(w, all, &sent, stuck) }()
			for at := int64(-1); at != sent.Load(); { // nothing more was taken between two looks
				at = sent.Load()
				select {
				case <-stuck:
				case err := <-done:
					t.Fatalf("all %d bytes were taken: %v", len(all), err)
				case <-time.After(30 * time.Second):
					t.Fatal("the client neither waits nor sends")
				}
			}
			if n := r.gauge("journal_bytes"); n > float64(proxy.DefaultConfig().JournalBytesMax) {
				t.Errorf("%v bytes in journals", n)
			}
			r.lead(1<<40, 1<<40)
			answered(t, w, before == "")
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// answered reads the answers to a flood: each query's own number, in order.
func answered(t *testing.T, w *raw, again bool) {
	t.Helper()
	next := 0
	if again {
		next = -1
	}
	for next < floodQueries {
		_ = w.c.SetReadDeadline(time.Now().Add(60 * time.Second))
		typ, body, err := w.r.ReadMessage()
		if err != nil {
			t.Fatalf("before the answer to %d: %v", next, err)
		}
		switch typ {
		case 'D':
			want := fmt.Sprint(next)
			if next < 0 {
				want = "again"
			}
			if got := string(body[6:]); got != want {
				t.Fatalf("the answer to %d is %q", next, got)
			}
		case 'Z':
			next++
		case 'E':
			e, _ := pgwire.ParseError(body)
			t.Fatalf("the answer to %d is %s %s", next, e.Code, e.Message)
		}
	}
}
