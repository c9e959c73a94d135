package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/election"
)

func healthyStatus() Status {
	slots := []string{"holdfast_node1", "holdfast_node2"}
	st := Status{Primary: "node1", Timeline: 2, Members: []MemberStatus{
		{Name: "node1", Role: "primary", Timeline: 2, Slots: slots},
		{Name: "node2", Role: "standby", Timeline: 2, Slots: slots, Streaming: true, Sync: "quorum"},
		{Name: "node3", Role: "standby", Timeline: 2, Slots: slots, Streaming: true, Sync: "quorum"},
	}}
	for i := range st.Members {
		st.Members[i].Postgres = "10.0.0.1:5432"
	}
	return st
}

// withWitness makes node3 one, and the others have a slot for each other only.
func withWitness(s *Status) {
	s.Members[2] = MemberStatus{Name: "node3", Role: roleWitness}
	s.Members[0].Slots, s.Members[1].Slots = s.Members[0].Slots[:1], s.Members[1].Slots[:1]
}

func TestUnhealthy(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Status)
		want string // part of the answer; empty if healthy
	}{
		{"healthy", func(*Status) {}, ""},
		{"no primary", func(s *Status) { s.Primary = "" }, "no primary"},
		{"change", func(s *Status) { s.Intent = &IntentStatus{Kind: "failover"} }, "failover"},
		{"two members", func(s *Status) { s.Members = s.Members[:2] }, "2 members"},
		{"silent", func(s *Status) { s.Members[1].AgeMS = -1 }, "node2 does not report"},
		{"old report", func(s *Status) { s.Members[2].AgeMS = 6000 }, "node3 does not report"},
		{"problem", func(s *Status) { s.Members[1].Problem = "disk" }, "disk"},
		{"cloning", func(s *Status) { s.Members[1].Role = "cloning" }, "node2 is cloning"},
		{"two primaries", func(s *Status) { s.Members[1].Role = "primary" }, "node2 is primary"},
		{"stopped", func(s *Status) { s.Members[0].Role = "stopped" }, "node1 is stopped"},
		{"no stream", func(s *Status) { s.Members[2].Streaming = false }, "does not stream"},
		{"unseen", func(s *Status) { s.Members[2].Sync = "" }, "not seen"},
		{"timeline", func(s *Status) { s.Members[2].Timeline = 1 }, "timeline 1 and not 2"},
		{"slots", func(s *Status) { s.Members[2].Slots = nil }, "0 slots"},
		{"degraded", func(s *Status) {
			s.Sync = &SyncStatus{Rule: "nobody", Degraded: &SyncDegraded{}}
		}, "commits wait for nobody"},
		{"commits wait", func(s *Status) { s.Sync = &SyncStatus{Rule: "node2"} }, ""},
		{"witness", withWitness, ""},
		{"silent witness", func(s *Status) { withWitness(s); s.Members[2].AgeMS = -1 },
			"node3 does not report"},
		{"slots beside a witness", func(s *Status) { withWitness(s); s.Members[1].Slots = nil },
			"0 slots"},
	} {
		st := healthyStatus()
		tt.edit(&st)
		got := unhealthy(&st, 3)
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q in it", tt.name, got, tt.want)
		}
	}
}

func TestIsUnder(t *testing.T) {
	for path, want := range map[string]bool{
		"/a/b": true, "/a/b/c": true, "/a/bc": false, "/a": false, "/": false,
	} {
		if got := isUnder(path, "/a/b"); got != want {
			t.Errorf("isUnder(%q) = %v", path, got)
		}
	}
}

