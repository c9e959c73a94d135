package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the prefix of our own import paths.
const module = "holdfast/"

// layers tells which of our packages each may import; tests may import what their package may.
// A package that is not here may import none, so a new one has to be thought about.
var layers = []struct {
	pkg     string
	imports []string
	why     string
}{
	{"pgwire", nil, "it is a library about bytes and messages; whoever uses it has the policy"},
	{"proxy", []string{"pgwire"}, "the data path runs with a static primary: what it knows of " +
		"an election comes through proxy.Topology"},
	{"election", []string{"pgwire"}, "who may be primary does not depend on how clients are " +
		"served"},
	{"config", []string{"pgwire", "proxy", "election"}, "it composes the owners' configurations " +
		"and is read by none of them"},
	{"cmd/holdfast", []string{"pgwire", "proxy", "election", "config"}, "it joins the parts"},
	{"bench", []string{"pgwire", "proxy", "election", "config"}, "it drives the built binary as " +
		"processes, so that a kill is a real kill"},
}

// owned are dependencies that few packages may import, tests included.
var owned = []struct {
	dependency string
	by         []string
	why        string
}{
	{"github.com/jackc/pgproto3", []string{"pgwire"}, "it is archived with open holes: one place " +
		"to guard and to replace it"},
	{"github.com/hashicorp/raft", []string{"election"}, "one directory to change when it dies"},
	{"github.com/hashicorp/raft-boltdb", []string{"election"}, "one directory to change when it " +
		"dies"},
	{"go.etcd.io/bbolt", []string{"election"}, "what is durable is the election's"},
	{"github.com/spf13/viper", []string{"config"}, "values are checked in one place"},
	{"github.com/spf13/cobra", []string{"cmd/holdfast", "bench"}, "packages have no command line"},
	{"charm.land", []string{"cmd/holdfast"}, "only demo and top draw on a terminal"},
	{"go.uber.org/zap", []string{"proxy", "election", "cmd/holdfast", "bench"}, "libraries " +
		"return errors and do not log"},
	{"github.com/prometheus", []string{"proxy", "election", "cmd/holdfast", "bench"},
		"a library does not choose how it is measured"},
}

// pureFiles hold decisions as functions of values, so that simulation can run them a million
// times; none may see the world or its time.
var pureFiles = []string{
	"election/state.go", "election/decide.go", "election/candidate.go", "election/lease.go",
	"election/syncnames.go", "election/syncset.go", "election/syncplan.go",
	"election/adopt_decide.go", "election/checks.go", "election/logical.go",
	"election/cutoff.go", "election/fleet.go",
	"proxy/replay.go", "proxy/txn.go", "proxy/knownxid.go",
	"pgwire/lexer.go", "pgwire/classify.go",
	"pgwire/needs.go", "pgwire/reads.go", "pgwire/settingnames.go",
}

// impureImports may not be imported by pure files, nor anything below them.
var impureImports = []string{
	"net", "os", "syscall", "log", "math/rand", "crypto/rand", "io/fs", "golang.org/x/sys",
	"go.uber.org/zap", "github.com/prometheus",
}

// impureTime are the functions of package time that look at the clock or wait.
var impureTime = []string{
	"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker",
}

// goPackage is what go list tells of a package.
type goPackage struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func TestArchImports(t *testing.T) {
	packages := listPackages(t)
	if len(packages) < len(layers)-1 {
		t.Fatalf("go list found only %d packages", len(packages))
	}
	for _, p := range packages {
		for _, problem := range checkImports(p) {
			t.Error(problem)
		}
	}
}

func TestArchPureFiles(t *testing.T) {
	for _, name := range pureFiles {
		text, err := os.ReadFile(filepath.Join("..", "..", name))
		if err != nil {
			t.Errorf("%v: if it was renamed, rename it in pureFiles", err)
			continue
		}
		for _, problem := range checkPure(name, text) {
			t.Error(problem)
		}
	}
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports",
		"./...")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages = append(packages, p)
	}
}

// checkImports tells what one package imports against the rules.
func checkImports(p goPackage) []string {
	var problems []string
	name := strings.TrimPrefix(p.ImportPath, module)
	home := owner(name)
	for _, imported := range p.Imports {
		if !isTestPackage(p.ImportPath) && isTestPackage(imported) {
			problems = append(problems, fmt.Sprintf("%s imports %s: packages named ...test are "+
				"for tests, and must not get into the binary", name, imported))
		}
	}
	for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
		if why := checkImport(home, imported); why != "" {
			problems = append(problems, fmt.Sprintf("%s imports %s: %s", name, imported, why))
		}
	}
	return problems
}

// checkImport returns why the package may not import it; empty if it may.
func checkImport(home, imported string) string {
	if strings.HasPrefix(imported, module) {
		other := owner(strings.TrimPrefix(imported, module))
		for _, l := range layers {
			if l.pkg == home {
				if other == home || slices.Contains(l.imports, other) {
					return ""
				}
				return l.why
			}
		}
		return "a new package needs its place in layers"
	}
	for _, o := range owned {
		if within(imported, o.dependency) && !slices.Contains(o.by, home) {
			return o.why
		}
	}
	return ""
}

