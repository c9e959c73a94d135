package pgwire_test

import (
	"strings"
	"testing"

	"holdfast/pgwire"
)

// within is an INSERT inside of that many lists.
func within(n int) string {
	return strings.Repeat("WITH x AS (", n) + "INSERT INTO t VALUES (1)" +
		strings.Repeat(") SELECT 1", n)
}

// TestWithThatWrites: WITH counts as a write if its main statement is one, or one of its list; not
// for a word that is a name there.
func TestWithThatWrites(t *testing.T) {
	for sql, want := range map[string]bool{
		"WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x":                                      true,
		"with x as (select 1) update t set a = 1":                                                 true,
		"WITH x AS (SELECT 1) DELETE FROM t":                                                      true,
		"WITH x AS (SELECT 1) MERGE INTO t USING x ON true WHEN MATCHED THEN DO NOTHING":          true,
		"WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x":                                   true,
		"WITH a AS (SELECT 1), b(c) AS NOT MATERIALIZED (UPDATE t SET a = 1 RETURNING 1) TABLE b": true,
		"WITH a AS MATERIALIZED (INSERT INTO t VALUES (')') RETURNING 1) SELECT 1":                true,
		"WITH RECURSIVE a AS (SELECT 1) INSERT INTO t VALUES (1)":                                 true,
		"WITH RECURSIVE \"a b\" AS (SELECT 1) INSERT INTO t VALUES (1)":                           true,
		"WITH RECURSIVE recursive(a) AS (SELECT 1) INSERT INTO t VALUES (1)":                      true,
		"WITH recursive AS (SELECT 1) INSERT INTO t VALUES (1)":                                   true,
		"WITH recursive (a) AS (SELECT 1) INSERT INTO t VALUES (1)":                               true,
		"WITH a AS (WITH b AS (SELECT 1) INSERT INTO t SELECT * FROM b RETURNING 1) SELECT 1":     true,
		"WITH a AS (WITH b AS (INSERT INTO t VALUES (1) RETURNING 1) TABLE b) SELECT 1":           true,
		"WITH a AS (WITH b AS (SELECT 1) TABLE b) INSERT INTO t TABLE a":                          true,
		"WITH insert AS (SELECT 1) SELECT * FROM insert":                                          false,
		"WITH x (insert, update) AS (SELECT 1, 2) SELECT insert, update FROM x":                   false,
		"WITH x AS (SELECT 1 AS delete), update AS (SELECT delete FROM x) SELECT (delete) FROM x": false,
		"WITH x AS (SELECT 1) SELECT * FROM json_to_record('{}') AS (delete int)":                 false,
		"WITH x AS (SELECT 1) SELECT * FROM x FOR UPDATE":                                         false,
		"WITH x AS (SELECT 'INSERT INTO t') SELECT * FROM x":                                      false,
		"WITH x AS (SELECT 1) /* INSERT INTO t */ SELECT * FROM x":                                false,
		"WITH x AS (SELECT 1 AS a) SELECT * INTO u FROM x":                                        false,
		// Not read, so that it is not guarded; it may write as ever.
		"WITH x AS (DELETE FROM t RETURNING a) SELECT a INTO TEMP u FROM x":                        false,
		"WITH RECURSIVE x AS (SELECT 1 AS a) SEARCH DEPTH FIRST BY a SET b INSERT INTO t SELECT 1": false,
		"WITH U&\"x\" UESCAPE '!' AS (SELECT 1) INSERT INTO t VALUES (1)":                          false,
		"(WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x)":                                  false,
		"WITH x": false, "WITH x AS (": false, "WITH x AS (SELECT 1": false, "WITH (": false,
		"WITH recursive": false,
		within(8):        true,
		within(99):       false,
	} {
		got := pgwire.Classify(nil, []byte(sql), true)
		if len(got) != 1 || (got[0].Kind == pgwire.KindWrite) != want || !got[0].MayWrite() {
			t.Errorf("%s: %+v", sql, got)
		}
	}
	// Where a constant ends depends on how a backslash is read.
	sql := []byte("WITH x AS (SELECT '\\') INSERT INTO t SELECT 1 --'\n) SELECT 1")
	if got := pgwire.Classify(nil, sql, true); got[0].Kind != pgwire.KindWrite {
		t.Error("not a write with standard_conforming_strings")
	}
	if got := pgwire.Classify(nil, sql, false); got[0].Kind == pgwire.KindWrite {
		t.Error("a write without standard_conforming_strings")
	}
}
