package proxy

import (
	"testing"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"holdfast/pgwire"
)

// sockPair is two ends of a connection, both on one loop.
func sockPair(tb testing.TB) (a, b *sock) {
	tb.Helper()
	return sockPairOn(tb, newTestLoop(tb))
}

func sockPairOn(tb testing.TB, l *loop) (a, b *sock) {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		tb.Fatal(err)
	}
	var ends [2]*sock
	for i, fd := range fds {
		ends[i] = &sock{loop: l, fd: fd, rd: true, wr: true}
		if err := l.add(ends[i]); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = ends[i].Close() })
	}
	return ends[0], ends[1]
}

// relayRig is a session and its backend with no sockets that matter: what the relay does to the
// bytes of one prepared select.
func relayRig(tb testing.TB) (s *session, b *backend, ask, answer []byte) {
	tb.Helper()
	p := &Proxy{cfg: DefaultConfig(), metrics: newMetrics(nil), log: zap.NewNop()}
	client, _ := sockPair(tb)
	s = &session{
		proxy: p, loop: client.loop, client: client, conf: true,
		track: newTracker("app", &p.cfg), flow: newFlow('I'), account: newAccount(nil),
		setters: noSetters(),
	}
	b = &backend{primary: &Primary{Epoch: 1}, session: s}
	s.backend = b
	s.equip()
	s.track.prepare("p", &prepared{sql: "SELECT 1"})
	ask = pgwire.AppendBind(nil, "", "p", "1")
	ask = pgwire.AppendDescribe(ask, 'P', "")
	ask = pgwire.AppendExecute(ask, "", 0)
	ask = pgwire.AppendSync(ask)
	answer = pgwire.AppendMessage(nil, pgwire.SrvBindComplete, nil)
	answer = pgwire.AppendRowDescription(answer, "abalance")
	answer = pgwire.AppendDataRow(answer, []byte("42"))
	answer = pgwire.AppendCommandComplete(answer, "SELECT 1")
	answer = pgwire.AppendReadyForQuery(answer, 'I')
	return s, b, ask, answer
}

// roundTrip is what the relay does for one transaction, reads and writes left out.
func roundTrip(tb testing.TB, s *session, b *backend, ask, answer []byte) {
	s.mu.Lock()
	s.beginUnit()
	for n := 0; n < len(ask); {
		size, act, err := s.inspectNext(ask[n:], n)
		if err != nil || act != forwardIt || size == 0 {
			tb.Fatalf("inspect: %v %v %d", err, act, size)
		}
		n += size
	}
	s.mu.Unlock()
	s.keep(ask)
	b.in.room(1)
	b.in.w = copy(b.in.buf, answer)
	out, err := b.consume(s)
	if err != nil || len(out) != len(answer) {
		tb.Fatalf("consume: %v, %d bytes of %d", err, len(out), len(answer))
	}
	b.in.take(b.taken)
}

func TestRelayAllocatesNothing(t *testing.T) {
	s, b, ask, answer := relayRig(t)
	roundTrip(t, s, b, ask, answer)
	if n := testing.AllocsPerRun(1000, func() { roundTrip(t, s, b, ask, answer) }); n > 0 {
		t.Errorf("%.1f allocations per transaction", n)
	}
	if !s.flow.isSafePoint() {
		t.Error("not at a safe point behind it")
	}
}

func BenchmarkRelay(b *testing.B) {
	s, be, ask, answer := relayRig(b)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip(b, s, be, ask, answer)
	}
}

// A client that has lost its transaction, and says nothing, needs nobody.
func TestLostTransactionWaitsForItsClient(t *testing.T) {
	s, b, _, _ := relayRig(t)
	b.primary.Lease = far{}
	s.lostTx = true
	if got := s.step(0); got != stepWait {
		t.Errorf("step %d while the client is silent", got)
	}
	s.in.begin(pgwire.AppendQuery(nil, "SELECT 1"))
	if got := s.step(0); got != stepRare {
		t.Errorf("step %d when it speaks", got)
	}
}

// Drain may begin between gate's look and the first byte of a unit: then it waits in the inbox.
func TestNoUnitStartsBehindADrain(t *testing.T) {
	s, b, _, _ := relayRig(t)
	b.conn, _ = sockPair(t)
	query := pgwire.AppendQuery(nil, "SELECT 1")
	s.in.begin(query)
	raise(&s.proxy.drainEpoch, 1)
	if err := s.forward(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !s.flow.isSafePoint() || len(s.in.bytes()) != len(query) {
		t.Error("a unit was started")
	}
	if s.awaitsDrain(1) {
		t.Error("the session counts as open")
	}
	// Nor does what a message needs begin one.
	p := s.track.statements["p"]
	p.away, s.track.hasAway, s.missing = true, true, "p"
	if err := s.prepareAway(b, true); err != nil || !s.flow.isSafePoint() {
		t.Errorf("a unit was started by a statement that is away: %v", err)
	}
}
