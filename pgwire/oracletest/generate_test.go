package oracletest_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"holdfast/pgwire"
)

// generator makes statements at random, most of them valid, dressed up in comments, odd spacing
// and upper case.
type generator struct {
	*rand.Rand
	depth int
	// escapes makes backslashes in constants; plain constants then have E in front of them, if
	// explicit is set: what 'x' means without standard_conforming_strings.
	escapes, explicit bool
}

func (g *generator) pick(of ...string) string { return of[g.IntN(len(of))] }

// list joins up to three of what make makes.
func (g *generator) list(sep string, make func() string) string {
	parts := []string{make()}
	for g.IntN(3) == 0 && len(parts) < 3 {
		parts = append(parts, make())
	}
	return strings.Join(parts, sep)
}

func (g *generator) maybe(one int, s string) string {
	if g.IntN(one) == 0 {
		return s
	}
	return ""
}

// name is an identifier; many are keywords that are none everywhere.
func (g *generator) name() string {
	n := g.pick("a", "b", "t", "uu", "orders", "f", "x1", "_y", "key", "share", "update", "delete",
		"insert", "merge", "hold", "value", "nextval", "of", "no", "by", "program", "stdout",
		"over", "materialized", "analyze_", "commit", "begin", "atomic", "treat_", "left_")
	if g.IntN(6) == 0 {
		n = g.pick(`"a"`, `"A b"`, `"x""y"`, `"select"`, `"a;b"`, `"--"`, `"into"`, `"$$"`, `"E'"`)
	}
	return n
}

// qualified is a name with a schema or without.
func (g *generator) qualified() string {
	switch g.IntN(8) {
	case 0:
		return g.name() + "." + g.name()
	case 1:
		return g.pick("s", "pg_catalog", `"S"`) + "." + g.name()
	case 2:
		return "db.s." + g.name()
	}
	return g.name()
}

func (g *generator) constant() string {
	if g.escapes && g.IntN(2) == 0 {
		body := g.pick(`a`, `it\'s`, `\\`, `x\';--`, `\'`, `a''b`, `/*`, `;`, `\n$$`, `\\''`)
		if g.explicit {
			return "E'" + body + "'"
		}
		return "'" + body + "'"
	}
	plain := []string{`E'a\'b'`, `E'\\'`, "$$a;b$$", "$t$ $$ '; $t$", "1", "2.5", ".5e-3", "NULL",
		"true", "B'01'", "X'ff'", "$1", "E'a'\n'\\''"}
	if !g.escapes {
		plain = append(plain, `'a'`, `'it''s'`, `';'`, `'--'`, `'a\'`, "'a'\n'b'", `U&'\0061'`,
			`U&'x!0061' UESCAPE '!'`, `N'x'`)
	}
	return g.pick(plain...)
}

func (g *generator) typ() string {
	return g.pick("int", "text", "numeric(10,2)", "varchar(5)", "timestamp with time zone", "date",
		"double precision", "interval day to second", "s.dom", "dom", "t", `"T"`, "int[]",
		"dom[3]", "bit(3)", "char", `"char"`, "bool", "pg_catalog.int4", "json")
}

func (g *generator) operator() string {
	return g.pick("+", "-", "*", "/", "%", "^", "=", "<", ">", "<=", ">=", "<>", "!=", "||", "->",
		"->>", "@>", "#>", "?|", "&&", "@@@", "<->", "~", "!~*", "|", "&", "#", "<<",
		"OPERATOR(s.+)", "OPERATOR(pg_catalog.=)", "@-", "*-", "<=-", "@@&", "+@")
}

