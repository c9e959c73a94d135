package proxy_test

import "holdfast/pgwire"

// script is a conversation of a client: what it sends, and how many ReadyForQuery, or messages of a
// type, it waits for before it goes on.
type script struct {
	name  string
	steps []scriptStep
	// allow are SQLSTATEs that a cut may end in, where the protocol leaves no better answer.
	allow string
	// before is the first version of PostgreSQL that cannot have it itself; 0: there is none.
	before int
}

type scriptStep struct {
	send []byte
	ends int  // ReadyForQuery to wait for
	typ  byte // or a message of that type
}

func q(sqls ...string) scriptStep {
	var out []byte
	for _, s := range sqls {
		out = pgwire.AppendQuery(out, s)
	}
	return scriptStep{send: out, ends: len(sqls)}
}

func x(sqls ...string) scriptStep { return scriptStep{send: extended(sqls...), ends: 1} }

// noSync is a batch without its end.
func noSync(batch []byte) []byte { return batch[:len(batch)-len(pgwire.AppendSync(nil))] }

// flushed is a batch whose end does not come yet.
func flushed(sql string) scriptStep {
	out := extended(sql)
	out = out[:len(out)-len(pgwire.AppendSync(nil))]
	return scriptStep{send: pgwire.AppendFlush(out), typ: 'C'}
}

func copyData(rows ...string) []byte {
	var out []byte
	for _, r := range rows {
		out = pgwire.AppendMessage(out, 'd', []byte(r+"\n"))
	}
	return pgwire.AppendMessage(out, 'c', nil)
}

