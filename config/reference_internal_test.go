package config

import (
	"flag"
	"fmt"
	"os"
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
	b.WriteString("| key | values | default | reload |\n| --- | --- | --- | --- |\n")
	write := func(f *field, key string, v reflect.Value) {
		reload := ""
		if f.reload {
			reload = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", key, referenceValues(f),
			referenceDefault(f, v), reload)
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

func referenceValues(f *field) string {
	switch {
	case len(f.allowed) > 0:
		return "`" + strings.Join(f.allowed, "`, `") + "`"
	case f.kind == kindInt:
		return fmt.Sprintf("%d to %d", f.min, f.max)
	case f.kind == kindDuration:
		return "duration"
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