// expr is an expression.
func (g *generator) expr() string {
	if g.depth > 4 {
		return g.pick(g.constant(), g.name())
	}
	g.depth++
	defer func() { g.depth-- }()
	e := g.expr
	switch g.IntN(34) {
	case 0, 1, 2:
		return g.constant()
	case 3, 4:
		return g.qualified()
	case 5, 6:
		return g.qualified() + "(" + g.maybe(3, "DISTINCT ") + g.list(", ", e) + ")"
	case 7:
		return g.name() + "()"
	case 8:
		return g.name() + "(" + e() + " ORDER BY " + e() + ") FILTER (WHERE " + e() + ")"
	case 9:
		return g.name() + "(" + e() + ") OVER (PARTITION BY " + e() + " ORDER BY " + e() + ")"
	case 10, 11, 12:
		return e() + g.maybe(2, " ") + g.operator() + g.pick(" ", "") + e()
	case 13:
		return "(" + e() + ")." + g.name() + g.maybe(2, "."+g.name())
	case 14:
		return "(" + e() + ")::" + g.typ()
	case 15:
		return "CAST(" + e() + " AS " + g.typ() + ")"
	case 16:
		return g.pick("int", "date", "s.dom", "dom", "bool", "interval", "json") + " 'x'"
	case 17:
		return "(" + e() + ") " + g.pick("IN", "NOT IN") + " (" + g.list(", ", e) + ")"
	case 18:
		return "(" + e() + ") = ANY (" + g.query() + ")"
	case 19:
		return "EXISTS (" + g.query() + ")"
	case 20:
		return "(" + g.query() + ")"
	case 21:
		return "ARRAY[" + g.list(", ", e) + "][1]"
	case 22:
		return "CASE WHEN " + e() + " THEN " + e() + " ELSE " + e() + " END"
	case 23:
		return g.pick("COALESCE", "GREATEST", "LEAST", "NULLIF") + "(" + e() + ", " + e() + ")"
	case 24:
		return "(" + e() + ") BETWEEN (" + e() + ") AND (" + e() + ")"
	case 25:
		return "(" + e() + ") " + g.pick("LIKE", "ILIKE", "SIMILAR TO", "NOT LIKE") + " (" + e() +
			")" + g.maybe(3, " ESCAPE E'!'")
	case 26:
		return "(" + e() + ") IS " + g.maybe(2, "NOT ") + g.pick("NULL", "TRUE", "DISTINCT FROM 1")
	case 27:
		return "(" + e() + ") AT TIME ZONE " + g.constant()
	case 28:
		return "EXTRACT(year FROM " + e() + ")"
	case 29:
		return "TREAT(" + e() + " AS " + g.typ() + ")"
	case 30:
		return "ROW(" + g.list(", ", e) + ")." + g.name()
	case 31:
		return g.pick("CURRENT_DATE", "CURRENT_USER", "USER", "LOCALTIME", "CURRENT_SCHEMA")
	case 32:
		return g.name() + "(" + g.name() + " => " + e() + ")"
	}
	return "(" + g.pick("NOT ", "- ", "@ ", "~") + e() + ")"
}

func (g *generator) alias() string {
	return g.maybe(3, " AS "+g.name()+g.maybe(3, " ("+g.name()+", "+g.name()+")"))
}

// from is an item of a FROM clause.
func (g *generator) from() string {
	g.depth++
	defer func() { g.depth-- }()
	switch g.IntN(12) {
	case 0:
		return "(" + g.query() + ") AS q"
	case 1:
		return g.pick("", "LATERAL ") + g.qualified() + "(" + g.list(", ", g.expr) + ")" + g.alias()
	case 2:
		return g.name() + "(1) AS x (a " + g.typ() + ", b " + g.typ() + ")"
	case 3:
		return g.qualified() + g.pick(" JOIN ", " LEFT JOIN ") + g.from() + " ON " + g.expr()
	case 4:
		return g.qualified() + " NATURAL JOIN " + g.qualified()
	case 5:
		return g.qualified() + g.alias() + " TABLESAMPLE " + g.pick("bernoulli", "s.m") + " (1)"
	case 6:
		return "ROWS FROM (f(1), s.g(2)) WITH ORDINALITY"
	case 7:
		return "ONLY " + g.qualified()
	}
	return g.qualified() + g.alias()
}

