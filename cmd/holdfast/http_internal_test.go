package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/election"
	"holdfast/proxy"
)

// fakeController is a scripted node.
type fakeController struct {
	ready, status, switchover error
	asked                     []string
	requests                  []election.Request
	members                   []election.MemberRequest
	missing                   string
	maintenance               bool
}

func (f *fakeController) Ready() error { return f.ready }

func (f *fakeController) Status(context.Context) (Status, error) {
	st := Status{Node: "node1", Primary: "node2", Members: []MemberStatus{
		{Name: "node2", Postgres: "h2:5432", LSN: "0/3000000"},
		{Name: "node3", Postgres: "h3:5432", LSN: "0/3000100"},
	}}
	st.Voters = &VotersStatus{Version: 2, Names: []string{"node2"}, Change: "node3 is being added"}
	st.Members[0].Voter = true
	if f.maintenance {
		st.Maintenance = &election.Maintenance{Reason: "kernel"}
	}
	return st, f.status
}

func (f *fakeController) Request(_ context.Context, r election.Request) ([]election.Check, error) {
	f.asked = append(f.asked, r.Member)
	f.requests = append(f.requests, r)
	return []election.Check{{What: "all is well"}, {What: "more", Why: f.missing}}, f.switchover
}

func (f *fakeController) ChangeMember(_ context.Context, r election.MemberRequest,
) ([]election.Check, error) {
	f.members = append(f.members, r)
	f.asked = append(f.asked, r.Change.Member.Name)
	return []election.Check{{What: "all is well"}, {What: "more", Why: f.missing}}, f.switchover
}

func (f *fakeController) SetMaintenance(_ context.Context, on bool, reason string) error {
	f.asked = append(f.asked, reason)
	f.maintenance = on
	return f.switchover
}

func (f *fakeController) Sessions() []proxy.SessionInfo {
	return []proxy.SessionInfo{
		{ID: 1, User: "app", State: "idle", Hold: "1m30s", Survives: true},
		{ID: 2, User: "app", State: "idle", Why: "temporary table", Statement: "CREATE TEMP TABLE t ()"},
		{ID: 3, User: "app", State: "idle", Planned: true, Why: "temporary tables, 8 kB"},
	}
}

func (f *fakeController) History(limit int) []ChangeStatus {
	s := &election.State{}
	for e := range uint64(3) {
		s.History = append(s.History, election.Change{
			Lock: election.Lock{Epoch: e + 1, Holder: "node1"}, Kind: election.IntentFailover,
			Cause: "it was gone", Evidence: []string{"node2: silent"},
			PhasesMS: map[string]int64{"total": 70, "promote": 40},
		})
	}
	return historyOf(s, limit)
}

// httpAsk sends one request, headers as pairs.
func httpAsk(c controller, method, path, body string, headers ...string,
) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host = "127.0.0.1:7401"
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
			continue
		}
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	newHTTPHandler(c, prometheus.NewRegistry()).ServeHTTP(w, r)
	return w
}

// TestHTTPRefusesOtherHosts: a name that somebody lets point to 127.0.0.1 reaches nothing, nor does
// a page of another site; what runs on this machine does.
func TestHTTPRefusesOtherHosts(t *testing.T) {
	for _, tt := range []struct {
		name    string
		headers []string
		code    int
	}{
		{"rebound name", []string{"Host", "evil.example:7401"}, 403},
		{"rebound name, same origin", []string{"Host", "evil.example:7401",
			"Origin", "http://evil.example:7401", "Sec-Fetch-Site", "same-origin"}, 403},
		{"name that begins like localhost", []string{"Host", "localhost.evil.example"}, 403},
		{"address of elsewhere", []string{"Host", "10.0.0.1:7401"}, 403},
		{"page of another site", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"page of another port", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"loopback", []string{"Host", "127.0.0.2:7401"}, 200},
		{"loopback, version 6", []string{"Host", "[::1]:7401"}, 200},
		{"loopback, version 6, no port", []string{"Host", "[::1]"}, 200},
		{"localhost", []string{"Host", "LocalHost:7401"}, 200},
		{"typed into a browser", []string{"Sec-Fetch-Site", "none"}, 200},
		{"no host (HTTP/1.0)", []string{"Host", ""}, 200},
	} {
		for _, path := range []string{"/livez", "/readyz", "/metrics", "/v1/status"} {
			if w := httpAsk(&fakeController{}, "GET", path, "", tt.headers...); w.Code != tt.code {
				t.Errorf("%s: %s: %d, want %d", tt.name, path, w.Code, tt.code)
			}
		}
		c := &fakeController{}
		headers := append([]string{"Content-Type", "application/json"}, tt.headers...)
		w := httpAsk(c, "POST", "/v1/switchover", `{"to":"node2"}`, headers...)
		if w.Code != tt.code || (len(c.asked) > 0) != (tt.code == 200) {
			t.Errorf("%s: switchover: %d, asked %q, want %d", tt.name, w.Code, c.asked, tt.code)
		}
	}
	c := &fakeController{}
	w := httpAsk(c, "POST", "/v1/switchover", `{}`, "Content-Type", "application/json",
		"Origin", "http://evil.example")
	if w.Code != 403 || len(c.asked) > 0 {
		t.Errorf("an old browser's page: %d, asked %q, want 403", w.Code, c.asked)
	}
}

