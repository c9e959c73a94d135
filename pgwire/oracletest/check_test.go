package oracletest_test

import (
	"fmt"
	"strings"

	"holdfast/pgwire"
)

// tally counts what was compared.
type tally struct {
	texts, refused, statements, onlyReads int
}

// check compares what pgwire says of a text with what PostgreSQL's parser does.
func (c *tally) check(sql string) error {
	c.texts++
	got := pgwire.Classify(nil, []byte(sql), true)
	want, ok := parse(sql)
	if !ok {
		c.refused++ // the server runs nothing of it
		return nil
	}
	c.statements += len(want)
	if len(got) != len(want) {
		return fmt.Errorf("%d statements instead of %d", len(got), len(want))
	}
	for i := range want {
		if err := c.statement(sql, &got[i], want[i]); err != nil {
			return fmt.Errorf("statement %d (%s): %w", i+1, want[i].kind, err)
		}
		if i > 0 && got[i].Start < want[i].location {
			return fmt.Errorf("statement %d begins at %d instead of %d", i+1, got[i].Start,
				want[i].location)
		}
	}
	return nil
}

func (c *tally) statement(sql string, got *pgwire.Statement, want parsed) error {
	if err := sameKind(got, want); err != nil {
		return err
	}
	text := sql[got.Start:got.End]
	needs, ok := pgwire.ReadOnlyIf(pgwire.Needs{}, []byte(text), true)
	if !ok {
		return nil
	}
	c.onlyReads++
	if err := onlyReads(want); err != nil {
		return fmt.Errorf("only reads, but: %w", err)
	}
	return listed(want, &needs)
}

// kinds are the kinds that a node may have; MayWrite is to be true for those that are not here.
var kinds = map[string][]pgwire.Kind{
	"SelectStmt":         {pgwire.KindSelect, pgwire.KindWrite}, // sameRest looks which
	"InsertStmt":         {pgwire.KindWrite, pgwire.KindSelect},
	"UpdateStmt":         {pgwire.KindWrite, pgwire.KindSelect},
	"DeleteStmt":         {pgwire.KindWrite, pgwire.KindSelect},
	"MergeStmt":          {pgwire.KindWrite, pgwire.KindSelect},
	"VariableShowStmt":   {pgwire.KindShow},
	"PrepareStmt":        {pgwire.KindPrepare},
	"ExecuteStmt":        {pgwire.KindExecute},
	"DeallocateStmt":     {pgwire.KindDeallocate},
	"DiscardStmt":        {pgwire.KindDiscard},
	"ListenStmt":         {pgwire.KindListen},
	"UnlistenStmt":       {pgwire.KindUnlisten},
	"NotifyStmt":         {pgwire.KindNotify},
	"DeclareCursorStmt":  {pgwire.KindDeclare},
	"FetchStmt":          {pgwire.KindFetch},
	"ClosePortalStmt":    {pgwire.KindCloseCursor},
	"CopyStmt":           {pgwire.KindCopy},
	"CallStmt":           {pgwire.KindCall},
	"DoStmt":             {pgwire.KindDo},
	"ExplainStmt":        {pgwire.KindExplain},
	"LockStmt":           {pgwire.KindLock},
	"LoadStmt":           {pgwire.KindLoad},
	"ConstraintsSetStmt": {pgwire.KindSetTransaction},
	"VariableSetStmt": {pgwire.KindSet, pgwire.KindReset, pgwire.KindSetRole,
		pgwire.KindSetSessionAuthorization, pgwire.KindSetTransaction},
}

var transactionKinds = map[string]pgwire.Kind{
	"BEGIN": pgwire.KindBegin, "START": pgwire.KindBegin, "COMMIT": pgwire.KindCommit,
	"ROLLBACK": pgwire.KindRollback, "SAVEPOINT": pgwire.KindSavepoint,
	"RELEASE": pgwire.KindRelease, "ROLLBACK_TO": pgwire.KindRollbackTo,
	"PREPARE":           pgwire.KindPrepareTransaction,
	"COMMIT_PREPARED":   pgwire.KindCommitPrepared,
	"ROLLBACK_PREPARED": pgwire.KindRollbackPrepared,
}

