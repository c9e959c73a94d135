package main_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	contractSection = regexp.MustCompile(`^## (\d+)\. `)
	contractRule    = regexp.MustCompile(`^(\d+[a-z]?)\. `)
	contractCited   = regexp.MustCompile(`\bDESIGN (\d+(?:\.\d+[a-z]?)?)`)

	makeTarget  = regexp.MustCompile(`(?m)^([a-z0-9-]+):`)
	makeNamed   = regexp.MustCompile(`\bmake ([a-z][a-z0-9-]*)`)
	binNamed    = regexp.MustCompile("(?m)(?:^|[\\s`(])(bin/[a-z.-]+[a-z])")
	scriptNamed = regexp.MustCompile(`\bscripts/[a-z-]+\.sh`)
	commandUse  = regexp.MustCompile(`Use: +"([a-z-]+)`)
	commandName = regexp.MustCompile("(?m)(?:^[ $#`]*|`|-- )holdfast ([a-z][a-z-]+)")
	httpPath    = regexp.MustCompile(`"((?:GET|POST) /[a-z0-9/]+)"`)
	codeSpan    = regexp.MustCompile("`[^`\n]+`")
	codeIndent  = regexp.MustCompile(`(?m)^ {4,}.*$`)
)

// TestDocsContract: each "DESIGN n.n" leads to a section, or a rule of section 10, of
// docs/contract.md.
func TestDocsContract(t *testing.T) {
	files := readTree(t, filepath.Join("..", ".."))
	known := contractNumbers(string(files["docs/contract.md"]))
	if len(known) < 30 {
		t.Fatalf("docs/contract.md has only %d numbers", len(known))
	}
	cited := 0
	for _, name := range files.named("") {
		for _, m := range contractCited.FindAllSubmatch(files[name], -1) {
			cited++
			if !known[string(m[1])] {
				t.Errorf("%s: DESIGN %s is not in docs/contract.md", name, m[1])
			}
		}
	}
	if cited < 50 {
		t.Errorf("only %d citations were found", cited)
	}
}

// contractNumbers are what can be cited: 4, and of section 10 its rules, 10.8.
func contractNumbers(text string) map[string]bool {
	known := map[string]bool{}
	section := ""
	for line := range strings.Lines(text) {
		if m := contractSection.FindStringSubmatch(line); m != nil {
			section = m[1]
			known[section] = true
		} else if m := contractRule.FindStringSubmatch(line); m != nil && section == "10" {
			known[section+"."+m[1]] = true
		}
	}
	return known
}

// TestDocsNameWhatThereIs: the targets, commands, programs and scripts that pages tell to run are
// there.
func TestDocsNameWhatThereIs(t *testing.T) {
	files := readTree(t, filepath.Join("..", ".."))
	problems, named := checkNamed(files)
	if named < 40 {
		t.Errorf("only %d names were found", named)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

// checkNamed looks at the code of pages: what stands in backticks, and indented lines. A program
// of bin is one that the Makefile writes.
func checkNamed(files tree) (problems []string, named int) {
	makefile := files["Makefile"]
	targets := map[string]bool{}
	for _, m := range makeTarget.FindAllSubmatch(makefile, -1) {
		targets[string(m[1])] = true
	}
	commands := map[string]bool{}
	for _, name := range files.named(".go") {
		for _, m := range commandUse.FindAllSubmatch(files[name], -1) {
			commands[string(m[1])] = true
		}
	}
	for _, name := range files.named(".md") {
		code := bytes.Join(append(codeSpan.FindAll(files[name], -1),
			codeIndent.FindAll(files[name], -1)...), []byte("\n"))
		check := func(what string, ok bool) {
			named++
			if !ok {
				problems = append(problems, fmt.Sprintf("%s: there is no %s", name, what))
			}
		}
		for _, m := range makeNamed.FindAllSubmatch(code, -1) {
			check("make "+string(m[1]), targets[string(m[1])])
		}
		for _, m := range commandName.FindAllSubmatch(code, -1) {
			check("holdfast "+string(m[1]), commands[string(m[1])])
		}
		for _, m := range binNamed.FindAllSubmatch(code, -1) {
			check(string(m[1]), bytes.Contains(makefile, m[1]))
		}
		for _, m := range scriptNamed.FindAll(code, -1) {
			check(string(m), files[string(m)] != nil)
		}
	}
	return problems, named
}

// TestDocsNameEveryPath: what the HTTP interface answers is in the documentation.
func TestDocsNameEveryPath(t *testing.T) {
	files := readTree(t, filepath.Join("..", ".."))
	docs := string(files["docs/operations.md"]) + string(files["docs/membership.md"])
	paths := 0
	for _, name := range files.named(".go") {
		if !strings.HasPrefix(name, "cmd/holdfast/http") && name != "cmd/holdfast/sessions.go" &&
			name != "cmd/holdfast/member.go" || strings.HasSuffix(name, "_test.go") {
			continue
		}
		for _, m := range httpPath.FindAllSubmatch(files[name], -1) {
			paths++
			if !strings.Contains(docs, string(m[1])) {
				t.Errorf("%s: %s is in no document", name, m[1])
			}
		}
	}
	if paths < 12 {
		t.Errorf("only %d paths were found", paths)
	}
}

// TestDocsArchiveCommand: the command of docs/backup.md is the one that TestE2EDocs runs.
func TestDocsArchiveCommand(t *testing.T) {
	files := readTree(t, filepath.Join("..", ".."))
	want := "archive_command = '" + strings.ReplaceAll(archiveCommand, "DIR", "/backup/wal") + "'"
	if !strings.Contains(string(files["docs/backup.md"]), want) {
		t.Errorf("docs/backup.md does not have: %s", want)
	}
}
