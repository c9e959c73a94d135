package proxy

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"holdfast/pgwire"
)

// greeted is a session whose client has been asked for its password, on a loop that nobody runs:
// the test is the loop. send takes the client's messages.
func greeted(t *testing.T, p *Proxy, from netip.Addr) (s *session, send func(p []byte)) {
	t.Helper()
	still, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { still.stop(); still.run() })
	client, peer := sockPairOn(t, still)
	p.work.Add(1)
	p.conns.Add(1)
	s, err = p.newSession(client, &pgwire.Startup{
		Protocol: pgwire.Protocol3, Params: []pgwire.Param{{Name: "user", Value: "app"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.loop = still
	if err := s.challenge(secretEntry{}, from, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	return s, func(p []byte) {
		if n, err := peer.tryWrite(p); n < len(p) {
			t.Fatal(err)
		}
		client.mu.Lock()
		client.rd = true
		client.mu.Unlock()
		g := s.greeting
		g.hear(s)
		g.answer(s)
	}
}

// A failed login counts before the loop turns to the next client: a goroutine that tells the client
// may begin after thousands of others were judged.
func TestGuessesCountAtOnce(t *testing.T) {
	told := make(chan struct{}) // nobody is told anything before
	core, _ := observer.New(zapcore.DebugLevel)
	log := zap.New(core, zap.Hooks(func(zapcore.Entry) error { <-told; return nil }))
	p := &Proxy{
		cfg: DefaultConfig(), metrics: newMetrics(nil), log: log, guesses: newGuesses(1),
		sessions: make(map[uint32]*session), lockBook: newLockBook(), shares: newShares(&Config{}),
		cache: &secretCache{},
	}
	from := netip.MustParseAddr("10.0.0.1")
	s, send := greeted(t, p, from)
	_, first, err := pgwire.NewScramClient(pgwire.Credentials{Password: "wrong"})
	if err != nil {
		t.Fatal(err)
	}
	initial := append([]byte("SCRAM-SHA-256\x00"), 0, 0, 0, byte(len(first)))
	send(pgwire.AppendPassword(nil, append(initial, first...)))
	s.greeting.err = pgwire.ErrScramFailed // what a wrong proof comes to
	s.greeting.answer(s)
	if !p.guesses.isSpent(from) {
		t.Error("the next client may guess as if there had been no failure")
	}
	close(told)
	p.work.Wait()
}

// What a session has proved is noted while others may look at it (run with -race).
func TestSessionsAreListedDuringALogin(t *testing.T) {
	s, _, _, _ := relayRig(t)
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() {
		for range 100 {
			s.info()
		}
	})
	key := make([]byte, 32)
	for range 100 {
		s.prove(pgwire.Credentials{ClientKey: key, ServerKey: key})
	}
}
