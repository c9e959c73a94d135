package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// block runs work between BEGIN and COMMIT and tells what became of it.
func (s *loadSession) block(ctx context.Context, begin string, mode pgx.QueryExecMode,
	work func() error,
) (Outcome, error) {
	err := s.exec(ctx, mode, begin)
	if err == nil {
		err = work()
	}
	if err != nil {
		// COMMIT was never sent, so whatever happened it is not there.
		s.abort(ctx)
		return OutcomeRefused, err
	}
	tag, err := s.conn.Exec(ctx, "COMMIT", mode)
	if err == nil && tag.String() != "COMMIT" {
		err = pgx.ErrTxCommitRollback
	}
	s.abort(ctx)
	return outcomeOf(err), err
}

// abort ends a block that an error has left open.
func (s *loadSession) abort(ctx context.Context) {
	if s.conn.IsClosed() || s.conn.PgConn().TxStatus() == 'I' {
		return
	}
	_ = s.exec(ctx, pgx.QueryExecModeSimpleProtocol, "ROLLBACK")
}

// twoAccounts draws accounts, the lower number first, so that two transfers cannot wait for each
// other.
func twoAccounts(most int) (a, b, amount int) {
	a = 1 + rand.IntN(most-1)
	return a, a + 1 + rand.IntN(most-a), rand.IntN(2000) - 1000
}

// hotAccounts are those that transfers with reads use, few enough to meet there now and then.
const hotAccounts = 200

// transferBy reads two balances and writes what they become, so that a transfer that goes on from
// what is no longer true shows in the sum. Read committed has to lock for that.
func transferBy(level string, mode pgx.QueryExecMode,
) func(*loadSession, context.Context, string) error {
	lock := ""
	if level == "READ COMMITTED" {
		lock = " FOR UPDATE"
	}
	return func(s *loadSession, ctx context.Context, kind string) error {
		id := s.load.ledger.BeginKind(kind)
		a, b, amount := twoAccounts(hotAccounts)
		o, err := s.block(ctx, "BEGIN ISOLATION LEVEL "+level, mode, func() error {
			for _, change := range [][2]int{{a, amount}, {b, -amount}} {
				var balance int64
				err := s.conn.QueryRow(ctx, "SELECT balance FROM demo.account WHERE id = $1"+lock,
					mode, change[0]).Scan(&balance)
				if err != nil {
					return err
				}
				err = s.exec(ctx, mode, "UPDATE demo.account SET balance = $2 WHERE id = $1",
					change[0], balance+int64(change[1]))
				if err != nil {
					return err
				}
			}
			if err := s.exec(ctx, mode, transferSQL, s.id); err != nil {
				return err
			}
			return s.insert(ctx, mode, id, kind)
		})
		return s.settle(id, o, err)
	}
}

// savepointsBy writes before, in and behind a savepoint that an error takes back.
func savepointsBy(mode pgx.QueryExecMode) func(*loadSession, context.Context, string) error {
	return func(s *loadSession, ctx context.Context, kind string) error {
		before := s.load.ledger.BeginKind(kind)
		inside, behind := s.load.ledger.BeginKind(kind), s.load.ledger.BeginKind(kind)
		o, err := s.block(ctx, "BEGIN", mode, func() error {
			if err := s.insert(ctx, mode, before, kind); err != nil {
				return err
			}
			if err := s.exec(ctx, mode, "SAVEPOINT one"); err != nil {
				return err
			}
			if err := s.insert(ctx, mode, inside, kind); err != nil {
				return err
			}
			err := expected("23505", s.exec(ctx, mode, "INSERT INTO demo.account VALUES (1, 0)"))
			if err != nil {
				return err
			}
			if err := s.exec(ctx, mode, "ROLLBACK TO SAVEPOINT one"); err != nil {
				return err
			}
			if err := s.insert(ctx, mode, behind, kind); err != nil {
				return err
			}
			return s.exec(ctx, mode, "RELEASE SAVEPOINT one")
		})
		s.settle(inside, OutcomeRefused, errTakenBack)
		return s.settleAll([]int64{before, behind}, o, err)
	}
}

// errTakenBack is why a write is refused that the client itself has rolled back.
var errTakenBack = errors.New("rolled back")

// opRollback writes and takes it back.
func (s *loadSession) opRollback(ctx context.Context, kind string) error {
	id := s.load.ledger.BeginKind(kind)
	defer s.abort(ctx)
	for _, sql := range []string{"BEGIN", insertSQL, "ROLLBACK"} {
		var args []any
		if sql == insertSQL {
			args = []any{id, s.id, kind}
		}
		if err := s.exec(ctx, pgx.QueryExecModeExec, sql, args...); err != nil {
			return s.settle(id, OutcomeRefused, err)
		}
	}
	s.settle(id, OutcomeRefused, errTakenBack)
	return nil
}

// opCopyBlock copies rows in a block.
func (s *loadSession) opCopyBlock(ctx context.Context, kind string) error {
	var ids []int64
	o, err := s.block(ctx, "BEGIN", pgx.QueryExecModeSimpleProtocol, func() (err error) {
		ids, err = s.copyRows(ctx, kind)
		return err
	})
	return s.settleAll(ids, o, err)
}

// command is a statement with parameters as text.
type command struct {
	sql  string
	args [][]byte
}

func newCommand(sql string, args ...any) command {
	c := command{sql: sql}
	for _, a := range args {
		c.args = append(c.args, fmt.Append(nil, a))
	}
	return c
}

