package proxy

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"holdfast/pgwire"
)

// What a client has sent before it violates the protocol reaches the server, also where there was
// no room for all of it at once: its answers are waited for, and without the rest none come.
func TestRestBeforeAViolationIsSent(t *testing.T) {
	for name, behind := range map[string][]byte{
		"a violation": {'!', 0, 0, 0, 4}, "Terminate": pgwire.AppendMessage(nil, 'X', nil),
	} {
		t.Run(name, func(t *testing.T) {
			s, b, _, _ := relayRig(t)
			b.primary.Lease = far{}
			own, peer := sockPair(t)
			b.conn = own
			setBuf(t, own.fd, 4096)
			good := bytes.Repeat(pgwire.AppendQuery(nil, "SELECT 1"), 600)
			s.in.begin(append(bytes.Clone(good), behind...))
			if err := s.forward(t.Context()); err != nil || s.unsent == 0 {
				t.Fatalf("%v, with %d bytes that were not sent", err, s.unsent)
			}
			got := make(chan error, 1)
			go func() {
				_ = peer.SetReadDeadline(time.Now().Add(5 * time.Second))
				p := make([]byte, len(good))
				_, err := io.ReadFull(peer, p)
				if err == nil && !bytes.Equal(p, good) {
					err = errors.New("other bytes")
				}
				got <- err
			}()
			err := s.forward(t.Context())
			for ; err == nil && s.unsent > 0; err = s.forward(t.Context()) {
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := <-got; err != nil {
				t.Errorf("the server: %v", err)
			}
			if err := s.forward(t.Context()); err == nil || s.unsent > 0 {
				t.Errorf("behind it: %v", err)
			}
		})
	}
}

// A client that has violated the protocol and left keeps neither its session nor its backend,
// whatever the server does.
func TestViolatorThatHasLeftIsNotWaitedFor(t *testing.T) {
	s, _, _, _ := relayRig(t)
	client, peer := sockPair(t)
	s.client = client
	s.attend()
	s.push(op{kind: opQuery})
	why := fatalProtocol(errClientMessage('!'))
	type result struct {
		violates bool
		err      error
	}
	ended := make(chan result, 1)
	go func() {
		violates, err := s.awaitAnswers(t.Context(), why)
		ended <- result{violates, err}
	}()
	select {
	case r := <-ended:
		t.Fatalf("%+v before the server has answered", r)
	case <-time.After(2 * waitTick):
	}
	_ = peer.Close()
	select {
	case r := <-ended:
		if r.violates || !errors.Is(r.err, errClientGone) {
			t.Errorf("%+v", r)
		}
	case <-time.After(5 * time.Second):
		t.Error("it is waited for")
	}
}
