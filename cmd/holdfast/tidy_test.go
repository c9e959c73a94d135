package main_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// The limits of CONTRIBUTING.md.
const (
	columnsMax       = 100
	fileLinesMax     = 500
	functionLinesMax = 70
)

// tree is the repository's files by path with slashes.
type tree map[string][]byte

// tidyRule finds what is wrong with a tree, one line for each problem.
type tidyRule struct {
	name  string
	check func(tree) []string
}

var tidyRules = []tidyRule{
	{"lines", checkLines},
	{"files", checkFiles},
	{"functions", checkFunctions},
	{"formatted", checkFormatted},
	{"leftovers", checkLeftovers},
	{"package docs", checkPackageDocs},
	{"exported names", checkExported},
	{"names in docs", checkNamesInDocs},
	{"test packages", checkTestPackages},
	{"sleeps", checkSleeps},
	{"signals", checkSignals},
	{"scripts", checkScripts},
	{"links", checkLinks},
}

func TestTidy(t *testing.T) {
	files := readTree(t, filepath.Join("..", ".."))
	if len(files) < 20 {
		t.Fatalf("only %d files were found", len(files))
	}
	for _, rule := range tidyRules {
		t.Run(rule.name, func(t *testing.T) {
			for _, problem := range rule.check(files) {
				t.Error(problem)
			}
		})
	}
}

