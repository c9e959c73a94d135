package pgwire_test

import (
	"testing"

	"holdfast/pgwire"
)

func TestClassify(t *testing.T) {
	type want struct {
		kind pgwire.Kind
		name string
	}
	for sql, w := range map[string][]want{
		"":                            nil,
		" ; ;-- nothing\n":            nil,
		"begin":                       {{pgwire.KindBegin, ""}},
		"START TRANSACTION READ ONLY": {{pgwire.KindBegin, ""}},
		"/* a /* b */ c */ COMMIT;":   {{pgwire.KindCommit, ""}},
		"END WORK":                    {{pgwire.KindCommit, ""}},
		"abort":                       {{pgwire.KindRollback, ""}},
		"ROLLBACK TO SAVEPOINT a":     {{pgwire.KindRollbackTo, "a"}},
		"rollback work to B":          {{pgwire.KindRollbackTo, "b"}},
		"COMMIT PREPARED 'g'":         {{pgwire.KindCommitPrepared, "g"}},
		"PREPARE TRANSACTION 'g''h'":  {{pgwire.KindPrepareTransaction, "g'h"}},
		"SET LOCAL work_mem = 1":      {{pgwire.KindSet, "work_mem"}},
		"SET SESSION Foo.Bar TO 'x'":  {{pgwire.KindSet, "foo.bar"}},
		"SET TIME ZONE 'UTC'":         {{pgwire.KindSet, "timezone"}},
		"SET ROLE x":                  {{pgwire.KindSetRole, ""}},
		"SET SESSION AUTHORIZATION x": {{pgwire.KindSetSessionAuthorization, ""}},
		"set transaction read only":   {{pgwire.KindSetTransaction, ""}},
		"RESET ALL":                   {{pgwire.KindReset, "all"}},
		"PREPARE p(int) AS SELECT $1": {{pgwire.KindPrepare, "p"}},
		`DEALLOCATE "P q"`:            {{pgwire.KindDeallocate, "P q"}},
		"LISTEN c":                    {{pgwire.KindListen, "c"}},
		"DISCARD ALL":                 {{pgwire.KindDiscard, "all"}},
		"SELECT ';'; COMMIT":          {{pgwire.KindSelect, ""}, {pgwire.KindCommit, ""}},
		"SELECT $a$;COMMIT;$a$":       {{pgwire.KindSelect, ""}},
		`SELECT E'\';COMMIT'`:         {{pgwire.KindSelect, ""}},
		`SELECT '\';COMMIT`:           {{pgwire.KindSelect, ""}, {pgwire.KindCommit, ""}},
		"SELECT 'no end; COMMIT":      {{pgwire.KindUnknown, ""}},
		"SELECT 1 /* no end; COMMIT":  {{pgwire.KindUnknown, ""}},
		"INSERT INTO t VALUES (1)":    {{pgwire.KindWrite, ""}},
		"CALL p()":                    {{pgwire.KindCall, ""}},
		"VACUUM":                      {{pgwire.KindUtility, ""}},
		"(SELECT 1)":                  {{pgwire.KindSelect, ""}},
		"COPY t FROM STDIN":           {{pgwire.KindCopy, ""}},
		"FETCH 1 FROM c; CLOSE c":     {{pgwire.KindFetch, ""}, {pgwire.KindCloseCursor, "c"}},
		// Outside CREATE it is no body that could hide what follows.
		"BEGIN ATOMIC; COMMIT": {{pgwire.KindBegin, ""}, {pgwire.KindCommit, ""}},
		"BEGIN; INSERT INTO t DEFAULT VALUES; COMMIT": {
			{pgwire.KindBegin, ""}, {pgwire.KindWrite, ""}, {pgwire.KindCommit, ""},
		},
		"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; COMMIT": {
			{pgwire.KindUtility, ""}, {pgwire.KindCommit, ""},
		},
	} {
		got := pgwire.Classify(nil, []byte(sql), true)
		if len(got) != len(w) {
			t.Errorf("%q: %d statements, want %d", sql, len(got), len(w))
			continue
		}
		for i := range w {
			if got[i].Kind != w[i].kind || got[i].Name != w[i].name {
				t.Errorf("%q: statement %d is %d %q, want %d %q", sql, i, got[i].Kind,
					got[i].Name, w[i].kind, w[i].name)
			}
		}
	}
	if n := len(pgwire.Classify(nil, []byte(`SELECT '\';COMMIT'`), false)); n != 1 {
		t.Errorf("standard_conforming_strings off: %d statements", n)
	}
}

