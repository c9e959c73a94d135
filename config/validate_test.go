package config_test

import (
	"strings"
	"testing"
)

func TestRulesAcrossSections(t *testing.T) {
	const sidecar = "raft: {enabled: false}\npostgres: {enabled: false}\n"
	long := "/" + strings.Repeat("d", 100)
	cases := []struct{ name, text, key, words string }{
		{"name not in the group", strings.Replace(group, "node1", "node9", 1), "name",
			"is not in group.nodes (node1, node2, node3)"},
		{"nothing to run", group + sidecar + "proxy: {enabled: false}\n", "raft.enabled",
			"nothing to run"},
		{"member that does not vote", group + "raft: {enabled: false}\n", "raft.enabled",
			"every member votes"},
		{"voter without PostgreSQL", group + "postgres: {enabled: false}\n",
			"postgres.enabled", "must call it a witness"},
		{"witness with PostgreSQL", strings.Replace(group, `postgres: "10.0.0.1:5432"`,
			"witness: true", 1), "postgres.enabled", "must be false on node1"},
		{"witness with an address", strings.Replace(group, `"10.0.0.2:5432"`,
			`"10.0.0.2:5432", witness: true`, 1), "group.nodes[1].postgres", "is a witness"},
		{"no nodes", "name: a\n" + sidecar, "group.nodes", "list the voters"},
		{"name twice", strings.Replace(group, "name: node3", "name: node2", 1),
			"group.nodes[2].name", "also the name of group.nodes[1]"},
		{"names that share a slot", strings.Replace(group, "name: node3", "name: Node2", 1),
			"group.nodes[2].name", "share a replication slot"},
		{"address twice", strings.Replace(group, "10.0.0.3:7400", "10.0.0.2:7400", 1),
			"group.nodes[2].address", "is also group.nodes[1].address"},
		{"address of nobody", strings.Replace(group, "10.0.0.3:7400", "0.0.0.0:7400", 1),
			"group.nodes[2].address", "no address that others can reach"},
		{"no port", strings.Replace(group, "10.0.0.3:7400", "10.0.0.3", 1),
			"group.nodes[2].address", "is not host:port"},
		{"port out of range", strings.Replace(group, "10.0.0.3:7400", "10.0.0.3:70000", 1),
			"group.nodes[2].address", "no port from 1 to 65535"},
		{"no TLS", strings.Replace(group, "key_file: /etc/hf/n.key", "", 1),
			"group.tls.key_file", "always use mutual TLS"},
		{"drain outlasts hold", group + "proxy: {hold_timeout: 8s}\n", "group.drain_timeout",
			"10s must be less than proxy.hold_timeout (8s)"},
		{"fence of nobody", strings.Replace(group, "group:", "group:\n  fence: recruit", 1) +
			"synchronous: {mode: \"off\"}\n", "group.fence", "choose lease, or the mode strict"},
		{"hold shorter than a switchover and its way back", strings.Replace(group, "group:",
			"group:\n  profile: wan", 1) + "proxy: {hold_timeout: 36s}\n",
			"proxy.hold_timeout", "must be at least 37s with profile wan and " +
				"group.drain_timeout 10s"},
		{"drain that leaves no time for the way back", strings.Replace(group, "group:",
			"group:\n  drain_timeout: 41s", 1), "proxy.hold_timeout", "1m0s must be at least 1m1s"},
		{"limits of sessions", group + "proxy: {session_limits: [\"all app hold_timeout=-1s\"]}\n",
			"proxy.session_limits[0]", "must be 0s to 24h"},
		{"late bytes", group + "proxy: {lease_grace: 2s}\n",
			"proxy.lease_grace", "must be at most 1s with profile cloud"},
		{"HTTP for everybody", group + "http: {listen: \":7401\"}\n", "http.listen",
			"not a loopback address"},
		{"port of another", group + "proxy: {listen: [\":5432\"]}\n", "proxy.listen[0]",
			"has the port of postgres.listen"},
		{"relative path", group + "data_dir: data\n", "data_dir", "not an absolute path"},
		{"Raft inside PGDATA", group + "raft: {dir: /pg/raft}\npostgres: {data_dir: /pg}\n",
			"raft.dir", "lies inside postgres.data_dir"},
		{"socket path too long", group + "postgres: {socket_dir: " + long + "}\n",
			"postgres.socket_dir", "107 are allowed"},
		{"setting of the agent", group + "postgres: {settings: [\"fsync = off\"]}\n",
			"postgres.settings[0]", "managed by holdfast"},
		{"setting without value", group + "postgres: {settings: [work_mem]}\n",
			"postgres.settings[0]", "name = value"},
		{"rule that is none", group + "postgres: {hba: [allow all]}\n", "postgres.hba[0]",
			"must be one of local, host"},
		{"rule with too little", group + "postgres: {hba: [host all all md5]}\n",
			"postgres.hba[0]", "too few fields"},
		{"network that is none", group + "postgres: {allow_from: [\"10.0.0.0/40\"]}\n",
			"postgres.allow_from[0]", "a network"},
		{"superuser reserved", group + "postgres: {superuser: pg_me}\n",
			"postgres.superuser", "without the prefix"},
		{"stop at once", group + "postgres: {stop_timeout: 1ms}\n", "postgres.stop_timeout",
			"from 100ms"},
		{"no proxy address", group + "proxy: {listen: []}\n", "proxy.listen",
			"at least one host:port"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, c.text)
			if err == nil || !strings.Contains(err.Error(), c.key+": ") ||
				!strings.Contains(err.Error(), c.words) {
				t.Errorf("want %s with %q, got: %v", c.key, c.words, err)
			}
		})
	}
}

