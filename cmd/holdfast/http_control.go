package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"

	"holdfast/election"
)

// The bodies of the control requests. In each, DryRun asks for the preconditions only.
type (
	// switchoverRequest is the body of POST /v1/switchover.
	switchoverRequest struct {
		// To is the member that becomes primary; empty lets the group choose.
		To     string `json:"to"`
		DryRun bool   `json:"dry_run"`
		// AcceptSlotLoss goes on though logical slots are lost with it.
		AcceptSlotLoss bool `json:"accept_slot_loss,omitempty"`
	}
	// restartRequest is the body of POST /v1/restart and /v1/reinit.
	restartRequest struct {
		Member string `json:"member"`
		DryRun bool   `json:"dry_run"`
	}
	// failoverRequest is the body of POST /v1/failover.
	failoverRequest struct {
		To             string `json:"to"`
		AcceptDataLoss bool   `json:"accept_data_loss"`
		DryRun         bool   `json:"dry_run"`
	}
	// maintenanceRequest is the body of POST /v1/maintenance.
	maintenanceRequest struct {
		On     bool   `json:"on"`
		Reason string `json:"reason"`
	}
)

// checksAnswer is the answer to a dry run.
type checksAnswer struct {
	Checks []election.Check `json:"checks"`
}

// historyAnswer is the answer to GET /v1/history.
type historyAnswer struct {
	Changes []ChangeStatus `json:"changes"`
}

// historyDefault is how many changes are listed unless the query says otherwise.
const historyDefault = 20

// handleControl adds what changes the group, and what tells how it was changed.
func handleControl(mux *http.ServeMux, c controller) {
	mux.HandleFunc("POST /v1/switchover", control(c, func(r switchoverRequest) election.Request {
		return election.Request{
			Kind: election.RequestSwitchover, Member: r.To, DryRun: r.DryRun,
			AcceptSlotLoss: r.AcceptSlotLoss,
		}
	}))
	mux.HandleFunc("POST /v1/restart", control(c, func(r restartRequest) election.Request {
		return election.Request{
			Kind: election.RequestRestart, Member: r.Member, DryRun: r.DryRun,
		}
	}))
	mux.HandleFunc("POST /v1/reinit", control(c, func(r restartRequest) election.Request {
		return election.Request{
			Kind: election.RequestReinit, Member: r.Member, DryRun: r.DryRun,
		}
	}))
	mux.HandleFunc("POST /v1/failover", control(c, func(r failoverRequest) election.Request {
		return election.Request{
			Kind: election.RequestFailover, Member: r.To, AcceptLoss: r.AcceptDataLoss,
			DryRun: r.DryRun,
		}
	}))
	mux.HandleFunc("POST /v1/maintenance", func(w http.ResponseWriter, r *http.Request) {
		req, ok := readHTTPJSON[maintenanceRequest](w, r)
		if !ok {
			return
		}
		if err := c.SetMaintenance(r.Context(), req.On, req.Reason); err != nil {
			writeHTTPError(w, http.StatusConflict, err)
			return
		}
		answerStatus(c, w, r)
	})
	mux.HandleFunc("GET /v1/history", func(w http.ResponseWriter, r *http.Request) {
		limit := historyDefault
		if q := r.URL.Query().Get("limit"); q != "" {
			n, err := strconv.Atoi(q)
			if err != nil || n < 1 {
				writeHTTPError(w, http.StatusBadRequest,
					fmt.Errorf("limit %.20q is not a number above zero", q))
				return
			}
			limit = n
		}
		writeHTTPJSON(w, http.StatusOK, historyAnswer{c.History(limit)})
	})
}

// control is the handler of one kind of request.
func control[T any](c controller, request func(T) election.Request) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, ok := readHTTPJSON[T](w, r)
		if !ok {
			return
		}
		req := request(body)
		checks, err := c.Request(r.Context(), req)
		answerRequest(c, w, r, req.DryRun, checks, err)
	}
}

// answerRequest tells what came of a request: why it was not carried out, what it would need, or
// the status after it.
func answerRequest(c controller, w http.ResponseWriter, r *http.Request, isDry bool,
	checks []election.Check, err error,
) {
	switch {
	case err != nil:
		writeHTTPJSON(w, http.StatusConflict, httpError{err.Error(), checks})
	case isDry:
		writeHTTPJSON(w, http.StatusOK, checksAnswer{checks})
	default:
		answerStatus(c, w, r)
	}
}

func answerStatus(c controller, w http.ResponseWriter, r *http.Request) {
	st, err := c.Status(r.Context())
	if err != nil {
		writeHTTPError(w, http.StatusServiceUnavailable, err)
		return
	}
	writeHTTPJSON(w, http.StatusOK, st)
}

// readHTTPJSON reads a body, or answers why not. It is strict: with a key that is misspelt the
// group would do what nobody asked for.
func readHTTPJSON[T any](w http.ResponseWriter, r *http.Request) (T, bool) {
	var body T
	// A form in a page cannot send this content type; guardHTTP keeps away the rest.
	ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || ct != "application/json" {
		writeHTTPError(w, http.StatusUnsupportedMediaType,
			errors.New("content type must be application/json"))
		return body, false
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, httpBodyMax))
	dec.DisallowUnknownFields()
	if err = dec.Decode(&body); err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("there is more than one JSON value")
		}
	}
	if err != nil {
		writeHTTPError(w, http.StatusBadRequest, fmt.Errorf("read request: %w", err))
		return body, false
	}
	return body, true
}
