package proxy

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Cut lets nothing that is on its way reach the old primary, of a replication connection either: it
// may have SQL on it, and nobody knows where its messages begin.
func TestCutResetsReplication(t *testing.T) {
	p, err := New(DefaultConfig(), Deps{Topology: noTopology{}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	client, _ := sockPair(t)
	server, err := newSock(client.loop, near)
	if err != nil {
		t.Fatal(err)
	}
	s := &session{
		proxy: p, loop: client.loop, client: client,
		track: newTracker("app", &p.cfg), flow: newFlow('I'), account: newAccount(nil),
	}
	p.sessions[1] = s
	b := newReplicationBackend(p, &Primary{Epoch: 1}, server)
	s.backend, b.session = b, s
	block := make([]byte, 1<<20)
	for err == nil { // more than both hosts have room for
		_, err = server.tryWrite(block)
	}
	if !errors.Is(err, errAgain) {
		t.Fatal(err)
	}
	p.Cut(1)
	_ = far.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, far); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("what was on its way has arrived: %v", err)
	}
}
