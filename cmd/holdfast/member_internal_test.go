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

// TestMemberCommands: what is asked for on the command line is what the node is asked for.
func TestMemberCommands(t *testing.T) {
	add := func(old string) election.MemberRequest {
		return election.MemberRequest{Change: election.MemberChange{
			Kind: election.MemberAdd, Replaces: old,
			Member: election.Member{Name: "node4", Address: "10.0.0.4:7400"},
		}}
	}
	remove := election.MemberRequest{Change: election.MemberChange{
		Kind: election.MemberRemove, Member: election.Member{Name: "node3"},
	}}
	dry, fewer := remove, remove
	dry.DryRun, fewer.AcceptFewer = true, true
	refused := fakeController{switchover: errors.New("node3 is the primary")}
	for name, tt := range map[string]struct {
		args    string
		c       fakeController
		code    int
		want    string
		request election.MemberRequest
	}{
		"add": {
			"member add node4 10.0.0.4:7400", fakeController{}, 0, "node3 is being added", add(""),
		},
		"replace": {
			"member replace node3 node4 10.0.0.4:7400", fakeController{}, 0, "VOTES", add("node3"),
		},
		"remove":  {"member remove node3", fakeController{}, 0, "VOTES", remove},
		"refused": {"member remove node3", refused, 1, "node3 is the primary", remove},
		"dry run": {
			"member remove node3 --dry-run", fakeController{missing: "no quorum"}, 1,
			"FAILS  more: no quorum", dry,
		},
		"fewer standbys": {
			"member remove node3 --accept-fewer-standbys", fakeController{}, 0, "VOTES", fewer,
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
			if len(tt.c.members) != 1 || tt.c.members[0] != tt.request {
				t.Errorf("asked for %+v, want %+v", tt.c.members, tt.request)
			}
		})
	}
}

// TestMembersCommand: the list tells who votes, as a table and as JSON.
func TestMembersCommand(t *testing.T) {
	server := httptest.NewServer(newHTTPHandler(&fakeController{}, prometheus.NewRegistry()))
	defer server.Close()
	for args, want := range map[string]string{
		"members":        "node3 is being added",
		"members --json": `"version": 2`,
		"member":         "a command is needed",
		"member delete":  "unknown command",
		"raft":           "a command is needed",
	} {
		var out bytes.Buffer
		line := strings.Fields(args)
		if line[0] == "members" {
			line = append(line, "--url", server.URL)
		}
		run(t.Context(), line, &out, &out)
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s printed:\n%s\nwant:\n%s", args, &out, want)
		}
	}
}