// query is a SELECT that may write when writes says so.
func (g *generator) query() string {
	if g.depth > 4 {
		return "SELECT " + g.constant()
	}
	g.depth++
	defer func() { g.depth-- }()
	switch g.IntN(14) {
	case 0:
		return "VALUES (" + g.list(", ", g.expr) + ")"
	case 1:
		return "TABLE " + g.qualified()
	case 2:
		return "(" + g.query() + ") " + g.pick("UNION", "EXCEPT", "INTERSECT ALL") + " (" +
			g.query() + ")"
	}
	var b strings.Builder
	if g.IntN(6) == 0 {
		b.WriteString(g.with())
	}
	b.WriteString("SELECT " + g.maybe(6, "DISTINCT "))
	b.WriteString(g.list(", ", func() string { return g.expr() + g.maybe(4, " AS "+g.name()) }))
	b.WriteString(g.maybe(40, " INTO "+g.maybe(2, "TEMP ")+g.qualified()))
	if g.IntN(3) > 0 {
		b.WriteString(" FROM " + g.list(", ", g.from))
	}
	for _, clause := range []string{" WHERE ", " GROUP BY ", " HAVING ", " ORDER BY ", " LIMIT "} {
		if g.IntN(5) == 0 {
			b.WriteString(clause + g.expr())
		}
	}
	b.WriteString(g.maybe(10, " FOR "+g.pick("UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE")))
	return b.String()
}

// with is a WITH clause; some of them write.
func (g *generator) with() string {
	return "WITH " + g.maybe(4, "RECURSIVE ") + g.list(", ", func() string {
		body := g.query()
		if g.IntN(6) == 0 {
			body = g.write()
		}
		return g.name() + g.maybe(4, " (a, b)") + " AS " + g.maybe(4, "MATERIALIZED ") + "(" +
			body + ")" + g.maybe(12, " SEARCH DEPTH FIRST BY a SET "+g.name()) +
			g.maybe(12, " CYCLE a SET c USING "+g.name())
	}) + " "
}

// write is a statement that writes.
func (g *generator) write() string {
	g.depth++
	defer func() { g.depth-- }()
	with := ""
	if g.IntN(4) == 0 && g.depth < 4 {
		with = g.with()
	}
	t := g.qualified()
	return with + g.pick("INSERT INTO "+t+" VALUES ("+g.expr()+")", "UPDATE "+t+" SET a = "+
		g.expr(), "DELETE FROM "+t+" WHERE "+g.expr(), "MERGE INTO "+t+
		" USING u ON true WHEN MATCHED THEN DELETE") + g.maybe(3, " RETURNING a")
}

// statement is any statement.
func (g *generator) statement() string {
	switch g.IntN(16) {
	case 0:
		return g.write()
	case 1:
		return g.pick("EXPLAIN ", "EXPLAIN ANALYZE ", "EXPLAIN (ANALYZE, COSTS off) ",
			`EXPLAIN ("analyze") `, "EXPLAIN (VERBOSE) ") + g.pick(g.query(), g.write(), "EXECUTE p",
			"("+g.query()+")")
	case 2:
		return "COPY " + g.pick(g.qualified(), "("+g.query()+")", "("+g.write()+")") +
			g.pick(" TO STDOUT", " TO STDOUT WITH (FORMAT csv)", " TO PROGRAM 'x'", " FROM STDIN",
				" TO '/tmp/x'", " TO STDIN")
	case 3:
		return "DECLARE " + g.name() + g.maybe(3, " SCROLL") + " CURSOR" +
			g.pick("", " WITH HOLD", " WITHOUT HOLD") + " FOR " + g.query()
	case 4:
		return g.pick("BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT "+g.name(), "RELEASE "+
			g.name(), "ROLLBACK TO "+g.name(), "PREPARE TRANSACTION 'g'", "COMMIT PREPARED 'g'",
			"START TRANSACTION READ ONLY", "COMMIT AND CHAIN", "ABORT")
	case 5:
		return g.pick("SET ", "SET LOCAL ", "SET SESSION ") + g.qualified() + g.pick(" = ", " TO ") +
			g.pick("1", "'x'", "DEFAULT", "on")
	case 6:
		return g.pick("RESET "+g.name(), "SHOW "+g.name(), "DISCARD ALL", "LISTEN "+g.name(),
			"NOTIFY "+g.name(), "DEALLOCATE "+g.name(), "FETCH 1 FROM "+g.name(), "LOCK "+
				g.qualified(), "CLOSE "+g.name(), "EXECUTE "+g.name()+"("+g.expr()+")")
	case 7:
		return "PREPARE " + g.name() + " AS " + g.pick(g.query(), g.write())
	case 8:
		return "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC " + g.query() + "; " + g.write() +
			"; END"
	case 9:
		return g.pick("CREATE VIEW v AS "+g.query(), "CREATE TABLE x AS "+g.query(), "DO $$x;y$$",
			"CALL p("+g.expr()+")", "TRUNCATE t", "VACUUM", "ALTER TABLE t ADD a int")
	}
	return g.query()
}

