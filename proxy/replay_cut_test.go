package proxy_test

import (
	"bytes"
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// cutLarge is a message that is too large to be inspected as a whole, and is on its way when its
// backend is lost.
type cutLarge struct {
	first   []byte // is sent before it
	message []byte
	behind  []byte
	// isSimple tells that it is answered before the client has sent the rest.
	isSimple bool
}

func cutLarges() map[string]cutLarge {
	text := string(bytes.Repeat([]byte("x"), 600<<10))
	run := pgwire.AppendSync(pgwire.AppendExecute(nil, "", 0))
	call := pgwire.AppendFunctionCall(nil, 1317) // length(text)
	call = call[pgwire.HeaderLen : pgwire.HeaderLen+4]
	call = append(call, 0, 0, 0, 1, 0, 9, 0x60, 0)
	call = append(append(call, text...), 0, 0)
	return map[string]cutLarge{
		"a Query": {nil, pgwire.AppendQuery(nil, "SELECT length('"+text+"')"), nil, true},
		"a Parse": {nil, pgwire.AppendParse(nil, "", "SELECT length('"+text+"')", nil),
			append(pgwire.AppendBind(nil, "", ""), run...), false},
		"a Bind": {pgwire.AppendParse(nil, "", "SELECT length($1)", nil),
			pgwire.AppendBind(nil, "", "", text), run, false},
		"a FunctionCall": {nil, pgwire.AppendMessage(nil, 'F', call), nil, true},
		"data of a COPY": {pgwire.AppendQuery(nil, "COPY c FROM STDIN"),
			pgwire.AppendMessage(nil, 'd', append([]byte(text), '\n')),
			pgwire.AppendMessage(nil, 'c', nil), true},
	}
}

// The backend on which a unit is run again is lost before it had the message whose rest the client
// has yet to send: whatever becomes of the unit, the rest is no message of its own (DESIGN.md I33).
func TestReplayIsLostBeforeALargeMessage(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.HoldTimeout = time.Second })
	admin := r.connect("")
	exec(t, admin, "CREATE TABLE c (a text)")
	closeConn(admin)
	for name, m := range cutLarges() {
		t.Run("it differs/"+name, func(t *testing.T) { cutAndDiffers(t, r, m) })
		t.Run("the next one is lost/"+name, func(t *testing.T) {
			cutAtTheGate(t, r, m, false, "40001")
		})
		t.Run("it is canceled/"+name, func(t *testing.T) { cutAtTheGate(t, r, m, true, "57014") })
	}
}

// rest sends what the client owes once the first answer has come, and looks that each
// message has its own answer: those of the unit these errors.
func (m cutLarge) rest(t *testing.T, w *raw, answered func(), end string, want ...string) {
	t.Helper()
	ends := 0
	for _, s := range want {
		if s[0] == 'Z' {
			ends++
		}
	}
	rest := append(m.message[len(m.message)/2:len(m.message):len(m.message)], m.behind...)
	got := w.play([]scriptStep{{typ: 'E'}})
	answered()
	if m.isSimple { // the end is not waited for
		got = append(got, w.play([]scriptStep{{ends: ends}})...)
		w.send(rest)
	} else {
		got = append(got, w.play([]scriptStep{{send: rest, ends: ends}})...)
	}
	checkPlayed(t, got, want...)
	got = w.play([]scriptStep{q(end), q("SELECT 7")})
	checkPlayed(t, got[max(0, len(got)-3):], `D "\x00\x01\x00\x00\x00\x017"`, `C "SELECT 1\x00"`,
		`Z "I"`)
}

// cutAndDiffers loses a COMMIT, and the first half of a large message behind it. What was run again
// comes out differently before either was sent again.
func cutAndDiffers(t *testing.T, r *rig, m cutLarge) {
	w := begun(t, r.connect(""))
	w.play([]scriptStep{q("SELECT clock_timestamp()")})
	var isCut atomic.Bool
	cut := make(chan bool, 1)
	isLeaving := r.leaves(firstOfLarge)
	r.line.Watch(func(typ byte, body []byte) bool {
		if typ == 'Q' && bytes.HasPrefix(body, []byte("COMMIT")) && !isCut.Swap(true) {
			behind := false // what is behind it is on its way, too
			for end := time.Now().Add(20 * time.Second); !behind && time.Now().Before(end); {
				time.Sleep(time.Millisecond) // until it is, or the end
				behind = isLeaving()
			}
			cut <- behind
			return false
		}
		return true
	}, nil)
	different := r.count("replays_total", "different")
	w.send(append(append(pgwire.AppendQuery(nil, "COMMIT"), m.first...),
		m.message[:len(m.message)/2]...))
	if !<-cut {
		t.Fatal("nothing was sent behind the COMMIT")
	}
	second := "E 40001"
	if m.isSimple {
		second = "E 08007" // it may be executed as soon as all of it is there: nothing is run again
	}
	m.rest(t, w, func() {}, "", "E 40001", `Z "I"`, second, `Z "I"`)
	if n := r.count("replays_total", "different") - different; n != 1 && !m.isSimple {
		t.Errorf("%v units came out differently", n)
	}
}

// firstOfLarge are more bytes than a test sends before its large message.
const firstOfLarge = 10 << 10

// leaves tells when so many bytes have left the proxy from here on.
func (r *rig) leaves(n int) func() bool {
	before := r.line.Arrived()
	return func() bool { return r.line.Arrived()-before >= int64(n) }
}

func (m cutLarge) isQuery() bool { return m.message[0] == 'Q' }

// cutAtTheGate loses a block with the first half of a large message. Where it is to be run again
// the gate is shut; then that backend is lost, or a cancel request comes.
func cutAtTheGate(t *testing.T, r *rig, m cutLarge, cancels bool, want string) {
	// Another session would log in again too, and shut the gate before this one is through.
	r.eventually(func() bool { n, _ := r.proxy.Stats(); return n == 0 }, "the others have left")
	c := r.connect("")
	pid, key := c.PID(), c.SecretKey()
	w := begun(t, c)
	w.play([]scriptStep{q("SELECT 1")})
	isOnItsWay := r.leaves(len(m.first) + len(m.message)/2)
	w.send(m.first)
	if len(m.first) > 0 && m.isSimple {
		w.play([]scriptStep{{typ: 'G'}})
	}
	w.send(m.message[:len(m.message)/2])
	r.eventually(isOnItsWay, "all of it is on its way")
	begun := r.count("replays_total", "begun")
	r.line.Watch(nil, func(typ byte, _ []byte) bool {
		if typ == 'R' {
			r.lease.Set(-time.Second, time.Hour)
		}
		return true
	})
	r.line.Cut()
	shut := func() bool {
		return r.count("replays_total", "begun") > begun ||
			m.isQuery() && r.lease.Doubt() < proxytest.Now()
	}
	r.eventually(shut, "it is run again")
	r.line.Watch(nil, nil)
	open := func() { r.lease.Set(time.Hour, time.Hour) }
	if cancels {
		err := pgwire.SendCancel(context.Background(), r.proxy.Addrs()[0].String(), pid, key,
			new(net.Dialer).DialContext)
		if err != nil {
			t.Fatal(err)
		}
		open()
	} else {
		r.line.Cut() // and no other one can be had in time
	}
	if m.isQuery() {
		want = "08007" // as a whole it may be a string with a COMMIT in it: it is not run again
	}
	m.rest(t, w, open, "ROLLBACK", "E "+want, `Z "E"`)
}
