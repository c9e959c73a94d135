package config

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the reference in docs/configuration.md anew")

const (
	referencePath  = "../docs/configuration.md"
	referenceBegin = "<!-- begin of the reference: make golden writes it -->\n"
	referenceEnd   = "<!-- end of the reference -->\n"
)

// The table of keys in the documentation is the one that the tree gives.
func TestReferenceListsEveryKey(t *testing.T) {
	text, err := os.ReadFile(referencePath)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), referenceBegin)
	got, tail, ended := strings.Cut(rest, referenceEnd)
	if !ok || !ended {
		t.Fatalf("%s has no place for the reference", referencePath)
	}
	want := reference()
	if got == want {
		return
	}
	if !*rewrite {
		t.Fatalf("%s is out of date; run make golden", referencePath)
	}
	text = []byte(head + referenceBegin + want + referenceEnd + tail)
	if err := os.WriteFile(referencePath, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

func reference() string {
	var b strings.Builder
	b.WriteString("| key | values | default |\n| --- | --- | --- |\n")
	write := func(f *field, key string, v reflect.Value) {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", key, referenceValues(f, key),
			referenceDefault(f, v))
	}
	eachLeaf(&root, "", reflect.ValueOf(Default()), func(f *field, key string, v reflect.Value) {
		write(f, key, v)
		if f.kind == kindSections {
			item := reflect.New(v.Type().Elem()).Elem()
			eachLeaf(f, key+"[]", item, write)
		}
	})
	return b.String()
}

// durationBounds are what the owners of the durations allow: in words, and values that load and
// that are refused with the profile cloud and the other keys at their defaults.
var durationBounds = map[string]struct {
	text    string
	in, out []string
}{
	"group.drain_timeout": {"more than 0s; see hold_timeout", []string{"1ms", "40s"},
		[]string{"0s", "41s"}},
	"group.prewarm_time": {"0s to 10s", []string{"0s", "10s"}, []string{"-1s", "10001ms"}},
	"group.cut_off_after": {"0s, or more than 1s, 5s, 10s by profile", []string{"0s", "5001ms"},
		[]string{"5s"}},
	"postgres.start_timeout": {"1s to 24h", []string{"1s", "24h"}, []string{"999ms", "24h1s"}},
	"postgres.stop_timeout":  {"100ms to 1h", []string{"100ms", "1h"}, []string{"99ms", "1h1s"}},
	"postgres.query_timeout": {"100ms to 1m", []string{"100ms", "1m"}, []string{"99ms", "61s"}},
	"postgres.disk_timeout":  {"1s to 10m", []string{"1s", "10m"}, []string{"999ms", "10m1s"}},
	"proxy.startup_timeout":  {"more than 0s", []string{"1ms"}, []string{"0s"}},
	"proxy.dial_timeout":     {"more than 0s", []string{"1ms"}, []string{"0s"}},
	"proxy.keep_alive":       {"more than 0s", []string{"1ms"}, []string{"0s"}},
	"proxy.lease_grace": {"0s to 500ms, 1s, 2s by profile", []string{"0s", "1s"},
		[]string{"1001ms"}},
	"proxy.hold_timeout": {"at least drain_timeout and 17.5s, 20s, 27s by profile",
		[]string{"30s", "2h"}, []string{"29s"}},
	"proxy.hold_notice_after": {"0s or more", []string{"0s", "1h"}, []string{"-1s"}},
	"proxy.shutdown_timeout":  {"more than 0s", []string{"1ms"}, []string{"0s"}},
	"proxy.lock_barrier_timeout": {"0s to less than hold_timeout", []string{"0s", "59s"},
		[]string{"-1s", "60s"}},
	"proxy.secret_ttl":          {"more than 0s", []string{"1ms"}, []string{"0s"}},
	"proxy.reuse_idle":          {"more than 0s", []string{"1ms"}, []string{"0s"}},
	"proxy.reuse_lifetime":      {"more than 0s", []string{"1ms"}, []string{"0s"}},
	"synchronous.degrade_after": {"1s or more", []string{"1s", "1h"}, []string{"999ms"}},
}

// What the table says of a duration is what loading a configuration allows.
func TestReferenceBoundsDurations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.yaml")
	text, err := os.ReadFile("../deploy/node.yaml")
	if err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	eachLeaf(&root, "", reflect.ValueOf(Config{}), func(f *field, key string, _ reflect.Value) {
		if f.kind == kindDuration && durationBounds[key].text == "" {
			t.Errorf("the bounds of %s are missing", key)
		}
	})
	for key, bounds := range durationBounds {
		try := func(value string) error {
			t.Setenv(EnvName(key), value)
			_, err := Load(path)
			_ = os.Unsetenv(EnvName(key))
			return err
		}
		for _, v := range bounds.in {
			if err := try(v); err != nil {
				t.Errorf("%s %s is refused: %v", key, v, err)
			}
		}
		name := key[strings.LastIndex(key, ".")+1:]
		for _, v := range bounds.out {
			if err := try(v); err == nil || !strings.Contains(err.Error(), name) &&
				!strings.Contains(err.Error(), "hold_timeout") {
				t.Errorf("%s %s: %v", key, v, err)
			}
		}
	}
}

func referenceValues(f *field, key string) string {
	switch {
	case len(f.allowed) > 0:
		return "`" + strings.Join(f.allowed, "`, `") + "`"
	case f.kind == kindInt:
		return fmt.Sprintf("%d to %d", f.min, f.max)
	case f.kind == kindDuration:
		return "duration, " + durationBounds[key].text
	case f.kind == kindBool:
		return "`true`, `false`"
	case f.kind == kindStrings:
		return "list of text"
	case f.kind == kindSections:
		return "list of sections"
	}
	return "text"
}

func referenceDefault(f *field, v reflect.Value) string {
	switch f.kind {
	case kindStrings, kindSections:
		var items []string
		for i := range v.Len() {
			items = append(items, plain(v.Index(i)))
		}
		return "`[" + strings.Join(items, ", ") + "]`"
	case kindString:
		if v.String() == "" {
			return ""
		}
	}
	return "`" + plain(v) + "`"
}
