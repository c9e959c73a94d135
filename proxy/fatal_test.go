package proxy_test

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// finalError is an error that a server says before it closes the connection.
func finalError(severity, code, where string) []byte {
	fields := "S" + severity + "\x00V" + severity + "\x00C" + code + "\x00Mthe end\x00W" + where +
		"\x00\x00"
	return pgwire.AppendMessage(nil, pgwire.SrvError, []byte(fields))
}

// What a server says at its end is no answer to a statement, however long it is and in whatever
// parts it comes: the session goes on at the next one.
func TestLastWordsOfAServer(t *testing.T) {
	r, s := liarRig(t)
	row := pgwire.AppendDataRow(pgwire.AppendRowDescription(nil, "a"), []byte("x"))
	ready := pgwire.AppendReadyForQuery(pgwire.AppendCommandComplete(nil, "SELECT 1"), 'I')
	var epoch atomic.Uint64
	epoch.Store(1)
	long := strings.Repeat("w", 100<<10)
	for name, p := range map[string][]byte{
		"'PANIC'": finalError("PANIC", "58030", "x"), "'long'": finalError("FATAL", "57P01", long),
		"'long PANIC'": finalError("PANIC", "XX000", long),
		"'endless'":    finalError("FATAL", "57P01", strings.Repeat("w", 5<<20)),
	} {
		var isSaid atomic.Bool
		s.lies["SELECT "+name] = func(c net.Conn) {
			if isSaid.Swap(true) {
				_, _ = c.Write(append(row[:len(row):len(row)], ready...))
				return
			}
			r.topo.Set(&proxy.Primary{
				Name: "next", Addr: s.l.Addr().String(), Epoch: epoch.Add(1), Incarnation: liarStarted,
				Lease: proxytest.NewLease(time.Hour), Boundaries: []proxy.Boundary{{Epoch: 1}},
			})
			for _, part := range [][]byte{p[:3], p[3:6], p[6:30], p[30:]} {
				_, _ = c.Write(part)
				time.Sleep(10 * time.Millisecond) // each is read by itself
			}
			_ = c.Close()
		}
		t.Run(name, func(t *testing.T) {
			c := r.connect("")
			if v, err := tryExec(c, "SELECT "+name); v != "x" || err != nil {
				t.Errorf("got %q, %v", v, err)
			}
			if v := exec(t, c, "SELECT 7"); v != "7" {
				t.Errorf("what comes next: %q", v)
			}
		})
	}
}
