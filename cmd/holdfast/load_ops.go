package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/jackc/pgx/v5"
)

// loadOp is one kind of write of the mixed sessions. The kind is the name in the ledger.
type loadOp struct {
	kind string
	run  func(s *loadSession, ctx context.Context, kind string) error
}

// loadOps are all kinds. Those whose name begins with transferPrefix move money and count it.
var loadOps = []loadOp{
	{"insert, simple", insertBy(pgx.QueryExecModeSimpleProtocol)},
	{"insert, extended", insertBy(pgx.QueryExecModeExec)},
	{"insert, prepared", (*loadSession).opInsertPrepared},
	{"insert, SQL EXECUTE", (*loadSession).opInsertExecute},
	{"insert that fails", (*loadSession).opInsertFails},
	{"counter, simple", countBy(pgx.QueryExecModeSimpleProtocol)},
	{"counter, extended", countBy(pgx.QueryExecModeExec)},
	{"counter, prepared", countBy(pgx.QueryExecModeCacheStatement)},
	{"pipeline, a Sync each", (*loadSession).opPipeline},
	{"transfer, one Sync", (*loadSession).opTransferBatch},
	{"transfer, pipelined block", (*loadSession).opTransferPipelined},
	{"transfer, one string", (*loadSession).opTransferString},
	{"transfer, string with BEGIN", (*loadSession).opTransferBlockString},
	{"transfer, read committed", transferBy("READ COMMITTED", pgx.QueryExecModeSimpleProtocol)},
	{"transfer, repeatable read", transferBy("REPEATABLE READ", pgx.QueryExecModeExec)},
	{"transfer, serializable", transferBy("SERIALIZABLE", pgx.QueryExecModeCacheStatement)},
	{"savepoints, simple", savepointsBy(pgx.QueryExecModeSimpleProtocol)},
	{"savepoints, prepared", savepointsBy(pgx.QueryExecModeCacheStatement)},
	{"rollback", (*loadSession).opRollback},
	{"COPY, autocommit", (*loadSession).opCopy},
	{"COPY, block", (*loadSession).opCopyBlock},
}

// transferPrefix begins the kinds of rows that the counters count.
const transferPrefix = "transfer"

// The statements of the ledger's writes.
const (
	insertSQL   = "INSERT INTO demo.ledger VALUES ($1, $2, $3)"
	moveSQL     = "UPDATE demo.account SET balance = balance + $2 WHERE id = $1"
	transferSQL = "UPDATE demo.counter SET n = n + 1 WHERE session = $1"
)

// errWrongCount is a counter that is not what the client was told of it.
var errWrongCount = errors.New("a counter is not what was acknowledged")

// stepMixed does one write of a kind that it draws.
func (s *loadSession) stepMixed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	op := loadOps[rand.IntN(len(loadOps))]
	return op.run(s, ctx, op.kind)
}

// setUpMixed prepares what the kinds of writes use by name.
func (s *loadSession) setUpMixed(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, "PREPARE demo_sql(bigint, int, text) AS "+insertSQL,
		pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return err
	}
	_, err = conn.Prepare(ctx, "demo_insert", insertSQL)
	return err
}

// exec runs a statement that gives no rows.
func (s *loadSession) exec(ctx context.Context, mode pgx.QueryExecMode, sql string, args ...any,
) error {
	_, err := s.conn.Exec(ctx, sql, append([]any{mode}, args...)...)
	return err
}

// insert writes the ledger's row of a write.
func (s *loadSession) insert(ctx context.Context, mode pgx.QueryExecMode, id int64, kind string,
) error {
	return s.exec(ctx, mode, insertSQL, id, s.id, kind)
}

// insertBy inserts a row in autocommit.
func insertBy(mode pgx.QueryExecMode) func(*loadSession, context.Context, string) error {
	return func(s *loadSession, ctx context.Context, kind string) error {
		id := s.load.ledger.BeginKind(kind)
		err := s.insert(ctx, mode, id, kind)
		return s.settle(id, outcomeOf(err), err)
	}
}

