package proxy_test

import (
	"slices"
	"testing"

	"holdfast/proxy"
)

// TestUnprotectedCommits: where commits wait for standbys, a session that asks for less is marked,
// whoever asked, and its guarded commits are counted; no other is.
func TestUnprotectedCommits(t *testing.T) {
	r := newRig(t, nil)
	exec(t, r.connect(""), "CREATE TABLE unprotected (a int)")
	pr, _ := r.topo.Current()
	quorum := *pr
	quorum.SyncQuorum = 1 // the server itself waits for nobody
	r.topo.Set(&quorum)
	insert := "INSERT INTO unprotected VALUES (1)"
	for _, tc := range []struct {
		name, options string
		sql           []string
		mark          string // behind all of sql
		commits       float64
	}{
		{"as the group", "", []string{insert}, "", 0},
		{"options", "options='-c synchronous_commit=local'", []string{insert}, "local", 1},
		{"SET", "", []string{"SET synchronous_commit = off", insert}, "off", 1},
		{"SET and RESET", "", []string{"SET synchronous_commit = off", "RESET synchronous_commit",
			insert}, "", 0},
		{"SET to more", "options='-c synchronous_commit=off'", []string{
			"SET synchronous_commit TO 'on'", insert}, "", 0},
		{"set_config", "", []string{"SELECT set_config('synchronous_commit', 'off', false)", insert},
			"off", 1},
		{"SET LOCAL", "", []string{"BEGIN", "SET LOCAL synchronous_commit TO off", insert, "COMMIT",
			insert}, "", 1},
		{"SET LOCAL in what is rolled back", "", []string{"BEGIN",
			"SET LOCAL synchronous_commit TO off", insert, "ROLLBACK", insert}, "", 0},
		{"set_config for the transaction", "", []string{"BEGIN",
			"SELECT set_config('synchronous_commit', 'local', true)", insert, "COMMIT"}, "", 1},
		{"in an open transaction", "", []string{"BEGIN", "SET LOCAL synchronous_commit TO off"},
			"off", 0},
	} {
		before := r.count("unprotected_commits_total", "")
		c := r.connect("application_name=unprotected " + tc.options)
		for _, sql := range tc.sql {
			exec(t, c, sql)
		}
		mark := "no session"
		for _, s := range r.proxy.Sessions() {
			if s.Application == "unprotected" && s.PID != 0 {
				mark = s.Unprotected
			}
		}
		if n := r.count("unprotected_commits_total", "") - before; mark != tc.mark || n != tc.commits {
			t.Errorf("%s: marked %q, want %q; %v commits, want %v", tc.name, mark, tc.mark, n,
				tc.commits)
		}
		_ = c.Close(t.Context())
		for isThere := true; isThere; {
			isThere = false
			for _, s := range r.proxy.Sessions() {
				isThere = isThere || s.Application == "unprotected"
			}
		}
	}
}

// TestUnprotectedByTheRole: ALTER ROLE asks for less as well. Where commits wait for nobody there
// is nothing to mark.
func TestUnprotectedByTheRole(t *testing.T) {
	r := newRig(t, nil)
	r.server.Exec("ALTER ROLE app SET synchronous_commit = remote_write")
	r.connect("")
	if s := r.proxy.Sessions(); len(s) != 1 || s[0].Unprotected != "" {
		t.Errorf("asynchronous: %+v", s)
	}
	pr, _ := r.topo.Current()
	quorum := *pr
	quorum.SyncQuorum, quorum.Epoch = 1, pr.Epoch+1
	r.topo.Set(&quorum)
	r.proxy.Cut(pr.Epoch)
	r.connect("application_name=later")
	var later proxy.SessionInfo
	r.until(func() bool { // the greeting comes before the backend is attached
		all := r.proxy.Sessions()
		at := slices.IndexFunc(all, func(s proxy.SessionInfo) bool {
			return s.Application == "later" && s.PID != 0
		})
		if at >= 0 {
			later = all[at]
		}
		return at >= 0
	})
	if later.Unprotected != "remote_write" {
		t.Errorf("%+v", later)
	}
}