// TestHTTPSwitchoverInput: only a request that is understood as a whole moves the primary.
func TestHTTPSwitchoverInput(t *testing.T) {
	for _, tt := range []struct {
		contentType, body string
		code              int
		to                string
	}{
		{"application/json", `{"to":"node2"}`, 200, "node2"},
		{"application/json; charset=utf-8", "{\"to\":\"node2\"}\n", 200, "node2"},
		{"application/json", `{}`, 200, ""},
		{"", `{}`, 415, ""},
		{"text/plain", `{}`, 415, ""},
		{"application/jsonx", `{}`, 415, ""},
		{"application/json;;", `{}`, 415, ""},
		{"application/json", ``, 400, ""},
		{"application/json", `{"to":`, 400, ""},
		{"application/json", `{"to":7}`, 400, ""},
		{"application/json", `{"To ":"node2"}`, 400, ""},
		{"application/json", `{"target":"node2"}`, 400, ""},
		{"application/json", `{"to":"node2"} {"to":"node3"}`, 400, ""},
		{"application/json", `{"to":"node2"} garbage`, 400, ""},
		{"application/json", `{"to":"` + strings.Repeat("x", httpBodyMax) + `"}`, 400, ""},
	} {
		c := &fakeController{}
		w := httpAsk(c, "POST", "/v1/switchover", tt.body, "Content-Type", tt.contentType)
		if w.Code != tt.code {
			t.Errorf("%q %.60q: %d, want %d: %s", tt.contentType, tt.body, w.Code, tt.code, w.Body)
		}
		if tt.code == 200 != (len(c.asked) == 1) || len(c.asked) == 1 && c.asked[0] != tt.to {
			t.Errorf("%q %.60q: asked for %q, want %q", tt.contentType, tt.body, c.asked, tt.to)
		}
	}
}

// TestHTTPAnswers: codes that probes and scripts act on, and errors as JSON.
func TestHTTPAnswers(t *testing.T) {
	bad := errors.New("not now")
	for _, tt := range []struct {
		c            fakeController
		method, path string
		code         int
	}{
		{fakeController{}, "GET", "/livez", 200},
		{fakeController{ready: bad}, "GET", "/livez", 200},
		{fakeController{}, "GET", "/readyz", 200},
		{fakeController{ready: bad}, "GET", "/readyz", 503},
		{fakeController{}, "GET", "/v1/status", 200},
		{fakeController{status: bad}, "GET", "/v1/status", 503},
		{fakeController{}, "POST", "/v1/switchover", 200},
		{fakeController{switchover: bad}, "POST", "/v1/switchover", 409},
		{fakeController{status: bad}, "POST", "/v1/switchover", 503},
		{fakeController{}, "GET", "/v1/switchover", 405},
		{fakeController{}, "POST", "/v1/status", 405},
		{fakeController{}, "GET", "/nosuch", 404},
	} {
		w := httpAsk(&tt.c, tt.method, tt.path, "{}", "Content-Type", "application/json")
		if w.Code != tt.code {
			t.Errorf("%s %s: %d, want %d: %s", tt.method, tt.path, w.Code, tt.code, w.Body)
		}
		if !strings.HasPrefix(tt.path, "/v1/") || tt.code == http.StatusMethodNotAllowed {
			continue
		}
		var e httpError
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
			t.Errorf("%s %s: %v in %q", tt.method, tt.path, err, w.Body)
		}
		if want := map[bool]string{true: "", false: bad.Error()}[tt.code == 200]; e.Error != want {
			t.Errorf("%s %s: error %q, want %q", tt.method, tt.path, e.Error, want)
		}
	}
}

// TestCommandsAskANode runs status and switchover against a node, whose address may be written as
// the configuration writes it.
func TestCommandsAskANode(t *testing.T) {
	c := &fakeController{}
	server := httptest.NewServer(newHTTPHandler(c, prometheus.NewRegistry()))
	defer server.Close()
	addr := strings.TrimPrefix(server.URL, "http://")
	for _, tt := range []struct {
		args []string
		fail error // of switchover and readiness
		code int
		want string
	}{
		{[]string{"status", "--ready", "--url", addr}, nil, 0, "ok"},
		{[]string{"status", "--ready", "--url", addr}, errors.New("starting"), 1,
			"not ready: starting"},
		{[]string{"status", "--ready", "--url", "127.0.0.1:1"}, nil, 1, "is it running"},
		{[]string{"status", "--url", addr}, nil, 0, "primary node2"},
		{[]string{"status", "--url", server.URL}, nil, 0, "primary node2"},
		{[]string{"status", "--json", "--url", addr}, nil, 0, `"primary": "node2"`},
		{[]string{"switchover", "--to", "node3", "--url", addr}, nil, 0, "primary is node2"},
		{[]string{"switchover", "--url", addr}, errors.New("not now"), 1, "switchover: not now"},
		{[]string{"status", "--url", "127.0.0.1:1"}, nil, 1, "is it running, is --url right"},
		{[]string{"status", "--url", server.URL + "/nosuch"}, nil, 1, "404"},
	} {
		c.switchover, c.ready = tt.fail, tt.fail
		var stdout, stderr strings.Builder
		code := run(t.Context(), tt.args, &stdout, &stderr)
		out := stdout.String()
		if tt.code != 0 {
			out = stderr.String()
		}
		if code != tt.code || !strings.Contains(out, tt.want) {
			t.Errorf("%q: exit code %d, want %d and %q: %s%s", tt.args, code, tt.code, tt.want,
				stdout.String(), stderr.String())
		}
	}
	if want := []string{"node3", ""}; !slices.Equal(c.asked, want) {
		t.Errorf("the node was asked for %q, want %q", c.asked, want)
	}
}