// readTree reads the text files of a directory; what is built or hidden is left out.
func readTree(t *testing.T, root string) tree {
	t.Helper()
	files := tree{}
	err := filepath.WalkDir(root, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, at)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name == "bin" || name == ".git" || name == ".demo" {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || !isText(name) {
			return nil
		}
		text, err := os.ReadFile(at)
		files[filepath.ToSlash(name)] = text
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// isText tells which files the rules look at; test data is as it is.
func isText(name string) bool {
	if strings.Contains(filepath.ToSlash(name), "testdata/") {
		return false
	}
	switch filepath.Ext(name) {
	case ".go", ".md", ".sh", ".yaml", ".yml", ".service":
		return true
	}
	return slices.Contains([]string{"Makefile", "Dockerfile", filepath.Join(".ci", "run")}, name)
}

// named returns the files of a kind, in order.
func (f tree) named(suffix string) []string {
	var names []string
	for name := range f {
		if strings.HasSuffix(name, suffix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// goFile is a parsed file.
type goFile struct {
	name string
	fset *token.FileSet
	ast  *ast.File
}

func (f goFile) at(p token.Pos) string {
	return fmt.Sprintf("%s:%d", f.name, f.fset.Position(p).Line)
}

// goFiles parses the Go files; one that does not parse is a problem of its own rule.
func (f tree) goFiles() []goFile {
	var files []goFile
	for _, name := range f.named(".go") {
		fset := token.NewFileSet()
		parsed, err := parser.ParseFile(fset, name, f[name],
			parser.ParseComments|parser.SkipObjectResolution)
		if err == nil {
			files = append(files, goFile{name, fset, parsed})
		}
	}
	return files
}

// checkLines: a line is at most columnsMax characters, a tab being one. Tables and links of
// Markdown cannot be broken, nor can an address.
func checkLines(files tree) []string {
	var problems []string
	for _, name := range files.named("") {
		if strings.HasSuffix(name, ".md") {
			continue
		}
		for i, line := range bytes.Split(files[name], []byte("\n")) {
			if n := utf8.RuneCount(line); n > columnsMax && !bytes.Contains(line, []byte("://")) {
				problems = append(problems, fmt.Sprintf("%s:%d: %d columns, at most %d", name,
					i+1, n, columnsMax))
			}
		}
	}
	return problems
}

// checkFiles: a Go file is at most fileLinesMax lines.
func checkFiles(files tree) []string {
	var problems []string
	for _, name := range files.named(".go") {
		if n := bytes.Count(files[name], []byte("\n")); n > fileLinesMax {
			problems = append(problems, fmt.Sprintf("%s: %d lines, at most %d: one noun, one file",
				name, n, fileLinesMax))
		}
	}
	return problems
}

// checkFunctions: a function is at most functionLinesMax lines, from func to the last brace. In
// tests the lines of tables do not count: they are data.
func checkFunctions(files tree) []string {
	var problems []string
	for _, f := range files.goFiles() {
		isTest := strings.HasSuffix(f.name, "_test.go")
		for _, decl := range f.ast.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			lines := f.lines(fn)
			if isTest {
				lines -= f.tableLines(fn)
			}
			if lines > functionLinesMax {
				problems = append(problems, fmt.Sprintf("%s: %s has %d lines, at most %d",
					f.at(fn.Pos()), fn.Name.Name, lines, functionLinesMax))
			}
		}
	}
	return problems
}

func (f goFile) lines(n ast.Node) int {
	return f.fset.Position(n.End()).Line - f.fset.Position(n.Pos()).Line + 1
}

// tableLines counts the lines of the outermost composite literals of a function.
func (f goFile) tableLines(fn *ast.FuncDecl) int {
	lines := 0
	ast.Inspect(fn, func(n ast.Node) bool {
		if table, ok := n.(*ast.CompositeLit); ok {
			lines += f.lines(table) - 1
			return false
		}
		return true
	})
	return lines
}

// checkFormatted: gofmt has nothing to do.
func checkFormatted(files tree) []string {
	var problems []string
	for _, name := range files.named(".go") {
		got, err := format.Source(files[name])
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", name, err))
		} else if !bytes.Equal(got, files[name]) {
			problems = append(problems, name+": gofmt -w is needed")
		}
	}
	return problems
}

// leftover are the words that mark unfinished work, spelt so that this file has none.
var leftover = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`)

// checkLeftovers: what is left to do is an issue and not a comment.
func checkLeftovers(files tree) []string {
	var problems []string
	for _, name := range files.named("") {
		for i, line := range bytes.Split(files[name], []byte("\n")) {
			if word := leftover.Find(line); word != nil && name != "CONTRIBUTING.md" {
				problems = append(problems, fmt.Sprintf("%s:%d: %s: make it an issue", name, i+1,
					word))
			}
		}
	}
	return problems
}

// checkPackageDocs: every package has one package comment, and it is in doc.go.
func checkPackageDocs(files tree) []string {
	var problems []string
	documented, seen := map[string]bool{}, map[string]bool{}
	for _, f := range files.goFiles() {
		if strings.HasSuffix(f.name, "_test.go") {
			continue
		}
		dir := path.Dir(f.name)
		seen[dir] = true
		switch {
		case f.ast.Doc == nil:
		case path.Base(f.name) != "doc.go":
			problems = append(problems, f.name+": the package comment belongs into doc.go")
		default:
			documented[dir] = true
			first := "Package " + f.ast.Name.Name
			if f.ast.Name.Name == "main" {
				first = "Command " + path.Base(dir)
			}
			if !strings.HasPrefix(f.ast.Doc.Text(), first+" ") {
				problems = append(problems, f.name+": must begin with: "+first)
			}
		}
	}
	for dir := range seen {
		if !documented[dir] {
			problems = append(problems, dir+": no doc.go with a package comment")
		}
	}
	slices.Sort(problems)
	return problems
}

// checkTestPackages: tests see what users see, unless the file's name says otherwise.
func checkTestPackages(files tree) []string {
	var problems []string
	for _, f := range files.goFiles() {
		if !strings.HasSuffix(f.name, "_test.go") || strings.HasSuffix(f.ast.Name.Name, "_test") {
			continue
		}
		if !strings.HasSuffix(f.name, "internal_test.go") &&
			!strings.HasSuffix(f.name, "export_test.go") {
			problems = append(problems, fmt.Sprintf("%s: package %s: a test of the inside is "+
				"named _internal_test.go, others are in package %s_test", f.name,
				f.ast.Name.Name, f.ast.Name.Name))
		}
	}
	return problems
}
