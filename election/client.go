package election

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// rpcBytesMax bounds the body of an RPC, either way.
const rpcBytesMax = 1 << 20

// peer is an RPC client of one node. Each call has a connection of its own while it runs, so
// one that hangs delays no other, and a connection that does not answer in time is dropped.
type peer struct {
	member Member
	url    string
	http   *http.Client
	loan   *loanConn
}

// newPeer makes the client; nothing is dialed yet.
func newPeer(m Member, id *identity) *peer {
	tr := &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialNode(ctx, id, m.Name, m.Address, protoRPC, nil, handshakeTimeout)
		},
		MaxIdleConnsPerHost: 8,
		MaxConnsPerHost:     64,
		IdleConnTimeout:     time.Minute,
	}
	return &peer{
		member: m, url: "https://" + m.Address, http: &http.Client{Transport: tr},
		loan: newLoanConn(func(ctx context.Context) (net.Conn, error) {
			return dialNode(ctx, id, m.Name, m.Address, protoLoan, nil, handshakeTimeout)
		}),
	}
}

// close ends what is not in use; a call under way ends by itself.
func (p *peer) close() {
	p.http.CloseIdleConnections()
	p.loan.close()
}

// rpcError is the body of an answer that is not a success.
type rpcError struct {
	V     int    `json:"v"`
	Error string `json:"error"`
}

// errRemote is an answer of the other node that says no; the call itself worked.
var errRemote = errors.New("node refused")

// call posts a request and reads the answer.
func (p *peer) call(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("call %s of %s: %w", path, p.member.Name, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+path,
		bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("call %s of %s: %w", path, p.member.Name, err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := p.http.Do(req)
	if err != nil {
		return fmt.Errorf("call %s of %s: %w", path, p.member.Name, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, rpcBytesMax+1))
	if err != nil {
		return fmt.Errorf("call %s of %s: read answer: %w", path, p.member.Name, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e rpcError
		if err := json.Unmarshal(answer, &e); err != nil || e.Error == "" {
			e.Error = resp.Status
		}
		return fmt.Errorf("call %s of %s: %w: %s", path, p.member.Name, errRemote, e.Error)
	}
	if err := readAnswer(answer, out); err != nil {
		return fmt.Errorf("call %s of %s: read answer: %w", path, p.member.Name, err)
	}
	return nil
}

// readAnswer decodes an answer unless it is too large or of a newer release.
func readAnswer(b []byte, out any) error {
	if len(b) > rpcBytesMax {
		return fmt.Errorf("larger than %d bytes", rpcBytesMax)
	}
	var v versioned
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	if v.V > Version {
		return fmt.Errorf("version %d is newer than %d: upgrade this node", v.V, Version)
	}
	return json.Unmarshal(b, out)
}

// name implements voterClient.
func (p *peer) name() string { return p.member.Name }

// renew implements voterClient.
func (p *peer) renew(ctx context.Context, r Renewal) (RenewalAnswer, error) {
	var a RenewalAnswer
	err := p.call(ctx, "/v1/renew", r, &a)
	return a, err
}

// release implements voterClient.
func (p *peer) release(ctx context.Context, r Renewal) (RenewalAnswer, error) {
	var a RenewalAnswer
	err := p.call(ctx, "/v1/release", r, &a)
	return a, err
}

// localVoter is this node's own voter as a lessee sees it.
type localVoter struct {
	node  string
	voter *voter
}

func (l localVoter) name() string { return l.node }

func (l localVoter) renew(_ context.Context, r Renewal) (RenewalAnswer, error) {
	return l.voter.renew(r), nil
}

func (l localVoter) release(_ context.Context, r Renewal) (RenewalAnswer, error) {
	return l.voter.release(r), nil
}
