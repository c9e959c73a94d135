package election

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"
)

// Requests and answers of the RPCs that have no type of their own.
type (
	endorseRequest struct {
		V     int    `json:"v"`
		Epoch uint64 `json:"epoch"`
		// Recruits claims the fence of these members. A release that does not know it waits for
		// its promises, which is safe.
		Recruits []string `json:"recruits,omitempty"`
	}
	stateRequest struct {
		V int `json:"v"`
		// Index is the newest that the caller has; the answer waits for a newer one.
		Index  uint64 `json:"index"`
		WaitMS int64  `json:"wait_ms"`
	}
	stateAnswer struct {
		V     int    `json:"v"`
		Index uint64 `json:"index"`
		State *State `json:"state"`
	}
	helloAnswer struct {
		V       int    `json:"v"`
		Cluster string `json:"cluster"`
		// Formed tells that the group has a log already.
		Formed bool     `json:"formed"`
		Nodes  []Member `json:"nodes"`
		// Epoch is the highest epoch of which the node knows that it was begun; Blank tells
		// that it has no memory of its own.
		Epoch uint64 `json:"epoch"`
		Blank bool   `json:"blank,omitempty"`
		// Membership is the node's MembershipVersion; Members and SetVersion are of its state,
		// Set is the voter set that it has taken durably.
		Membership int      `json:"membership,omitempty"`
		Members    []Member `json:"members,omitempty"`
		SetVersion uint64   `json:"set_version,omitempty"`
		Set        uint64   `json:"set,omitempty"`
		SystemID   string   `json:"system_id,omitempty"`
		// Recovered is that of its state.
		Recovered uint64 `json:"recovered,omitempty"`
		// Ready tells that its voter would answer if it were in the set.
		Ready bool `json:"ready,omitempty"`
		// Raft is how far its Raft is; nil before that runs, and of an older release.
		Raft *raftPosition `json:"raft,omitempty"`
	}
	setRequest struct {
		V   int    `json:"v"`
		Set uint64 `json:"set"`
	}
	memberRequest struct {
		V int `json:"v"`
		MemberRequest
		// Again tells that another leader was asked before and may have carried it out.
		Again bool `json:"again,omitempty"`
		// Since is the voter set that the node saw before it asked anybody: a change that was
		// carried out has brought a newer one.
		Since uint64 `json:"since,omitempty"`
	}
	requestAnswer struct {
		V      int     `json:"v"`
		Checks []Check `json:"checks,omitempty"`
		// Error is why the request was not carried out; empty if it was.
		Error string `json:"error,omitempty"`
	}
	observationsAnswer struct {
		V            int           `json:"v"`
		Observations []Observation `json:"observations"`
		// Decision is the leader's newest; nil from a release that does not tell.
		Decision *Decision `json:"decision,omitempty"`
		// Newest is the newest epoch that has begun; 0 from a release that does not tell.
		Newest uint64 `json:"newest,omitempty"`
	}
	empty struct {
		V int `json:"v"`
	}
)

// versioned lets rpc refuse requests of newer releases before they are looked at.
type versioned struct {
	V int `json:"v"`
}

// handler builds the RPC server's handler.
func (n *Node) handler() http.Handler {
	mux := routes{}
	on := func(path string, h http.HandlerFunc) {
		count := n.metrics.requests.WithLabelValues(path)
		mux[path] = func(w http.ResponseWriter, r *http.Request) {
			count.Inc()
			h(w, r)
		}
	}
	voters := func(h http.HandlerFunc) http.HandlerFunc { return n.onlyNodes(h) }
	if n.voter != nil {
		on("/v1/renew", voters(rpc(ofItself(n.voter.renew))))
		on("/v1/release", voters(rpc(ofItself(n.voter.release))))
		on("/v1/endorse", voters(rpc(func(ctx context.Context,
			r endorseRequest,
		) (empty, error) {
			return empty{Version}, n.voter.endorse(ctx, r.Epoch, r.Recruits...)
		})))
		on("/v1/voter-set", voters(rpc(func(ctx context.Context, r setRequest) (empty, error) {
			return empty{Version}, n.voter.awaitSet(ctx, r.Set)
		})))
		on("/v1/state", rpc(n.serveState))
	}
	on("/v1/hello", rpc(func(context.Context, empty) (helloAnswer, error) {
		return n.hello(), nil
	}))
	on("/v1/report", voters(rpc(func(_ context.Context, r Report,
	) (empty, error) {
		return empty{Version}, n.takeReport(r)
	})))
	on("/v1/apply", voters(rpc(n.applyHere)))
	on("/v1/order", voters(rpc(func(ctx context.Context, o Order,
	) (OrderResult, error) {
		return n.obey(ctx, o)
	})))
	on("/v1/request", voters(rpc(func(ctx context.Context, r Request) (requestAnswer, error) {
		checks, err := n.requestHere(ctx, r)
		if err != nil && len(checks) > 0 {
			return requestAnswer{Version, checks, err.Error()}, nil
		}
		return requestAnswer{V: Version, Checks: checks}, err
	})))
	on("/v1/cancel", voters(rpc(n.serveCancel)))
	on("/v1/member", voters(rpc(n.serveMember)))
	on("/v1/observations", voters(rpc(func(context.Context, empty,
	) (observationsAnswer, error) {
		if !n.isLeading() {
			return observationsAnswer{}, errNotLeader
		}
		obs, _ := n.Observations()
		d := n.loop.LastDecision()
		s, _ := n.fsm.State()
		return observationsAnswer{Version, obs, &d, s.LastEpoch}, nil
	})))
	return mux
}

// onlyNodes admits the nodes of the group; a certificate of the CA for another name is a
// sidecar's.
func (n *Node) onlyNodes(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || !n.isNode(peerName(r.TLS)) {
			writeRPCError(w, http.StatusForbidden, errors.New("not a node of the group"))
			return
		}
		h(w, r)
	}
}

// peerKey is the context's key for the name in the caller's certificate.
type peerKey struct{}

// ofItself lets a lessee speak for itself only.
func ofItself(f func(Renewal) RenewalAnswer) func(context.Context, Renewal) (RenewalAnswer,
	error) {
	return func(ctx context.Context, r Renewal) (RenewalAnswer, error) {
		if name, _ := ctx.Value(peerKey{}).(string); name != r.Lessee {
			return RenewalAnswer{}, fmt.Errorf("%q speaks for lessee %q", name, r.Lessee)
		}
		return f(r), nil
	}
}

// startRPC serves calls and borrowers until the port is closed.
func (n *Node) startRPC() {
	n.rpcServer = &http.Server{
		Handler:           n.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          zap.NewStdLog(zap.NewNop()),
		ConnState:         n.countConn,
	}
	n.work.Add(2)
	go n.runRPC()
	go n.runLoans()
}

// countConn lets Close wait for the goroutines of connections: the server does not.
func (n *Node) countConn(_ net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		n.work.Add(1) // runRPC, which holds a count itself, is the caller
	case http.StateClosed:
		n.work.Done()
	}
}

func (n *Node) runRPC() {
	defer n.work.Done()
	err := n.rpcServer.Serve(n.port.rpc)
	if err != nil && !errors.Is(err, http.ErrServerClosed) && n.ctx.Err() == nil {
		n.log.Error("rpc server stopped", zap.Error(err))
	}
}
