package proxy

import (
	"bytes"

	"holdfast/pgwire"
)

// class says what a statement, or a string of statements, can do; it decides what may be done
// about it when the backend is lost. Its zero value can do nothing.
type class uint32

const (
	// clsMayWrite marks what can change data, so that its loss in flight is in doubt.
	clsMayWrite class = 1 << iota
	// clsBegin, clsCommit and clsRollback mark a single statement of that kind.
	clsBegin
	clsCommit
	clsRollback
	// clsRollbackTo marks a single ROLLBACK TO SAVEPOINT.
	clsRollbackTo
	// clsMulti marks a string of several statements.
	clsMulti
	// clsEnds marks what contains the end of a transaction among other things.
	clsEnds
	// clsSelfCommit marks what can commit at Execute, without a Sync (CALL, DO, VACUUM, DDL).
	clsSelfCommit
	// clsState marks what may change the session's settings, role or channels.
	clsState
	// clsTemp, clsHold and clsAdvisory mark what a new backend would lack.
	clsTemp
	clsHold
	clsAdvisory
	// clsChain marks COMMIT or ROLLBACK with AND CHAIN: another transaction follows at once.
	clsChain
	// clsOpaque marks a message that was too large to be inspected, or cannot be read for sure.
	clsOpaque
	// clsOpens marks a string of several statements that leaves a transaction block open.
	clsOpens
	// clsDML marks a single statement that writes and runs alike in both sub-protocols: outside a
	// transaction block its commit can be guarded.
	clsDML
	// clsSavepoint marks SAVEPOINT: a failed block with one can go on.
	clsSavepoint
	// clsCopy marks COPY: its server may take nothing but data until its client has sent the end.
	clsCopy
	// clsPrepares marks a single PREPARE TRANSACTION, which ends its block as COMMIT does.
	clsPrepares
	// clsCommitPrepared and clsRollbackPrepared mark a single statement of that kind.
	clsCommitPrepared
	clsRollbackPrepared
	// clsString marks a string of several statements of which one writes, and all of which run
	// alike in a transaction block: outside of one its commit can be guarded (guard_string.go).
	clsString
	// clsModes marks what may change the characteristics of a transaction (chain.go).
	clsModes
)

// has tells whether any of the bits is set.
func (c class) has(bits class) bool { return c&bits != 0 }

// mayCommit tells whether it can change what a commit makes last, or commit by itself.
func (c class) mayCommit() bool { return c.has(clsMayWrite | clsSelfCommit | clsEnds | clsOpaque) }

// isHarmless tells whether a statement outside a transaction block can be run again although it
// may have been executed: it changes nothing but the state of its own session, which is gone.
func (c class) isHarmless() bool {
	return !c.has(clsMayWrite | clsMulti | clsEnds | clsSelfCommit | clsOpaque | clsTemp)
}

// after is the transaction status behind a single statement that succeeded, or that fails wherever
// it is sent in that status: AND CHAIN outside of a block.
func (c class) after(status byte) byte {
	switch {
	case c.has(clsChain) && status == pgwire.TxIdle:
		return pgwire.TxIdle
	case c.has(clsBegin | clsChain | clsRollbackTo):
		return pgwire.TxInBlock
	case c.has(clsCommit | clsRollback):
		return pgwire.TxIdle
	}
	return status
}

// ahead is the status behind a statement or a string of statements that is expected to succeed.
func (c class) ahead(status byte) byte {
	switch {
	case c.has(clsOpens):
		return pgwire.TxInBlock
	case c.has(clsMulti) && c.has(clsEnds):
		return pgwire.TxIdle
	}
	return c.after(status)
}

// inStatus leaves out what a statement cannot do in that transaction status: none commits itself in
// a block.
func (c class) inStatus(status byte) class {
	if status == pgwire.TxIdle {
		return c
	}
	return c &^ clsSelfCommit
}

// lasting is what of a statement may have made its unit of work durable, at least in part, in that
// transaction status.
func (c class) lasting(status byte) class {
	return c.inStatus(status) & (clsCommit | clsEnds | clsOpaque | clsSelfCommit)
}

