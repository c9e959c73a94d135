package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"holdfast/config"
)

// group is a valid configuration to add to; line 1 is the name.
const group = `name: node1
group:
  nodes:
    - {name: node1, address: "10.0.0.1:7400", postgres: "10.0.0.1:5432"}
    - {name: node2, address: "10.0.0.2:7400", postgres: "10.0.0.2:5432"}
    - {name: node3, address: "10.0.0.3:7400", postgres: "10.0.0.3:5432"}
  tls: {ca_file: /etc/hf/ca.pem, cert_file: /etc/hf/n.pem, key_file: /etc/hf/n.key}
`

// load writes text to a file and loads it.
func load(t *testing.T, text string) (config.Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "holdfast.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Load(path)
}

// wantProblem fails unless err holds a problem of the key at the line whose text has the words.
func wantProblem(t *testing.T, err error, key string, line int, words string) {
	t.Helper()
	var problems config.Problems
	if !errors.As(err, &problems) {
		t.Fatalf("error is %v, not Problems", err)
	}
	for _, p := range problems {
		if p.Key == key && p.Line == line && strings.Contains(p.Text, words) {
			return
		}
	}
	t.Errorf("no problem of key %q on line %d with %q in:\n%v", key, line, words, err)
}

func TestLoadFillsInDefaultsAndWhatIsDerived(t *testing.T) {
	cfg, err := load(t, group+"proxy: {hold_timeout: 30s}\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ what, got, want any }{
		{"hold_timeout", cfg.Proxy.HoldTimeout, 30 * time.Second},
		{"startup_timeout", cfg.Proxy.StartupTimeout, 15 * time.Second},
		{"postgres.listen", cfg.Postgres.Listen, "10.0.0.1:5432"},
		{"raft.dir", cfg.Raft.Dir, "/var/lib/holdfast/raft"},
		{"postgres.data_dir", cfg.Postgres.DataDir, "/var/lib/holdfast/postgres/data"},
		{"postgres.secrets_dir", cfg.Postgres.SecretsDir, "/var/lib/holdfast/secrets"},
		{"http.token_file", cfg.HTTP.TokenFile, "/var/lib/holdfast/http-token"},
		{"lookup file", cfg.Proxy.LookupPasswordFile, "/var/lib/holdfast/secrets/lookup"},
		{"lease_grace", cfg.Proxy.LeaseGrace, time.Second},
		{"second node", cfg.Group.Nodes[1].Name, "node2"},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s is %v, want %v", c.what, c.got, c.want)
		}
	}
	if len(cfg.Warnings()) != 0 {
		t.Errorf("warnings: %v", cfg.Warnings())
	}
}

func TestLoadKeepsTheCaseOfNames(t *testing.T) {
	cfg, err := load(t, strings.ReplaceAll(group, "node1", "Node-One"))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Name != "Node-One" || cfg.Group.Nodes[0].Name != "Node-One" {
		t.Errorf("names are %q and %q", cfg.Name, cfg.Group.Nodes[0].Name)
	}
}

