package election

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
)

// testIdentity is the identity of a node of a CA of its own.
func testIdentity(t *testing.T, name string) *identity {
	t.Helper()
	ca, err := NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, b := range map[string][]byte{"ca": ca.CertPEM, "crt": cert, "key": key} {
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := func(s string) string { return filepath.Join(dir, s) }
	id, err := loadIdentity(name, path("ca"), path("crt"), path("key"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func newTestPort(t *testing.T, slots int, patience time.Duration) *port {
	t.Helper()
	p, err := listenPort("127.0.0.1:0", testIdentity(t, "a"), func(string) bool { return true },
		zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	p.slots, p.patience = make(chan struct{}, slots), patience
	p.start()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	t.Cleanup(p.close)
	return p
}

func dialPort(t *testing.T, p *port) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	return c
}

// TestTransportBoundsHalfOpenHandshakes: who connects and says nothing takes a place for a while,
// and there are so many of them only.
func TestTransportBoundsHalfOpenHandshakes(t *testing.T) {
	p := newTestPort(t, 3, time.Second)
	start := time.Now()
	var idle []net.Conn
	for range 3 {
		idle = append(idle, dialPort(t, p))
	}
	waitFor(t, "handshakes", func() bool { return len(p.slots) == 3 })
	if _, err := dialPort(t, p).Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("one too many: %v", err)
	}
	if time.Since(start) > time.Second {
		t.Skip("too slow a machine to tell")
	}
	for _, c := range idle {
		if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Errorf("a client that says nothing is kept: %v", err)
		}
	}
	waitFor(t, "free places", func() bool { return len(p.slots) == 0 })
}

// TestTransportClosesAtOnce although somebody is in the middle of a handshake.
func TestTransportClosesAtOnce(t *testing.T) {
	p := newTestPort(t, 3, time.Minute)
	dialPort(t, p)
	waitFor(t, "handshake", func() bool { return len(p.slots) == 1 })
	start := time.Now()
	p.close()
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("closed after %s", d)
	}
}

func TestTransportEndsRaftConnections(t *testing.T) {
	p := newTestPort(t, 3, time.Second)
	go func() {
		if c, err := p.raft.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	id := &identity{pair: p.tls.Certificates[0], pool: p.tls.ClientCAs}
	c, err := dialNode(t.Context(), id, "a", p.listener.Addr().String(), protoRaft, nil,
		5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	waitFor(t, "connection", func() bool {
		p.inbound.mu.Lock()
		defer p.inbound.mu.Unlock()
		return len(p.inbound.conns) == 1
	})
	p.inbound.closeAll()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the connection lives on: %v", err)
	}
}

// answers is a voter that answers every call with the same text.
type answers struct {
	status int
	body   string
	calls  func()
}

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.calls != nil {
		a.calls()
	}
	return &http.Response{
		StatusCode: a.status, Status: http.StatusText(a.status), Request: r,
		Body: io.NopCloser(strings.NewReader(a.body)), Header: make(http.Header),
	}, nil
}

func peerOf(a answers) *peer {
	return &peer{
		member: Member{Name: "b"}, url: "https://b", http: &http.Client{Transport: a},
	}
}

func TestRPCClientRefusesBadAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		answers
		words    string
		isRemote bool
	}{
		"newer":     {answers{200, `{"v":2}`, nil}, "newer than 1", false},
		"garbage":   {answers{200, `<html>`, nil}, "read answer", false},
		"cut off":   {answers{200, `{"v":1`, nil}, "read answer", false},
		"oversized": {answers{200, strings.Repeat(" ", 2<<20), nil}, "larger than", false},
		"refusal":   {answers{409, `{"v":1,"error":"no"}`, nil}, "refused: no", true},
		"bad gateway, no reason": {
			answers{502, `<html>`, nil}, "refused: Bad Gateway", true,
		},
	} {
		var a RenewalAnswer
		err := peerOf(tc.answers).call(t.Context(), "/v1/renew", Renewal{}, &a)
		wantError(t, err, tc.words, "/v1/renew", "b")
		if errors.Is(err, errRemote) != tc.isRemote {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSourceLeavesAVoterThatLags: one that is cut off answers in time, but never with news.
func TestSourceLeavesAVoterThatLags(t *testing.T) {
	defer goleak.VerifyNone(t)
	var mu sync.Mutex
	calls := 0
	lagging := answers{200, `{"v":1,"index":1,"state":{"v":1,"last_epoch":1}}`, func() {
		mu.Lock()
		calls++
		mu.Unlock()
	}}
	current := answers{200, `{"v":1,"index":9,"state":{"v":1,"last_epoch":9}}`, nil}
	r := newRemoteSource([]*peer{peerOf(lagging), peerOf(current)}, zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(ctx)
	}()
	waitFor(t, "newest state", func() bool {
		s, _ := r.State()
		return s.LastEpoch == 9
	})
	cancel()
	<-done
	mu.Lock()
	defer mu.Unlock()
	if calls == 0 {
		t.Error("the voter that lags was not asked")
	}
}

// TestStateRPCWaitsForNews, also if this voter is behind its caller.
func TestStateRPCWaitsForNews(t *testing.T) {
	n := &Node{fsm: newFSM(), stopped: make(chan struct{})}
	n.best = newBestSource(n.fsm, nil, func() bool { return false })
	n.fsm.publishLocked(&State{V: Version, LastEpoch: 3}, 5)
	ask := func(index uint64, waitMS int64) (stateAnswer, time.Duration) {
		start := time.Now()
		b, err := n.serveState(t.Context(), stateRequest{V: 1, Index: index, WaitMS: waitMS})
		var a stateAnswer
		if err := errors.Join(err, readAnswer(b, &a)); err != nil {
			t.Fatal(err)
		}
		return a, time.Since(start)
	}
	if a, d := ask(4, 60000); a.Index != 5 || a.State.LastEpoch != 3 || d >= stateWaitMax {
		t.Errorf("a caller that is behind: index %d after %s", a.Index, d)
	}
	for _, index := range []uint64{5, 6} {
		if a, d := ask(index, 50); a.Index != 5 || d < 50*time.Millisecond {
			t.Errorf("a caller with index %d: index %d after %s", index, a.Index, d)
		}
	}
	close(n.stopped)
	if _, err := n.serveState(t.Context(), stateRequest{Index: 5, WaitMS: 60000}); err == nil {
		t.Error("a node that is closed answers")
	}
}

// TestApplyWhileJoining: others may take this node for the leader before it has started Raft.
func TestApplyWhileJoining(t *testing.T) {
	n := &Node{fsm: newFSM()}
	_, err := n.applyHere(t.Context(), Command{Kind: CommandRegister})
	if !errors.Is(err, errNotLeader) {
		t.Errorf("got %v", err)
	}
}
