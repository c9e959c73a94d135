package proxy_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
)

// compatSetup makes what the conversations use; it is run again before each of them, and leaves the
// object ids as they are.
const compatSetup = `
CREATE TABLE IF NOT EXISTS t (a int PRIMARY KEY, b text);
CREATE TABLE IF NOT EXISTS late (a int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE IF NOT EXISTS told (a int);
CREATE TABLE IF NOT EXISTS ruled (a int);
CREATE TABLE IF NOT EXISTS plain (a int, b text);
CREATE TABLE IF NOT EXISTS shaped (a int);
CREATE OR REPLACE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
  RAISE NOTICE 'row %', NEW.a; PERFORM pg_notify('news', NEW.a::text); RETURN NEW; END$$;
DROP TRIGGER IF EXISTS tell ON told;
CREATE TRIGGER tell BEFORE INSERT ON told FOR EACH ROW EXECUTE FUNCTION tell();
CREATE OR REPLACE RULE r AS ON INSERT TO ruled DO INSTEAD INSERT INTO plain VALUES (NEW.a, 'r');
TRUNCATE t, late, told, ruled, plain;
ALTER TABLE shaped ALTER a TYPE int;
INSERT INTO t VALUES (1, 'one'), (2, 'two')`

// asyncOrder allows a NotificationResponse another place: a Query that is guarded is executed in
// the extended protocol, and its CommandComplete is kept back until the end of its transaction is
// known, which is told behind what that has notified.
const asyncOrder = "notifications"

