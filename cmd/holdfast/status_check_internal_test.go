package main

import (
	"bytes"
	"context"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// checkedController has a status of its own.
type checkedController struct {
	fakeController
	st Status
}

func (c *checkedController) Status(context.Context) (Status, error) { return c.st, nil }

// TestStatusCheck: the exit code tells whether all is well, and stderr what is not.
func TestStatusCheck(t *testing.T) {
	good, lease := &DecisionStatus{PrimaryUsable: true}, LeaseStatus{State: "ok"}
	for _, tt := range []struct {
		name string
		st   Status
		want []string // on stderr; none: all is well
	}{
		{"all well", Status{Primary: "node1", Decision: good}, nil},
		{"a change that is done", Status{Primary: "node1", Decision: good, Last: &ChangeStatus{}},
			nil},
		{"no decision yet, a lease", Status{Primary: "node1", Lease: lease}, nil},
		{"no decision, no lease", Status{Primary: "node1", Lease: LeaseStatus{State: "closed"}},
			[]string{"primary node1 is not confirmed"}},
		{"no primary", Status{Decision: good, Lease: lease}, []string{"there is no primary"}},
		{"not usable", Status{Primary: "node1", Decision: &DecisionStatus{Summary: "it is stopped"},
			Lease: lease}, []string{"primary node1 cannot be used: it is stopped"}},
		{"cut off", Status{Primary: "node1", Decision: &DecisionStatus{PrimaryUsable: true,
			CutOff: true, Summary: "2 of 3 nodes"}}, []string{"primary node1 is cut off: 2 of 3"}},
		{"problems", Status{Primary: "node1", Decision: good,
			Problems: []string{"node2: no report for 9 s", "node3: the raft disk fails"}},
			[]string{"problem: node2: no report for 9 s\n", "problem: node3: the raft disk fails\n"}},
	} {
		server := httptest.NewServer(newHTTPHandler(&checkedController{st: tt.st},
			prometheus.NewRegistry()))
		var out, errs bytes.Buffer
		code := run(t.Context(), []string{"status", "--check", "--url", server.URL}, &out, &errs)
		server.Close()
		if (code == 0) != (len(tt.want) == 0) || (code == 0) != strings.HasPrefix(out.String(), "ok") {
			t.Errorf("%s: exit code %d\n%s%s", tt.name, code, out.String(), errs.String())
		}
		for _, want := range tt.want {
			if !strings.Contains(errs.String(), want) {
				t.Errorf("%s: %q is not on stderr:\n%s", tt.name, want, errs.String())
			}
		}
	}
	if code := run(t.Context(), []string{"status", "--check", "--url", "127.0.0.1:1"},
		new(bytes.Buffer), new(bytes.Buffer)); code != 1 {
		t.Errorf("nobody answers: exit code %d", code)
	}
}
