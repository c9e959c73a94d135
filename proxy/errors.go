package proxy

import (
	"errors"
	"fmt"

	"holdfast/pgwire"
)

// Sentinels that end a session's loops.
var (
	errClientGone  = errors.New("client is gone")
	errBackendLost = errors.New("backend is lost")
	errWake        = errors.New("woken")
	errClosing     = errors.New("proxy is closing")
	errOrdered     = errors.New("session was ordered to end")
	errNotCarried  = errors.New("session cannot be carried to the new primary")
	errOvertaken   = errors.New("the primary changed again")
)

// asOrder is the end of a session that the server has announced with e.
func asOrder(e *pgwire.Error) error { return fmt.Errorf("%w: %w", errOrdered, e) }

// Texts for clients, in one place. The codes are never mixed (DESIGN.md I6): 40001 is surely not
// executed or rolled back, 08007 is unknown.

func errLostTransaction() *pgwire.Error {
	e := pgwire.NewError(pgwire.CodeSerializationFailure,
		"transaction was rolled back because the primary changed")
	e.Detail = "Nothing of it was committed."
	e.Hint = "The transaction might succeed if retried."
	return e
}

func errNotExecuted() *pgwire.Error {
	e := pgwire.NewError(pgwire.CodeSerializationFailure,
		"statement was not executed because the primary changed")
	e.Hint = "The statement might succeed if retried."
	return e
}

func errCommitAborted() *pgwire.Error {
	e := pgwire.NewError(pgwire.CodeSerializationFailure,
		"commit did not take effect because the primary changed")
	e.Detail = "The new primary knows that the transaction was rolled back."
	e.Hint = "The transaction might succeed if retried."
	return e
}

func errOutcomeUnknown(why string) *pgwire.Error {
	e := pgwire.NewError(pgwire.CodeOutcomeUnknown,
		"connection to the primary was lost while a statement was in flight,"+
			" and its outcome is unknown")
	e.Detail = why
	e.Hint = "Check whether it took effect before you repeat it."
	return e
}

func errHoldExpired() *pgwire.Error {
	e := pgwire.NewError(pgwire.CodeSerializationFailure,
		"no primary became available in time; the statement was not executed")
	e.Hint = "The statement might succeed if retried."
	return e
}

func errHeldCanceled() *pgwire.Error {
	return pgwire.NewError(pgwire.CodeQueryCanceled,
		"canceling statement due to user request while waiting for a primary")
}

func errTooManyHeld() *pgwire.Error {
	e := pgwire.NewError(pgwire.CodeSerializationFailure,
		"too many sessions are waiting for a primary; the statement was not executed")
	e.Hint = "See proxy.hold_sessions_max."
	return e
}

func fatal(e *pgwire.Error) *pgwire.Error {
	e.Severity = "FATAL"
	return e
}

func errNoPrimaryLogin() *pgwire.Error {
	return fatal(pgwire.NewError(pgwire.CodeCannotConnectNow,
		"no primary became available in time"))
}

func errLostCommit(xid uint64) *pgwire.Error {
	e := fatal(pgwire.NewError(pgwire.CodeConnectionFailure,
		"terminating connection because a commit of this session is lost"))
	e.Detail = fmt.Sprintf("Transaction %d was acknowledged, and is not on the new primary.", xid)
	e.Hint = "Find out what is there before you go on. Synchronous replication loses no commit."
	return e
}

func errUnmovable(why string) *pgwire.Error {
	e := fatal(pgwire.NewError(pgwire.CodeAdminShutdown,
		"terminating connection because the primary changed"))
	e.Detail = "The session had state that cannot be carried to another server: " + why + "."
	e.Hint = "Reconnect and set the state up again."
	return e
}

func errLockLost(name string) *pgwire.Error {
	e := fatal(pgwire.NewError(pgwire.CodeAdminShutdown,
		"terminating connection because the primary changed"))
	e.Detail = "Session advisory lock " + name + " was taken by another session meanwhile."
	e.Hint = "Reconnect; what the lock protected may have been done by somebody else."
	return e
}

func errCutMessage() error {
	return errors.New("backend lost in the middle of a message larger than the relay's buffer")
}

func errTooManySessions() *pgwire.Error {
	return fatal(pgwire.NewError(pgwire.CodeTooManyConnections,
		"too many clients already: proxy.sessions_max is reached"))
}
