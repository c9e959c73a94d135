package election

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// fuzzPaths are the calls between nodes.
var fuzzPaths = []string{
	"/v1/renew", "/v1/release", "/v1/endorse", "/v1/voter-set", "/v1/state", "/v1/hello",
	"/v1/report", "/v1/apply", "/v1/order", "/v1/request", "/v1/cancel", "/v1/member",
	"/v1/observations",
}

// taker takes all that a node is told to do, and counts it.
type taker struct{ taken atomic.Int64 }

func (k *taker) Status() MemberStatus     { return MemberStatus{} }
func (k *taker) Changed() <-chan struct{} { return nil }

func (k *taker) Do(context.Context, Order) (OrderResult, error) {
	k.taken.Add(1)
	return OrderResult{V: Version}, nil
}

func (k *taker) RunLeader(context.Context) {}

func (k *taker) Request(context.Context, Request) ([]Check, error) {
	k.taken.Add(1)
	return nil, nil
}

func (k *taker) LastDecision() Decision { return Decision{} }

// rpcNode is a node that takes part in nothing: what its calls change is all that changes.
type rpcNode struct {
	*Node
	*taker
	handler http.Handler
	tls     *tls.ConnectionState
	saved   atomic.Pointer[endorsement]
}

func newRPCNode(f *testing.F) *rpcNode {
	f.Helper()
	dir := f.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	ca, err := NewCA("x")
	if err != nil {
		f.Fatal(err)
	}
	cert, key, err := ca.Issue("a", []string{"127.0.0.1"})
	if err != nil {
		f.Fatal(err)
	}
	for name, b := range map[string][]byte{"ca": ca.CertPEM, "cert": cert, "key": key} {
		if err := os.WriteFile(path(name), b, 0o600); err != nil {
			f.Fatal(err)
		}
	}
	cfg := DefaultConfig()
	cfg.Name, cfg.Cluster, cfg.Nodes, cfg.Dir = "a", "x", fuzzMembers, path("raft")
	cfg.CAFile, cfg.CertFile, cfg.KeyFile = path("ca"), path("cert"), path("key")
	k := &taker{}
	n, err := New(cfg, Deps{
		Agent: k, Loop: func(Coordinator) LeaderLoop { return k },
		Cancel: func(context.Context, uint32, []byte) { k.taken.Add(1) },
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = n.store.Close() })
	peer := &x509.Certificate{Subject: pkix.Name{CommonName: "b"}}
	return &rpcNode{Node: n, taker: k, handler: n.handler(),
		tls: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{peer}}}
}

// reset puts the node before a failover of which it knows: epoch 1 has the lock, 2 the intent.
func (n *rpcNode) reset(f *fsm) {
	n.fsm.publishLocked(f.state, f.index)
	n.taken.Store(0)
	n.reports = newReports(n.now)
	disk := endorsement{V: Version, Endorsed: 1}
	n.saved.Store(&disk)
	save := func(e endorsement) error { n.saved.Store(&e); return nil }
	v := makeVoter(disk, false, save, n.timing, n.fsm, n.now)
	v.name, v.promises = "a", NewPromises(n.timing, n.now(), 1, true)
	v.promises.Renew(n.now(), Renewal{V: 1, Lessee: "b", Incarnation: 3, Seq: 4, Epoch: 1})
	// The handler has the methods of the voter that it was made with.
	n.voter.mu.Lock()
	defer n.voter.mu.Unlock()
	n.voter.save, n.voter.disk, n.voter.name = v.save, v.disk, v.name
	n.voter.promises, n.voter.blank, n.voter.taken = v.promises, false, 0
	n.voter.closing, n.voter.closeAt = 0, 0
}

// changed is all that a call may change.
func (n *rpcNode) changed() string {
	n.voter.mu.Lock()
	defer n.voter.mu.Unlock()
	n.reports.mu.Lock()
	defer n.reports.mu.Unlock()
	return fmt.Sprintf("%p %d %+v %+v %d %d %t %+v", n.fsm.state, n.taken.Load(), *n.voter.promises,
		*n.saved.Load(), n.voter.taken, n.voter.closing, n.voter.blank, n.reports.byNode)
}