func TestLoadRefusesWithLineAndHint(t *testing.T) {
	cases := []struct {
		name, text, key string
		line            int
		words           string
	}{
		{"misspelt key", "proxy:\n  hold_timout: 1s\n", "proxy.hold_timout", 9,
			"did you mean hold_timeout?"},
		{"unknown section", "sharding: 1\n", "sharding", 8, "allowed: name, data_dir, group"},
		{"key in capitals", "Proxy: {}\n", "Proxy", 8, "did you mean proxy?"},
		{"key with a dot", "proxy.listen: []\n", "proxy.listen", 8, "unknown key"},
		{"key twice", "http: {}\nhttp: {}\n", "http", 9, "twice, first on line 8"},
		{"duration without unit", "proxy: {hold_timeout: 60}\n", "proxy.hold_timeout", 8,
			"a duration with a unit, such as 250ms"},
		{"negative duration", "proxy: {hold_timeout: -1s}\n", "proxy.hold_timeout", 8,
			"negative"},
		{"word for a number", "proxy: {sessions_max: many}\n", "proxy.sessions_max", 8,
			"a whole number, 1 to 1000000"},
		{"octal number", "proxy: {sessions_max: 0100}\n", "proxy.sessions_max", 8,
			"a whole number"},
		{"number out of range", "proxy: {sessions_max: 0}\n", "proxy.sessions_max", 8,
			"allowed: 1 to 1000000"},
		{"yes for a boolean", "raft: {enabled: yes}\n", "raft.enabled", 8, "true or false"},
		{"word not in the list", "log: {level: inof}\n", "log.level", 8,
			"allowed: debug, info, warn, error; did you mean info?"},
		{"number for text", "data_dir: 12\n", "data_dir", 8, "put it in quotes"},
		{"section for a list", "proxy: {listen: {a: b}}\n", "proxy.listen", 8,
			"is a section but must be a list"},
		{"text for a list", "proxy: {listen: a:1}\n", "proxy.listen", 8, "must be a list"},
		{"text for a section", "proxy: on\n", "proxy", 8, "must have keys: enabled, listen"},
		{"list item empty", "proxy: {listen: [~]}\n", "proxy.listen[0]", 8, "is empty"},
		{"list item a number", "proxy: {listen: [12]}\n", "proxy.listen[0]", 8, "quotes"},
		{"text of two lines", "data_dir: \"a\\nb\"\n", "data_dir", 8, "one line"},
		{"anchor", "http: &x {listen: \"127.0.0.1:1\"}\n", "http", 8, "anchors"},
		{"alias", "http: *x\n", "", 0, "not YAML: unknown anchor"},
		{"second document", "---\nhttp: {}\n", "", 8, "second document"},
		{"not YAML", "proxy: [\n", "", 8, "not YAML"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, group+c.text)
			wantProblem(t, err, c.key, c.line, c.words)
		})
	}
}

func TestLoadTellsAllProblemsInTheOrderOfTheFile(t *testing.T) {
	t.Setenv("HOLDFAST_LOG_LEVEL", "loud")
	_, err := load(t, "log: {format: xml}\nnope: 1\nproxy: {hold_timeout: 5}\n")
	var problems config.Problems
	if !errors.As(err, &problems) || len(problems) != 4 {
		t.Fatalf("want 4 problems, got: %v", err)
	}
	var keys []string
	for _, p := range problems {
		keys = append(keys, p.Key)
	}
	if got := strings.Join(keys, " "); got != "log.format nope proxy.hold_timeout log.level" {
		t.Errorf("order is %s", got)
	}
	if text := err.Error(); !strings.Contains(text, "configuration: 4 problems\n") ||
		!strings.Contains(text, "holdfast.yaml:2: nope: unknown key") ||
		!strings.Contains(text, "environment HOLDFAST_LOG_LEVEL: log.level: \"loud\"") {
		t.Errorf("text is:\n%s", text)
	}
}

func TestLoadRefusesWhatIsNoConfigurationFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := config.Load(dir); err == nil {
		t.Error("a directory was read")
	}
	_, err := config.Load(filepath.Join(dir, "none.yaml"))
	if err == nil || !strings.Contains(err.Error(), "holdfast config example") {
		t.Errorf("a missing file gives %v", err)
	}
	if _, err := load(t, strings.Repeat("#", 1<<20+1)); err == nil ||
		!strings.Contains(err.Error(), "larger than") {
		t.Errorf("a huge file gives %v", err)
	}
}

func TestYAMLReadsBackToTheSameTree(t *testing.T) {
	cfg, err := load(t, group+`
postgres:
  settings: ["a.b = 'x: y'", "work_mem = 64MB"]
  allow_from: [10.1.0.0/16]
proxy: {listen: ["[::1]:6432", ":6433"], commit_guard: "off"}
`)
	if err != nil {
		t.Fatal(err)
	}
	again, err := config.Parse("printed", cfg.YAML())
	if err != nil {
		t.Fatalf("%v in:\n%s", err, cfg.YAML())
	}
	if string(again.YAML()) != string(cfg.YAML()) {
		t.Errorf("got:\n%s\nwant:\n%s", again.YAML(), cfg.YAML())
	}
}
