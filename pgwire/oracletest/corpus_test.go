package oracletest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// corpus is testdata/corpus.sql, a text a line, the statements of pgwire's own corpus, and texts of
// several lines.
func corpus(t testing.TB) []string {
	t.Helper()
	b, err := os.ReadFile("testdata/corpus.sql")
	if err != nil {
		t.Fatal(err)
	}
	out := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	files, err := filepath.Glob("../testdata/classify/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no corpus of pgwire: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sections := strings.Split(strings.TrimRight(string(b), "\n"), "\n\n")
		for _, section := range sections[1:] {
			sql, _, _ := strings.Cut(section+"\n", "\n----\n")
			out = append(out, sql)
		}
	}
	return append(out, "SELECT 'a'\n'b;c'; COMMIT", "SELECT E'a'\n'\\'; COMMIT; --'",
		"SELECT 1 -- ;\n; COMMIT",
		"SELECT $a$\n;\n$a$; COMMIT", "SELECT 'a' -- x\n'b'", "SELECT/*\n;*/1;COMMIT",
		"SELECT a\nFROM\nt\nFOR\nUPDATE", "SELECT 1\r--;\r; COMMIT", "SELECT 'a' /* x */ 'b'",
		"SELECT f\n\n(1)", "SELECT a @-- c\n b", "SELECT U&'a' UESCAPE\n'!'", "SELECT 1 +\n-- x\n- 2",
		"COPY (SELECT 1\n) TO\nSTDOUT", "SELECT ü, \"ü\", 'ü' FROM é", "SELECT a\v+\fb")
}

// TestCorpus: pgwire I11, I12, I16 and I17.
func TestCorpus(t *testing.T) {
	var c tally
	for _, sql := range corpus(t) {
		if err := c.check(sql); err != nil {
			t.Errorf("%s\n%v", sql, err)
		}
	}
	t.Logf("%+v", c)
	if c.refused > c.texts/5 || c.onlyReads < 150 {
		t.Errorf("the corpus shows little: %+v", c)
	}
}

// TestDirectory checks each file of a directory statement by statement: PostgreSQL's own regression
// tests, which `make corpus` fetches, or any other: HOLDFAST_SQL_CORPUS=directory.
func TestDirectory(t *testing.T) {
	dir := os.Getenv("HOLDFAST_SQL_CORPUS")
	if dir == "" {
		t.Skip("HOLDFAST_SQL_CORPUS is not set; make corpus sets it")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.sql"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s: %v", dir, err)
	}
	c := checkFiles(t, files)
	if c.refused > c.texts/5 {
		t.Errorf("the files show little: %+v", c)
	}
}

// TestServersFiles checks the statements that an installed server makes its own catalogue and its
// extensions with: the part of PostgreSQL's SQL that is there without a download.
func TestServersFiles(t *testing.T) {
	var files []string
	for _, pattern := range []string{"*.sql", "extension/*.sql"} {
		found, err := filepath.Glob("/usr/share/postgresql/*/" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		if os.Getenv("HOLDFAST_REQUIRE_POSTGRES") != "" {
			t.Fatal("PostgreSQL is not installed (package postgresql)")
		}
		t.Skip("PostgreSQL is not installed (package postgresql)")
	}
	if c := checkFiles(t, files); c.statements < 1000 {
		t.Errorf("the files show little: %+v", c)
	}
}

// checkFiles compares the statements of files of psql with PostgreSQL's parser.
func checkFiles(t *testing.T, files []string) tally {
	t.Helper()
	var c tally
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, sql := range statementsOf(string(b)) {
			if err := c.check(sql); err != nil {
				t.Errorf("%s: %s\n%v", filepath.Base(file), sql, err)
			}
		}
	}
	t.Logf("%d files: %+v", len(files), c)
	return c
}

// statementsOf splits a file of psql roughly, at lines that end in a semicolon and without psql's
// own commands and data; what comes out wrong is refused by the parser.
func statementsOf(file string) []string {
	var out []string
	var b strings.Builder
	for line := range strings.Lines(file) {
		if strings.HasPrefix(line, `\`) {
			b.Reset()
			continue
		}
		b.WriteString(line)
		end := strings.TrimRight(line, " \n")
		if i := strings.Index(end, ";"); i >= 0 && strings.HasPrefix(
			strings.TrimSpace(end[i+1:]), "--") {
			end = end[:i+1]
		}
		if strings.HasSuffix(end, ";") {
			if _, ok := parse(b.String()); ok || b.Len() > 1<<14 {
				out = append(out, b.String())
				b.Reset()
			} else if strings.Count(b.String(), "$$")%2 == 0 &&
				!strings.Contains(strings.ToLower(b.String()), "begin atomic") {
				out = append(out, b.String())
				b.Reset()
			}
		}
	}
	return out
}
