package oracletest_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/wasilibs/go-pgquery/parser"

	"holdfast/pgwire"
)

// node is a node of PostgreSQL's parse tree: an object with one key, its type.
type node = map[string]any

// parsed is one statement as PostgreSQL's parser sees it.
type parsed struct {
	kind     string
	body     node
	location int
}

// parse returns the statements of a text; false if PostgreSQL refuses it, so that nothing runs.
func parse(sql string) ([]parsed, bool) {
	if strings.IndexByte(sql, 0) >= 0 || !utf8.ValidString(sql) {
		return nil, false // the names of the tree would not be those of the text
	}
	text, err := parser.ParseToJSON(sql)
	if err != nil {
		return nil, false
	}
	var tree struct {
		Stmts []struct {
			Stmt     node `json:"stmt"`
			Location int  `json:"stmt_location"`
		} `json:"stmts"`
	}
	if err := json.Unmarshal([]byte(text), &tree); err != nil {
		return nil, false // more nesting than the decoder takes
	}
	out := make([]parsed, 0, len(tree.Stmts))
	for _, s := range tree.Stmts {
		for kind, body := range s.Stmt {
			out = append(out, parsed{kind, body.(node), s.Location})
		}
	}
	return out, true
}

// list is a list of names under a key.
func list(n node, key string) []string {
	items, _ := n[key].([]any)
	var out []string
	for _, item := range items {
		if s, ok := item.(node)["String"].(node); ok {
			text, _ := s["sval"].(string)
			out = append(out, text)
		} else {
			out = append(out, "*")
		}
	}
	return out
}

func str(n node, key string) string {
	s, _ := n[key].(string)
	return s
}

func flag(n node, key string) bool {
	b, _ := n[key].(bool)
	return b
}

// child is the node under a key, with its type.
func child(n node, key string) (string, node) {
	c, _ := n[key].(node)
	for kind, body := range c {
		if b, ok := body.(node); ok {
			return kind, b
		}
	}
	return "", nil
}

// cursorHold is CURSOR_OPT_HOLD (parsenodes.h).
const cursorHold = 0x20

// onlyReads tells why the statement does not only read, by its tree.
func onlyReads(p parsed) error {
	switch p.kind {
	case "SelectStmt":
		return noWrites(p.body)
	case "TransactionStmt":
		switch kind := strings.TrimPrefix(str(p.body, "kind"), "TRANS_STMT_"); kind {
		case "PREPARE", "COMMIT_PREPARED", "ROLLBACK_PREPARED":
			return fmt.Errorf("transaction %s", kind)
		}
		return nil
	case "VariableSetStmt", "VariableShowStmt", "DeallocateStmt", "DiscardStmt", "PrepareStmt",
		"ClosePortalStmt", "FetchStmt", "LockStmt", "UnlistenStmt":
		return nil
	case "DeclareCursorStmt":
		options, _ := p.body["options"].(float64)
		if int(options)&cursorHold != 0 {
			return fmt.Errorf("cursor with hold")
		}
		return noWrites(p.body)
	case "ExplainStmt":
		kind, body := child(p.body, "query")
		options, _ := json.Marshal(p.body["options"])
		switch kind {
		case "SelectStmt":
			return noWrites(body)
		case "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt":
			if !strings.Contains(string(options), `"analyze"`) {
				return nil
			}
		}
		return fmt.Errorf("explain %s", kind)
	case "CopyStmt":
		if flag(p.body, "is_from") || flag(p.body, "is_program") || p.body["filename"] != nil {
			return fmt.Errorf("copy from, or to a file or a program")
		}
		return noWrites(p.body)
	}
	return fmt.Errorf("statement %s", p.kind)
}

// noWrites looks for writes anywhere below.
func noWrites(n node) error {
	var err error
	walk(n, func(kind string, body node) bool {
		switch kind {
		case "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt":
			err = fmt.Errorf("it has %s", kind)
		}
		if body["intoClause"] != nil {
			err = fmt.Errorf("it has INTO")
		}
		return true
	})
	return err
}