// compatScripts are what broke other proxies, and what this one does otherwise than asked.
var compatScripts = []script{
	{name: "two ParameterStatus in one pipeline", steps: []scriptStep{
		x("SET application_name = 'a'", "SET TimeZone = 'Asia/Tokyo'", "SELECT 1"),
		q("SET application_name = 'b'; SET DateStyle = 'German'", "SELECT date '2026-11-28'"),
	}},
	{name: "extended DISCARD ALL", steps: []scriptStep{
		q("SET work_mem = '5MB'", "PREPARE s AS SELECT 1"), x("DISCARD ALL"),
		q("SHOW work_mem", "EXECUTE s"), x("SELECT 1"),
	}},
	{name: "a Describe behind two Executes", steps: []scriptStep{
		{send: describedBehind("SELECT 1 AS a", "SELECT 2 AS b, 3 AS c"), ends: 1},
		{send: describedBehind("SELECT 1 AS a", "INSERT INTO t VALUES (3, 'x')"), ends: 1},
	}},
	{name: "extended COPY with data behind the error", steps: []scriptStep{
		{send: pgwire.AppendFlush(unsynced("COPY t FROM STDIN")), typ: 'G'},
		{send: copyData("x\ty", "3\tc", "4\td")}, {send: pgwire.AppendSync(nil), ends: 1},
		q("SELECT count(*) FROM t"), x("SELECT 1"),
	}},
	{name: "simple COPY with data behind the error", steps: []scriptStep{
		{send: pgwire.AppendQuery(nil, "COPY t FROM STDIN"), typ: 'G'},
		{send: copyData("x\ty", "3\tc", "4\td"), ends: 1}, q("SELECT count(*) FROM t"),
	}},
	{name: "Flush and Sync inside COPY", steps: []scriptStep{
		{send: pgwire.AppendFlush(unsynced("COPY t FROM STDIN")), typ: 'G'},
		{send: pgwire.AppendFlush(pgwire.AppendMessage(nil, 'd', []byte("3\tc\n")))},
		{send: pgwire.AppendSync(pgwire.AppendMessage(nil, 'd', []byte("4\td\n")))},
		{send: pgwire.AppendSync(pgwire.AppendMessage(nil, 'c', nil)), ends: 1},
		q("SELECT count(*) FROM t"),
		{send: pgwire.AppendQuery(nil, "COPY t FROM STDIN"), typ: 'G'},
		{send: pgwire.AppendSync(pgwire.AppendFlush(nil))},
		{send: copyData("5\te"), ends: 1},
		q("SELECT count(*) FROM t"),
		{send: append(pgwire.AppendSync(pgwire.AppendSync(pgwire.AppendQuery(nil,
			"COPY t FROM STDIN"))), copyData("6\tf")...), ends: 1},
		q("SELECT count(*) FROM t"),
	}},
	{name: "COPY that fails by the client", steps: []scriptStep{
		{send: pgwire.AppendQuery(nil, "COPY t FROM STDIN"), typ: 'G'},
		{send: pgwire.AppendMessage(nil, 'f', []byte("no more\x00")), ends: 1}, q("SELECT 1"),
	}},
	{name: "COPY both ways", steps: []scriptStep{
		q("COPY t TO STDOUT"), x("COPY t TO STDOUT"),
		q("COPY (SELECT a FROM t ORDER BY a) TO STDOUT (FORMAT binary); SELECT 2"),
	}},
	{name: "data of COPY that nobody asked for", steps: []scriptStep{
		{send: append(copyData("3\tc"), pgwire.AppendQuery(nil, "SELECT 1")...), ends: 1},
		{send: append(copyData("3\tc"), extended("SELECT 2")...), ends: 1},
		{send: append(pgwire.AppendMessage(nil, 'f', []byte("x\x00")),
			extended("SELECT 3")...), ends: 1},
	}},
	{name: "PortalSuspended with Flush", steps: []scriptStep{
		q("BEGIN"), {send: portal("c", "SELECT * FROM generate_series(1, 7)", 3), typ: 's'},
		{send: pgwire.AppendFlush(pgwire.AppendExecute(nil, "c", 3)), typ: 's'},
		{send: pgwire.AppendFlush(pgwire.AppendExecute(nil, "c", 3)), typ: 'C'},
		{send: pgwire.AppendSync(nil), ends: 1}, q("COMMIT"),
		{send: portal("", "SELECT * FROM generate_series(1, 7)", 3), typ: 's'},
		{send: pgwire.AppendSync(pgwire.AppendExecute(nil, "", 0)), ends: 1},
		{send: pgwire.AppendSync(pgwire.AppendExecute(nil, "", 0)), ends: 1},
	}},
	{name: "an error in the middle of a pipeline", steps: []scriptStep{
		x("SELECT 1", "SELECT 1/0", "SELECT 2"),
		{send: append(extended("INSERT INTO t VALUES (3, 'c')", "INSERT INTO t VALUES (3, 'd')"),
			extended("SELECT count(*) FROM t")...), ends: 2},
		q("SELECT 1; INSERT INTO t VALUES (3, 'c'); SELECT 1/0; SELECT 2", "SELECT count(*) FROM t"),
		{send: append(unsynced("SELECT 1/0"), append(pgwire.AppendQuery(nil, "SELECT 1"),
			pgwire.AppendSync(nil)...)...), ends: 1},
	}},
	{name: "a Query behind a batch without a Sync", steps: []scriptStep{
		{send: append(unsynced("INSERT INTO t VALUES (3, 'c')"),
			pgwire.AppendQuery(nil, "INSERT INTO t VALUES (4, 'd')")...), ends: 1},
		{send: append(unsynced("SELECT 1"), pgwire.AppendQuery(nil, "SELECT 2")...), ends: 1},
		q("ROLLBACK"), // in PostgreSQL 18 the transaction of the batch is still open here
	}},
	{name: "a Sync behind nothing", steps: []scriptStep{
		{send: pgwire.AppendSync(pgwire.AppendSync(pgwire.AppendFlush(nil))), ends: 2}, q("BEGIN"),
		{send: pgwire.AppendSync(nil), ends: 1}, q("ROLLBACK"),
	}},
	{name: "cached plan must not change result type", steps: []scriptStep{
		{send: pgwire.AppendSync(pgwire.AppendParse(nil, "p", "SELECT * FROM shaped", nil)), ends: 1},
		{send: bindRun("p"), ends: 1}, q("PREPARE s AS SELECT * FROM shaped", "EXECUTE s"),
		q("ALTER TABLE shaped ALTER a TYPE bigint"), {send: bindRun("p"), ends: 1}, q("EXECUTE s"),
		{send: pgwire.AppendSync(pgwire.AppendClose(nil, 'S', "p")), ends: 1}, q("DEALLOCATE s"),
	}},
	{name: "binary formats", steps: []scriptStep{
		{send: binaryRun("SELECT $1::int4 + 1, 'x'::bytea, now() IS NULL", 41), ends: 1},
		{send: binaryRun("INSERT INTO t VALUES ($1, 'bin') RETURNING a", 7), ends: 1},
	}},
	{name: "very long names", steps: []scriptStep{
		q(`SELECT 1 AS "` + strings.Repeat("n", 300) + `"`),
		{send: pgwire.AppendSync(pgwire.AppendParse(nil, strings.Repeat("s", 5000), "SELECT 1", nil)),
			ends: 1},
		{send: bindRun(strings.Repeat("s", 5000)), ends: 1},
		q("PREPARE "+strings.Repeat("p", 100)+" AS SELECT 7", "EXECUTE "+strings.Repeat("p", 63),
			"DEALLOCATE "+strings.Repeat("p", 90)),
		q("SELECT * FROM " + strings.Repeat("no", 400)),
	}},
	{name: "rows without columns", steps: []scriptStep{
		q("SELECT", "SELECT FROM t"), x("SELECT", "SELECT FROM t"), q("TABLE ruled"),
	}},
	{name: "encodings", steps: []scriptStep{
		q("SET client_encoding = 'LATIN1'", "SELECT 'gr\xfc\xdfe', length('\xfc')"),
		x("SELECT 'gr\xfc\xdfe'"), q("SET client_encoding = 'SJIS'",
			"SELECT '\x83\x5c', length('\x83\x5c')"), q("INSERT INTO t VALUES (3, '\x83\x5c')"),
		q("SET client_encoding = 'UTF8'", "SELECT '\xff'", "INSERT INTO t VALUES (4, '\xff')"),
		q("SELECT b FROM t ORDER BY a"),
	}},
	{name: "function calls", steps: []scriptStep{
		{send: functionCall(177, 40, 2), ends: 1}, {send: functionCall(1, 1), ends: 1}, q("BEGIN"),
		{send: functionCall(715, 4711), ends: 1},          // lo_create
		{send: functionCall(952, 4711, 0x60000), ends: 1}, // lo_open
		{send: functionCall(953, 0), ends: 1},             // lo_close
		{send: functionCall(964, 4711), ends: 1},          // lo_unlink
		q("COMMIT"), {send: functionCall(154, 1, 0), ends: 1}, q("SELECT 1"),
	}},
	{name: "empty strings", steps: []scriptStep{
		q("", ";", " -- nothing", ";;"), x("", "SELECT 1", ";"),
	}},
	{name: "several statements in one string", steps: []scriptStep{
		q("SELECT 1; SELECT 2, 3; INSERT INTO t VALUES (3, 'c') RETURNING a; ; SET work_mem = '5MB'",
			"BEGIN; SELECT 1; COMMIT", "SELECT 1; SELECT", "SELECT count(*) FROM t; NOT SQL"),
		x("SELECT 1; SELECT 2"),
	}},
	{name: "notices and notifications in between", steps: []scriptStep{
		q("LISTEN news", "NOTIFY news, 'a'", "DO $$BEGIN RAISE NOTICE 'n'; END$$"),
		x("NOTIFY news, 'b'", "SELECT 1"),
		q("INSERT INTO told VALUES (1)", "INSERT INTO told VALUES (2), (3) RETURNING a"),
		x("INSERT INTO told VALUES (4)"), q("BEGIN", "INSERT INTO told VALUES (5)", "COMMIT"),
		q("UNLISTEN *"),
	}, allow: asyncOrder},
	{name: "single writes in the simple protocol", steps: []scriptStep{
		q("INSERT INTO t VALUES (3, 'c') RETURNING a, b || 'x'", "INSERT INTO t VALUES (3, 'twice')",
			"INSERT INTO t VALUES (3, 'twice') RETURNING a", "DELETE FROM t WHERE a < 0 RETURNING *",
			"INSERT INTO t VALUES (4, 'd'), (5, 'e')", "UPDATE t SET b = 'z'", "DELETE FROM t WHERE a < 0",
			"INSERT INTO t (a, nope) VALUES (6, 'f')", "INSERT INTO nowhere VALUES (1)",
			"INSERT INTO t VALUES (1/0, '')", "INSERT INTO t VALUES (", "UPDATE t SET a = 'x'",
			"INSERT INTO t VALUES ($1, 'par')", "DELETE FROM t WHERE b = $2",
			"INSERT INTO late VALUES (1), (1)", "INSERT INTO ruled VALUES (1), (2)",
			"INSERT INTO ruled VALUES (1) RETURNING a",
			"WITH w AS (DELETE FROM plain RETURNING a) INSERT INTO t SELECT a + 10, 'w' FROM w",
			"WITH w AS (DELETE FROM t RETURNING *) SELECT count(*) FROM w",
			"INSERT INTO t VALUES (NULL, 'n') -- comment", "/* c */ INSERT INTO t VALUES (8, '?');",
			"PREPARE e(int) AS INSERT INTO t VALUES ($1, 'e')", "EXECUTE e(9)", "EXECUTE e(9)",
			"EXECUTE e", "PREPARE f AS SELECT * FROM t", "EXECUTE f", "EXECUTE nowhere",
			"MERGE INTO t USING (VALUES (1)) AS v(i) ON a = i WHEN NOT MATCHED THEN "+
				"INSERT VALUES (i, 'm')", "DEALLOCATE e", "DEALLOCATE f"),
	}},
	{name: "single writes in the extended protocol", steps: []scriptStep{
		x("INSERT INTO t VALUES (3, 'c') RETURNING a"), x("INSERT INTO t VALUES (3, 'twice')"),
		x("INSERT INTO late VALUES (1), (1)"), x("INSERT INTO ruled VALUES (1), (2)"),
		x("INSERT INTO t (a, nope) VALUES (6, 'f')"), x("UPDATE t SET b = 'z' RETURNING *"),
		x("INSERT INTO t VALUES ($1, 'par')"),
		{send: bindRun(""), ends: 1},
	}},
	{name: "names of statements and portals that are not there", steps: []scriptStep{
		{send: bindRun("nowhere"), ends: 1},
		{send: pgwire.AppendSync(pgwire.AppendExecute(nil, "nowhere", 0)), ends: 1},
		{send: pgwire.AppendSync(pgwire.AppendDescribe(nil, 'S', "nowhere")), ends: 1},
		{send: pgwire.AppendSync(pgwire.AppendDescribe(nil, 'X', "")), ends: 1},
		{send: pgwire.AppendSync(pgwire.AppendClose(nil, 'S', "nowhere")), ends: 1},
		{send: pgwire.AppendSync(pgwire.AppendParse(nil, "d", "SELECT 1", nil)), ends: 1},
		{send: pgwire.AppendSync(pgwire.AppendParse(nil, "d", "SELECT 2", nil)), ends: 1},
		{send: pgwire.AppendSync(pgwire.AppendClose(nil, 'S', "d")), ends: 1},
	}},
	{name: "lies inside messages", steps: []scriptStep{
		{send: lyingBind("\x00\x00\x7f\xff"), ends: 1},
		{send: lyingBind("\x00\x00\x00\x00\x00\x01\x7f\xff\xff\xffx\x00\x00"), ends: 1},
		{send: lyingBind("\x00\x00\x00\x00\x00\x01\xff\xff\xff\xfe\x00\x00"), ends: 1},
		{send: pgwire.AppendMessage(nil, 'F', []byte("\x00\x00\x00\xb1\x00\x01\x00\x01\xff\xff")),
			ends: 1}, q("SELECT 1"),
	}},
}

