package pgwire_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"holdfast/pgwire"
)

var rewrite = flag.Bool("rewrite", false, "write the recorded answers anew")

var kindNames = map[pgwire.Kind]string{
	pgwire.KindEmpty: "empty", pgwire.KindUnknown: "unknown", pgwire.KindBegin: "begin",
	pgwire.KindCommit: "commit", pgwire.KindRollback: "rollback",
	pgwire.KindSavepoint: "savepoint", pgwire.KindRollbackTo: "rollback to",
	pgwire.KindRelease: "release", pgwire.KindPrepareTransaction: "prepare transaction",
	pgwire.KindCommitPrepared:          "commit prepared",
	pgwire.KindRollbackPrepared:        "rollback prepared",
	pgwire.KindSetTransaction:          "set transaction",
	pgwire.KindSet:                     "set",
	pgwire.KindSetRole:                 "set role",
	pgwire.KindSetSessionAuthorization: "set session authorization",
	pgwire.KindReset:                   "reset", pgwire.KindShow: "show",
	pgwire.KindPrepare: "prepare",
	pgwire.KindExecute: "execute", pgwire.KindDeallocate: "deallocate",
	pgwire.KindDiscard: "discard", pgwire.KindListen: "listen",
	pgwire.KindUnlisten: "unlisten", pgwire.KindNotify: "notify",
	pgwire.KindDeclare: "declare", pgwire.KindFetch: "fetch",
	pgwire.KindCloseCursor: "close", pgwire.KindSelect: "select", pgwire.KindWrite: "write",
	pgwire.KindCopy: "copy", pgwire.KindCall: "call", pgwire.KindDo: "do",
	pgwire.KindExplain: "explain", pgwire.KindLock: "lock", pgwire.KindLoad: "load",
	pgwire.KindUtility: "utility",
}

// describe prints what Classify says, one statement a line.
func describe(sql []byte, conforming bool) string {
	var out strings.Builder
	stmts := pgwire.Classify(nil, sql, conforming)
	for i := range stmts {
		s := &stmts[i]
		out.WriteString(kindNames[s.Kind])
		if s.Name != "" {
			fmt.Fprintf(&out, " %q", s.Name)
		}
		for _, f := range []struct {
			name string
			on   bool
		}{
			{"all", s.All},
			{"local", s.Local},
			{"chain", s.Chain},
			{"temp", s.CreatesTemp},
			{"hold", s.WithHold},
			{"advisory", s.HasAdvisoryLock},
			{"set_config", s.HasSetConfig},
			{"may-write", s.MayWrite()},
		} {
			if f.on {
				out.WriteString(" " + f.name)
			}
		}
		if len(stmts) > 1 || s.Start > 0 || s.End < len(sql) {
			fmt.Fprintf(&out, " %q", sql[s.Start:s.End])
		}
		out.WriteByte('\n')
	}
	return out.String()
}

// TestClassifyCorpus reads testdata/classify: a text, a line ----, and the answer. Understand what
// caused a change before you commit what -rewrite wrote.
func TestClassifyCorpus(t *testing.T) {
	files, err := filepath.Glob("testdata/classify/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			checkCorpus(t, file)
		})
	}
}