// A problem that is found after the file was read still has its line.
func TestRulesAcrossSectionsTellTheLine(t *testing.T) {
	_, err := load(t, group+"proxy:\n  hold_timeout: 3s\npostgres:\n  hba:\n    - nonsense\n")
	wantProblem(t, err, "proxy.hold_timeout", 9, "must be at least")
	wantProblem(t, err, "postgres.hba[0]", 12, "no record of pg_hba.conf")
	_, err = load(t, group+"postgres:\n  settings:\n    - a.b = 1\n    - fsync = off\n")
	wantProblem(t, err, "postgres.settings[1]", 11, "managed by holdfast")
}

func TestSidecarNeedsNoPlaceInTheGroup(t *testing.T) {
	text := strings.Replace(group, "node1", "app-17", 1) +
		"raft: {enabled: false}\npostgres: {enabled: false}\n"
	cfg, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := cfg.Self(); ok {
		t.Error("a sidecar is a voter")
	}
	ec, err := cfg.ElectionConfig()
	if err != nil || ec.Voter || len(ec.Nodes) != 3 {
		t.Errorf("election gets %+v, %v", ec, err)
	}
}

func TestWitnessIsAVoterWithoutPostgreSQL(t *testing.T) {
	text := strings.Replace(group, `postgres: "10.0.0.1:5432"`, "witness: true", 1) +
		"postgres: {enabled: false}\n"
	if _, err := load(t, text); err != nil {
		t.Error(err)
	}
}

func TestEvenNumberOfVotersIsAWarning(t *testing.T) {
	var lines []string
	for _, line := range strings.SplitAfter(group, "\n") {
		if !strings.Contains(line, "node3") {
			lines = append(lines, line)
		}
	}
	cfg, err := load(t, strings.Join(lines, ""))
	if err != nil {
		t.Fatal(err)
	}
	if w := cfg.Warnings(); len(w) != 1 || !strings.Contains(w[0], "add a witness") {
		t.Errorf("warnings are %q", w)
	}
}

// TestLongDrainIsAWarning: a drain that outlasts the unit's patience ends in SIGKILL.
func TestLongDrainIsAWarning(t *testing.T) {
	const sidecar = "raft: {enabled: false}\npostgres: {enabled: false}\n"
	for _, tt := range []struct {
		text string
		want bool
	}{
		{"proxy: {shutdown_timeout: 45s}\n", false},
		{"proxy: {shutdown_timeout: 46s}\n", true},
		{sidecar + "proxy: {shutdown_timeout: 30s, lookup_password_file: /x}\n", false},
		{sidecar + "proxy: {shutdown_timeout: 31s, lookup_password_file: /x}\n", true},
	} {
		cfg, err := load(t, group+tt.text)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Join(cfg.Warnings(), "\n")
		if got := strings.Contains(text, "TimeoutStopSec"); got != tt.want {
			t.Errorf("%q: warned %v, want %v", tt.text, got, tt.want)
		}
	}
}