func TestPostmasterFile(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string][2]int{
		"":    {0, 0},
		"x\n": {0, 0},
		"-7\n/data\n1700000000\n5432\n/run\n127.0.0.1\n  123 456\nready\n": {0, 0},
		"7123\n/data\n1700000000\n5432\n/run\n127.0.0.1\n  5432001   98304\nready   \n": {
			7123, 98304},
		"7123\n/data\n": {7123, 0},
	} {
		if err := os.WriteFile(filepath.Join(dir, "postmaster.pid"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		pid, shm := postmasterFile(dir)
		if pid != want[0] || shm != want[1] {
			t.Errorf("%q: %d %d, want %v", text, pid, shm, want)
		}
	}
}

// copySleep gives the test a program that no other process on the machine runs.
func copySleep(t *testing.T, dir string) string {
	t.Helper()
	path, err := exec.LookPath("sleep")
	if err != nil {
		t.Skipf("no sleep program: %v", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "holdfast-sleep")
	if err := os.WriteFile(bin, b, 0o700); err != nil {
		t.Fatal(err)
	}
	return bin
}

// TestReapEndsWhatIsOurs starts a process of the cluster's binary inside its directory and one
// outside: only the first ends, and the directory goes.
func TestReapEndsWhatIsOurs(t *testing.T) {
	outside := t.TempDir()
	bin := copySleep(t, outside)
	dir := filepath.Join(outside, "cluster")
	if err := makeClusterDir(dir); err != nil {
		t.Fatal(err)
	}
	start := func(cwd string) *exec.Cmd {
		cmd := exec.Command(bin, "60")
		cmd.Dir = cwd
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	ours, other := start(dir), start(outside)
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	ended := make(chan error, 1)
	go func() { ended <- ours.Wait() }()
	if err := reap(reapSpec{Dir: dir, Binary: bin}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the cluster's process lives")
	}
	if processState(other.Process.Pid) == 0 {
		t.Error("a process outside the cluster's directory was ended")
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestReapKeepsWhatIsNotOurs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	if err := os.MkdirAll(filepath.Join(dir, "letters"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := reap(reapSpec{Dir: dir, Binary: "/nonexistent"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "letters")); err != nil {
		t.Errorf("a directory without the marker was removed: %v", err)
	}
}

func TestReaperRefusesGarbage(t *testing.T) {
	for _, in := range []string{"", "no line end", "not json\n"} {
		if err := (ReaperCommand{In: bytes.NewBufferString(in)}).Run(); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
}

func TestChooseAddresses(t *testing.T) {
	hosts, ports, err := chooseAddresses(3)
	if err != nil {
		t.Fatal(err)
	}
	if len(hosts) != 3 || hosts[0] == hosts[1] || ports.raft == ports.http {
		t.Errorf("%v %+v", hosts, ports)
	}
	for _, h := range hosts {
		if !strings.HasPrefix(h, "127.") || h == "127.0.0.1" {
			t.Errorf("%s is not a loopback address of its own", h)
		}
	}
}

// TestWaitSwitchover asks until the group would not refuse, and says what is missing when the time
// is over.
func TestWaitSwitchover(t *testing.T) {
	lags := 3
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		writeHTTPJSON(w, http.StatusOK, Status{})
	})
	mux.HandleFunc("POST /v1/switchover", func(w http.ResponseWriter, r *http.Request) {
		req, ok := readHTTPJSON[switchoverRequest](w, r)
		if !ok || !req.DryRun || req.To != "node2" {
			t.Errorf("the request is %+v", req)
		}
		check := election.Check{What: "node2 has what the primary has"}
		if lags--; lags >= 0 {
			check.Why = "node2 lags"
		}
		writeHTTPJSON(w, http.StatusOK, checksAnswer{[]election.Check{check}})
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("0123456789abcdef0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &Cluster{client: server.Client()}
	c.Nodes = []*ClusterNode{{Name: "node1", cluster: c, TokenFile: token,
		HTTP: server.Listener.Addr().String(), proc: &nodeProcess{done: make(chan struct{})}}}
	if err := c.WaitSwitchover(t.Context(), "node2", time.Minute); err != nil || lags != -1 {
		t.Errorf("%v; %d answers are left", err, lags+1)
	}
	lags = 1000
	err := c.WaitSwitchover(t.Context(), "node2", 200*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "node2 lags") {
		t.Errorf("a member that lags for ever: %v", err)
	}
}
