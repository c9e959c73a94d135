package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// setUp gives a new connection the state of its kind.
func (s *loadSession) setUp(ctx context.Context, conn *pgx.Conn) error {
	switch s.kind {
	case kindIdle:
		return s.setUpIdle(ctx, conn)
	case kindPrepared:
		for name, sql := range map[string]string{
			"demo_insert": insertSQL,
			"demo_read":   "SELECT balance FROM demo.account WHERE id = $1",
		} {
			if _, err := conn.Prepare(ctx, name, sql); err != nil {
				return err
			}
		}
		return nil
	case kindListen:
		_, err := conn.Exec(ctx, "LISTEN "+s.channel())
		return err
	case kindMixed:
		return s.setUpMixed(ctx, conn)
	case kindTransfer, kindWriter:
		return nil
	}
	panic("BUG: load: session kind " + string(s.kind))
}

// step does the kind's work once.
func (s *loadSession) step(ctx context.Context) error {
	switch s.kind {
	case kindIdle:
		return s.stepIdle(ctx)
	case kindTransfer:
		return s.stepTransfer(ctx)
	case kindPrepared:
		return s.stepPrepared(ctx)
	case kindListen:
		return s.stepListen(ctx)
	case kindWriter:
		return s.stepWriter(ctx)
	case kindMixed:
		return s.stepMixed(ctx)
	}
	panic("BUG: load: session kind " + string(s.kind))
}

func (s *loadSession) channel() string { return fmt.Sprintf("demo_%d", s.id) }

// setUpIdle sets state of every sort that a session keeps.
func (s *loadSession) setUpIdle(ctx context.Context, conn *pgx.Conn) error {
	for _, sql := range []string{
		fmt.Sprintf("SET work_mem = '%dkB'", 4000+s.id),
		"SET search_path = demo, public",
		"SET TimeZone = 'Asia/Kathmandu'",
		fmt.Sprintf("SET demo.token = 'token %d'", s.id),
		"LISTEN " + s.channel(),
		fmt.Sprintf("PREPARE by_sql(int) AS SELECT $1 + %d", s.id),
	} {
		if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
	}
	_, err := conn.Prepare(ctx, "by_protocol", "SELECT current_setting($1)")
	return err
}

// stepIdle does nothing until the primary changed, and then looks whether all is as it was.
func (s *loadSession) stepIdle(ctx context.Context) error {
	select {
	case <-s.load.changeSignal():
	case <-s.load.stop:
	case <-ctx.Done():
		return nil
	}
	return s.untilAnswered(ctx, s.checkState)
}

// untilAnswered repeats a look that another change interrupted.
func (s *loadSession) untilAnswered(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil || sqlState(err) == "" || s.conn.IsClosed() {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *loadSession) checkState(ctx context.Context) error {
	var mem, path, zone, channels, token string
	err := s.conn.QueryRow(ctx, `SELECT current_setting('work_mem'),
		current_setting('search_path'), current_setting('TimeZone'),
		coalesce((SELECT string_agg(c, ',') FROM pg_listening_channels() c), '')`,
		pgx.QueryExecModeSimpleProtocol).Scan(&mem, &path, &zone, &channels)
	if err != nil {
		return err
	}
	if err := s.conn.QueryRow(ctx, "by_protocol", "demo.token").Scan(&token); err != nil {
		return stateError(err)
	}
	var sum int
	err = s.conn.QueryRow(ctx, "EXECUTE by_sql(1)", pgx.QueryExecModeSimpleProtocol).Scan(&sum)
	if err != nil {
		return stateError(err)
	}
	s.load.stateChecks.Add(1)
	got := fmt.Sprint(mem, " ", path, " ", zone, " ", channels, " ", token, " ", sum)
	want := fmt.Sprintf("%dkB demo, public Asia/Kathmandu %s token %d %d", 4000+s.id,
		s.channel(), s.id, s.id+1)
	if got != want {
		return fmt.Errorf("%w: %q, want %q", errWrongState, got, want)
	}
	return nil
}

// stateError tells a statement or setting that is gone from a server that is.
func stateError(err error) error {
	switch sqlState(err) {
	case "26000", "42704", "42703": // invalid_sql_statement_name, undefined_object
		return fmt.Errorf("%w: %w", errWrongState, err)
	}
	return err
}

// stepTransfer moves money between two accounts, counts the transfer and notes it in the ledger,
// in one transaction.
func (s *loadSession) stepTransfer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	id := s.load.ledger.BeginKind(string(s.kind))
	tx, err := s.conn.Begin(ctx)
	if err != nil {
		return s.settle(id, OutcomeRefused, err)
	}
	if err := s.transfer(ctx, tx, id); err != nil {
		// COMMIT was never sent, so whatever happened it is not there.
		_ = tx.Rollback(ctx)
		return s.settle(id, OutcomeRefused, err)
	}
	err = tx.Commit(ctx)
	return s.settle(id, outcomeOf(err), err)
}