// scripts are conversations that a client must be able to have however often its backend is lost.
var scripts = []script{
	{name: "reads", steps: []scriptStep{
		q("SELECT 1"), x("SELECT 2"), q("SHOW work_mem"), q("SELECT 3"),
		q("SET work_mem = '5MB'"), q("SHOW work_mem"),
	}},
	{name: "transaction, simple", steps: []scriptStep{
		q("BEGIN"), q("INSERT INTO t VALUES (1, 'a')"), q("SELECT count(*) FROM t"),
		q("UPDATE t SET b = b || 'x' WHERE a = 1"), q("SELECT * FROM t"), q("COMMIT"),
		q("SELECT 1"),
	}},
	{name: "transaction, extended", steps: []scriptStep{
		x("BEGIN"), x("INSERT INTO t VALUES (1, 'a') RETURNING a, b"), x("SELECT * FROM t"),
		x("COMMIT"),
	}},
	{name: "transaction in one batch", steps: []scriptStep{
		x("BEGIN", "INSERT INTO t VALUES (1, 'a')", "SELECT * FROM t", "COMMIT"),
	}},
	{name: "transaction, pipelined", steps: []scriptStep{
		q("BEGIN", "INSERT INTO t VALUES (1, 'a')", "SELECT * FROM t", "COMMIT"),
		q("BEGIN", "INSERT INTO t VALUES (2, 'a')", "COMMIT", "BEGIN",
			"INSERT INTO t VALUES (3, 'a')", "COMMIT"),
	}},
	{name: "blocks that read, pipelined", steps: []scriptStep{
		q("BEGIN", "SELECT count(*) FROM t", "SELECT 1", "COMMIT", "SELECT 2"),
		q("INSERT INTO t VALUES (1, 'a')"), q("BEGIN", "SAVEPOINT s", "SELECT * FROM t", "ROLLBACK",
			"BEGIN", "INSERT INTO t VALUES (2, 'b')", "ROLLBACK", "SELECT 3"),
	}},
	{name: "autocommit, simple", steps: []scriptStep{
		q("INSERT INTO t VALUES (1, 'a')"), q("UPDATE t SET b = b || 'x'"),
		q("INSERT INTO t VALUES (2, 'b') RETURNING a + 1"), q("DELETE FROM t WHERE a = 2"),
		q("INSERT INTO t VALUES (1, 'twice')"), q("MERGE INTO t USING (VALUES (1)) AS v(i) " +
			"ON a = i WHEN MATCHED THEN UPDATE SET b = b || 'm'"),
	}},
	{name: "autocommit, extended", steps: []scriptStep{
		x("INSERT INTO t VALUES (1, 'a')"), x("UPDATE t SET b = b || 'x' RETURNING b"),
		x("INSERT INTO t VALUES (2, 'a')", "INSERT INTO t VALUES (3, 'a')"),
		x("INSERT INTO t VALUES (1, 'twice')"),
	}},
	{name: "autocommit, pipelined", steps: []scriptStep{
		{send: append(extended("INSERT INTO t VALUES (1, 'a')"),
			extended("UPDATE t SET b = b || 'x'")...), ends: 2},
		q("INSERT INTO t VALUES (2, 'a')", "UPDATE t SET b = b || 'y'", "SELECT 1"),
	}},
	{name: "two-phase commit", steps: []scriptStep{
		q("BEGIN"), q("INSERT INTO t VALUES (1, 'a')"), q("PREPARE TRANSACTION 'one'"),
		q("COMMIT PREPARED 'one'"), x("BEGIN"), x("INSERT INTO t VALUES (2, 'b')"),
		x("PREPARE TRANSACTION 'two'"), x("ROLLBACK PREPARED 'two'"),
		x("BEGIN", "INSERT INTO t VALUES (3, 'c')", "PREPARE TRANSACTION 'three'"),
		x("COMMIT PREPARED 'three'"), q("BEGIN"), q("SELECT 1"), q("PREPARE TRANSACTION 'four'"),
		q("ROLLBACK PREPARED 'four'"), q("BEGIN"), q("SELECT 1/0"), q("PREPARE TRANSACTION 'five'"),
		q("SELECT * FROM t"),
	}},
	{name: "savepoints and errors", steps: []scriptStep{
		q("BEGIN"), q("INSERT INTO t VALUES (1, 'a')"), q("SAVEPOINT s"),
		q("INSERT INTO t VALUES (1, 'twice')"), q("SELECT 1"), q("ROLLBACK TO s"),
		q("INSERT INTO t VALUES (2, 'b')"), q("COMMIT"),
	}},
	{name: "rollback", steps: []scriptStep{
		q("BEGIN"), q("INSERT INTO t VALUES (1, 'a')"), q("ROLLBACK"), x("BEGIN"),
		x("INSERT INTO t VALUES (1, 'a')"), x("ROLLBACK"), q("BEGIN"), q("SELECT 1/0"),
		q("COMMIT"),
	}},
	{name: "settings in a transaction", steps: []scriptStep{
		q("BEGIN"), q("SET LOCAL work_mem = '6MB'"), q("SET app.x = '1'"), q("SHOW work_mem"),
		q("COMMIT"), q("SHOW app.x"), q("BEGIN"), q("SET app.x = '2'"), q("ROLLBACK"),
		q("SHOW app.x"),
	}},
	{name: "prepared inside", steps: []scriptStep{
		q("BEGIN"), {send: pgwire.AppendSync(pgwire.AppendParse(nil, "p",
			"INSERT INTO t VALUES ($1, 'p')", []uint32{23})), ends: 1},
		{send: bindRun("p", "1"), ends: 1}, {send: bindRun("p", "2"), ends: 1},
		q("PREPARE s AS SELECT count(*) FROM t"), q("EXECUTE s"), q("DEALLOCATE s"),
		{send: pgwire.AppendSync(pgwire.AppendClose(nil, 'S', "p")), ends: 1}, q("COMMIT"),
	}},
	{name: "unnamed statement of before", steps: []scriptStep{
		{send: pgwire.AppendSync(pgwire.AppendParse(nil, "", "SELECT 7", nil)), ends: 1},
		x("BEGIN"), x("SELECT 8"), {send: bindRun(""), ends: 1}, x("COMMIT"),
	}},
	{name: "portals", steps: []scriptStep{
		q("BEGIN"), {send: portal("c", "SELECT * FROM generate_series(1, 7)", 3), typ: 's'},
		{send: pgwire.AppendFlush(pgwire.AppendExecute(nil, "c", 3)), typ: 's'},
		{send: pgwire.AppendSync(pgwire.AppendExecute(nil, "c", 0)), ends: 1},
		q("DECLARE d CURSOR FOR SELECT * FROM generate_series(1, 5)"), q("FETCH 2 FROM d"),
		q("FETCH 2 FROM d"), q("COMMIT"),
	}},
	{name: "flushed without a Sync", steps: []scriptStep{
		flushed("INSERT INTO t VALUES (1, 'a')"), flushed("SELECT * FROM t"),
		{send: pgwire.AppendSync(nil), ends: 1},
	}},
	{name: "copy out", steps: []scriptStep{
		q("COPY (SELECT i FROM generate_series(1, 20) AS i) TO STDOUT"),
		q("BEGIN"), q("COPY (VALUES (1), (2)) TO STDOUT"), q("COMMIT"),
	}, allow: "08007"}, // COPY outside a block may do anything, as far as is known
	{name: "copy in, in a transaction", steps: []scriptStep{
		q("BEGIN"), {send: pgwire.AppendQuery(nil, "COPY t FROM STDIN"), typ: 'G'},
		{send: copyData("1\ta", "2\tb", "3\tc"), ends: 1}, q("SELECT count(*) FROM t"), q("COMMIT"),
	}},
	{name: "advisory locks", steps: []scriptStep{
		q("SELECT pg_advisory_lock(7)"), q("BEGIN"), q("SELECT pg_advisory_lock(7)"),
		q("SELECT pg_try_advisory_lock(8)"), q("INSERT INTO t VALUES (1, 'a')"), q("COMMIT"),
		q("SELECT pg_advisory_unlock(7)"), q("SELECT pg_advisory_unlock(7)"),
		q("SELECT pg_advisory_unlock(7)"), q("SELECT pg_advisory_unlock(8)"),
	}},
	{name: "wide rows", steps: []scriptStep{
		q("BEGIN"), q("SELECT i, repeat(i::text, 30000) FROM generate_series(1, 3) AS i"),
		q("COMMIT"),
	}},
	{name: "strings that write", steps: []scriptStep{
		q("INSERT INTO t VALUES (1, 'a'); UPDATE t SET b = b || 'x' RETURNING b; ; "),
		q("SELECT count(*) FROM t; INSERT INTO t VALUES (2, 'b'); SELECT a FROM t ORDER BY a"),
		q("UPDATE t SET b = 'no'; INSERT INTO t VALUES (1, 'twice'); SELECT 1"),
		q("DELETE FROM t WHERE a = 2; NOTIFY news"),
	}},
	{name: "strings that write, pipelined", steps: []scriptStep{
		q("INSERT INTO t VALUES (1, 'a'); UPDATE t SET b = b || 'x'",
			"UPDATE t SET b = b || 'y'; SELECT * FROM t", "SELECT 1",
			"INSERT INTO t VALUES (1, 'twice'); SELECT 1", "UPDATE t SET b = b || 'z'"),
		{send: append(extended("INSERT INTO t VALUES (2, 'c')"), pgwire.AppendQuery(nil,
			"UPDATE t SET b = b || '1'; UPDATE t SET b = b || '2'")...), ends: 2},
	}},
	{name: "errors in a pipeline", steps: []scriptStep{
		{send: append(extended("BEGIN", "INSERT INTO t VALUES (1, 'a')"),
			append(extended("SELECT 1/0", "SELECT 2"), extended("ROLLBACK")...)...), ends: 3},
	}},
}

// bindRun runs a prepared statement with text parameters.
func bindRun(name string, args ...string) []byte {
	out := pgwire.AppendBind(nil, "", name, args...)
	out = pgwire.AppendDescribe(out, 'P', "")
	return pgwire.AppendSync(pgwire.AppendExecute(out, "", 0))
}

// portal opens a portal and asks for the first rows.
func portal(name, sql string, rows uint32) []byte {
	out := pgwire.AppendParse(nil, "", sql, nil)
	out = pgwire.AppendBind(out, name, "")
	return pgwire.AppendFlush(pgwire.AppendExecute(out, name, rows))
}