func checkCorpus(t *testing.T, file string) {
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sections := strings.Split(strings.TrimRight(string(old), "\n"), "\n\n")
	conforming := !strings.Contains(sections[0], "conforming = off")
	for i, section := range sections[1:] {
		sql, want, ok := strings.Cut(section+"\n", "\n----\n")
		if !ok {
			t.Fatalf("no answer in %q", section)
		}
		got := describe([]byte(sql), conforming)
		if got != want && !*rewrite {
			t.Errorf("%s\ngot\n%swant\n%s", sql, got, want)
		}
		sections[i+1] = strings.TrimRight(sql+"\n----\n"+got, "\n")
	}
	text := []byte(strings.Join(sections, "\n\n") + "\n")
	if *rewrite && !bytes.Equal(text, old) {
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMayWriteIsConservative: I12.
func TestMayWriteIsConservative(t *testing.T) {
	for _, sql := range []string{
		"SELECT 1", "SELECT 1, 'a' AS b, NULL", `SELECT true AS "x", $1, 1.5 as as`, "SELECT",
		"SHOW work_mem", "BEGIN", "ROLLBACK", "SET a = 1", "RESET ALL", "SAVEPOINT a",
		"DEALLOCATE ALL", "DISCARD ALL", "LISTEN a", "CLOSE c", "SET TRANSACTION READ ONLY",
		"PREPARE p AS DELETE FROM t", "SELECT 'a'\n'b'", "",
	} {
		for _, s := range pgwire.Classify(nil, []byte(sql), true) {
			if s.MayWrite() {
				t.Errorf("%q is harmless", sql)
			}
		}
	}
	for _, sql := range []string{
		"SELECT now()", "SELECT f()", "SELECT 1 FROM t", "SELECT 1 + 1", "SELECT -1", "SELECT a",
		`SELECT "a"`, "SELECT current_user", "SELECT a.b", "SELECT 1 AS a FROM v", "TABLE t",
		`TABLE "t"`, "SELECT 1 INTO t", "SELECT 1 AS into, a", "SELECT 1 AS as FROM t",
		"SELECT 1 AS as as x", "SELECT AS f", "SELECT (1)", "SELECT 1::regclass",
		"SELECT date 'now'", "SELECT 1from v", "SELECT 1 LIMIT 1", "VALUES (f())",
		"WITH x AS (DELETE FROM t) SELECT 1", "EXPLAIN ANALYZE SELECT 1", "COPY t TO STDOUT",
		"LOCK t", "COMMIT", "END", "EXECUTE p", "FETCH 1 FROM c", "NOTIFY a", "DO ''", "CALL p()",
		"VACUUM", "INSERT INTO t VALUES (1)", "SET CONSTRAINTS ALL IMMEDIATE", "SELECT 'no end",
		"PREPARE TRANSACTION 'g'", "COMMIT PREPARED 'g'", "DECLARE c CURSOR FOR SELECT 1", "=",
		"SELECT 1 AS U&\"x\" FROM t", "SELECT 1 2 AS a OPERATOR", "(SELECT 1)",
	} {
		got := pgwire.Classify(nil, []byte(sql), true)
		if len(got) != 1 || !got[0].MayWrite() {
			t.Errorf("%q may write", sql)
		}
	}
}

// TestClassifyEscapeContinuesHidingNothing: the second part of an escape string has its rules
// (I11). COMMIT was taken for a part of the constant once.
func TestClassifyEscapeContinuesHidingNothing(t *testing.T) {
	got := pgwire.Classify(nil, []byte("SELECT E'a'\n'\\''; COMMIT; --'"), true)
	if len(got) != 2 || got[1].Kind != pgwire.KindCommit {
		t.Errorf("%+v", got)
	}
}

// TestClassifyBeginAtomicHidesNothing: a column and its label are no body of a function (I11).
func TestClassifyBeginAtomicHidesNothing(t *testing.T) {
	for _, sql := range []string{
		"SELECT begin atomic FROM t; COMMIT",
		"CREATE FUNCTION f(begin atomic) RETURNS int LANGUAGE sql AS ''; COMMIT",
		"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1 AS case; END; COMMIT",
		"BEGIN ATOMIC; COMMIT",
	} {
		got := pgwire.Classify(nil, []byte(sql), true)
		if len(got) != 2 || got[1].Kind != pgwire.KindCommit {
			t.Errorf("%s: %+v", sql, got)
		}
	}
}

// TestClassifyNameIsTruncated as PostgreSQL does it, at 63 bytes and not inside a character; a
// gid is no identifier.
func TestClassifyNameIsTruncated(t *testing.T) {
	name := func(sql string) string { return pgwire.Classify(nil, []byte(sql), true)[0].Name }
	long := strings.Repeat("a", 62)
	for sql, want := range map[string]string{
		"LISTEN " + long + "BC":                 long + "b",
		"LISTEN " + long + "é":                  long,
		`LISTEN "` + long + `BC"`:               long + "B",
		"COMMIT PREPARED '" + long + "BC'":      long + "BC",
		"SET " + long + "bc." + long + "de = 1": long + "b." + long + "d",
	} {
		if got := name(sql); got != want {
			t.Errorf("%s: %q", sql, got)
		}
	}
}

// TestClassifyIsLinear: hostile texts of a megabyte take no longer than others.
func TestClassifyIsLinear(t *testing.T) {
	const n = 1 << 20
	dst := make([]pgwire.Statement, 0, n)
	for _, part := range []string{"$a$ $b$ ", "$a ", "/*", "'a'\n", "(", "E'\\", "\"", ";", "--",
		"create function begin atomic;", "$" + strings.Repeat("x", 1000)} {
		sql := bytes.Repeat([]byte(part), n/len(part))
		dst = pgwire.Classify(dst[:0], sql, true)
		checkSpans(t, sql, dst)
	}
}

func checkSpans(t *testing.T, sql []byte, stmts []pgwire.Statement) {
	t.Helper()
	last := 0
	for _, s := range stmts {
		if s.Start < last || s.End < s.Start || s.End > len(sql) {
			t.Fatalf("span %d-%d behind %d of %d bytes", s.Start, s.End, last, len(sql))
		}
		last = s.End
	}
}

// FuzzClassify: spans are ordered and inside (I10); a comment behind changes nothing (I13);
// appending to a slice that is in use leaves what is there.
func FuzzClassify(f *testing.F) {
	for _, s := range []string{
		"SELECT ';'", "BEGIN ATOMIC; COMMIT", "$a$ $b$ $a$", "E'\\'", "U&\"a\"", "1.e+5a",
		"CREATE FUNCTION f() BEGIN ATOMIC SELECT 1; END;", "E'a' --\n 'b\\''", "SET a.b = 1",
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, sql []byte, conforming bool) {
		got := pgwire.Classify(nil, sql, conforming)
		checkSpans(t, sql, got)
		again := pgwire.Classify(make([]pgwire.Statement, 1), sql, conforming)
		if !reflect.DeepEqual(again[1:], append([]pgwire.Statement{}, got...)) {
			t.Errorf("%q: %+v, then %+v", sql, got, again[1:])
		}
		if n := len(got); n > 0 && got[n-1].Kind == pgwire.KindUnknown {
			return // perhaps without an end, and then the comment is a part of it
		}
		longer := append(bytes.Clone(sql), "\n-- ; COMMIT"...)
		if with := pgwire.Classify(nil, longer, conforming); !reflect.DeepEqual(with, got) {
			t.Errorf("%q: %+v, with a comment %+v", sql, got, with)
		}
	})
}