// call gives the body to a call, as the node b.
func (n *rpcNode) call(path string, body []byte) *httptest.ResponseRecorder {
	// A member that is added is asked for its own entry at whatever address the body names.
	var m memberRequest
	n.setLeading(path != "/v1/member" || json.Unmarshal(body, &m) == nil &&
		m.Change.Kind != MemberAdd)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, path, bytes.NewReader(body))
	r.TLS = n.tls
	w := httptest.NewRecorder()
	n.handler.ServeHTTP(w, r)
	n.voter.saving <- struct{}{} // a write that was begun ends
	<-n.voter.saving
	return w
}

// addCalls gives a body of each kind, as nodes send them.
func addCalls(f *testing.F) {
	bodies := map[string]any{
		"/v1/renew":     Renewal{V: 1, Lessee: "b", Incarnation: 3, Seq: 5, Epoch: 1, Holds: true},
		"/v1/release":   Renewal{V: 1, Lessee: "b", Incarnation: 3, Seq: 6, Epoch: 1},
		"/v1/endorse":   endorseRequest{1, 2, []string{"b"}},
		"/v1/voter-set": setRequest{1, 1},
		"/v1/state":     stateRequest{1, 3, 1},
		"/v1/hello":     empty{1},
		"/v1/report": Report{V: 1, Node: "b", Epoch: 1, Probe: ProbeOK, Sync: &SyncMode{},
			Member: MemberStatus{Name: "b", Phase: PhaseStandby, LSN: 7,
				Standbys: []StandbyStatus{{Name: "c", State: "streaming", FlushLSN: 7}},
				Logical:  []LogicalSlot{{Name: "l"}}}},
		"/v1/order": Order{V: 1, Kind: OrderPromote, Epoch: 2, Upstream: fuzzMembers[1],
			Members: fuzzMembers, SyncNames: "ANY 1 (b)", WaitLSN: 9},
		"/v1/request": Request{V: 1, Kind: RequestSwitchover, Member: "b"},
		"/v1/cancel":  cancelCall{1, 7, []byte{1, 2, 3, 4}},
		"/v1/member": memberRequest{V: 1, Again: true, Since: 1, MemberRequest: MemberRequest{
			DryRun: true, Change: MemberChange{Kind: MemberRemove, Member: fuzzMembers[2]}}},
		"/v1/observations": empty{1},

		"/v1/apply": fuzzCommands()[1],
	}
	for i, path := range fuzzPaths {
		b, err := json.Marshal(bodies[path])
		if err != nil || bodies[path] == nil {
			f.Fatalf("%s: %v", path, err)
		}
		f.Add(uint8(i), b)
		f.Add(uint8(i), bytes.Replace(b, []byte(`"v":1`), []byte(`"v":2`), 1))
		f.Add(uint8(i), b[:len(b)/2])
	}
}

// FuzzRPC gives a body to every call between nodes: the answer is JSON, a body that is refused,
// as all of newer releases are, has changed nothing, and what was endorsed is never less, nor is
// it on disk.
func FuzzRPC(f *testing.F) {
	addCalls(f)
	m := newFSM()
	for _, c := range fuzzCommands()[:3] {
		m.state, _ = apply(m.state, c)
	}
	m.state, _ = begin(m.state, "r", IntentFailover, "b")
	m.index = 9
	n := newRPCNode(f)
	f.Fuzz(func(t *testing.T, call uint8, body []byte) {
		path := fuzzPaths[int(call)%len(fuzzPaths)]
		n.reset(m)
		before := n.changed()
		w := n.call(path, body)
		if !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s answers %q", path, w.Body)
		}
		var v versioned
		if json.Unmarshal(body, &v) == nil && v.V > Version && w.Code == http.StatusOK {
			t.Errorf("%s takes a body of version %d", path, v.V)
		}
		// An endorsement that waits was not refused, and closes what is below it.
		isLate := strings.Contains(w.Body.String(), context.DeadlineExceeded.Error())
		if after := n.changed(); w.Code != http.StatusOK && !isLate && after != before {
			t.Errorf("%s refuses with %d %s, and %s became %s", path, w.Code, w.Body, before, after)
		}
		if now := n.voter.promises.Endorsed(); now < 1 || n.saved.Load().Endorsed < 1 {
			t.Errorf("%s: %d is endorsed, on disk %+v", path, now, n.saved.Load())
		}
	})
}
