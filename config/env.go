package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// envPrefix begins the name of every variable of ours.
const envPrefix = "HOLDFAST_"

// foreignEnv are variables that begin like ours and are none: those that Kubernetes makes for a
// service named holdfast or holdfast-proxy, and those of our own tests and commands. No key may
// have such a name; a test holds the tree to that.
var foreignEnv = regexp.MustCompile(
	`^HOLDFAST_(.+_)?(PORT|PORT_[0-9].*|SERVICE_HOST|SERVICE_PORT|SERVICE_PORT_.*)$` +
		`|^HOLDFAST_(TEST|REQUIRE|DEMO)_.*$|^HOLDFAST_(CONFIG|BINARY)$`)

// walkEnv checks the variables of our keys and returns the lists among them, which viper cannot
// decode; it reads the others itself. An empty variable counts as none.
func (w *walker) walkEnv() map[string]any {
	lists := map[string]any{}
	known := map[string]bool{}
	eachLeaf(&root, "", reflect.ValueOf(Config{}), func(f *field, key string, _ reflect.Value) {
		name := EnvName(key)
		known[name] = true
		text := os.Getenv(name)
		if text == "" {
			return
		}
		w.env = name
		defer func() { w.env = "" }()
		if f.kind != kindStrings && f.kind != kindSections {
			n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
			w.value(f, key, n)
			return
		}
		if n := w.listNode(f, key, text); n != nil {
			w.forget(key)
			if got := w.value(f, key, n); got != nil {
				lists[key] = got
			}
		}
	})
	w.unknownEnv(known)
	return lists
}

// bracketedHost begins a list of addresses whose first is of IPv6; no YAML list does.
var bracketedHost = regexp.MustCompile(`^\s*\[[^\[\]]*\]:`)

// listNode reads a list from a variable: YAML if it begins with a bracket that is no address's,
// else items between commas.
func (w *walker) listNode(f *field, key, text string) *yaml.Node {
	if len(text) > fileBytesMax {
		w.problem(key, 0, "is longer than %d bytes", fileBytesMax)
		return nil
	}
	if strings.HasPrefix(strings.TrimSpace(text), "[") && !bracketedHost.MatchString(text) {
		var doc yaml.Node
		if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
			_, why := yamlError(err)
			w.problem(key, 0, "%s", why)
			return nil
		}
		return doc.Content[0]
	}
	if f.kind == kindSections {
		w.problem(key, 0, "must be written as a YAML list: [{%s: ...}, ...]", f.fields[0].key)
		return nil
	}
	n := &yaml.Node{Kind: yaml.SequenceNode}
	for _, item := range strings.Split(text, ",") {
		n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str",
			Value: strings.TrimSpace(item)})
	}
	return n
}

// forget drops the places of a list's items in the file, which the environment replaces.
func (w *walker) forget(key string) {
	for k := range w.from.lines {
		if strings.HasPrefix(k, key+"[") {
			delete(w.from.lines, k)
		}
	}
}

// unknownEnv refuses variables that look like ours and are not: a misspelt one would otherwise
// be ignored without a word.
func (w *walker) unknownEnv(known map[string]bool) {
	names := make([]string, 0, len(known))
	for name := range known {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, envPrefix) || known[name] || foreignEnv.MatchString(name) {
			continue
		}
		hint := "`holdfast config example` lists the keys"
		if near := nearest(name, names); near != "" {
			hint = "did you mean " + near + "?"
		}
		w.env = clip(name)
		w.problem("", 0, "no key has this variable; %s", hint)
		w.env = ""
	}
}