// unsynced is a batch that has no end yet.
func unsynced(sqls ...string) []byte { return noSync(extended(sqls...)) }

// lyingBind binds with a body whose counts and lengths do not fit.
func lyingBind(body string) []byte {
	out := pgwire.AppendParse(nil, "", "SELECT 1", nil)
	return pgwire.AppendSync(pgwire.AppendMessage(out, 'B', []byte(body)))
}

func describedBehind(sqls ...string) []byte {
	return pgwire.AppendSync(pgwire.AppendDescribe(unsynced(sqls...), 'P', ""))
}

// binaryRun binds one int4 in binary and asks for binary columns.
func binaryRun(sql string, arg uint32) []byte {
	out := pgwire.AppendParse(nil, "", sql, []uint32{23})
	body := []byte{0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 4}
	body = binary.BigEndian.AppendUint32(body, arg)
	out = pgwire.AppendMessage(out, 'B', append(body, 0, 1, 0, 1))
	out = pgwire.AppendDescribe(out, 'P', "")
	return pgwire.AppendSync(pgwire.AppendExecute(out, "", 0))
}

// functionCall calls a function with int4 arguments, all in binary.
func functionCall(oid uint32, args ...uint32) []byte {
	body := binary.BigEndian.AppendUint32(nil, oid)
	body = append(body, 0, 1, 0, 1, 0, byte(len(args)))
	for _, a := range args {
		body = binary.BigEndian.AppendUint32(append(body, 0, 0, 0, 4), a)
	}
	return pgwire.AppendMessage(nil, 'F', append(body, 0, 1))
}