// owner returns the layer that a package belongs to: its test packages are part of it.
func owner(name string) string {
	for _, l := range layers {
		if name == l.pkg || strings.HasPrefix(name, l.pkg+"/") {
			return l.pkg
		}
	}
	return name
}

// isTestPackage tells whether an import path is one of our packages for tests.
func isTestPackage(importPath string) bool {
	return strings.HasPrefix(importPath, module) && strings.HasSuffix(path.Base(importPath), "test")
}

// within tells whether an import path is the dependency, a version of it, or lies below it.
func within(imported, dependency string) bool {
	return imported == dependency || strings.HasPrefix(imported, dependency+"/")
}

// checkPure tells what a pure file uses that it must not.
func checkPure(name string, text []byte) []string {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, text, parser.SkipObjectResolution)
	if err != nil {
		return []string{err.Error()}
	}
	var problems []string
	bad := func(n ast.Node, what string) {
		problems = append(problems, fmt.Sprintf("%s: a pure file uses %s: what it decides must "+
			"depend on its arguments alone", fset.Position(n.Pos()), what))
	}
	timeName := ""
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return []string{err.Error()}
		}
		if imported == "time" {
			timeName = "time"
			if spec.Name != nil {
				timeName = spec.Name.Name
			}
		}
		if slices.ContainsFunc(impureImports, func(i string) bool {
			return within(imported, i)
		}) {
			bad(spec, imported)
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := s.X.(*ast.Ident); ok && timeName != "" && x.Name == timeName &&
			slices.Contains(impureTime, s.Sel.Name) {
			bad(s, "time."+s.Sel.Name)
		}
		return true
	})
	return problems
}

// The checks themselves can fail.
func TestArchChecksBite(t *testing.T) {
	for _, c := range []struct {
		p     goPackage
		words string
	}{
		{goPackage{ImportPath: "holdfast/proxy", Imports: []string{"holdfast/election"}},
			"static primary"},
		{goPackage{ImportPath: "holdfast/election", XTestImports: []string{"holdfast/proxy"}},
			"how clients are served"},
		{goPackage{ImportPath: "holdfast/pgwire", TestImports: []string{"holdfast/proxy"}},
			"a library about bytes"},
		{goPackage{ImportPath: "holdfast/proxy", Imports: []string{"holdfast/config"}},
			"static primary"},
		{goPackage{ImportPath: "holdfast/proxy/proxytest", Imports: []string{"holdfast/config"}},
			"static primary"},
		{goPackage{ImportPath: "holdfast/utils", Imports: []string{"holdfast/pgwire"}},
			"a new package"},
		{goPackage{ImportPath: "holdfast/proxy",
			Imports: []string{"github.com/jackc/pgproto3/v2"}}, "archived"},
		{goPackage{ImportPath: "holdfast/cmd/holdfast",
			XTestImports: []string{"github.com/hashicorp/raft"}}, "when it dies"},
		{goPackage{ImportPath: "holdfast/proxy", Imports: []string{"github.com/spf13/viper"}},
			"one place"},
		{goPackage{ImportPath: "holdfast/pgwire", Imports: []string{"go.uber.org/zap"}},
			"do not log"},
		{goPackage{ImportPath: "holdfast/cmd/holdfast",
			Imports: []string{"holdfast/proxy/proxytest"}}, "must not get into the binary"},
	} {
		got := strings.Join(checkImports(c.p), "\n")
		if !strings.Contains(got, c.words) {
			t.Errorf("%+v gives %q, want %q", c.p, got, c.words)
		}
	}
	fine := goPackage{ImportPath: "holdfast/proxy", Imports: []string{"holdfast/pgwire", "net",
		"net/http/httptest"}, XTestImports: []string{"holdfast/proxy/proxytest", "testing",
		"holdfast/proxy", "github.com/jackc/pgx/v5/pgconn", "github.com/hashicorp/raftlike"}}
	if got := checkImports(fine); got != nil {
		t.Errorf("allowed imports are refused: %q", got)
	}
}

func TestArchPureCheckBites(t *testing.T) {
	for _, body := range []string{
		"import \"net\"", "import \"net/http\"", "import . \"os\"", "import \"go.uber.org/zap\"",
		"import \"time\"\nvar x = time.Now()", "import c \"time\"\nvar x = c.Since",
		"import \"time\"\nfunc f() { time.Sleep(1) }", "var x = (",
	} {
		if checkPure("x.go", []byte("package x\n"+body+"\n")) == nil {
			t.Errorf("accepted: %s", body)
		}
	}
	fine := "package x\nimport \"time\"\nimport \"strings\"\nvar d = time.Second\n" +
		"var n struct{ time struct{ Now int } }\nvar b strings.Builder\n"
	if got := checkPure("x.go", []byte(fine)); got != nil {
		t.Errorf("refused: %q", got)
	}
}