// effect is a statement that changes what has to be restored.
type effect struct {
	kind  pgwire.Kind
	name  string
	text  string // the statement itself, for SQL PREPARE and the overlay
	all   bool
	local bool
	cls   class
	// lock is a call of an advisory lock function that is all of the statement.
	lock *pgwire.AdvisoryCall
	at   int  // which statement of its string it is
	conf bool // standard_conforming_strings when it was read
	// names are settings that set_config names; other tells that it may be any.
	names []string
	other bool
	// isKnown tells of what counts as clsState that all it may have set is what again does again,
	// or nothing if that is empty. It is no matter then if the server could not be asked.
	isKnown bool
	again   string
	// makes tells that it may make what only its backend has.
	makes bool
	// looks tells that the server is asked behind it whatever isKnown says, isGiven that a parameter
	// may give the name of a setting.
	looks, isGiven bool
	// calls are those of a SELECT of nothing but set_config with parameters, which Bind tells.
	calls pgwire.SetConfigCalls
}

// parsed is what is known about the text of a Query or Parse message. Effects is nil for nearly
// all statements, so that nothing is allocated for them.
type parsed struct {
	cls     class
	stmts   uint32 // how many statements the string has
	effects []effect
}

// effectsMax bounds the statements of a string that set something, which are looked through when
// one of the string completes. A string with more of them may do anything.
const effectsMax = 1000

// classify reads a statement string. The scratch slice is reused between calls.
func classify(scratch *[]pgwire.Statement, sql []byte, conforming bool) parsed {
	*scratch = pgwire.Classify((*scratch)[:0], sql, conforming)
	stmts := *scratch
	var p parsed
	n, opens, alone, alike := 0, false, isAlone(stmts), true
	for i := range stmts {
		s := &stmts[i]
		if s.Kind == pgwire.KindEmpty {
			continue
		}
		c := classOf(s)
		if hidesName(s) {
			return opaque
		}
		if s.Kind == pgwire.KindDo && mentionsAdvisory(sql[s.Start:s.End]) {
			c |= clsAdvisory
		}
		if c.has(clsCommit|clsRollback|clsRollbackTo) && alone {
			return parsed{cls: c} // its class says what it has for an effect
		}
		if e, ok := effectOf(s, sql, c); ok {
			e.at, e.conf = n, conforming
			if s.Kind == pgwire.KindSelect && c.has(clsAdvisory) {
				e.lock = pgwire.ParseAdvisory(sql[s.Start:s.End], conforming)
			}
			if s.Kind == pgwire.KindSelect && s.HasSetConfig {
				e.knowSetConfig(sql[s.Start:s.End], conforming)
			}
			p.effects = append(p.effects, e)
		}
		if hidesExecute(s, sql, c) {
			c |= clsState
			p.effects = append(p.effects, effect{kind: pgwire.KindExecute, cls: clsState, at: n})
		}
		if len(p.effects) > effectsMax {
			return opaque
		}
		n++
		p.cls |= c
		alike = alike && runsAlike(s.Kind)
		if c.has(clsBegin | clsCommit | clsRollback) {
			opens = c.has(clsBegin | clsChain)
		}
	}
	p.stmts = uint32(n)
	if n > 1 {
		if alike && p.cls.has(clsDML) {
			p.cls |= clsString
		}
		if opens {
			p.cls |= clsOpens
		}
		if p.cls.has(clsCommit | clsRollback) {
			p.cls |= clsEnds
		}
		p.cls &^= clsBegin | clsCommit | clsRollback | clsRollbackTo | clsDML | twoPhase
		p.cls |= clsMulti
	}
	return p
}

// runsAlike tells of statements that do and show the same in a transaction block and in the
// implicit one of a string, whatever comes before and behind them there.
func runsAlike(k pgwire.Kind) bool {
	switch k {
	case pgwire.KindSelect, pgwire.KindWrite, pgwire.KindExecute, pgwire.KindNotify:
		return true
	}
	return false
}

// isAlone tells that a string has one statement.
func isAlone(stmts []pgwire.Statement) bool {
	n := 0
	for i := range stmts {
		if stmts[i].Kind != pgwire.KindEmpty {
			n++
		}
	}
	return n == 1
}