func TestClassifyMarks(t *testing.T) {
	one := func(sql string) pgwire.Statement {
		got := pgwire.Classify(nil, []byte(sql), true)
		if len(got) != 1 {
			t.Fatalf("%q: %d statements", sql, len(got))
		}
		return got[0]
	}
	local := one("CREATE LOCAL TEMPORARY VIEW x AS SELECT 1")
	advisory := one("SELECT pg_catalog.pg_advisory_lock(1)")
	xact := one("SELECT pg_advisory_xact_lock(1)")
	config := one("SELECT set_config('a.b', 'c', false)")
	hold := one("DECLARE c CURSOR WITH HOLD FOR SELECT 1")
	for what, marked := range map[string]bool{
		"temporary table":       one("CREATE TEMP TABLE x (a int)").CreatesTemp,
		"local temporary view":  local.CreatesTemp,
		"select into temp":      one("SELECT a INTO TEMP x FROM y").CreatesTemp,
		"with hold":             hold.WithHold,
		"advisory":              advisory.HasAdvisoryLock,
		"set_config":            config.HasSetConfig,
		"local":                 one("SET LOCAL a = 1").Local,
		"chain":                 one("COMMIT AND CHAIN").Chain,
		"a table named temp":    !one("INSERT INTO temp VALUES (1)").CreatesTemp,
		"transaction-level key": !xact.HasAdvisoryLock,
	} {
		if !marked {
			t.Errorf("%s is not marked rightly", what)
		}
	}
}

func TestMayWriteIsConservative(t *testing.T) {
	for sql, want := range map[string]bool{
		"SELECT 1": false, "SELECT 1, 'a' AS b, NULL": false, "SHOW work_mem": false,
		"BEGIN": false, "SET a = 1": false, "SELECT now()": true, "SELECT * FROM v": true,
		"SELECT 1 + 1": true, "SELECT current_user": true, "TABLE t": true, "FETCH 1 FROM c": true,
		"WITH x AS (DELETE FROM t) SELECT 1": true, "EXPLAIN ANALYZE SELECT 1": true,
		"COPY t TO STDOUT": true, "LOCK t": true, "COMMIT": true, "EXECUTE p": true,
	} {
		got := pgwire.Classify(nil, []byte(sql), true)
		if len(got) != 1 || got[0].MayWrite() != want {
			t.Errorf("%q: may write must be %v", sql, want)
		}
	}
}

func TestClassifyAllocatesNothing(t *testing.T) {
	sql := []byte("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 5")
	dst := make([]pgwire.Statement, 0, 4)
	if n := testing.AllocsPerRun(100, func() { dst = pgwire.Classify(dst[:0], sql, true) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzClassify(f *testing.F) {
	for _, s := range []string{"SELECT ';'", "BEGIN ATOMIC; COMMIT", "$a$ $b$ $a$", "E'\\'"} {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, sql []byte, conforming bool) {
		last := 0
		for _, s := range pgwire.Classify(nil, sql, conforming) {
			if s.Start < last || s.End < s.Start || s.End > len(sql) {
				t.Fatalf("span %d-%d behind %d of %d bytes", s.Start, s.End, last, len(sql))
			}
			last = s.End
		}
	})
}

func BenchmarkClassify(b *testing.B) {
	sql := []byte("SELECT abalance FROM pgbench_accounts WHERE aid = 5")
	dst := make([]pgwire.Statement, 0, 4)
	b.ReportAllocs()
	for b.Loop() {
		dst = pgwire.Classify(dst[:0], sql, true)
	}
}