// sameKind compares kind, name and flags.
func sameKind(got *pgwire.Statement, want parsed) error {
	allowed := kinds[want.kind]
	name, hasName := "", false
	switch want.kind {
	case "TransactionStmt":
		kind := strings.TrimPrefix(str(want.body, "kind"), "TRANS_STMT_")
		allowed = []pgwire.Kind{transactionKinds[kind]}
		name, hasName = str(want.body, "savepoint_name")+str(want.body, "gid"), true
		if got.Chain != flag(want.body, "chain") {
			return fmt.Errorf("chain is %v", got.Chain)
		}
	case "VariableSetStmt":
		allowed = settingKinds(want.body)
		if name = str(want.body, "name"); allowed[0] == pgwire.KindSet ||
			allowed[0] == pgwire.KindReset && name != "" {
			hasName = str(want.body, "kind") != "VAR_SET_MULTI"
			name = strings.ToLower(name)
		}
		if got.Local != flag(want.body, "is_local") {
			return fmt.Errorf("local is %v", got.Local)
		}
	case "PrepareStmt", "ExecuteStmt":
		name, hasName = str(want.body, "name"), true
	case "DeallocateStmt":
		name, hasName = str(want.body, "name"), !flag(want.body, "isall")
	case "ListenStmt", "NotifyStmt":
		name, hasName = str(want.body, "conditionname"), true
	case "DeclareCursorStmt":
		name, hasName = str(want.body, "portalname"), true
	}
	if allowed == nil {
		allowed = []pgwire.Kind{pgwire.KindUtility}
	}
	for _, k := range allowed {
		if got.Kind == k {
			return sameRest(got, want, name, hasName)
		}
	}
	return fmt.Errorf("kind %d instead of one of %d", got.Kind, allowed)
}

func sameRest(got *pgwire.Statement, want parsed, name string, hasName bool) error {
	// One with escapes is left as it is written; the parser's own names may be cut.
	isPlain := !strings.ContainsAny(got.Name, "\\&'\"$") && !strings.ContainsAny(name, "\\&'\"$")
	if hasName && isPlain && got.Name != name {
		return fmt.Errorf("name %q instead of %q", got.Name, name)
	}
	if got.Kind == pgwire.KindWrite && want.kind == "SelectStmt" && !modifies(want.body) {
		return fmt.Errorf("a write, though nothing of its lists is one")
	}
	if got.MayWrite() {
		return nil
	}
	if want.kind == "UnlistenStmt" || want.kind == "ListenStmt" {
		return nil
	}
	if err := onlyReads(want); err != nil {
		return fmt.Errorf("may not write, but: %w", err)
	}
	if want.kind == "SelectStmt" { // I12: no name at all
		return listed(want, &pgwire.Needs{})
	}
	return nil
}

// modifies tells that a list of WITH has a statement that writes.
func modifies(n node) bool {
	found := false
	walk(n, func(kind string, body node) bool {
		switch kind {
		case "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt":
			found = true
		}
		return !found
	})
	return found
}

// settingKinds are those of SET and RESET, by the name.
func settingKinds(n node) []pgwire.Kind {
	isReset := strings.HasPrefix(str(n, "kind"), "VAR_RESET")
	switch strings.ToLower(str(n, "name")) {
	case "role":
		return []pgwire.Kind{pgwire.KindSetRole}
	case "session_authorization":
		return []pgwire.Kind{pgwire.KindSetSessionAuthorization}
	case "transaction", "transaction snapshot":
		if str(n, "kind") == "VAR_SET_MULTI" { // else a setting of that name: SET transaction = s
			return []pgwire.Kind{pgwire.KindSetTransaction}
		}
	case "transaction_isolation", "transaction_read_only", "transaction_deferrable":
		if !isReset {
			return []pgwire.Kind{pgwire.KindSetTransaction}
		}
	}
	if isReset {
		return []pgwire.Kind{pgwire.KindReset}
	}
	return []pgwire.Kind{pgwire.KindSet}
}
