package config_test

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"holdfast/config"
)

func TestExampleIsTheDefaults(t *testing.T) {
	got, err := config.Parse("example.yaml", config.Example())
	if err != nil {
		t.Fatal(err)
	}
	if want := config.Default(); !bytes.Equal(got.YAML(), want.YAML()) {
		t.Errorf("example.yaml is:\n%s\nthe defaults are:\n%s", got.YAML(), want.YAML())
	}
}

// Every key must be written out, or the test above would take the default for the example.
func TestExampleHasEveryKey(t *testing.T) {
	for _, key := range config.Keys() {
		name := key[strings.LastIndex(key, ".")+1:]
		line := regexp.MustCompile(`(?m)^ *` + name + `:`)
		if !line.Match(config.Example()) {
			t.Errorf("example.yaml lacks %s", key)
		}
	}
}

// The nodes that the comment shows are ones that load.
func TestExampleLoadsWithTheNodesOfItsComment(t *testing.T) {
	text := string(config.Example())
	nodes := regexp.MustCompile(`(?m)^  #   - (\{name: .*)$`).FindAllStringSubmatch(text, -1)
	if len(nodes) != 3 {
		t.Fatalf("the comment shows %d nodes", len(nodes))
	}
	var list strings.Builder
	for _, n := range nodes {
		list.WriteString("\n    - " + n[1])
	}
	text = strings.Replace(text, "  nodes: []", "  nodes:"+list.String(), 1)
	text = strings.Replace(text, `name: ""`, "name: node1", 1)
	for _, f := range []string{"ca_file", "cert_file", "key_file"} {
		text = strings.Replace(text, f+`: ""`, f+": /etc/holdfast/x.pem", 1)
	}
	if _, err := load(t, text); err != nil {
		t.Error(err)
	}
}