// literal is the statement with its parameters in it, which are numbers and kinds.
func (c command) literal() string {
	sql := c.sql
	for i, a := range c.args {
		text := string(a)
		if _, err := strconv.Atoi(text); err != nil {
			text = "'" + text + "'"
		}
		sql = strings.ReplaceAll(sql, fmt.Sprintf("$%d", i+1), text)
	}
	return sql
}

// transferCommands are the statements of one transfer.
func (s *loadSession) transferCommands(id int64, kind string) []command {
	a, b, amount := twoAccounts(accounts)
	return []command{
		newCommand(moveSQL, a, amount), newCommand(moveSQL, b, -amount),
		newCommand(transferSQL, s.id), newCommand(insertSQL, id, s.id, kind),
	}
}

// opTransferBatch sends the statements with one Sync, which makes one transaction of them.
func (s *loadSession) opTransferBatch(ctx context.Context, kind string) error {
	id := s.load.ledger.BeginKind(kind)
	batch := &pgconn.Batch{}
	for _, c := range s.transferCommands(id, kind) {
		batch.ExecParams(c.sql, c.args, nil, nil, nil)
	}
	_, err := s.conn.PgConn().ExecBatch(ctx, batch).ReadAll()
	return s.settle(id, outcomeOf(err), err)
}

// opTransferString sends the statements as one string, which is one transaction, too.
func (s *loadSession) opTransferString(ctx context.Context, kind string) error {
	id := s.load.ledger.BeginKind(kind)
	err := s.execString(ctx, s.transferCommands(id, kind))
	return s.settle(id, outcomeOf(err), err)
}

// opTransferBlockString has BEGIN and COMMIT in the string.
func (s *loadSession) opTransferBlockString(ctx context.Context, kind string) error {
	id := s.load.ledger.BeginKind(kind)
	all := append([]command{{sql: "BEGIN"}}, s.transferCommands(id, kind)...)
	err := s.execString(ctx, append(all, command{sql: "COMMIT"}))
	s.abort(ctx)
	return s.settle(id, outcomeOf(err), err)
}

func (s *loadSession) execString(ctx context.Context, commands []command) error {
	var parts []string
	for _, c := range commands {
		parts = append(parts, c.literal())
	}
	_, err := s.conn.PgConn().Exec(ctx, strings.Join(parts, "; ")).ReadAll()
	return err
}

// pipelineDepth is how many Syncs are under way at once.
const pipelineDepth = 6

// opPipeline sends several inserts, each with a Sync of its own, before it reads an answer.
func (s *loadSession) opPipeline(ctx context.Context, kind string) error {
	var ids []int64
	var commands []command
	for range pipelineDepth {
		id := s.load.ledger.BeginKind(kind)
		ids = append(ids, id)
		commands = append(commands, newCommand(insertSQL, id, s.id, kind))
	}
	answers := s.pipeline(ctx, commands)
	var first error
	for i, a := range answers {
		s.settle(ids[i], outcomeOf(a.err), a.err)
		if first == nil {
			first = a.err
		}
	}
	return first
}

// opTransferPipelined sends a block, each statement with a Sync of its own, before it reads an
// answer.
func (s *loadSession) opTransferPipelined(ctx context.Context, kind string) error {
	id := s.load.ledger.BeginKind(kind)
	all := append([]command{{sql: "BEGIN"}}, s.transferCommands(id, kind)...)
	answers := s.pipeline(ctx, append(all, command{sql: "COMMIT"}))
	s.abort(ctx)
	commit := answers[len(answers)-1]
	err := commit.err
	if err == nil && commit.tag != "COMMIT" {
		err = pgx.ErrTxCommitRollback
	}
	o := outcomeOf(err)
	for _, a := range answers {
		if a.err != nil {
			err = a.err // the first says why
			break
		}
	}
	return s.settle(id, o, err)
}

// pipelineAnswer is what came up to a Sync.
type pipelineAnswer struct {
	tag string
	err error
}

// pipeline sends each command with a Sync and reads the answers then, one for each.
func (s *loadSession) pipeline(ctx context.Context, commands []command) []pipelineAnswer {
	p := s.conn.PgConn().StartPipeline(ctx)
	for _, c := range commands {
		p.SendQueryParams(c.sql, c.args, nil, nil, nil)
		p.SendPipelineSync()
	}
	err := p.Flush()
	answers := make([]pipelineAnswer, len(commands))
	for i := range answers {
		if err == nil {
			answers[i], err = readToSync(p)
		} else {
			answers[i].err = err
		}
	}
	_ = p.Close() // what is wrong was told already
	return answers
}

// readToSync reads what belongs to one Sync. Its error is one that ends the pipeline, and the
// answer's as well.
func readToSync(p *pgconn.Pipeline) (pipelineAnswer, error) {
	var a pipelineAnswer
	for {
		result, err := p.GetResults()
		switch r := result.(type) {
		case *pgconn.PipelineSync:
			return a, nil
		case *pgconn.ResultReader:
			var tag pgconn.CommandTag
			tag, err = r.Close()
			a.tag = tag.String()
		case nil:
			if err == nil {
				err = errors.New("the pipeline has no answer left")
			}
		}
		var pe *pgconn.PgError
		switch {
		case err == nil:
		case errors.As(err, &pe) && pe.Severity != "FATAL":
			a.err = err
		default:
			a.err = err
			return a, err
		}
	}
}