// dress changes what means nothing: spaces between tokens, and the case of keywords.
func (g *generator) dress(sql string) string {
	var b strings.Builder
	inside := false // a constant or a quoted identifier
	for i, c := range sql {
		if strings.ContainsRune(`'"$`, c) {
			inside = true
		}
		if c == ' ' && !inside && g.IntN(8) == 0 {
			b.WriteString(g.pick("\n", "\t", " /* ; ' */ ", " /* /* \" */ $$ */ ", " -- ';\n", "  "))
			continue
		}
		_ = i
		b.WriteRune(c)
	}
	return b.String()
}

// text is a string of one or more statements.
func (g *generator) text() string {
	n := 1
	if g.IntN(5) == 0 {
		n += g.IntN(3)
	}
	parts := make([]string, n)
	for i := range parts {
		parts[i] = g.dress(g.statement())
	}
	return strings.Join(parts, g.pick(";", "; ", ";\n--;\n", "; ;")) + g.maybe(2, ";")
}

// mutate breaks a text a little: it swaps, repeats or removes words.
func (g *generator) mutate(sql string) string {
	words := strings.Split(sql, " ")
	for range 1 + g.IntN(2) {
		i, j := g.IntN(len(words)), g.IntN(len(words))
		switch g.IntN(4) {
		case 0:
			words[i], words[j] = words[j], words[i]
		case 1:
			words[i] = words[j]
		case 2:
			words[i] = ""
		case 3:
			words[i] += " " + g.pick("UPDATE", "INTO x", "FOR", "KEY", "DELETE FROM t", ";", "'",
				"AS", "(", ")", "/*", "FROM STDIN", "WITH HOLD", "ANALYZE", ".f", "::dom", "--")
		}
	}
	return strings.Join(words, " ")
}

const (
	generated     = 3000
	generatorSeed = 20261128
)

func newGenerator(n uint64) *generator {
	return &generator{Rand: rand.New(rand.NewPCG(generatorSeed, n))}
}

// TestGenerated compares with PostgreSQL's parser what is made at random, and the corpus with
// words out of place. The seed of a failure is its number.
func TestGenerated(t *testing.T) {
	texts := corpus(t)
	var made, mutated tally
	for n := range uint64(generated) {
		g := newGenerator(n)
		if sql := g.text(); true {
			if err := made.check(sql); err != nil {
				t.Errorf("%d: %s\n%v", n, sql, err)
			}
		}
		sql := g.mutate(texts[g.IntN(len(texts))])
		if err := mutated.check(sql); err != nil {
			t.Errorf("%d: %s\n%v", n, sql, err)
		}
	}
	t.Logf("made %+v, mutated %+v", made, mutated)
	if made.refused > made.texts/2 || made.onlyReads < made.statements/4 ||
		mutated.refused > mutated.texts*9/10 {
		t.Errorf("what is made shows little: %+v, %+v", made, mutated)
	}
}

// TestWithoutConformingStrings: without standard_conforming_strings 'x' means E'x', so that a text
// of the one kind and its counterpart have the same statements with the same names.
func TestWithoutConformingStrings(t *testing.T) {
	compared := 0
	for n := range uint64(generated) {
		old := newGenerator(n)
		old.escapes = true
		plain := old.statement()
		explicit := newGenerator(n)
		explicit.escapes, explicit.explicit = true, true
		marked := explicit.statement()
		got := fmt.Sprint(pgwire.ReadOnlyIf(pgwire.Needs{}, []byte(plain), false))
		want := fmt.Sprint(pgwire.ReadOnlyIf(pgwire.Needs{}, []byte(marked), true))
		if got != want {
			t.Errorf("%d: %s\n%s\nwith E:\n%s", n, plain, got, want)
		}
		if plain != marked {
			compared++
		}
		a := len(pgwire.Classify(nil, []byte(plain), false))
		if b := len(pgwire.Classify(nil, []byte(marked), true)); a != b {
			t.Errorf("%d: %s\n%d statements, with E %d", n, plain, a, b)
		}
	}
	if compared < generated/4 {
		t.Errorf("only %d texts have a constant that matters", compared)
	}
}
