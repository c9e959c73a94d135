package proxy_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// Each bound that is reached is counted, and nothing else.
func TestLimitsAreCounted(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) {
		c.StartupTimeout, c.PreparedBytesMax, c.InspectBytesMax = time.Second, 1000, 2000
	})
	c := r.connect("")
	ctx := context.Background()
	batch := func(n int) {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "%d", i%10)
		}
		exec(t, c, "SELECT '"+b.String()+"'")
	}
	for name, reach := range map[string]func(){
		"startup_timeout": func() { r.peer(t) },
		"startup_packet":  func() { r.peer(t, []byte("GET / HTTP/1.1\r\n\r\n")) },
		"inspect_bytes":   func() { batch(200000) },
		"prepared_bytes": func() {
			if _, err := c.Prepare(ctx, "p", "SELECT '"+strings.Repeat("x", 1000)+"'", nil); err != nil {
				t.Fatal(err)
			}
		},
		"portals": func() {
			w := hijack(t, r.connect(""))
			msg := pgwire.AppendParse(nil, "s", "SELECT 1", nil)
			for i := range 1002 {
				msg = pgwire.AppendBind(msg, fmt.Sprint("c", i), "s")
			}
			w.send(pgwire.AppendSync(msg))
			w.until(1, 20*time.Second)
		},
		"outstanding": func() {
			w := hijack(t, r.connect(""))
			msg := pgwire.AppendQuery(nil, "SELECT pg_sleep(0.5)")
			for range 60000 {
				msg = pgwire.AppendSync(msg)
			}
			w.send(msg)
			w.until(60001, 20*time.Second)
		},
	} {
		before := r.count("limits_total", name)
		batch(10)
		if r.count("limits_total", name) != before {
			t.Errorf("%s counts what does not reach it", name)
		}
		reach()
		r.eventually(func() bool { return r.count("limits_total", name) > before }, name+" is counted")
	}
}
