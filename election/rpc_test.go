package election_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// startOne starts a group of one node and waits until it leads.
func startOne(t *testing.T) *electiontest.Group {
	t.Helper()
	g, _ := startGroup(t, 1)
	waitLeader(t, g)
	return g
}

// tlsOf is the configuration of a client with a certificate of that name.
func tlsOf(t *testing.T, g *electiontest.Group, ca *election.CA, name string, protos ...string,
) *tls.Config {
	t.Helper()
	_, cert, key := electiontest.WriteCert(t, t.TempDir(), ca, name)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(g.CA.Cert)
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: pool, ServerName: "node1",
		MinVersion: tls.VersionTLS13, NextProtos: protos,
	}
}

// post sends a request as that name and returns the answer's status and text.
func post(t *testing.T, g *electiontest.Group, as, path string, body []byte) (int, string) {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: tlsOf(t, g, g.CA, as, "http/1.1")}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	resp, err := c.Post("https://"+g.Nodes[0].Address+path, "application/json",
		bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestRPCRefusesBadBodies(t *testing.T) {
	g := startOne(t)
	huge := append(append([]byte(`{"v":1,"lessee":"`), bytes.Repeat([]byte("x"), 2<<20)...), '"', '}')
	for name, tc := range map[string]struct {
		path, body string
		code       int
		words      string
	}{
		"oversized":    {"/v1/renew", string(huge), 400, "too large"},
		"cut off":      {"/v1/renew", `{"v":1,`, 400, "read request"},
		"empty":        {"/v1/order", ``, 400, "read request"},
		"no object":    {"/v1/apply", `[1]`, 400, "read request"},
		"binary":       {"/v1/report", "\x00\xff\x16\x03", 400, "read request"},
		"wrong type":   {"/v1/endorse", `{"v":1,"epoch":"x"}`, 400, "read request"},
		"negative":     {"/v1/endorse", `{"v":1,"epoch":-1}`, 400, "read request"},
		"nested":       {"/v1/hello", strings.Repeat("[", 200000), 400, "read request"},
		"newer":        {"/v1/renew", `{"v":2}`, 400, "newer than 1"},
		"newer order":  {"/v1/order", `{"v":7,"kind":"stop"}`, 400, "upgrade this node"},
		"unknown path": {"/v1/nothing", `{"v":1}`, 404, ""},
		"unknown command": {
			"/v1/apply", `{"v":1,"kind":"drop"}`, 409, `command \"drop\" is not known`,
		},
		"unknown member": {"/v1/request", `{"v":1,"kind":"switchover","member":"x"}`, 200, ""},
	} {
		code, text := post(t, g, "node1", tc.path, []byte(tc.body))
		if code != tc.code || !strings.Contains(text, tc.words) {
			t.Errorf("%s: status %d, %q", name, code, text)
		}
	}
	// After all of that the node still answers, and knows nothing new.
	if code, text := post(t, g, "node1", "/v1/hello", []byte(`{"v":1,"new":3}`)); code != 200 {
		t.Errorf("hello: status %d, %q", code, text)
	}
	if s, _ := g.Running["node1"].State(); s.LastEpoch != 0 || s.Intent != nil {
		t.Errorf("a bad body took effect: %+v", s)
	}
	if p := g.Running["node1"].Problems(); len(p) > 0 {
		t.Errorf("a bad body left a problem: %v", p)
	}
}

// TestRPCOfStrangers: a certificate of the CA for another name than a node's is a sidecar's.
func TestRPCOfStrangers(t *testing.T) {
	g := startOne(t)
	body := []byte(`{"v":1,"epoch":1,"kind":"stop","lessee":"sidecar","seq":1}`)
	for _, path := range []string{
		"/v1/endorse", "/v1/report", "/v1/apply", "/v1/order", "/v1/request",
		"/v1/observations", "/v1/renew", "/v1/release",
	} {
		code, text := post(t, g, "sidecar", path, body)
		if code != http.StatusForbidden || !strings.Contains(text, "not a node") {
			t.Errorf("%s: status %d, %q", path, code, text)
		}
	}
	for _, path := range []string{"/v1/hello", "/v1/state"} {
		if code, text := post(t, g, "sidecar", path, body); code != http.StatusOK {
			t.Errorf("%s: status %d, %q", path, code, text)
		}
	}
	for _, path := range []string{"/v1/renew", "/v1/release"} {
		code, text := post(t, g, "node1", path, []byte(`{"v":1,"lessee":"node2","seq":9}`))
		if code == http.StatusOK || !strings.Contains(text, `speaks for lessee`) {
			t.Errorf("%s of another one: status %d, %q", path, code, text)
		}
	}
}

// TestLoanOfStrangers: a sidecar that sends nonsense loses its connection; the next one is
// answered.
func TestLoanOfStrangers(t *testing.T) {
	g := startOne(t)
	dial := func() *tls.Conn {
		c, err := tls.Dial("tcp", g.Nodes[0].Address, tlsOf(t, g, g.CA, "sidecar",
			election.ProtoLoan))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}
	for name, text := range map[string]string{
		"too long":   "\xff\xff",
		"too short":  "\x00\x02\x01b",
		"http":       "POST /v1/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
		"other call": "\x00\x1a\x01x" + strings.Repeat("\x00", 24),
		"newer":      "\x00\x1a\x02b" + strings.Repeat("\x00", 24),
	} {
		c := dial()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		var late net.Error
		n, err := c.Read(make([]byte, 100))
		if err == nil || n > 0 || errors.As(err, &late) && late.Timeout() {
			t.Errorf("%s: read %d bytes, %v", name, n, err)
		}
	}
	c := dial()
	for _, what := range []byte{election.LoanBorrow, election.LoanReturn} {
		a, err := election.AskLoan(c, what, election.Renewal{Seq: 7, Epoch: 1})
		if err != nil || a.Seq != 7 || what == election.LoanBorrow && a.Granted {
			t.Errorf("%c: %+v, %v", what, a, err)
		}
	}
}

// TestPortRefusesStrangers: whoever is refused sees his connection end without a byte of Raft's
// or of an answer.
func TestPortRefusesStrangers(t *testing.T) {
	g := startOne(t)
	other, err := election.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	anonymous := tlsOf(t, g, g.CA, "node1", "http/1.1")
	anonymous.Certificates = nil
	for name, cfg := range map[string]*tls.Config{
		"other protocol":      tlsOf(t, g, g.CA, "node1", "h2"),
		"no protocol":         tlsOf(t, g, g.CA, "node1"),
		"raft of a sidecar":   tlsOf(t, g, g.CA, "sidecar", "holdfast-raft/1"),
		"CA of another group": tlsOf(t, g, other, "node1", "http/1.1"),
		"no certificate":      anonymous,
	} {
		c, err := tls.Dial("tcp", g.Nodes[0].Address, cfg)
		if err != nil {
			continue // refused in the handshake
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = c.Write([]byte("POST /v1/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"))
		n, err := c.Read(make([]byte, 100))
		var late net.Error
		if err == nil || n > 0 || errors.As(err, &late) && late.Timeout() {
			t.Errorf("%s: read %d bytes, %v", name, n, err)
		}
		_ = c.Close()
	}
	if code, text := post(t, g, "node1", "/v1/hello", []byte(`{"v":1}`)); code != http.StatusOK {
		t.Errorf("hello: status %d, %q", code, text)
	}
}

func TestListenerBusySaysSo(t *testing.T) {
	defer goleak.VerifyNone(t)
	g := electiontest.NewGroup(t, 1)
	l, err := net.Listen("tcp", g.Nodes[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n, err := election.New(g.Config("node1"), election.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	err = n.Start(context.Background())
	if err == nil || !strings.Contains(err.Error(), "address already in use") ||
		!strings.Contains(err.Error(), "group.nodes") {
		t.Errorf("got %v", err)
	}
	if err := n.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestRaftDirInUseSaysSo(t *testing.T) {
	g := startOne(t)
	_, err := election.New(g.Config("node1"), election.Deps{})
	if err == nil || !strings.Contains(err.Error(), "running already") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(g.Config("node1").Dir); err != nil {
		t.Error(err)
	}
}
