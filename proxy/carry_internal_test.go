package proxy

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/pgwire"
)

// A session whose last answer waits until the server has said what it has is not at its safe point
// yet, as far as a drain goes: it may have temporary tables.
func TestDrainWaitsForWhatIsAsked(t *testing.T) {
	s := &session{proxy: &Proxy{}, backend: &backend{primary: &Primary{Epoch: 3}},
		flow: newFlow(pgwire.TxIdle)}
	if s.awaitsDrain(3) {
		t.Error("open, though idle")
	}
	s.endHeld = true
	if !s.awaitsDrain(3) || s.awaitsDrain(2) {
		t.Error("not open, though what it has is not known")
	}
}

// A client that does not read, and that the end of its last answer waits for, has its tables packed
// as others have: it would keep one of the few places for as long as it likes. What it was to be
// told comes when it reads.
func TestSlowClientKeepsNobodyFromPacking(t *testing.T) {
	r := newSteady(t, GuardOff)
	s, p := r.session, r.session.proxy
	p.packs = make(chan struct{}, 1)
	limit := unix.Timeval{Sec: 30} // it must fail, not hang
	if err := unix.SetsockoptTimeval(r.server, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	junk, filled := make([]byte, 16<<10), 0
	for {
		n, err := s.client.tryWrite(junk)
		filled += n
		if errors.Is(err, errAgain) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	r.send(r.client, pgwire.AppendQuery(nil, "SELECT 1"))
	r.expect(r.server, pgwire.AppendQuery(nil, "SELECT 1"))
	answer := ready("SELECT 1", 'I')
	r.send(r.server, answer)
	for !s.clientFull.Load() {
		time.Sleep(time.Millisecond)
	}
	done := make(chan error, 2)
	r.takeOver(func() {
		// Not before: the loop would let somebody else pack.
		s.mu.Lock()
		s.track.unmovable, s.carry = reasonTemp, &carry{}
		s.mu.Unlock()
		raise(&p.drainEpoch, 1)
		done <- s.pack(t.Context())
		done <- s.stopBackend()
	})
	r.expect(r.server, pgwire.AppendQuery(nil,
		"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; "+carrySettingsSQL))
	r.send(r.server, pgwire.AppendReadyForQuery(pgwire.AppendError(nil,
		&pgwire.Error{Severity: "ERROR", Code: "XX000", Message: "no"}), 'I'))
	if err := <-done; !errors.Is(err, errBackendLost) || len(p.packs) != 0 {
		t.Errorf("%v, %d places taken", err, len(p.packs))
	}
	r.expect(r.client, append(make([]byte, filled), answer...))
	if err := <-done; err != nil {
		t.Error(err)
	}
}
