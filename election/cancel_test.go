package election_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// A cancel request gets to the node that is named, with its key, and to no other; a sidecar may not
// send one.
func TestCancelIsPassedOn(t *testing.T) {
	g := electiontest.NewGroup(t, 3)
	var mu sync.Mutex
	got := map[string]string{}
	g.Change = func(cfg *election.Config, deps *election.Deps) {
		deps.Gate = &gate{}
		deps.Loop = func(election.Coordinator) election.LeaderLoop { return idle{} }
		deps.Cancel = func(_ context.Context, pid uint32, key []byte) {
			mu.Lock()
			defer mu.Unlock()
			if pid == 7 {
				got[cfg.Name] = string(key)
			}
		}
	}
	for _, m := range g.Nodes {
		g.Start(m.Name)
	}
	waitLeader(t, g)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	key := strings.Repeat("k", 256)
	to := g.Nodes[2].Name
	err := g.Running[g.Nodes[0].Name].RelayCancel(ctx, func(name string) bool { return name == to },
		7, []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	if len(got) != 1 || got[to] != key {
		t.Errorf("came to %v", got)
	}
	clear(got)
	mu.Unlock()
	body, err := json.Marshal(map[string]any{"v": 1, "pid": 7, "key": []byte("k")})
	if err != nil {
		t.Fatal(err)
	}
	if status, text := post(t, g, "sidecar", "/v1/cancel", body); status != http.StatusForbidden {
		t.Errorf("a sidecar's: %d %s", status, text)
	}
	if len(got) != 0 {
		t.Errorf("came to %v", got)
	}
}
