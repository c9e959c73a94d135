package main

import (
	"bytes"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/election"
)

// TestOperations runs each command of an operator against a node: what it asks for, what it prints,
// and how it ends.
func TestOperations(t *testing.T) {
	request := func(k election.RequestKind, member string, lossy, dry bool) election.Request {
		return election.Request{Kind: k, Member: member, AcceptLoss: lossy, DryRun: dry}
	}
	refused := errors.New("refused: pg2 lacks 1.2 MB")
	for name, tt := range map[string]struct {
		args    string
		c       fakeController
		code    int
		want    string
		request election.Request
	}{
		"switchover, dry run": {
			"switchover --to node3 --dry-run", fakeController{}, 0,
			"ok     all is well\nok     more\nnothing was changed",
			request(election.RequestSwitchover, "node3", false, true),
		},
		"dry run of what would be refused": {
			"switchover --dry-run", fakeController{missing: "node3 is stopped"}, 1,
			"FAILS  more: node3 is stopped", request(election.RequestSwitchover, "", false, true),
		},
		"restart": {
			"restart node2", fakeController{}, 0, "node2 was restarted; primary is node2",
			request(election.RequestRestart, "node2", false, false),
		},
		"reinit": {
			"reinit node3", fakeController{}, 0, "node3 is cloned anew",
			request(election.RequestReinit, "node3", false, false),
		},
		"restart of nobody": {"restart", fakeController{}, 1, "accepts 1 arg", election.Request{}},
		"failover, refused": {
			"failover --to node2", fakeController{switchover: refused}, 1, "pg2 lacks 1.2 MB",
			request(election.RequestFailover, "node2", false, false),
		},
		"failover with a loss": {
			"failover --to node2 --accept-data-loss", fakeController{}, 0,
			"warning: commits that are not on node2 are lost: it is at 0/3000000, node3 was at " +
				"0/3000100, 256 bytes further",
			request(election.RequestFailover, "node2", true, false),
		},
		"failover to nobody": {
			"failover", fakeController{}, 1, "required flag", election.Request{},
		},
		"maintenance on": {
			"maintenance on --reason kernel", fakeController{}, 0, "maintenance since",
			election.Request{},
		},
		"maintenance off": {
			"maintenance off", fakeController{}, 0, "no maintenance", election.Request{},
		},
		"maintenance of another kind": {
			"maintenance perhaps", fakeController{}, 1, "invalid argument", election.Request{},
		},
		"history": {
			"history --limit 2", fakeController{}, 0,
			"failover, unplanned: - -> node1  (70 ms, promote 40)\n  cause: it was gone\n" +
				"    node2: silent\nepoch 2", election.Request{},
		},
		"history of one": {"history --epoch 1", fakeController{}, 0, "epoch 1 ", election.Request{}},
		"history of none": {
			"history --epoch 9", fakeController{}, 1, "no change to epoch 9", election.Request{},
		},
		"history as JSON": {
			"history --json --limit 1", fakeController{}, 0, `"evidence": [`, election.Request{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(newHTTPHandler(&tt.c, prometheus.NewRegistry()))
			defer server.Close()
			var out bytes.Buffer
			args := append(strings.Fields(tt.args), "--url", server.URL)
			code := run(t.Context(), args, &out, &out)
			if code != tt.code || !strings.Contains(out.String(), tt.want) {
				t.Errorf("code %d, want %d; printed:\n%s\nwant:\n%s", code, tt.code, &out, tt.want)
			}
			if tt.request.Kind != "" &&
				(len(tt.c.requests) != 1 || tt.c.requests[0] != tt.request) {
				t.Errorf("asked for %+v, want %+v", tt.c.requests, tt.request)
			}
		})
	}
}

// TestControlInputIsStrict: a key that is misspelt changes nothing.
func TestControlInputIsStrict(t *testing.T) {
	for path, body := range map[string]string{
		"/v1/restart":     `{"name":"node1"}`,
		"/v1/failover":    `{"to":"node1","accept-data-loss":true}`,
		"/v1/maintenance": `{"off":true}`,
		"/v1/switchover":  `{"dry-run":true}`,
		"/v1/member/add":  `{"name":"node4","addres":"h:1"}`,
	} {
		c := &fakeController{}
		w := httpAsk(c, "POST", path, body, "Content-Type", "application/json")
		if w.Code != 400 || len(c.asked) > 0 {
			t.Errorf("%s %s: %d, asked %q", path, body, w.Code, c.asked)
		}
	}
	if w := httpAsk(&fakeController{}, "GET", "/v1/history?limit=x", ""); w.Code != 400 {
		t.Errorf("history: %d", w.Code)
	}
}

// A refused request says every precondition.
func TestRefusalCarriesTheChecks(t *testing.T) {
	c := &fakeController{switchover: errors.New("refused"), missing: "why not"}
	w := httpAsk(c, "POST", "/v1/restart", `{"member":"node1"}`, "Content-Type", "application/json")
	if w.Code != 409 || !strings.Contains(w.Body.String(), `"why":"why not"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
