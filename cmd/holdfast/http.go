package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"holdfast/config"
	"holdfast/election"
	"holdfast/proxy"
)

// httpBodyMax bounds the body of a control request.
const httpBodyMax = 64 << 10

// controller is what the HTTP interface needs of a running node.
type controller interface {
	// Status gathers the node's view of the group.
	Status(ctx context.Context) (Status, error)
	// Ready tells why the node cannot take clients; nil if it can, also while it holds them.
	Ready() error
	// Request carries out what an operator wants; it returns when that is done or was refused,
	// with the preconditions.
	Request(ctx context.Context, r election.Request) ([]election.Check, error)
	// ChangeMember adds or removes a member; it returns when that is done or was refused, with the
	// preconditions.
	ChangeMember(ctx context.Context, r election.MemberRequest) ([]election.Check, error)
	// SetMaintenance begins or ends maintenance.
	SetMaintenance(ctx context.Context, on bool, reason string) error
	// Sessions lists the sessions of the node's proxy.
	Sessions() []proxy.SessionInfo
	// History lists the newest changes of the lock, the newest first.
	History(limit int) []ChangeStatus
}

// httpServer is the node's HTTP interface: health, metrics, status and control. It listens on
// loopback; what changes something needs a token.
type httpServer struct {
	server   *http.Server
	listener net.Listener
	done     chan struct{}
}

// startHTTP listens and serves until stop.
func startHTTP(cfg *config.HTTP, c controller, reg *prometheus.Registry, log *zap.Logger,
) (*httpServer, error) {
	addr := cfg.Listen
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for HTTP on %s (http.listen): %w", addr, err)
	}
	token, err := openToken(cfg.TokenFile)
	if err != nil {
		log.Warn("requests over HTTP that change something are refused", zap.Error(err))
	}
	h := &httpServer{
		listener: l, done: make(chan struct{}),
		server: &http.Server{
			Handler:           needToken(token, newHTTPHandler(c, reg)),
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    16 << 10,
		},
	}
	go h.runServe(log)
	return h, nil
}

func (h *httpServer) runServe(log *zap.Logger) {
	defer close(h.done)
	if err := h.server.Serve(h.listener); !errors.Is(err, http.ErrServerClosed) {
		log.Error("http interface stopped", zap.Error(err))
	}
}

// stop ends the server and waits for it.
func (h *httpServer) stop(ctx context.Context) {
	if err := h.server.Shutdown(ctx); err != nil {
		_ = h.server.Close()
	}
	<-h.done
}

func newHTTPHandler(c controller, reg *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := c.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		st, err := c.Status(r.Context())
		if err != nil {
			writeHTTPError(w, http.StatusServiceUnavailable, err)
			return
		}
		writeHTTPJSON(w, http.StatusOK, st)
	})
	handleControl(mux, c)
	handleMembers(mux, c)
	handleSessions(mux, c)
	return guardHTTP(mux)
}

// guardHTTP keeps pages in a browser of this machine away. Who reads needs no token, so that
// loopback is the only lock, and a page could reach it: by a request across origins, or by a name
// of its own that it lets point to 127.0.0.1 (DNS rebinding), which makes it the same origin. A
// browser cannot be made to lie about Host, Origin and Sec-Fetch-Site; other clients can, but they
// run on this machine already.
func guardHTTP(next http.Handler) http.Handler {
	cross := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := cross.Check(r)
		// Check lets reads pass, which tell the topology.
		if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" &&
			site != "none" {
			err = errors.New("requests of other sites' pages are refused")
		}
		if !isLocalHost(r.Host) {
			err = fmt.Errorf("host %.100q is refused: ask for localhost or a loopback address",
				r.Host)
		}
		if err != nil {
			writeHTTPError(w, http.StatusForbidden, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// isLocalHost tells whether a Host header names this machine in a way that no name server has a
// say in. None at all, which HTTP/1.0 allows, comes from no browser.
func isLocalHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "" || strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.Unmap().IsLoopback()
}

// httpError is the body of every answer that is not a success.
type httpError struct {
	Error string `json:"error"`
	// Checks are the preconditions of a request that was refused.
	Checks []election.Check `json:"checks,omitempty"`
}

func writeHTTPError(w http.ResponseWriter, code int, err error) {
	writeHTTPJSON(w, code, httpError{Error: err.Error()})
}

func writeHTTPJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}
