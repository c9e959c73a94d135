package proxy

import (
	"io"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"holdfast/pgwire"
)

// steady is a session on a running loop with real sockets: the test is its client and its server.
type steady struct {
	tb             testing.TB
	client, server int // descriptors, which block
	session        *session
	back           *backend
	isTaken        bool // the loop does not have the session, and will not get it back
}

// far is a lease without an end.
type far struct{}

func (far) Doubt() int64 { return 1 << 62 }
func (far) Until() int64 { return 1 << 62 }

// newSteady is one with that commit guard, whose questions want the answers of a server.
func newSteady(tb testing.TB, guard string) *steady {
	tb.Helper()
	p := &Proxy{cfg: DefaultConfig(), metrics: newMetrics(nil), log: zap.NewNop(),
		topo: noTopology{}, ctx: tb.Context()}
	p.cfg.CommitGuard = guard
	p.work.Add(1) // of the client, which a goroutine that waits ends with the context
	l, err := newLoop()
	if err != nil {
		tb.Fatal(err)
	}
	p.loops = []*loop{l}
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.run()
	}()
	end := func() (ours *sock, theirs int) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			tb.Fatal(err)
		}
		c := &sock{loop: l, fd: fds[0], rd: true, wr: true}
		if err := l.add(c); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() {
			_ = c.Close()
			_ = unix.Close(fds[1])
		})
		return c, fds[1]
	}
	r := &steady{tb: tb, isTaken: true}
	var client, server *sock
	client, r.client = end()
	server, r.server = end()
	// First of all: this session has no proxy around it that could end it when its sockets close. A
	// goroutine that has just become the owner gives it back, as there is nothing to be done; one
	// that waits ends the session.
	tb.Cleanup(func() {
		l.stop()
		<-done
		limit := time.Now().Add(10 * time.Second) // it must fail, not hang
		for !r.isTaken && !r.session.onLoop.Load() && client.control(func(int) {}) {
			if time.Now().After(limit) {
				tb.Error("a goroutine keeps the session")
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	s := &session{
		proxy: p, loop: l, client: client, conf: true,
		track: newTracker("app", &p.cfg), flow: newFlow('I'), account: newAccount(nil),
		setters: noSetters(),
	}
	s.track.prepare("p", &prepared{sql: "SELECT 1"})
	r.back = &backend{primary: &Primary{Epoch: 1, Lease: far{}}, conn: server, status: 'I'}
	r.session = s
	s.attend()
	if err := s.attach(r.back, func() {}); err != nil {
		tb.Fatal(err)
	}
	client.handle((*clientSide)(s))
	s.park()
	r.isTaken = false
	return r
}

// onceOnLoop is called by a loop that it is posted to.
type onceOnLoop func()

func (onceOnLoop) read()         {}
func (f onceOnLoop) relay(int64) { f() }

// takeOver makes the test the owner of the session, or what do starts if it is not nil. Only the
// loop gives a session away: anybody else would do it while the loop is at work on it.
func (r *steady) takeOver(do func()) {
	r.tb.Helper()
	r.isTaken = true
	s, given := r.session, make(chan struct{})
	s.loop.post(onceOnLoop(func() {
		if do == nil {
			do = func() {}
		}
		s.handOver(do)
		close(given)
	}))
	<-given
}

// pass writes on one side and reads the same on the other.
func (r *steady) pass(from, to int, p, buf []byte) {
	if _, err := unix.Write(from, p); err != nil {
		r.tb.Fatal(err)
	}
	for n := 0; n < len(p); {
		m, err := unix.Read(to, buf)
		if err != nil || m == 0 {
			r.tb.Fatalf("%d of %d bytes came: %v, %v", n, len(p), err, io.ErrUnexpectedEOF)
		}
		n += m
	}
}

// shapes are units of work as clients send them, with what a server answers.
func shapes() map[string][2][]byte {
	ready := pgwire.AppendReadyForQuery(nil, 'I')
	row := pgwire.AppendDataRow(nil, []byte("42"))
	tag := pgwire.AppendCommandComplete(nil, "SELECT 1")
	rows := pgwire.AppendRowDescription(nil, "abalance")
	for range 200 {
		rows = append(rows, row...)
	}
	rows = append(append(rows, tag...), ready...)
	bound := pgwire.AppendMessage(nil, pgwire.SrvBindComplete, nil)
	parsed := pgwire.AppendMessage(nil, pgwire.SrvParseComplete, nil)
	bind := pgwire.AppendSync(pgwire.AppendExecute(pgwire.AppendDescribe(
		pgwire.AppendBind(nil, "", "p", "1"), 'P', ""), "", 0))
	cat := func(parts ...[]byte) (out []byte) {
		for _, p := range parts {
			out = append(out, p...)
		}
		return out
	}
	answer := cat(bound, pgwire.AppendRowDescription(nil, "abalance"), row, tag, ready)
	return map[string][2][]byte{
		"simple":   {pgwire.AppendQuery(nil, "SELECT abalance FROM t WHERE aid = 1"), rows},
		"prepared": {bind, answer},
		"pipeline": {cat(bind, bind, bind), cat(answer, answer, answer)},
		"extended": {cat(pgwire.AppendParse(nil, "", "SELECT 1", nil),
			pgwire.AppendBind(nil, "", ""), pgwire.AppendExecute(nil, "", 0),
			pgwire.AppendSync(nil)), cat(parsed, bound, row, tag, ready)},
		"write": {pgwire.AppendQuery(nil, "UPDATE t SET a = 1 WHERE aid = 1"),
			cat(pgwire.AppendCommandComplete(nil, "UPDATE 1"), ready)},
	}
}

// In steady state a message costs no allocation, from the socket to the socket: framing,
// classification, flow, journal, the loop and the gate of the lease with it.
func TestLoopAllocatesNothing(t *testing.T) {
	if isRace {
		t.Skip("sync.Pool forgets at random under the race detector")
	}
	for name, shape := range shapes() {
		t.Run(name, func(t *testing.T) {
			r := newSteady(t, GuardOff)
			buf := make([]byte, 64<<10)
			once := func() {
				r.pass(r.client, r.server, shape[0], buf)
				r.pass(r.server, r.client, shape[1], buf)
			}
			for range 50 { // pools and slices get their sizes
				once()
			}
			if n := testing.AllocsPerRun(500, once); n > 0 {
				t.Errorf("%.2f allocations per unit of work", n)
			}
		})
	}
}

// BenchmarkLoop is what a unit of work costs on the loop, with the system calls of the relay and of
// a client and a server that do nothing else.
func BenchmarkLoop(b *testing.B) {
	for name, shape := range shapes() {
		b.Run(name, func(b *testing.B) {
			r := newSteady(b, GuardOff)
			buf := make([]byte, 64<<10)
			b.SetBytes(int64(len(shape[0]) + len(shape[1])))
			b.ReportAllocs()
			for b.Loop() {
				r.pass(r.client, r.server, shape[0], buf)
				r.pass(r.server, r.client, shape[1], buf)
			}
		})
	}
}

// BenchmarkInspect is what the relay learns of a client's messages: framing, classification, the
// flow and the journal.
func BenchmarkInspect(b *testing.B) {
	for name, shape := range shapes() {
		b.Run(name, func(b *testing.B) {
			s, _, _, _ := relayRig(b)
			ask := shape[0]
			b.SetBytes(int64(len(ask)))
			b.ReportAllocs()
			for b.Loop() {
				s.mu.Lock()
				s.equip()
				for n := 0; n < len(ask); {
					size, _, err := s.inspectNext(ask[n:], n)
					if err != nil || size == 0 {
						b.Fatalf("%d: %v", size, err)
					}
					n += size
				}
				s.flow.rest()
				s.flow = newFlow('I')
				s.mu.Unlock()
				s.keep(ask)
				s.unit.begin()
			}
		})
	}
}