// hidesName tells of a prepared statement whose name is in escapes (U&""), which are not read: it
// may be any.
func hidesName(s *pgwire.Statement) bool {
	switch s.Kind {
	case pgwire.KindPrepare, pgwire.KindExecute, pgwire.KindDeallocate:
		return len(s.Name) > 2 && s.Name[0]|0x20 == 'u' && s.Name[1:3] == `&"`
	}
	return false
}

// hidesExecute tells of an EXPLAIN, or what makes a temporary table, that may run what was
// prepared.
func hidesExecute(s *pgwire.Statement, sql []byte, c class) bool {
	return (s.Kind == pgwire.KindExplain || s.Kind == pgwire.KindUtility && c.has(clsTemp)) &&
		bytes.Contains(bytes.ToLower(sql[s.Start:s.End]), []byte("execute"))
}

// classOf classifies one statement.
func classOf(s *pgwire.Statement) class {
	var c class
	if s.MayWrite() {
		c |= clsMayWrite
	}
	switch s.Kind {
	case pgwire.KindBegin:
		c |= clsBegin
	case pgwire.KindCommit:
		c |= clsCommit
	case pgwire.KindRollback:
		c |= clsRollback
	case pgwire.KindRollbackTo:
		c |= clsRollbackTo
	case pgwire.KindPrepareTransaction:
		c |= clsCommit | clsPrepares
	case pgwire.KindCommitPrepared:
		c |= clsEnds | clsMayWrite | clsCommitPrepared
	case pgwire.KindRollbackPrepared:
		c |= clsEnds | clsMayWrite | clsRollbackPrepared
	case pgwire.KindWrite, pgwire.KindExecute:
		c |= clsDML
	case pgwire.KindSavepoint:
		c |= clsSavepoint
	case pgwire.KindCopy:
		c |= clsCopy
	case pgwire.KindCall, pgwire.KindDo:
		c |= clsSelfCommit | clsMayWrite | clsState
	case pgwire.KindUtility, pgwire.KindUnknown, pgwire.KindLoad:
		c |= clsSelfCommit | clsMayWrite
	case pgwire.KindSet, pgwire.KindSetRole, pgwire.KindSetSessionAuthorization,
		pgwire.KindReset, pgwire.KindDiscard, pgwire.KindListen, pgwire.KindUnlisten:
		c |= clsState
	}
	if s.Chain {
		c |= clsChain
	}
	c |= modesOf(s)
	if s.HasSetConfig {
		c |= clsState
	}
	if s.CreatesTemp {
		c |= clsTemp
	}
	if s.WithHold {
		c |= clsHold
	}
	if s.HasAdvisoryLock {
		c |= clsAdvisory
	}
	return c
}

// effectOf tells whether the statement has to be remembered when it succeeds.
func effectOf(s *pgwire.Statement, sql []byte, c class) (effect, bool) {
	switch s.Kind {
	case pgwire.KindSet, pgwire.KindSetRole, pgwire.KindSetSessionAuthorization,
		pgwire.KindReset, pgwire.KindDiscard, pgwire.KindListen, pgwire.KindUnlisten,
		pgwire.KindPrepare, pgwire.KindDeallocate, pgwire.KindLoad:
		return effect{
			kind: s.Kind, name: s.Name, text: string(sql[s.Start:s.End]),
			all: s.All, local: s.Local, cls: c,
		}, true
	case pgwire.KindCommit, pgwire.KindRollback, pgwire.KindRollbackTo:
		return effect{kind: s.Kind, cls: c}, true
	case pgwire.KindPrepareTransaction:
		return effect{kind: pgwire.KindCommit, cls: c}, true
	case pgwire.KindCommitPrepared, pgwire.KindRollbackPrepared:
		return effect{kind: s.Kind, name: s.Name, cls: c}, true
	}
	if c.has(clsTemp | clsHold | clsAdvisory | clsState) {
		return effect{
			kind: s.Kind, cls: c, names: s.SetConfigNames, other: s.SetConfigOther,
			text: shortText(sql[s.Start:s.End]),
		}, true
	}
	return effect{}, false
}