// walk calls f for each object, with the type's name for those that are nodes, the key under which
// it is for others; f tells whether to go below.
func walk(v any, f func(kind string, body node) bool) { walkAs("", v, f) }

func walkAs(kind string, v any, f func(string, node) bool) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			walkAs(kind, e, f)
		}
	case node:
		if !f(kind, v) {
			return
		}
		for k, e := range v {
			walkAs(k, e, f)
		}
	}
}

// lister looks up the names of a tree in Needs.
type lister struct {
	needs *pgwire.Needs
	err   error
}

// listed tells which name of the tree Needs lacks.
func listed(p parsed, needs *pgwire.Needs) error {
	if p.kind == "PrepareStmt" || p.kind == "LockStmt" {
		return nil // nothing of it is run
	}
	l := lister{needs: needs}
	walk(p.body, l.node)
	return l.err
}

func (l *lister) missing(what string, name ...string) {
	l.err = fmt.Errorf("%s %q is not listed", what, name)
}

func (l *lister) function(names []string) {
	schema, name := lastTwo(names)
	if !slices.Contains(l.needs.Functions, pgwire.Name{Schema: schema, Name: name}) {
		l.missing("function", names...)
	}
}

func (l *lister) object(what string, names []string) {
	schema, name := lastTwo(names)
	if !slices.Contains(l.needs.Objects, pgwire.Name{Schema: schema, Name: name}) {
		l.missing(what, names...)
	}
}

func (l *lister) operator(names []string) {
	if len(names) == 0 {
		return
	}
	op := names[len(names)-1]
	if !slices.Contains(l.needs.Operators, op) &&
		!slices.Contains(pgwire.ImpliedOperators(), op) {
		l.missing("operator", op)
	}
}

// attributes are names behind a dot, each of which may call a function.
func (l *lister) attributes(names []string) {
	for _, name := range names {
		if name != "*" {
			l.function([]string{name})
		}
	}
}

func (l *lister) node(kind string, n node) bool {
	switch kind {
	case "FuncCall":
		if names := list(n, "funcname"); !isFromGrammar(names) {
			l.function(names)
		}
	case "RangeVar", "relation", "rel":
		if str(n, "relname") != "" {
			l.object("relation", []string{str(n, "schemaname"), str(n, "relname")})
		}
	case "TypeName", "typeName", "typname":
		if names := list(n, "names"); len(names) > 0 && names[0] != "pg_catalog" {
			l.object("type", names)
		}
	case "A_Expr":
		if !strings.Contains(str(n, "kind"), "BETWEEN") {
			l.operator(list(n, "name"))
		}
	case "SubLink":
		l.operator(list(n, "operName"))
	case "SortBy":
		l.operator(list(n, "useOp"))
	case "ColumnRef":
		if names := list(n, "fields"); len(names) > 1 {
			l.attributes(names[1:])
		}
	case "A_Indirection":
		l.attributes(list(n, "indirection"))
	case "RangeTableSample":
		l.function(list(n, "method"))
	case "LockingClause":
		if !l.needs.LocksRows {
			l.missing("lock")
		}
	}
	return true
}

// lastTwo is the schema and the name.
func lastTwo(names []string) (string, string) {
	n := len(names)
	switch n {
	case 0:
		return "", ""
	case 1:
		return "", names[0]
	}
	return names[n-2], names[n-1]
}

// isFromGrammar tells of the functions that PostgreSQL's grammar puts where none is written. They
// are its own, and none is volatile.
func isFromGrammar(names []string) bool {
	return len(names) == 2 && names[0] == "pg_catalog" && grammarFunctions[names[1]]
}

var grammarFunctions = func() map[string]bool {
	out := make(map[string]bool)
	for name := range strings.FieldsSeq("like_escape similar_to_escape timezone overlaps " +
		"is_normalized extract normalize overlay position substring btrim ltrim rtrim " +
		"xmlexists pg_collation_for system_user json_object") {
		out[name] = true
	}
	return out
}()

func TestParserWorks(t *testing.T) {
	got, ok := parse("SELECT 1; BEGIN")
	if !ok || len(got) != 2 || got[1].kind != "TransactionStmt" {
		t.Fatalf("%+v", got)
	}
}