// opInsertPrepared runs a statement that was prepared by the protocol.
func (s *loadSession) opInsertPrepared(ctx context.Context, kind string) error {
	id := s.load.ledger.BeginKind(kind)
	_, err := s.conn.Exec(ctx, "demo_insert", id, s.id, kind)
	return stateError(s.settle(id, outcomeOf(err), err))
}

// opInsertExecute runs a statement that was prepared by SQL, in either sub-protocol.
func (s *loadSession) opInsertExecute(ctx context.Context, kind string) error {
	id := s.load.ledger.BeginKind(kind)
	mode := pgx.QueryExecModeSimpleProtocol
	if s.steps%2 == 0 {
		mode = pgx.QueryExecModeExec
	}
	err := s.exec(ctx, mode, fmt.Sprintf("EXECUTE demo_sql(%d, %d, '%s')", id, s.id, kind))
	return stateError(s.settle(id, outcomeOf(err), err))
}

// opInsertFails inserts a row and one that ends in an error: neither may be there.
func (s *loadSession) opInsertFails(ctx context.Context, kind string) error {
	id := s.load.ledger.BeginKind(kind)
	err := s.exec(ctx, pgx.QueryExecModeExec, `INSERT INTO demo.ledger
		SELECT $1::bigint / (2 - i), $2, $3 FROM generate_series(1, 2) i`, id, s.id, kind)
	return expected("22012", s.settle(id, outcomeOf(err), err)) // division_by_zero
}

// expected takes away an error that was provoked.
func expected(code string, err error) error {
	switch {
	case sqlState(err) == code:
		return nil
	case err == nil:
		return fmt.Errorf("%w: no error %s came", errWrongState, code)
	}
	return err
}

// tally is what a session knows of its counter: that many increments were acknowledged, and up to
// that many may have been done.
type tally struct{ low, high int64 }

// countBy increments the session's counter in autocommit. There is no key in it by which the
// write could be known again, so that only its value tells whether it was done once.
func countBy(mode pgx.QueryExecMode) func(*loadSession, context.Context, string) error {
	return func(s *loadSession, ctx context.Context, kind string) error {
		id := s.load.ledger.BeginRowless(kind)
		var n int64
		err := s.conn.QueryRow(ctx, "UPDATE demo.tally SET n = n + 1 WHERE session = $1 "+
			"RETURNING n", mode, s.id).Scan(&n)
		o := outcomeOf(err)
		s.settle(id, o, err)
		return s.tally.counted(o, n, err)
	}
}

// counted notes an answer: the new value, or what became of the increment.
func (t *tally) counted(o Outcome, n int64, err error) error {
	switch o {
	case OutcomeAcknowledged:
		was := *t
		t.low, t.high = n, n
		if n <= was.low || n > was.high+1 {
			return fmt.Errorf("%w: it is %d after %d to %d", errWrongCount, n, was.low, was.high)
		}
	case OutcomeInDoubt, OutcomePending:
		t.high++
	case OutcomeRefused:
	}
	return err
}

// opCopy copies rows in autocommit: all or none of them are there.
func (s *loadSession) opCopy(ctx context.Context, kind string) error {
	ids, err := s.copyRows(ctx, kind)
	return s.settleAll(ids, outcomeOf(err), err)
}

// copyRowsMax is how many rows a COPY has.
const copyRowsMax = 5

// copyRows begins some writes and copies their rows.
func (s *loadSession) copyRows(ctx context.Context, kind string) ([]int64, error) {
	var ids []int64
	var text strings.Builder
	for range 1 + rand.IntN(copyRowsMax) {
		id := s.load.ledger.BeginKind(kind)
		ids = append(ids, id)
		fmt.Fprintf(&text, "%d\t%d\t%s\n", id, s.id, kind)
	}
	_, err := s.conn.PgConn().CopyFrom(ctx, strings.NewReader(text.String()),
		"COPY demo.ledger FROM STDIN")
	return ids, err
}

// settleAll records what became of writes that stand and fall together.
func (s *loadSession) settleAll(ids []int64, o Outcome, err error) error {
	for _, id := range ids {
		s.settle(id, o, err)
	}
	return err
}
