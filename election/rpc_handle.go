package election

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// This file is what every RPC passes through.

// routes are the handlers by path.
type routes map[string]http.HandlerFunc

// ServeHTTP implements http.Handler.
func (m routes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, ok := m[r.URL.Path]
	switch {
	case !ok:
		writeRPCError(w, http.StatusNotFound, errors.New("no such call; is this node of an "+
			"older release, or no voter?"))
	case r.Method != http.MethodPost:
		writeRPCError(w, http.StatusMethodNotAllowed, errors.New("calls are posted"))
	default:
		h(w, r)
	}
}

// rpc turns a function into a handler: it checks size and version, and writes errors as JSON.
func rpc[In, Out any](f func(context.Context, In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var v versioned
		raw, err := readBody(w, r)
		if err == nil {
			err = json.Unmarshal(raw, &v)
		}
		if err != nil {
			writeRPCError(w, http.StatusBadRequest, fmt.Errorf("read request: %w", err))
			return
		}
		if v.V > Version {
			writeRPCError(w, http.StatusBadRequest, fmt.Errorf(
				"request is of version %d, newer than %d: upgrade this node", v.V, Version))
			return
		}
		var in In
		if err := json.Unmarshal(raw, &in); err != nil {
			writeRPCError(w, http.StatusBadRequest, fmt.Errorf("read request: %w", err))
			return
		}
		ctx := r.Context()
		if r.TLS != nil {
			ctx = context.WithValue(ctx, peerKey{}, peerName(r.TLS))
		}
		out, err := f(ctx, in)
		if err != nil {
			writeRPCError(w, http.StatusConflict, err)
			return
		}
		writeRPC(w, http.StatusOK, out)
	}
}

// readBody reads a body of bounded size, mostly in one piece.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if n := r.ContentLength; n >= 0 && n <= rpcBytesMax {
		b := make([]byte, n)
		_, err := io.ReadFull(r.Body, b)
		return b, err
	}
	return io.ReadAll(http.MaxBytesReader(w, r.Body, rpcBytesMax))
}

// encoded is an answer in JSON already.
type encoded []byte

// jsonType is the header's value, shared by all answers.
var jsonType = []string{"application/json"}

func writeRPC(w http.ResponseWriter, code int, out any) {
	b, ok := out.(encoded)
	if !ok {
		var err error
		if b, err = json.Marshal(out); err != nil {
			panic(fmt.Sprintf("BUG: answer %T: %v", out, err))
		}
	}
	h := w.Header()
	h["Content-Type"] = jsonType
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	h["Date"] = nil // nobody asks for it
	w.WriteHeader(code)
	_, _ = w.Write(b)
}

func writeRPCError(w http.ResponseWriter, code int, err error) {
	writeRPC(w, code, rpcError{Version, err.Error()})
}

// stateWaitMax bounds a long-poll.
const stateWaitMax = 30 * time.Second

// serveState answers a long-poll of a node that is no voter.
func (n *Node) serveState(ctx context.Context, r stateRequest) (encoded, error) {
	wait := min(time.Duration(r.WaitMS)*time.Millisecond, stateWaitMax)
	ctx, cancel := context.WithTimeout(ctx, max(wait, 0))
	defer cancel()
	for {
		s, index, changed := n.best.at()
		if index > r.Index || ctx.Err() != nil {
			return n.answers.of(s, index)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-n.stopped:
			return nil, errClosed
		}
	}
}

// stateAnswers keeps the newest answer: a fleet asks for the same one, at the same moment.
type stateAnswers struct {
	mu    sync.Mutex
	state *State
	index uint64
	bytes encoded
}

// of encodes a state, which nobody changes any more.
func (a *stateAnswers) of(s *State, index uint64) (encoded, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.bytes == nil || a.state != s || a.index != index {
		b, err := json.Marshal(stateAnswer{Version, index, s})
		if err != nil {
			return nil, fmt.Errorf("encode state: %w", err)
		}
		a.state, a.index, a.bytes = s, index, b
	}
	return a.bytes, nil
}
