package main_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// No decision reads the wall clock (election/DESIGN.md I69). A time.Time of time.Now has a
// monotonic part, with which Sub, Since, Before and After do not notice a step; it is lost by what
// is below, and times from outside never had one.

// wallMethods and wallFunctions make of a time one that only the wall clock knows, or a number.
var (
	wallMethods = []string{"Unix", "UnixNano", "UnixMilli", "UnixMicro", "UTC", "Local", "In",
		"AppendFormat", "Format", "MarshalJSON", "GobEncode"}
	// Of a time these two take the monotonic part; Round(0) is how that is done on purpose.
	wallRounds    = []string{"Round", "Truncate"}
	wallFunctions = []string{"Unix", "UnixMilli", "UnixMicro", "Date", "Parse", "ParseInLocation"}
	// comparing are methods and functions that a time from outside must not get into.
	comparing = []string{"Sub", "Before", "After", "Equal", "Compare", "Since", "Until"}
)

// wallAllowed are the functions that may, and why.
var wallAllowed = map[string]string{
	"election/lost.go:reportLost":         "stamp of a report, for people",
	"election/maintenance.go":             "stamp of the maintenance mode, for people",
	"election/syncset_leader.go:syncStep": "since when commits do not wait, for people",
	"election/conf.go:writeConf":          "an identity, compared for equality only",
	"election/serverlog.go":               "files are truncated, no times",
	"election/startxid.go:lastStart":      "an identity, compared for equality only",
	"proxy/backend.go":                    "time.Unix(1, 0) is a deadline that is over, at any time",
	"proxy/session.go":                    "the same",
	"proxy/proxy.go":                      "the same",
	"proxy/lookup.go":                     "the same",
	"proxy/servertls.go":                  "the same",
	"pgwire/cancel.go":                    "the same",
	"pgwire/servertls.go":                 "the same",
}

func TestArchNoDecisionReadsTheWallClock(t *testing.T) {
	used := map[string]bool{}
	for _, dir := range []string{"election", "proxy", "pgwire"} {
		files, err := filepath.Glob(filepath.Join("..", "..", dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", dir, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			name := dir + "/" + filepath.Base(file)
			for _, p := range checkWallClock(name, text) {
				if place := wallPlace(p); place != "" {
					used[place] = true
					continue
				}
				t.Errorf("%s:%d, in %s: %s: a decision must not depend on the wall clock; if this is "+
					"none, say why in wallAllowed", p.file, p.line, p.function, p.what)
			}
		}
	}
	for place := range wallAllowed {
		if !used[place] {
			t.Errorf("%s reads no wall clock any more: take it out of wallAllowed", place)
		}
	}
}

// wallPlace is the entry of wallAllowed for a use, of its function or its file.
func wallPlace(p wallUse) string {
	for _, place := range []string{p.file + ":" + p.function, p.file} {
		if _, ok := wallAllowed[place]; ok {
			return place
		}
	}
	return ""
}

// wallUse is a place where a wall clock is read.
type wallUse struct {
	file, function, what string
	line                 int
}

// checkWallClock finds what reads the wall clock in a file.
func checkWallClock(name string, text []byte) []wallUse {
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, name, text, 0)
	if err != nil {
		return []wallUse{{file: name, what: err.Error()}}
	}
	var uses []wallUse
	for _, decl := range f.Decls {
		function := "the file"
		if d, ok := decl.(*ast.FuncDecl); ok {
			function = d.Name.Name
		}
		ast.Inspect(decl, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if what := wallCall(call); what != "" {
					uses = append(uses, wallUse{name, function, what, set.Position(call.Pos()).Line})
				}
			}
			return true
		})
	}
	return uses
}

// wallCall says what is wrong with a call; "" if nothing is.
func wallCall(call *ast.CallExpr) string {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	pkg, _ := sel.X.(*ast.Ident)
	isTime := pkg != nil && pkg.Name == "time"
	switch {
	case isTime && slices.Contains(wallFunctions, sel.Sel.Name):
		return "time." + sel.Sel.Name
	case !isTime && slices.Contains(wallMethods, sel.Sel.Name) && (pkg == nil ||
		pkg.Name != "unix" && pkg.Name != "atomic"):
		return "method " + sel.Sel.Name
	case slices.Contains(wallRounds, sel.Sel.Name) && len(call.Args) == 1 && isZero(call.Args[0]):
		return "method " + sel.Sel.Name
	case slices.Contains(comparing, sel.Sel.Name):
		// Stamps that travel or are stored are called At or Since, and have lost their monotonic part.
		for _, e := range append([]ast.Expr{sel.X}, call.Args...) {
			if s, ok := e.(*ast.SelectorExpr); ok && (s.Sel.Name == "At" || s.Sel.Name == "Since") {
				return fmt.Sprintf("%s of a stamp", sel.Sel.Name)
			}
		}
	}
	return ""
}

func isZero(e ast.Expr) bool {
	l, ok := e.(*ast.BasicLit)
	return ok && l.Value == "0"
}

func TestArchWallClockBites(t *testing.T) {
	for body, want := range map[string]string{
		`_ = time.Now().UnixNano() < x`:           "method UnixNano",
		`_ = now.Sub(time.Unix(0, began))`:        "time.Unix",
		`_ = time.Since(s.Lock.At)`:               "Since of a stamp",
		`_ = entry.At.Before(now)`:                "Before of a stamp",
		`_ = now.Round(0).After(then)`:            "method Round",
		`_ = time.Since(begin) > limit`:           "",
		`_ = age.Round(time.Second)`:              "",
		`_ = now.Sub(*began) > limit`:             "",
		`_ = conn.SetDeadline(time.Now().Add(d))`: "",
	} {
		uses := checkWallClock("x.go", []byte("package x\nfunc f() { "+body+" }\n"))
		got := ""
		if len(uses) > 0 {
			got = uses[0].what
		}
		if got != want {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
}
