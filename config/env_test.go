package config_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"holdfast/config"
)

func TestEveryKeyHasItsVariable(t *testing.T) {
	for _, c := range []struct{ name, value, key string }{
		{"HOLDFAST_PROXY_HOLD_TIMEOUT", "77s", "proxy.hold_timeout"},
		{"HOLDFAST_PROXY_SESSIONS_MAX", "77", "proxy.sessions_max"},
		{"HOLDFAST_POSTGRES_CHECKSUMS", "false", "postgres.checksums"},
		{"HOLDFAST_GROUP_PROFILE", "wan", "group.profile"},
		{"HOLDFAST_GROUP_TLS_CA_FILE", "/x/ca.pem", "group.tls.ca_file"},
	} {
		if config.EnvName(c.key) != c.name {
			t.Errorf("%s has the variable %s, want %s", c.key, config.EnvName(c.key), c.name)
		}
		t.Setenv(c.name, c.value)
	}
	cfg, err := config.Parse("", []byte("proxy: {hold_timeout: 1s}"))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Proxy.HoldTimeout != 77*time.Second || cfg.Proxy.SessionsMax != 77 ||
		cfg.Postgres.Checksums || cfg.Group.Profile != "wan" ||
		cfg.Group.TLS.CAFile != "/x/ca.pem" {
		t.Errorf("environment was not taken:\n%s", cfg.YAML())
	}
}

func TestListsInTheEnvironment(t *testing.T) {
	t.Setenv("HOLDFAST_PROXY_LISTEN", "10.0.0.1:6432, [::1]:6432")
	t.Setenv("HOLDFAST_POSTGRES_SETTINGS", `["a.b = 'x, y'", "c.d = 1"]`)
	t.Setenv("HOLDFAST_GROUP_NODES", `[{name: N1, address: "a:1", postgres: "a:2"}]`)
	cfg, err := config.Parse("", []byte("proxy: {listen: ['127.0.0.1:1']}"))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"10.0.0.1:6432", "[::1]:6432"}; !reflect.DeepEqual(cfg.Proxy.Listen, want) {
		t.Errorf("proxy.listen is %q", cfg.Proxy.Listen)
	}
	if want := []string{"a.b = 'x, y'", "c.d = 1"}; !reflect.DeepEqual(cfg.Postgres.Settings, want) {
		t.Errorf("postgres.settings is %q", cfg.Postgres.Settings)
	}
	if want := []config.Node{{Name: "N1", Address: "a:1", Postgres: "a:2"}}; !reflect.DeepEqual(
		cfg.Group.Nodes, want) {
		t.Errorf("group.nodes is %v", cfg.Group.Nodes)
	}
}

// TestIPv6InTheEnvironment: an address in brackets at the start is no YAML.
func TestIPv6InTheEnvironment(t *testing.T) {
	for text, want := range map[string][]string{
		"[::1]:6432":                 {"[::1]:6432"},
		" [::1]:6432, 10.0.0.1:6432": {"[::1]:6432", "10.0.0.1:6432"},
		"[fe80::1%eth0]:6432":        {"[fe80::1%eth0]:6432"},
		`["[::1]:6432"]`:             {"[::1]:6432"},
		"[ '10.0.0.1:6432' ]":        {"10.0.0.1:6432"},
	} {
		t.Setenv("HOLDFAST_PROXY_LISTEN", text)
		cfg, err := config.Parse("", nil)
		if err != nil || !reflect.DeepEqual(cfg.Proxy.Listen, want) {
			t.Errorf("%q: %q, want %q: %v", text, cfg.Proxy.Listen, want, err)
		}
	}
	t.Setenv("HOLDFAST_GROUP_NODES", "[::1]:7400")
	if _, err := config.Parse("", nil); err == nil ||
		!strings.Contains(err.Error(), "must be written as a YAML list") {
		t.Errorf("an address for a list of sections: %v", err)
	}
}

func TestEnvironmentIsCheckedAsTheFileIs(t *testing.T) {
	for _, c := range []struct{ name, value, words string }{
		{"HOLDFAST_PROXY_HOLD_TIMEOUT", "60", "proxy.hold_timeout: \"60\" is not a duration"},
		{"HOLDFAST_RAFT_ENABLED", "1", "raft.enabled: \"1\" is not true or false"},
		{"HOLDFAST_PROXY_SESSIONS_MAX", "0x10", "is not a whole number"},
		{"HOLDFAST_GROUP_NODES", "node1,node2", "must be written as a YAML list"},
		{"HOLDFAST_GROUP_NODES", "[{nam: a}]", "group.nodes[0].nam: unknown key; did you mean"},
		{"HOLDFAST_PROXY_LISTEN", "[", "not YAML"},
		{"HOLDFAST_PROXY_HOLD_TIMOUT", "60s", "did you mean HOLDFAST_PROXY_HOLD_TIMEOUT?"},
		{"HOLDFAST_WHATEVER", "x", "no key has this variable"},
		{"HOLDFAST_NAME", "bad name", "name: \"bad name\" is not allowed"},
	} {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			t.Setenv(c.name, c.value)
			_, err := load(t, group)
			if err == nil || !strings.Contains(err.Error(), c.words) ||
				!strings.Contains(err.Error(), "environment "+c.name) {
				t.Errorf("got: %v", err)
			}
		})
	}
}

func TestAnEmptyVariableIsNone(t *testing.T) {
	t.Setenv("HOLDFAST_LOG_LEVEL", "")
	t.Setenv("HOLDFAST_PROXY_LISTEN", "")
	cfg, err := config.Parse("", []byte("log: {level: warn}"))
	if err != nil || cfg.Log.Level != "warn" || len(cfg.Proxy.Listen) != 1 {
		t.Errorf("got %v, level %q, listen %q", err, cfg.Log.Level, cfg.Proxy.Listen)
	}
}

// A service named holdfast gives every pod beside it such variables; they must not stop a node,
// and none of our keys may be set by them.
func TestVariablesOfKubernetesServicesAreIgnored(t *testing.T) {
	foreign := []string{"HOLDFAST_PORT", "HOLDFAST_SERVICE_HOST", "HOLDFAST_SERVICE_PORT",
		"HOLDFAST_SERVICE_PORT_PGSQL", "HOLDFAST_PORT_5432_TCP_ADDR", "HOLDFAST_PROXY_PORT",
		"HOLDFAST_POSTGRES_PORT_5432_TCP", "HOLDFAST_PROXY_SERVICE_HOST"}
	for _, name := range foreign {
		t.Setenv(name, "tcp://10.0.0.1:5432")
	}
	if _, err := load(t, group); err != nil {
		t.Error(err)
	}
	for _, key := range config.Keys() {
		name := config.EnvName(key)
		if strings.HasSuffix(name, "_PORT") || strings.Contains(name, "_PORT_") ||
			strings.Contains(name, "_SERVICE_") {
			t.Errorf("the key %s has the name of a Kubernetes variable, %s", key, name)
		}
	}
}

func TestVariablesOfKeysAreDistinct(t *testing.T) {
	keys := map[string]string{}
	for _, key := range config.Keys() {
		name := config.EnvName(key)
		if other, twice := keys[name]; twice {
			t.Errorf("%s and %s share %s", key, other, name)
		}
		keys[name] = key
	}
}
