package main_test

import (
	"strings"
	"testing"
)

// Each rule refuses what it is there for, and the fine tree passes all of them.
func TestTidyChecksBite(t *testing.T) {
	many := func(line string, n int) string { return strings.Repeat(line, n) }
	todo := "TO" + "DO"
	cases := []struct{ rule, name, text string }{
		{"lines", "a.go", "package a // " + many("x", 100) + "\n"},
		{"lines", "a.sh", many("é", 101)},
		{"files", "a.go", "package a\n" + many("\n", 500)},
		{"functions", "a.go", "package a\nfunc f() {\n" + many("\tg()\n", 69) + "}\n"},
		{"functions", "a_test.go", "package a\nfunc f() {\n" + many("\tg()\n", 69) + "}\n"},
		{"formatted", "a.go", "package a\nvar  x int\n"},
		{"formatted", "a.go", "package a\nvar (\n"},
		{"leftovers", "a.go", "package a // " + todo + ": later\n"},
		{"leftovers", "docs/a.md", todo + "\n"},
		{"package docs", "a/a.go", "// Package a is.\npackage a\n"},
		{"package docs", "a/doc.go", "package a\n"},
		{"package docs", "a/doc.go", "// A is.\npackage a\n"},
		{"package docs", "cmd/x/doc.go", "// Package main is.\npackage main\n"},
		{"exported names", "a.go", "package a\nfunc F() {}\n"},
		{"exported names", "a.go", "package a\n// Does it.\nfunc F() {}\n"},
		{"exported names", "a.go", "package a\n// Fast is.\nfunc F() {}\n"},
		{"exported names", "a.go", "package a\ntype T struct{}\n"},
		{"exported names", "a.go", "package a\nfunc (t *T[X]) M() {}\n"},
		{"exported names", "a.go", "package a\nconst C = 1\n"},
		{"exported names", "a.go", "package a\nvar (\n\tx int\n\tV int\n)\n"},
		{"names in docs", "a.go", "package a\n// runIt runs.\nfunc run() {}\n"},
		{"names in docs", "a_test.go", "package a_test\n// TestAll is.\nfunc TestOne() {}\n"},
		{"names in docs", "a.go", "package a\nvar (\n\t// oldName is.\n\tx int\n)\n"},
		{"test packages", "a_test.go", "package a\n"},
		{"sleeps", "a.go", "package a\nfunc f() { time.Sleep(1) }\n"},
		{"signals", "a_test.go", "package a\nvar _ = syscall.Kill(pid, 9)\n"},
		{"scripts", "a.sh", "#!/bin/bash\nset -e\n"},
		{"links", "docs/a.md", "see [b](../b.md)\n"},
		{"links", "a.md", "see [b](docs/b.md#part)\n"},
	}
	for _, c := range cases {
		if problems := tidyCheck(t, c.rule)(tree{c.name: []byte(c.text)}); len(problems) == 0 {
			t.Errorf("%s accepts %s: %.60q", c.rule, c.name, c.text)
		}
	}
}

func TestTidyChecksAcceptWhatIsFine(t *testing.T) {
	table := "var cases = []int{\n" + strings.Repeat("1,\n", 100) + "}\n"
	fine := tree{
		"a/doc.go": []byte("// Package a is fine.\npackage a\n"),
		"a/a.go": []byte("package a\n\n// F does it.\nfunc F() {\n\t// Nothing waits for this.\n" +
			"\ttime.Sleep(1)\n" +
			"\t_ = syscall.Kill(-c.Pid, 2)\n}\n\n// The kinds.\n" +
			"const (\n\tA = 1\n\tB = 2 // B is two.\n)\n\n" +
			"type t struct{}\n\nfunc (t) M() {}\n"),
		"a/a_test.go": []byte("package a_test\n\nfunc f() {\n\t" +
			strings.ReplaceAll(strings.TrimSuffix(table, "}\n"), "1,", "\t\t1,") +
			"\t}\n}\n"),
		"a/a_internal_test.go": []byte("package a\n"),
		"b.sh":                 []byte("#!/usr/bin/env bash\nset -euo pipefail\n"),
		"docs/c.md": []byte("[a](../a/a.go) [b](https://x.y/) [c](#d) `[d](e)`\n" +
			strings.Repeat("x", 200) + "\n"),
	}
	for _, rule := range tidyRules {
		if problems := rule.check(fine); len(problems) > 0 {
			t.Errorf("%s refuses: %q", rule.name, problems)
		}
	}
}

// tidyCheck returns the check of a rule.
func tidyCheck(t *testing.T, name string) func(tree) []string {
	t.Helper()
	for _, rule := range tidyRules {
		if rule.name == name {
			return rule.check
		}
	}
	t.Fatalf("no rule is named %q", name)
	return nil
}