// converse has the conversation and returns all that was answered, a message a line.
func converse(t *testing.T, c *pgconn.PgConn, steps []scriptStep) []string {
	t.Helper()
	w := hijack(t, c)
	w.r = pgwire.NewReader(w.from, 64<<20)
	_ = w.c.SetDeadline(time.Now().Add(30 * time.Second))
	var out []string
	for _, s := range steps {
		w.send(s.send)
		for ends, isThere := 0, s.ends == 0 && s.typ == 0; !isThere; {
			typ, body, err := w.r.ReadMessage()
			if err != nil {
				return append(out, fmt.Sprintf("end (%q was waited for)", s.typ))
			}
			if typ == 'Z' {
				ends++
			}
			if typ == 'A' {
				body = body[4:] // the pid is another one
			}
			out = append(out, fmt.Sprintf("%c %q", typ, body))
			isThere = s.ends > 0 && ends == s.ends || s.typ != 0 && typ == s.typ
		}
	}
	return out
}

// directly is a client of the server itself.
func (r *rig) directly(options string) *pgconn.PgConn {
	r.t.Helper()
	_, port, _ := net.SplitHostPort(r.proxy.Addrs()[0].String())
	c, err := dial(context.Background(), strings.Replace(r.dsn(options),
		"port="+port, fmt.Sprintf("port=%d", r.server.Port), 1))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Conn().Close() })
	return c
}

