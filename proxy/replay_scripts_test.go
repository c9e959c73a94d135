package proxy_test

import "holdfast/pgwire"

// failsThen is a statement that fails, with a batch behind it in the same write.
func failsThen(batch []byte) scriptStep {
	return scriptStep{send: join(pgwire.AppendQuery(nil, "SELECT 1/0"), batch), ends: 2}
}

// callLoCreate is a FunctionCall of lo_create.
func callLoCreate(oid string) []byte {
	const loCreate = 715
	body := pgwire.AppendFunctionCall(nil, loCreate)[pgwire.HeaderLen:][:4]
	body = append(body, 0, 0, 0, 1, 0, 0, 0, byte(len(oid)))
	return pgwire.AppendMessage(nil, pgwire.CliFunctionCall, append(append(body, oid...), 0, 0))
}

// cutScripts are conversations for TestCutAnywhere alone: what few clients do, and the protocol
// allows.
var cutScripts = []script{
	{name: "copy behind a batch", steps: []scriptStep{
		{send: append(append(extended("INSERT INTO t VALUES (1, 'a')"),
			pgwire.AppendQuery(nil, "COPY t FROM STDIN")...), copyData("2\ta")...), ends: 2},
		q("SELECT * FROM t"), q("INSERT INTO t VALUES (3, 'x')"), q("SELECT * FROM t"),
	}, allow: "08007"},
	{name: "stray end of a copy", steps: []scriptStep{
		{send: append(append(extended("INSERT INTO t VALUES (1, 'a')"), copyData()...),
			extended("UPDATE t SET b = b || 'x'")...), ends: 2},
		q("SELECT * FROM t"),
	}},
	{name: "copy in, extended", steps: []scriptStep{
		q("BEGIN"), {send: extended("COPY t FROM STDIN"), typ: 'G'},
		{send: pgwire.AppendSync(copyData("1\ta", "2\tb", "3\tc")), ends: 1},
		q("SELECT count(*) FROM t"), {send: extended("COPY t FROM STDIN"), typ: 'G'},
		{send: pgwire.AppendSync(pgwire.AppendMessage(nil, 'f', []byte("no\x00"))), ends: 1},
		q("SELECT 1"), q("ROLLBACK"),
	}},
	{name: "two copies pipelined", steps: []scriptStep{
		q("BEGIN"), {send: append(append(append(pgwire.AppendQuery(nil, "COPY t FROM STDIN"),
			copyData("1\ta")...), pgwire.AppendQuery(nil, "COPY t FROM STDIN")...),
			copyData("2\tb")...), ends: 2},
		q("SELECT count(*) FROM t"), q("COMMIT"),
	}},
	{name: "wide rows of a write", steps: []scriptStep{
		q("INSERT INTO t SELECT i, repeat('x', 30000) FROM generate_series(1, 3) AS i RETURNING *"),
		q("INSERT INTO t VALUES (1, 'twice') RETURNING *"), q("DELETE FROM t WHERE false RETURNING a"),
	}, allow: "08007"}, // what has changed nothing has no transaction id
	{name: "advisory locks, pipelined", steps: []scriptStep{
		q("SELECT pg_try_advisory_lock(8)", "BEGIN", "INSERT INTO t VALUES (1, 'a')"),
		q("SELECT count(*) FROM t"), q("COMMIT"), q("SELECT objid FROM pg_locks WHERE " +
			"locktype = 'advisory' AND pid = pg_backend_pid() ORDER BY 1"),
		q("SELECT pg_advisory_unlock(8)", "BEGIN", "SELECT 1"), q("SELECT 2"), q("COMMIT"),
		q("SELECT pg_advisory_unlock(8)"),
	}},
	{name: "query in a batch", steps: []scriptStep{
		{send: append(append(noSync(extended("INSERT INTO t VALUES (1, 'a')")),
			pgwire.AppendQuery(nil, "INSERT INTO t VALUES (2, 'b')")...),
			pgwire.AppendSync(nil)...), ends: 2},
		flushed("SELECT 1"), q("INSERT INTO t VALUES (3, 'b')"), q("SELECT * FROM t"),
		// 18.6 leaves the transaction open behind the Query, and the Sync does not end it: what
		// comes next fails with XX000 (StartTransactionCommand: unexpected state STARTED).
	}, allow: "08007", before: 18},
	{name: "error before the Sync", steps: []scriptStep{
		q("BEGIN"), x("SELECT 1"),
		{send: pgwire.AppendFlush(noSync(extended("SELECT 1/0"))), typ: 'E'},
		{send: extended("SELECT 2"), ends: 1}, x("ROLLBACK"),
		{send: pgwire.AppendFlush(noSync(extended("SELECT 1/0"))), typ: 'E'},
		{send: extended("INSERT INTO t VALUES (1, 'a')"), ends: 1}, x("SELECT 1"),
	}},
	{name: "many pipelined writes", steps: []scriptStep{
		{send: append(append(append(extended("INSERT INTO t VALUES (1, 'a')"),
			pgwire.AppendQuery(nil, "INSERT INTO t VALUES (2, 'b')")...),
			extended("BEGIN", "INSERT INTO t VALUES (3, 'c')")...),
			append(pgwire.AppendQuery(nil, "COMMIT"), extended("INSERT INTO t VALUES (1, 'a')",
				"SELECT 1")...)...), ends: 5},
		q("SELECT * FROM t"),
	}},
	{name: "parsed, run later", steps: []scriptStep{
		{send: pgwire.AppendSync(pgwire.AppendParse(nil, "", "INSERT INTO t VALUES ($1, 'p')",
			[]uint32{23})), ends: 1},
		{send: bindRun("", "1"), ends: 1}, {send: bindRun("", "2"), ends: 1},
		q("INSERT INTO t VALUES (3, 'q')"), {send: bindRun("", "4"), ends: 1}, q("SELECT * FROM t"),
	}},
	{name: "empty queries", steps: []scriptStep{
		q("", ";"), x(""), q("BEGIN"), q("", "INSERT INTO t VALUES (1, 'a')"), x("", "SELECT 1"),
		q("COMMIT"),
	}},
	{name: "two-phase commit, identifiers that are not read", steps: []scriptStep{
		q("BEGIN"), q("INSERT INTO t VALUES (1, 'a')"), q("PREPARE TRANSACTION $$one$$"),
		q("COMMIT PREPARED $$one$$"), q("BEGIN"), q("INSERT INTO t VALUES (2, 'a')"),
		q("PREPARE TRANSACTION E'two'"), x("ROLLBACK PREPARED E'two'"), q("SELECT * FROM t"),
	}, allow: "08007"},
	{name: "ends of failed blocks", steps: []scriptStep{
		q("BEGIN"), q("SELECT 1/0"), x("COMMIT"), q("BEGIN"), x("SELECT 1/0"), x("ROLLBACK AND CHAIN"),
		q("SELECT 1/0"), q("ROLLBACK AND CHAIN"), q("SELECT 1"), q("SELECT 1/0"), x("COMMIT AND CHAIN"),
		x("ROLLBACK"), q("BEGIN"), q("SELECT 1/0"), q("COMMIT AND CHAIN"), q("ROLLBACK"), q("BEGIN"),
		q("SAVEPOINT s"), q("SELECT 1/0"), x("ROLLBACK TO s", "INSERT INTO t VALUES (1, 'a')", "COMMIT"),
		q("BEGIN"), q("SELECT 1/0"), x("PREPARE TRANSACTION 'one'"), x("SELECT 1"),
	}},
	{name: "the unnamed statement behind a Query that fails", steps: []scriptStep{
		q("INSERT INTO t VALUES (1, 'a')"), q("INSERT INTO t VALUES (1, 'b')"),
		{send: bindRun(""), ends: 1}, q("DELETE FROM t"), {send: bindRun(""), ends: 1},
		q("INSERT INTO t VALUES (2, 'a'), (2, 'b')"), q("INSERT INTO t VALUES (6, 'a')"),
		q("INSERT INTO t VALUES (3, 'a'), (3, 'b')"), x("INSERT INTO t VALUES (3, 'c')"),
		{send: bindRun(""), ends: 1}, q("INSERT INTO t VALUES (3, 'd')"),
		{send: pgwire.AppendSync(pgwire.AppendDescribe(nil, 'S', "")), ends: 1},
		q("INSERT INTO t VALUES (4, (1/0)::text)"), q("INSERT INTO t VALUES (7, 'a')"),
		q("INSERT INTO t VALUES (4, (1/0)::text)"), {send: bindRun(""), ends: 1},
		{send: join(pgwire.AppendQuery(nil, "INSERT INTO t VALUES (5, (1/0)::text)"), bindRun("")),
			ends: 2},
		q("SELECT * FROM t"),
	}},
	{name: "ends of failed blocks, pipelined", steps: []scriptStep{
		{send: pgwire.AppendSync(pgwire.AppendParse(nil, "c", "COMMIT", nil)), ends: 1},
		q("BEGIN"), failsThen(extended("COMMIT")), q("BEGIN"), failsThen(bindRun("c")),
		q("BEGIN"), failsThen(extended("ROLLBACK AND CHAIN")),
		{send: join(extended("SELECT 1/0"), extended("COMMIT")), ends: 2},
		q("BEGIN"), failsThen(extended("PREPARE TRANSACTION 'one'")),
		q("BEGIN"), failsThen(extended("COMMIT AND CHAIN")), q("ROLLBACK"),
		q("BEGIN"), q("INSERT INTO t VALUES (1, 'a')"), q("SAVEPOINT s"),
		failsThen(extended("ROLLBACK TO s", "COMMIT")), q("SELECT * FROM t"),
	}},
	{name: "chained blocks", steps: []scriptStep{
		q("BEGIN ISOLATION LEVEL REPEATABLE READ"), q("INSERT INTO t VALUES (1, 'a')"),
		q("COMMIT AND CHAIN"), q("SHOW transaction_isolation"), q("INSERT INTO t VALUES (2, 'b')"),
		x("COMMIT AND CHAIN"), x("INSERT INTO t VALUES (3, 'c')"), q("SHOW transaction_isolation"),
		q("SELECT 1/0"), q("COMMIT AND CHAIN"), q("SHOW transaction_isolation"), q("ROLLBACK"),
		x("BEGIN READ ONLY"), q("SELECT count(*) FROM t"), q("COMMIT AND CHAIN"),
		q("SELECT count(*) FROM t"), q("INSERT INTO t VALUES (4, 'no')"), x("ROLLBACK AND CHAIN"),
		q("SHOW transaction_read_only"), x("ROLLBACK"), q("SHOW transaction_read_only"),
	}},
	{name: "chained blocks, pipelined", steps: []scriptStep{
		q("INSERT INTO t VALUES (1, 'a')", "START TRANSACTION ISOLATION LEVEL SERIALIZABLE",
			"UPDATE t SET b = b || 'x'", "COMMIT AND CHAIN", "INSERT INTO t VALUES (2, 'b')",
			"COMMIT AND CHAIN", "SHOW transaction_isolation", "INSERT INTO t VALUES (3, 'c')"),
		{send: join(extended("UPDATE t SET b = b || 'y'"), extended("COMMIT AND CHAIN"),
			extended("UPDATE t SET b = b || 'z'"), pgwire.AppendQuery(nil, "END AND CHAIN")), ends: 4},
		{send: pgwire.AppendSync(pgwire.AppendParse(nil, "", "SELECT 7", nil)), ends: 1},
		{send: bindRun(""), ends: 1}, q("COMMIT", "SHOW transaction_isolation"),
	}},
	{name: "chained blocks, a function called behind", steps: []scriptStep{
		q("BEGIN"), q("INSERT INTO t VALUES (1, 'a')"),
		{send: join(noSync(extended("COMMIT AND CHAIN")), callLoCreate("4711")), ends: 1},
		q("INSERT INTO t VALUES (2, 'b')"), q("SELECT lo_unlink(4711)"), q("COMMIT"),
	}, allow: "40001"},
	{name: "chained blocks, a portal made behind", steps: []scriptStep{
		q("BEGIN"), q("INSERT INTO t VALUES (1, 'a')"),
		{send: pgwire.AppendSync(pgwire.AppendBind(join(noSync(extended("COMMIT AND CHAIN")),
			pgwire.AppendParse(nil, "", "SELECT b FROM t", nil)), "p", "")), ends: 1},
		{send: pgwire.AppendSync(pgwire.AppendExecute(nil, "p", 0)), ends: 1},
		q("INSERT INTO t VALUES (2, 'b')"), q("COMMIT"),
	}, allow: "40001"},
	{name: "strings of statements", steps: []scriptStep{
		q("SELECT 1; SELECT 2"), q("BEGIN; INSERT INTO t VALUES (1, 'a')"), q("SELECT 1; SELECT 2"),
		q("COMMIT"),
	}, allow: "08007"},
}
