package pgwire_test

import (
	"testing"

	"holdfast/pgwire"
)

// TestTransactionStatementsAreReadWhole: one with a syntax error opens no block and ends none.
func TestTransactionStatementsAreReadWhole(t *testing.T) {
	for sql, want := range map[string]pgwire.Kind{
		"BEGIN": pgwire.KindBegin, "BEGIN;": pgwire.KindBegin, "begin work": pgwire.KindBegin,
		"START TRANSACTION -- now":               pgwire.KindBegin,
		"BEGIN ISOLATION LEVEL SERIALIZABLE":     pgwire.KindBegin,
		"BEGIN ISOLATION LEVEL READ COMMITTED":   pgwire.KindBegin,
		"BEGIN /* a */ READ ONLY NOT DEFERRABLE": pgwire.KindBegin,
		"BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY, NOT DEFERRABLE, READ WRITE " +
			"DEFERRABLE": pgwire.KindBegin,
		"BEGIN ISOLATION LEVEL SERIALISABLE": pgwire.KindUnknown,
		"BEGIN ISOLATION LEVEL":              pgwire.KindUnknown,
		"BEGIN ISOLATION READ ONLY":          pgwire.KindUnknown,
		"BEGIN READ":                         pgwire.KindUnknown,
		"BEGIN , READ ONLY":                  pgwire.KindUnknown,
		"BEGIN READ ONLY,":                   pgwire.KindUnknown,
		"BEGIN WORK TRANSACTION":             pgwire.KindUnknown,
		"BEGIN NOT READ ONLY":                pgwire.KindUnknown,
		`BEGIN "work"`:                       pgwire.KindUnknown,
		"COMMIT":                             pgwire.KindCommit,
		"END TRANSACTION AND NO CHAIN;":      pgwire.KindCommit,
		"COMMIT AND CHAIN":                   pgwire.KindCommit,
		"COMMIT AND":                         pgwire.KindUnknown,
		"COMMIT now":                         pgwire.KindUnknown,
		"COMMIT AND CHAIN now":               pgwire.KindUnknown,
		"ROLLBACK WORK AND CHAIN":            pgwire.KindRollback,
		"ABORT":                              pgwire.KindRollback,
		"ROLLBACK it":                        pgwire.KindUnknown,
		"ROLLBACK TO it":                     pgwire.KindRollbackTo,
	} {
		got := pgwire.Classify(nil, []byte(sql), true)
		if len(got) != 1 || got[0].Kind != want {
			t.Errorf("%s: %+v, want kind %v", sql, got, want)
		}
		if len(got) == 1 && want == pgwire.KindUnknown && got[0].Chain {
			t.Errorf("%s: chains", sql)
		}
	}
}