// TestAsDirectly has conversations with the server directly and through the proxy, and wants the
// very same messages, byte for byte.
func TestAsDirectly(t *testing.T) {
	r := newRig(t, nil)
	setup := r.directly("")
	for _, s := range slices.Concat(compatScripts, stringScripts) {
		t.Run(s.name, func(t *testing.T) {
			exec(t, setup, compatSetup)
			want := converse(t, r.directly("application_name=app"), s.steps)
			exec(t, setup, compatSetup)
			got := converse(t, r.connect("application_name=app"), s.steps)
			if s.allow == asyncOrder {
				want, got = asyncLast(want), asyncLast(got)
			}
			compare(t, want, got)
		})
	}
}

// asyncLast puts notifications behind the others.
func asyncLast(lines []string) []string {
	var out, async []string
	for _, l := range lines {
		if l[0] == 'A' {
			async = append(async, l)
		} else {
			out = append(out, l)
		}
	}
	return append(out, async...)
}

func compare(t *testing.T, want, got []string) {
	t.Helper()
	for i := range max(len(want), len(got)) {
		w, g := "nothing", "nothing"
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			t.Errorf("message %d:\n directly %s\n proxy    %s", i, w, g)
		}
	}
}

// A client that names its search_path at login (CVE-2025-12819) gets it, for itself alone; the
// questions of the proxy in that very session mean PostgreSQL's own objects still.
func TestSearchPathOfTheLogin(t *testing.T) {
	r := newRig(t, nil)
	r.server.ExecIn("app", `CREATE SCHEMA evil; GRANT ALL ON SCHEMA evil TO app;
CREATE TABLE evil.t (a int); GRANT ALL ON evil.t TO app;
CREATE FUNCTION evil.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION evil.pg_postmaster_start_time() RETURNS timestamptz LANGUAGE sql
  AS 'SELECT timestamptz ''epoch''';
CREATE FUNCTION evil.pg_backend_pid() RETURNS int LANGUAGE sql AS 'SELECT 0';
CREATE FUNCTION evil.pg_current_xact_id_if_assigned() RETURNS xid8 LANGUAGE sql
  AS 'SELECT ''3''::xid8';
CREATE FUNCTION evil.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT ''evil''';
CREATE FUNCTION evil.never(int, int) RETURNS bool LANGUAGE sql AS 'SELECT false';
CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.never);
CREATE FUNCTION evil.zero(numeric, int) RETURNS numeric LANGUAGE sql AS 'SELECT 0.0';
CREATE OPERATOR evil.* (LEFTARG = numeric, RIGHTARG = int, FUNCTION = evil.zero);
CREATE VIEW evil.pg_settings AS SELECT 'work_mem'::text AS name, '1GB'::text AS setting;
CREATE VIEW evil.pg_stat_activity AS SELECT 0 AS pid, now() AS backend_start;
CREATE SCHEMA holdfast; CREATE FUNCTION holdfast.user_secret(text) RETURNS text LANGUAGE sql
  AS 'SELECT NULL::text'`)
	for _, options := range []string{"search_path=evil,pg_catalog",
		"options='-c search_path=evil,pg_catalog'"} {
		c := r.connect(options)
		want := exec(t, r.directly(options), "SHOW search_path")
		if got := exec(t, c, "SHOW search_path"); got != want || !strings.HasPrefix(got, "evil") {
			t.Errorf("%s: got %q, want %q", options, got, want)
		}
		exec(t, c, "SET work_mem = '5MB'")
		exec(t, c, "INSERT INTO t VALUES (1)")
		exec(t, c, "BEGIN")
		exec(t, c, "INSERT INTO t VALUES (2)")
		r.change()
		exec(t, c, "COMMIT")
		if got := exec(t, c, "SHOW search_path"); got != want {
			t.Errorf("%s: after a change: %q", options, got)
		}
		if got := exec(t, c, "SHOW work_mem"); got != "5MB" {
			t.Errorf("%s: work_mem %q", options, got)
		}
		if n := exec(t, c, "SELECT count(*) FROM evil.t"); n != "2" {
			t.Errorf("%s: %s rows", options, n)
		}
		exec(t, c, "TRUNCATE evil.t")
		_ = c.Close(context.Background())
		if got := exec(t, r.connect(""), "SHOW search_path"); strings.Contains(got, "evil") {
			t.Errorf("another login has %q", got)
		}
	}
}