func (s *loadSession) transfer(ctx context.Context, tx pgx.Tx, id int64) error {
	a, b, amount := twoAccounts(accounts)
	if _, err := tx.Exec(ctx, moveSQL, a, amount); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, moveSQL, b, -amount); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, transferSQL, s.id)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, insertSQL, id, s.id, string(s.kind))
	return err
}

// stepPrepared uses statements that the session prepared when it connected.
func (s *loadSession) stepPrepared(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if s.steps%2 == 0 {
		var balance int64
		err := s.conn.QueryRow(ctx, "demo_read", 1+rand.IntN(accounts)).Scan(&balance)
		return stateError(err)
	}
	id := s.load.ledger.BeginKind(string(s.kind))
	_, err := s.conn.Exec(ctx, "demo_insert", id, s.id, string(s.kind))
	return stateError(s.settle(id, outcomeOf(err), err))
}

// stepWriter inserts one row, in turn by the extended and the simple protocol.
func (s *loadSession) stepWriter(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	id := s.load.ledger.BeginKind(string(s.kind))
	args := []any{id, s.id, string(s.kind)}
	if s.steps%2 == 0 {
		args = append([]any{pgx.QueryExecModeSimpleProtocol}, args...)
	}
	_, err := s.conn.Exec(ctx, insertSQL, args...)
	return s.settle(id, outcomeOf(err), err)
}

// stepListen waits for notifications as a listening application does, and now and then sends
// one to itself: it must arrive, whichever server the LISTEN is on by now.
func (s *loadSession) stepListen(ctx context.Context) error {
	quiet, cancel := context.WithTimeout(ctx, time.Second)
	_, err := s.conn.WaitForNotification(quiet)
	cancel()
	if s.conn.IsClosed() {
		return err
	}
	return s.untilAnswered(ctx, s.notifySelf)
}

func (s *loadSession) notifySelf(ctx context.Context) error {
	// A notification that was sent just before a change may be missed; three in a row are not.
	for range 3 {
		payload, err := randomName()
		if err != nil {
			return err
		}
		_, err = s.conn.Exec(ctx, fmt.Sprintf("NOTIFY %s, '%s'", s.channel(), payload),
			pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return err
		}
		arrived, err := s.awaitPayload(ctx, payload)
		if err != nil || arrived {
			s.load.stateChecks.Add(1)
			return err
		}
	}
	return fmt.Errorf("%w: no notification arrives on %s", errWrongState, s.channel())
}

func (s *loadSession) awaitPayload(ctx context.Context, payload string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for {
		n, err := s.conn.WaitForNotification(ctx)
		if err != nil {
			if ctx.Err() != nil && !s.conn.IsClosed() && !errors.Is(ctx.Err(), context.Canceled) {
				return false, nil
			}
			return false, err
		}
		if n.Payload == payload {
			return true, nil
		}
	}
}
