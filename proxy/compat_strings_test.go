package proxy_test

import (
	"strings"

	"holdfast/pgwire"
)

// stringScripts are strings of several statements, most of which write: with commit_guard all they
// run in a block of the proxy's (guard_string.go), and show nothing of it.
var stringScripts = []script{
	{name: "strings that write", steps: []scriptStep{
		q("INSERT INTO t VALUES (3, 'c'); UPDATE t SET b = b || 'x'",
			"SELECT 1 AS a; INSERT INTO t VALUES (4, 'd') RETURNING a, b; SELECT * FROM t ORDER BY a",
			"INSERT INTO t VALUES (5, 'e');;; DELETE FROM t WHERE a = 5; -- end",
			"; INSERT INTO t VALUES (6, 'f') ; ; ", "UPDATE t SET b = 'n' WHERE a < 0; DELETE FROM t "+
				"WHERE a < 0", "WITH w AS (DELETE FROM t WHERE a = 6 RETURNING a) SELECT * FROM w; "+
				"INSERT INTO t VALUES (6, 'again')", "MERGE INTO t USING (VALUES (1)) AS v(i) ON a = i "+
				"WHEN MATCHED THEN UPDATE SET b = 'm'; SELECT count(*) FROM t",
			"SELECT i, repeat('x', 500) FROM generate_series(1, 100) AS i; INSERT INTO t VALUES (7, 'g')",
			"INSERT INTO t VALUES (8, 'h'); SELECT i, repeat('x', 500) FROM generate_series(1, 100) i",
			"INSERT INTO t VALUES (9, repeat('i', 100000)); SELECT b FROM t WHERE a = 9",
			"INSERT INTO t SELECT i, current_query() FROM generate_series(20, 21) i; SELECT b FROM t "+
				"WHERE a > 19", "SELECT * FROM t ORDER BY a"),
	}},
	{name: "strings that fail", steps: []scriptStep{
		q("INSERT INTO t VALUES (1, 'twice'); INSERT INTO t VALUES (3, 'c')",
			"INSERT INTO t VALUES (3, 'c'); INSERT INTO t VALUES (1/0, 'd'); SELECT 1",
			"INSERT INTO t VALUES (3, 'c'); SELECT 1; INSERT INTO t VALUES (3, 'twice') RETURNING a",
			"INSERT INTO t VALUES (3, 'c'); INSERT INTO nowhere VALUES (1)",
			"INSERT INTO t VALUES (3, 'c'); INSERT INTO", "INSERT INTO t VALUES (3, 'c'); SELECT $1",
			"INSERT INTO t VALUES (3, 'c'); SELECT 1/(a - 2) FROM t ORDER BY a",
			"INSERT INTO t VALUES (3, E'\\xff'); SELECT 1", "SELECT count(*) FROM t"),
	}},
	{name: "strings with deferred constraints", steps: []scriptStep{
		q("INSERT INTO late VALUES (1); INSERT INTO late VALUES (1)",
			"INSERT INTO late VALUES (1), (1); SELECT 1 AS a; INSERT INTO late VALUES (2) RETURNING a",
			"INSERT INTO late VALUES (3), (3); DELETE FROM late",
			"INSERT INTO late VALUES (4); SELECT 1/0; INSERT INTO late VALUES (4)",
			"SELECT count(*) FROM late"),
	}},
	{name: "strings with notices and notifications", steps: []scriptStep{
		q("LISTEN news"), q("INSERT INTO told VALUES (1); INSERT INTO told VALUES (2), (3) RETURNING a"),
		q("INSERT INTO t VALUES (3, 'c'); NOTIFY news, 'b'", "SELECT pg_notify('news', 'c'); "+
			"INSERT INTO told VALUES (4)", "INSERT INTO told VALUES (5); SELECT 1/0"),
		q("CREATE OR REPLACE FUNCTION late_tell() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "+
			"RAISE NOTICE 'late %', NEW.a; PERFORM pg_notify('news', 'late'); RETURN NULL; END$$",
			"CREATE CONSTRAINT TRIGGER late_tell AFTER INSERT ON plain DEFERRABLE INITIALLY DEFERRED "+
				"FOR EACH ROW EXECUTE FUNCTION late_tell()"),
		q("INSERT INTO plain VALUES (1, 'x'); INSERT INTO plain VALUES (2, 'y')",
			"INSERT INTO plain VALUES (3, 'z'); SELECT a FROM plain ORDER BY a"),
		q("DROP TRIGGER late_tell ON plain", "UNLISTEN *"),
	}},
	{name: "strings and rules", steps: []scriptStep{
		q("INSERT INTO ruled VALUES (1); INSERT INTO ruled VALUES (2), (3)",
			"INSERT INTO ruled VALUES (1) RETURNING a; SELECT 1",
			"CREATE RULE also AS ON INSERT TO t DO ALSO SELECT 'ruled' AS r"),
		q("INSERT INTO t VALUES (3, 'c'); UPDATE t SET b = 'r'", "UPDATE t SET b = 's'; INSERT INTO t "+
			"VALUES (4, 'd')", "DROP RULE also ON t", "CREATE RULE never AS ON DELETE TO t DO NOTHING"),
		q("INSERT INTO t VALUES (5, 'e'); DELETE FROM t", "DROP RULE never ON t"),
	}},
	{name: "strings that go as they are", steps: []scriptStep{
		q("SET work_mem = '5MB'; INSERT INTO t VALUES (3, 'c')", "SHOW work_mem",
			"SET LOCAL work_mem = '6MB'; INSERT INTO t VALUES (4, 'd'); SHOW work_mem",
			"INSERT INTO t VALUES (5, 'e'); VACUUM t", "LOCK TABLE t; DELETE FROM t WHERE a = 5",
			"INSERT INTO t VALUES (5, 'e'); DECLARE c CURSOR FOR SELECT 1; FETCH c",
			"INSERT INTO t VALUES (6, 'f'); BEGIN; INSERT INTO t VALUES (7, 'g')", "ROLLBACK",
			"INSERT INTO t VALUES (6, 'f'); SAVEPOINT s", "INSERT INTO t VALUES (6, 'f'); COMMIT; "+
				"INSERT INTO t VALUES (6, 'twice')", "SELECT count(*) FROM t; SELECT a FROM t",
			"PREPARE e(int) AS INSERT INTO t VALUES ($1, 'e')", "EXECUTE e(10); EXECUTE e(11)",
			"EXECUTE e(12); EXECUTE e(12)", "DEALLOCATE e"),
		{send: pgwire.AppendQuery(nil, "INSERT INTO t VALUES (13, 'm'); COPY t FROM STDIN; SELECT 2"),
			typ: 'G'},
		{send: copyData("14\tx"), ends: 1},
		q("BEGIN", "INSERT INTO t VALUES (15, 'o'); UPDATE t SET b = 'p'", "COMMIT", "BEGIN",
			"INSERT INTO t VALUES (16, 'o'); SELECT 1/0", "SELECT 1; INSERT INTO t VALUES (17, 'q')",
			"ROLLBACK", "SELECT * FROM t ORDER BY a"),
	}},
	{name: "strings behind a batch", steps: []scriptStep{
		{send: append(extended("INSERT INTO t VALUES (3, 'c')"), pgwire.AppendQuery(nil,
			"INSERT INTO t VALUES (4, 'd'); UPDATE t SET b = 'x'")...), ends: 2},
		{send: append(unsynced("INSERT INTO t VALUES (5, 'e')"), pgwire.AppendQuery(nil,
			"INSERT INTO t VALUES (6, 'f'); UPDATE t SET b = 'y'")...), ends: 1},
		q("ROLLBACK"), x("SELECT 1"), q("SELECT 1; DELETE FROM t"), {send: bindRun(""), ends: 1},
	}},
	{name: "strings with the defaults of transactions", steps: []scriptStep{
		q("SET default_transaction_isolation = 'serializable'", "SELECT "+
			"current_setting('transaction_isolation'); INSERT INTO t VALUES (3, 'c')",
			"SET default_transaction_read_only = on", "SELECT 1; INSERT INTO t VALUES (4, 'd')",
			"RESET default_transaction_read_only", "RESET default_transaction_isolation",
			"SET client_encoding = 'LATIN1'", "INSERT INTO t VALUES (5, '\xfc'); SELECT b FROM t",
			"SET client_encoding = 'UTF8'", "INSERT INTO t VALUES (6, 'f'); SELECT now() = "+
				"transaction_timestamp(), "+strings.Repeat("1, ", 100)+"0"),
	}},
}
