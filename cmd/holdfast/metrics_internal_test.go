package main

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"holdfast/config"
	"holdfast/election"
)

// testNode is a node of a group of three with all roles, built and not started, and a listener
// in the place of another one.
func testNode(t *testing.T) (*node, net.Listener) {
	t.Helper()
	peer, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = peer.Close() })
	dir := t.TempDir()
	mustInit(t, dir, "--node", "n1=127.0.0.1", "--node", "n2=127.0.0.1", "--node", "n3=127.0.0.1")
	text := "name: n1\ndata_dir: DIR/data\ngroup:\n  nodes:\n" +
		"    - {name: n1, address: \"127.0.0.1:7400\", postgres: \"127.0.0.1:5433\"}\n" +
		"    - {name: n2, address: PEER, postgres: \"127.0.0.1:5434\"}\n" +
		"    - {name: n3, address: \"127.0.0.1:7402\", postgres: \"127.0.0.1:5435\"}\n" +
		"  tls: {ca_file: DIR/ca.crt, cert_file: DIR/n1.crt, key_file: DIR/n1.key}\n" +
		"postgres: {secrets_dir: DIR/secrets}\nproxy: {listen: [\"127.0.0.1:6432\"]}\n"
	path := filepath.Join(dir, "holdfast.yaml")
	text = strings.NewReplacer("DIR", dir, "PEER", strconv.Quote(peer.Addr().String())).Replace(text)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNode(cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.close)
	return n, peer
}

// gathered are the gauges of a registry by name and labels.
func gathered(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			if m.GetGauge() != nil {
				out[name] = m.GetGauge().GetValue()
			}
		}
	}
	return out
}

// TestGroupMetrics: each gauge says what status says, and what is not known has none.
func TestGroupMetrics(t *testing.T) {
	const now, old = 100 * time.Millisecond, 6 * time.Second
	obs := []election.Observation{
		observed("node1", now, 0x500, election.PhasePrimary),
		observed("node2", now, 0x400, election.PhaseStandby),
	}
	leader := buildStatus(statusState(), append(obs, observed("node3", old, 0, "")))
	leader.Node, leader.Leader, leader.Decision = "node1", "node1", &DecisionStatus{}
	leader.Lease = LeaseStatus{Epoch: 4, LeftMS: 1500, State: "doubt"}
	leader.Sync = &SyncStatus{Mode: "quorum"}
	leader.Maintenance, leader.Intent = &election.Maintenance{}, &IntentStatus{}
	other := buildStatus(statusState(), obs[1:])
	other.Node, other.Lease.State = "node2", "closed"
	for _, tt := range []struct {
		name    string
		st      Status
		leads   bool
		isVoter bool
		want    map[string]float64
	}{
		{"leader", leader, true, true, map[string]float64{
			"holdfast_group_primary_info primary=node1": 1, "holdfast_group_epoch": 4,
			"holdfast_group_timeline": 1, "holdfast_group_change_under_way": 1,
			"holdfast_group_maintenance": 1, "holdfast_group_members": 3,
			"holdfast_group_problems": 1, "holdfast_group_primary_usable": 0,
			"holdfast_group_members_silent": 1, "holdfast_lease_usable": 1,
			"holdfast_lease_left_seconds": 1.5, "holdfast_raft_leader_known": 1,
			"holdfast_raft_is_leader": 1, "holdfast_sync_mode_info mode=quorum": 1,
			"holdfast_member_role member=node1 role=primary": 1,
			"holdfast_member_role member=node2 role=standby": 1,
			"holdfast_member_role member=node3 role=lost":    1,
			"holdfast_member_lag_bytes member=node2":         256,
		}},
		{"another node, without a leader", other, false, true, map[string]float64{
			"holdfast_group_primary_info primary=node1": 1, "holdfast_group_epoch": 4,
			"holdfast_group_timeline": 1, "holdfast_group_change_under_way": 0,
			"holdfast_group_maintenance": 0, "holdfast_group_members": 3,
			"holdfast_group_problems": 0, "holdfast_lease_usable": 0,
			"holdfast_lease_left_seconds": 0, "holdfast_raft_leader_known": 0,
			"holdfast_raft_is_leader":                        0,
			"holdfast_member_role member=node2 role=standby": 1,
		}},
		{"sidecar that knows nothing", Status{Node: "app"}, false, false, map[string]float64{
			"holdfast_group_epoch": 0, "holdfast_group_change_under_way": 0,
			"holdfast_group_maintenance": 0, "holdfast_group_members": 0,
			"holdfast_group_problems": 0, "holdfast_lease_usable": 0,
			"holdfast_lease_left_seconds": 0,
		}},
	} {
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(groupMetrics{isVoter: tt.isVoter,
			look: func() (Status, bool) { return tt.st, tt.leads }})
		if got := gathered(t, reg); !maps.Equal(got, tt.want) {
			t.Errorf("%s:\n got %v\nwant %v", tt.name, got, tt.want)
		}
	}
}

// TestGroupMetricsOfANode: a node that hears nobody is scraped at once and tells of itself.
func TestGroupMetricsOfANode(t *testing.T) {
	n, peer := testNode(t)
	asked := make(chan struct{})
	go func() {
		if c, err := peer.Accept(); err == nil {
			_ = c.Close()
			close(asked)
		}
	}()
	got := gathered(t, n.registry)
	select {
	case <-asked:
		t.Error("another node was asked")
	default:
	}
	if _, err := n.Status(t.Context()); err != nil { // which asks
		t.Fatal(err)
	}
	select {
	case <-asked:
	case <-time.After(10 * time.Second):
		t.Error("the test would not notice who is asked")
	}
	for name, want := range map[string]float64{
		"holdfast_raft_leader_known": 0, "holdfast_raft_is_leader": 0, "holdfast_group_epoch": 0,
		"holdfast_lease_usable": 0, "holdfast_sync_degraded": 0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", name, v, ok, want)
		}
	}
}

var descName = regexp.MustCompile(`fqName: "([^"]+)"`)

// TestMonitoringListsEverySeries: the table of docs/monitoring.md has each series that a node can
// have, and no other.
func TestMonitoringListsEverySeries(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "monitoring.md"))
	if err != nil {
		t.Fatal(err)
	}
	var listed, have []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(holdfast_[a-z_]+)").FindAllSubmatch(text, -1) {
		listed = append(listed, string(m[1]))
	}
	ch := make(chan *prometheus.Desc, 1000)
	n, _ := testNode(t)
	n.registry.Describe(ch)
	close(ch)
	for d := range ch {
		m := descName.FindStringSubmatch(d.String())
		if m != nil && strings.HasPrefix(m[1], "holdfast_") {
			have = append(have, m[1])
		}
	}
	for _, name := range have {
		if !slices.Contains(listed, name) {
			t.Errorf("%s is not in the table", name)
		}
	}
	for i, name := range listed {
		if !slices.Contains(have, name) {
			t.Errorf("%s is in the table, and no node has it", name)
		}
		if slices.Contains(listed[:i], name) {
			t.Errorf("%s is in the table twice", name)
		}
	}
	if len(have) < 40 {
		t.Errorf("only %d series were found", len(have))
	}
	// What the alerts ask for must be there, too.
	for _, name := range regexp.MustCompile(`holdfast_[a-z_]+`).FindAllString(string(text), -1) {
		base := strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")
		if !slices.Contains(have, name) && !slices.Contains(have, base) {
			t.Errorf("%s is spoken of, and no node has it", name)
		}
	}
}
