package main_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"strings"
)

// checkExported: every exported name has a comment that begins with it.
func checkExported(files tree) []string {
	var problems []string
	for _, f := range files.goFiles() {
		if strings.HasSuffix(f.name, "_test.go") {
			continue
		}
		for _, decl := range f.ast.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if ast.IsExported(d.Name.Name) && hasExportedReceiver(d) {
					problems = append(problems, f.checkComment(d.Name, d.Doc)...)
				}
			case *ast.GenDecl:
				problems = append(problems, f.checkSpecs(d)...)
			}
		}
	}
	return problems
}

// hasExportedReceiver tells whether users can reach the method; functions have no receiver.
func hasExportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.Ident:
			return ast.IsExported(x.Name)
		default:
			return true
		}
	}
}

// checkSpecs looks at types, and at constants and variables: in a group the group's comment or one
// at the end of the line is enough.
func (f goFile) checkSpecs(d *ast.GenDecl) []string {
	var problems []string
	for _, spec := range d.Specs {
		switch s := spec.(type) {
		case *ast.TypeSpec:
			doc := s.Doc
			if doc == nil {
				doc = d.Doc
			}
			if ast.IsExported(s.Name.Name) {
				problems = append(problems, f.checkComment(s.Name, doc)...)
			}
		case *ast.ValueSpec:
			for _, name := range s.Names {
				if !ast.IsExported(name.Name) {
					continue
				}
				grouped := d.Lparen != token.NoPos
				switch {
				case s.Doc != nil && len(s.Names) == 1:
					problems = append(problems, f.checkComment(name, s.Doc)...)
				case s.Doc != nil || s.Comment != nil || grouped && d.Doc != nil:
				default:
					problems = append(problems, f.checkComment(name, d.Doc)...)
				}
			}
		}
	}
	return problems
}

func (f goFile) checkComment(name *ast.Ident, doc *ast.CommentGroup) []string {
	text := doc.Text()
	words := regexp.MustCompile(`^((A|An|The) )?` + name.Name + `\b`)
	switch {
	case strings.TrimSpace(text) == "":
		return []string{fmt.Sprintf("%s: %s has no comment", f.at(name.Pos()), name.Name)}
	case !words.MatchString(text):
		return []string{fmt.Sprintf("%s: the comment of %s must begin with its name",
			f.at(name.Pos()), name.Name)}
	}
	return nil
}

// checkSleeps: a sleep in the product cannot be interrupted, so the comment beside it says why
// that is right.
func checkSleeps(files tree) []string {
	var problems []string
	for _, f := range files.goFiles() {
		dir := path.Dir(f.name)
		if strings.HasSuffix(f.name, "_test.go") || strings.HasSuffix(dir, "test") {
			continue
		}
		commented := map[int]bool{}
		for _, group := range f.ast.Comments {
			end := f.fset.Position(group.End()).Line
			commented[end], commented[end+1] = true, true
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok || s.Sel.Name != "Sleep" {
				return true
			}
			x, ok := s.X.(*ast.Ident)
			if ok && x.Name == "time" && !commented[f.fset.Position(s.Pos()).Line] {
				problems = append(problems, f.at(s.Pos())+": time.Sleep without a comment that "+
					"says why nothing needs to interrupt it")
			}
			return true
		})
	}
	return problems
}

// checkSignals: kill(2) takes the pid 0 of a process that was not found as the caller's group, and
// -1 as everything. os.Process and a pidfd refuse both; the two files look before they signal.
func checkSignals(files tree) []string {
	looks := map[string]bool{"election/postmaster.go": true, "cmd/holdfast/pid1.go": true}
	var problems []string
	for _, f := range files.goFiles() {
		if looks[f.name] {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			s, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || s.Sel.Name != "Kill" {
				return true
			}
			_, group := call.Args[0].(*ast.UnaryExpr) // the group of a process that was started
			x, ok := s.X.(*ast.Ident)
			if ok && (x.Name == "syscall" || x.Name == "unix") && !group {
				problems = append(problems, f.at(s.Pos())+": kill(2) may be given a pid of 0: "+
					"signal an os.Process")
			}
			return true
		})
	}
	return problems
}

// checkScripts: a script stops at the first error.
func checkScripts(files tree) []string {
	var problems []string
	for _, name := range append(files.named(".sh"), files.named(".ci/run")...) {
		if !bytes.Contains(files[name], []byte("\nset -euo pipefail\n")) {
			problems = append(problems, name+": set -euo pipefail is missing")
		}
	}
	return problems
}

var (
	markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	codeBlock    = regexp.MustCompile("(?s)```.*?```|`[^`\n]*`")
)

// checkLinks: a link of Markdown to a file leads to one.
func checkLinks(files tree) []string {
	known := map[string]bool{"LICENSE": true, ".dockerignore": true}
	for name := range files {
		for at := name; at != "."; at = path.Dir(at) {
			known[at] = true
		}
	}
	var problems []string
	for _, name := range files.named(".md") {
		text := codeBlock.ReplaceAll(files[name], nil)
		for _, m := range markdownLink.FindAllSubmatch(text, -1) {
			link, _, _ := strings.Cut(string(m[1]), "#")
			if link == "" || strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
				continue
			}
			if !known[path.Join(path.Dir(name), link)] {
				problems = append(problems, fmt.Sprintf("%s: the link to %s leads nowhere", name,
					link))
			}
		}
	}
	return problems
}

// camelWord is a first word that can only be a name of the code, but for PostgreSQL's own.
var camelWord = regexp.MustCompile(`^\w*[a-z0-9][A-Z]\w*`)

// checkNamesInDocs: a comment that begins with a name begins with that of what it describes. Names
// of one word are not told from words.
func checkNamesInDocs(files tree) []string {
	var problems []string
	for _, f := range files.goFiles() {
		check := func(doc *ast.CommentGroup, names ...*ast.Ident) {
			word := camelWord.FindString(doc.Text())
			if word == "" || strings.HasPrefix(word, "PostgreSQL") {
				return
			}
			for _, name := range names {
				if name.Name == word {
					return
				}
			}
			problems = append(problems, fmt.Sprintf("%s: the comment of %s begins with %s",
				f.at(names[0].Pos()), names[0].Name, word))
		}
		for _, decl := range f.ast.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				check(d.Doc, d.Name)
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						check(ownDoc(d, s.Doc), s.Name)
					case *ast.ValueSpec:
						check(ownDoc(d, s.Doc), s.Names...)
					}
				}
			}
		}
	}
	return problems
}

// ownDoc is the comment of a part of d: that of d is of all of a group.
func ownDoc(d *ast.GenDecl, doc *ast.CommentGroup) *ast.CommentGroup {
	if d.Lparen == token.NoPos {
		return d.Doc
	}
	return doc
}
