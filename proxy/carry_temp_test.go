package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// planned is a planned change as the proxy sees it: a drain that has time, the end of the epoch, a
// fast stop, and the next epoch.
func (r *rig) planned() {
	r.t.Helper()
	r.drained()
	r.server.Stop("fast")
	r.server.Start()
	r.goesBack()
}

// drained is the first half of it: nothing of the epoch is open any more.
func (r *rig) drained() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	r.proxy.Drain(ctx, r.epoch)
	if ctx.Err() != nil {
		r.t.Error("the drain has not come to its end")
	}
	r.proxy.Cut(r.epoch)
}

// givenUp is a planned change that fails: the same server is the primary again.
func (r *rig) givenUp() {
	r.t.Helper()
	r.drained()
	r.goesBack()
}

func (r *rig) goesBack() {
	r.t.Helper()
	next := r.server.NextXID()
	r.lead(next, next)
}

// tempCatalogSQL is what psql would show of the session's temporary tables, and more, with other
// questions than those of the proxy.
const tempCatalogSQL = `WITH r AS (SELECT c.*, n.nspname FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) relnamespace
  WHERE relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema() AND relkind = 'r'),
x(k, v) AS (
SELECT r.relname || ' is', concat_ws(' ', pg_catalog.pg_get_userbyid(relowner), relpersistence,
  relnatts, reloptions,
  (SELECT t.reloptions FROM pg_catalog.pg_class t WHERE t.oid = reltoastrelid),
  (SELECT amname FROM pg_catalog.pg_am a WHERE a.oid = relam), reltablespace,
  pg_catalog.obj_description(oid, 'pg_class')) FROM r
UNION ALL SELECT r.relname || ' column ' || attnum, concat_ws(' ', attname,
  pg_catalog.format_type(atttypid, atttypmod), attnotnull, attgenerated, attstorage,
  attcollation::regcollation, pg_catalog.pg_get_expr(adbin, adrelid),
  pg_catalog.col_description(attrelid, attnum))
  FROM r JOIN pg_catalog.pg_attribute a ON attrelid = r.oid
  LEFT JOIN pg_catalog.pg_attrdef ON adrelid = attrelid AND adnum = attnum
  WHERE attnum > 0 AND NOT attisdropped
UNION ALL SELECT r.relname || ' constraint ' || conname, concat_ws(' ', contype,
  pg_catalog.pg_get_constraintdef(c.oid), convalidated, condeferrable, condeferred,
  connoinherit, pg_catalog.obj_description(c.oid, 'pg_constraint'))
  FROM r JOIN pg_catalog.pg_constraint c ON conrelid = r.oid
UNION ALL SELECT r.relname || ' index ' || indexrelid::regclass, concat_ws(' ',
  replace(replace(pg_catalog.pg_get_indexdef(indexrelid), ' ON ' || nspname || '.', ' ON '),
  ' ON pg_temp.', ' ON '), indisunique, indisprimary, indisvalid, indimmediate,
  pg_catalog.obj_description(indexrelid, 'pg_class'))
  FROM r JOIN pg_catalog.pg_index i ON indrelid = r.oid
UNION ALL SELECT r.relname || ' privilege', concat_ws(' ', grantee::regrole, privilege_type,
  is_grantable) FROM r, pg_catalog.aclexplode(relacl))
SELECT string_agg(k || ': ' || v, E'\n' ORDER BY k COLLATE "C", v COLLATE "C") FROM x`

// tempState is all that a session can see of its temporary tables: the catalogue and the rows, in
// their order. Errors count.
func tempState(c *pgconn.PgConn, asOwner map[string]string) string {
	var b strings.Builder
	ask := func(sql string) string {
		v, err := tryExec(c, sql)
		if err != nil {
			v = "ERROR " + told(err)
		}
		return v
	}
	b.WriteString(ask(tempCatalogSQL))
	names := ask("SELECT string_agg(quote_ident(relname), E'\n' ORDER BY relname COLLATE \"C\")" +
		" FROM pg_catalog.pg_class WHERE relkind = 'r' AND relnamespace = pg_my_temp_schema()")
	for _, name := range strings.Split(names, "\n") {
		if name == "" {
			continue
		}
		sql := "SELECT string_agg(x::pg_catalog.text, E'\\n' ORDER BY ctid) FROM pg_temp." + name + " x"
		if owner := asOwner[name]; owner != "" {
			sql = "BEGIN; SET LOCAL ROLE " + owner + "; " + sql
		}
		fmt.Fprintf(&b, "\n%s: %s", name, ask(sql))
		if asOwner[name] != "" {
			ask("ROLLBACK")
		}
	}
	return b.String()
}

// told is an error with all that its client learns.
func told(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.Code + " " + pe.Message + " " + pe.Detail
	}
	return fmt.Sprint(err)
}

// tempSetup is what the sessions of TestTemporaryTablesAreCarried find in their database.
var tempSetup = []string{
	"CREATE DOMAIN posint AS int CHECK (VALUE > 0)", "CREATE TYPE mood AS ENUM ('sad', 'ok')",
	"CREATE TYPE pair AS (x int, y text, z posint)", "CREATE TYPE frange AS RANGE (subtype = float8)",
	"CREATE SEQUENCE public.turn", "CREATE COLLATION public.nordic (locale = 'POSIX')",
	"CREATE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2'",
	`CREATE FUNCTION make_temp() RETURNS void LANGUAGE plpgsql AS $$BEGIN
	  CREATE TEMP TABLE made (a int) ON COMMIT DELETE ROWS; CREATE TEMP TABLE kept (a int); END$$`,
}

// carriedTemps are sessions with temporary tables that a planned change carries.
var carriedTemps = map[string]struct {
	options string
	before  []string
	owner   map[string]string
}{
	"types": {before: []string{
		`CREATE TEMP TABLE v (a int2, b int4, c int8, d float4, e float8, f numeric, g numeric(20,5),
		 h text, i varchar(7), j char(5), k bytea, l bool, m date, n timestamp, o timestamptz(3),
		 p interval, q time, r timetz, s uuid, t json, u jsonb, v xml, w int[], x text[][], y mood,
		 z pair, aa posint, ab int4range, ac frange, ad inet, ae macaddr, af bit(5), ag varbit, ah money,
		 ai point, aj polygon, ak tsvector, al tsquery, am name, an "char", ao pg_lsn, ap oid, aq xid,
		 ar mood[], as_ pair[], at posint[], au interval day to second(2), av bpchar, aw txid_snapshot)`,
		`INSERT INTO v DEFAULT VALUES`,
		`INSERT INTO v (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r) VALUES
		 (-32768, -2147483648, -9223372036854775808, 'NaN', '-0', 'NaN', 0.1, E'a\tb\\\n\'é€', 'x',
		 'ab', '\x00ff27', true, 'infinity', '-infinity', '2026-11-29 12:00:00.1239+05:50:36',
		 '-1 mon 3 days -00:00:00.000001', '24:00', '10:00+15:59'),
		 (NULL, NULL, NULL, '-Infinity', 1e-320, 1e300, NULL, '', '', '', '', false, '4713-01-01 BC',
		 '294276-12-31 23:59:59.999999', 'infinity', '178000000 years', NULL, NULL)`,
		`INSERT INTO v (e, s, t, u, w, x, y, z, aa, ab, ac, ad, ae, af, ag, ah, ai, aj, ak, al, am, an,
		 ao, ap, aq, ar, as_, at, au, av, aw) VALUES (0.1::float8 + 0.2, gen_random_uuid(), '{"a" : 1}',
		 '{"b": 1.50, "a": null}', '[5:6]={1,NULL}', '{{a,"NULL"},{NULL,"b,\"c"}}', 'ok', '(1,"a,b",2)',
		 7, '[1,5)', '(,0.5]', '10.1.2.3/8', '08:00:2b:01:02:03', B'10101', B'1', '-12.34', '(1,2)',
		 '((0,0),(1,1),(1e-9,0))', 'a:1A b', 'a & !b:*', 'n', E'q', '16/B374D848', 4294967295, '7',
		 '{sad,NULL}', '{"(1,,)",NULL}', '{1,2}', '1 day 00:00:01.126', 'pad  ', '10:20:10,14')`,
		`INSERT INTO v (h, k) SELECT repeat('größer ', 9000), decode(string_agg(md5(i::text), ''), 'hex')
		 FROM generate_series(1, 700) i`,
	}},
	"definitions": {before: []string{
		`CREATE TEMP TABLE "Ta ""b\" (gone int, id bigint CONSTRAINT "my key" PRIMARY KEY,
		 "A b" text NOT NULL DEFAULT E'it''s\\n', c numeric(10,2) CHECK (c > 0) NO INHERIT,
		 d text COLLATE nordic, e text COLLATE "C", f int GENERATED ALWAYS AS (twice(id::int)) STORED,
		 g int DEFAULT nextval('public.turn'), h timestamptz DEFAULT now(), gone2 text, i int[][],
		 UNIQUE (c, d) INCLUDE (e) DEFERRABLE INITIALLY DEFERRED,
		 CONSTRAINT both_ CHECK (length("A b") > 0 OR c IS NULL))
		 WITH (fillfactor = 70, autovacuum_enabled = off, toast.autovacuum_enabled = off)`,
		`ALTER TABLE "Ta ""b\" DROP COLUMN gone, DROP COLUMN gone2`,
		`INSERT INTO "Ta ""b\" (id, "A b", c) SELECT i, 'x' || i, i FROM generate_series(5, 1, -1) i`,
		`DELETE FROM "Ta ""b\" WHERE id = 3`,
		`ALTER TABLE "Ta ""b\" ADD CONSTRAINT late CHECK (id <> 4) NOT VALID`,
		`CREATE INDEX "i ON pg_temp.x" ON "Ta ""b\" USING btree (lower("A b") text_pattern_ops,
		 c DESC NULLS LAST) INCLUDE (d) WITH (fillfactor = 50) WHERE id > 2 AND "A b" <> ';'`,
		`CREATE UNIQUE INDEX ON "Ta ""b\" (twice(id::int))`, `CREATE INDEX ON "Ta ""b\" USING hash (id)`,
		`COMMENT ON TABLE "Ta ""b\" IS 'a; ''table\'`, `COMMENT ON COLUMN "Ta ""b\"."A b" IS 'column'`,
		`COMMENT ON CONSTRAINT "my key" ON "Ta ""b\" IS 'constraint'`,
		`COMMENT ON INDEX "i ON pg_temp.x" IS 'index'`, `ANALYZE "Ta ""b\"`,
		`GRANT SELECT, UPDATE ON "Ta ""b\" TO PUBLIC`, `REVOKE DELETE ON "Ta ""b\" FROM app`,
		`GRANT INSERT ON "Ta ""b\" TO clerk WITH GRANT OPTION`, `CREATE TEMP TABLE nothing ()`,
		`CREATE TEMP TABLE rows_ ()`, `INSERT INTO rows_ DEFAULT VALUES`,
		`CREATE TEMP TABLE gen (a int GENERATED ALWAYS AS (5) STORED)`,
		`INSERT INTO gen DEFAULT VALUES`, `CREATE TABLE pg_temp.plain AS SELECT 1 AS one`,
		`SELECT 2 AS two INTO TEMP two`, `CREATE TEMP TABLE alike (LIKE "Ta ""b\" INCLUDING ALL)`,
	}},
	"names that hide PostgreSQL's": {before: []string{
		`CREATE TEMP TABLE pg_class (oid int, relname text)`, `CREATE TEMP TABLE text (a int)`,
		`CREATE TEMP TABLE int4range (a int4)`, `INSERT INTO pg_class VALUES (1, 'x')`,
		`CREATE TEMP TABLE more (a pg_catalog.text DEFAULT 'a'::pg_catalog.text, b pg_catalog.int4range)`,
		`INSERT INTO more VALUES ('b', '[1,2]')`,
	}},
	"settings that change how things are read": {options: "client_encoding=LATIN1", before: []string{
		"SET standard_conforming_strings = off", "SET DateStyle = 'German'",
		"SET extra_float_digits = 0", "SET bytea_output = escape", "SET IntervalStyle = iso_8601",
		"SET default_transaction_read_only = on", "SET transform_null_equals = on",
		"SET quote_all_identifiers = on", "SET search_path = nowhere, pg_catalog",
		"SET default_transaction_isolation = serializable",
		"BEGIN READ WRITE",
		"CREATE TEMP TABLE \"t\xe9\" (a float8, b timestamptz, c bytea, d text DEFAULT '\xe9'''," +
			" e float8 DEFAULT '0.30000000000000004' CHECK (e = '0.30000000000000004')," +
			" f interval DEFAULT '-1 day 01:00' CHECK (f = '-1 day 01:00')," +
			" g timestamptz DEFAULT '02.01.2026 03:04 Asia/Tokyo', h money DEFAULT 1.5, i xml)",
		"INSERT INTO \"t\xe9\" VALUES (0.1::float8 + 0.2, '02.01.1999', '\\\\000\\\\377', '\xe9')",
		"UPDATE \"t\xe9\" SET i = xmlparse(CONTENT 'x<a/>y')", "SET xmloption = document",
		"COMMIT",
	}},
	"another role's": {before: []string{
		"SET ROLE clerk", "CREATE TEMP TABLE hers (a int)", "INSERT INTO hers VALUES (1), (2)",
		"CREATE TEMP TABLE hers_empty (a int) ON COMMIT DELETE ROWS",
		"REVOKE ALL ON hers FROM PUBLIC", "RESET ROLE", "CREATE TEMP TABLE his (a int)",
	}, owner: map[string]string{"hers": "clerk", "hers_empty": "clerk"}},
	"the role that is set": {before: []string{
		"CREATE TEMP TABLE his (a int)", "INSERT INTO his VALUES (1)", "SET ROLE clerk",
		"CREATE TEMP TABLE hers (a int)", "INSERT INTO hers VALUES (1), (2)",
	}, owner: map[string]string{"his": "app"}},
	"made by a function": {before: []string{
		"DO $$BEGIN PERFORM make_temp(); END$$", "INSERT INTO kept VALUES (1)",
	}},
	"dropped": {before: []string{"CREATE TEMP TABLE gone (a int)", "DROP TABLE gone"}},
	"gone with its transaction": {before: []string{"BEGIN", "CREATE TEMP TABLE gone (a int)",
		"CREATE TEMP TABLE stays (a int)", "SAVEPOINT s", "CREATE TEMP TABLE undone (a int)",
		"ROLLBACK TO s", "CREATE TEMP TABLE ends (a int) ON COMMIT DROP", "DROP TABLE gone", "COMMIT"}},
}

// Temporary tables that a planned change carries are as they were, in all that their session can
// ask for (DESIGN.md I29).
func TestTemporaryTablesAreCarried(t *testing.T) {
	r := newRig(t, nil)
	for _, sql := range tempSetup {
		exec(t, r.connect(""), sql)
	}
	conns, was := map[string]*pgconn.PgConn{}, map[string]string{}
	for name, tc := range carriedTemps {
		c := r.connect(tc.options + " application_name='" + name[:4] + "'")
		for _, sql := range tc.before {
			if _, err := tryExec(c, sql); err != nil {
				t.Fatalf("%s: %s: %v", name, sql, err)
			}
		}
		conns[name], was[name] = c, tempState(c, tc.owner)
		if strings.Contains(was[name], "ERROR ") {
			t.Fatalf("%s: %s", name, was[name])
		}
	}
	for _, change := range []func(){r.planned, r.givenUp, r.planned} {
		change()
		for name, c := range conns {
			if now := tempState(c, carriedTemps[name].owner); now != was[name] {
				t.Errorf("%s: %s", name, firstDifference(was[name], now))
			}
		}
	}
	r.change()
	for name, c := range conns {
		_, err := tryExec(c, "SELECT 1")
		if want := name != "dropped"; (code(err) == "57P01") != want {
			t.Errorf("%s: after a failure: %v", name, err)
		}
	}
}

// firstDifference is the first line that is another one.
func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range x {
		if i >= len(y) || x[i] != y[i] {
			return fmt.Sprintf("%.300q, now %.300q", x[i], y[min(i, len(y)):min(i+1, len(y))])
		}
	}
	return fmt.Sprintf("more: %.300q", y[len(x):])
}

// What happens to rows at a commit is carried too, of tables with rows and without.
func TestOnCommitIsCarried(t *testing.T) {
	r := newRig(t, nil)
	exec(t, r.connect(""), tempSetup[len(tempSetup)-1])
	c := r.connect("")
	for _, sql := range []string{
		"CREATE TEMP TABLE a (i int PRIMARY KEY CHECK (i > 0), j text NOT NULL) ON COMMIT DELETE ROWS",
		"CREATE TEMP TABLE b (i int PRIMARY KEY CHECK (i > 0), j text NOT NULL)",
		"CREATE LOCAL TEMPORARY TABLE c (i, j) ON COMMIT PRESERVE ROWS AS VALUES (1, 'x')",
		"CREATE TEMP TABLE d ON COMMIT DELETE ROWS AS SELECT 1 AS i, 'x'::text AS j",
		"SELECT make_temp()", "DO 'BEGIN END'", // so that the server is asked what there is
	} {
		exec(t, c, sql)
	}
	for range 2 {
		r.planned()
		for table, want := range map[string]string{"a": "0", "b": "1", "c": "1", "d": "0",
			"made": "0", "kept": "1"} {
			row := "7, 'y'"
			if len(table) > 1 {
				row = "7"
			}
			exec(t, c, "BEGIN")
			exec(t, c, "DELETE FROM "+table)
			exec(t, c, "INSERT INTO "+table+" VALUES ("+row+")")
			if n := exec(t, c, "SELECT count(*) FROM "+table); n != "1" {
				t.Errorf("%s has %s rows before the commit", table, n)
			}
			exec(t, c, "COMMIT")
			if n := exec(t, c, "SELECT count(*) FROM "+table); n != want {
				t.Errorf("%s has %s rows behind the commit, not %s", table, n, want)
			}
			exec(t, c, "DELETE FROM "+table)
		}
	}
}

// Prepared statements over a temporary table work on, those of the protocol and of SQL, and say
// the same of their result.
func TestPreparedOverCarriedTables(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE TEMP TABLE tt (gone int, a int PRIMARY KEY, b text)")
	exec(t, c, "ALTER TABLE tt DROP COLUMN gone")
	exec(t, c, "INSERT INTO tt VALUES (1, 'one'), (2, 'two')")
	exec(t, c, "PREPARE s AS SELECT b FROM tt WHERE a = $1")
	exec(t, c, "ANALYZE tt")
	ctx := context.Background()
	was, err := c.Prepare(ctx, "p", "SELECT a, b FROM tt WHERE a = $1", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.planned()
	got := c.ExecPrepared(ctx, "p", [][]byte{[]byte("2")}, nil, nil).Read()
	if got.Err != nil || len(got.Rows) != 1 || string(got.Rows[0][1]) != "two" {
		t.Fatalf("%q %v", got.Rows, got.Err)
	}
	for i, f := range got.FieldDescriptions {
		if old := was.Fields[i]; f.Name != old.Name || f.DataTypeOID != old.DataTypeOID ||
			f.TableAttributeNumber != old.TableAttributeNumber || f.TableOID == 0 {
			t.Errorf("described as %+v, before as %+v", f, old)
		}
	}
	if v := exec(t, c, "EXECUTE s(1)"); v != "one" {
		t.Error(v)
	}
	if v := exec(t, c, "SELECT count(*) FROM pg_stats WHERE tablename = 'tt'"); v != "2" {
		t.Errorf("%s columns were analyzed", v)
	}
}

// A session keeps its advisory lock and its table: the lock is nobody else's in between.
func TestCarriedTablesAndLocks(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE TEMP TABLE tt (a int)")
	exec(t, c, "INSERT INTO tt VALUES (1)")
	exec(t, c, "SELECT pg_advisory_lock(7)")
	exec(t, c, "LISTEN news")
	r.drained()
	if v := r.server.ExecIn("app", "SELECT pg_try_advisory_lock(7)")[0][0]; v != "f" {
		t.Error("the old primary gives the lock away before it is stopped")
	}
	r.server.Stop("fast")
	r.server.Start()
	r.goesBack()
	if v := exec(t, c, "SELECT count(*) FROM tt"); v != "1" {
		t.Error(v)
	}
	if v := exec(t, c, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"); v != "1" {
		t.Error(v)
	}
}

// What a client sends while its tables are on the way waits, and is answered there. A transaction
// that is open when the drain begins ends first.
func TestWorkWaitsForCarriedTables(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.RestoreConcurrency = 2 })
	const n = 12
	done := make(chan error, n)
	drains := make(chan struct{})
	for i := range n {
		c := r.connect("")
		exec(t, c, "CREATE TEMP TABLE tt (a int)")
		exec(t, c, "BEGIN")
		exec(t, c, "INSERT INTO tt VALUES (1)")
		go func() {
			<-drains
			time.Sleep(time.Duration(i) * 5 * time.Millisecond) // some before it began, some behind it
			_, err := tryExec(c, "COMMIT")
			for j := 0; err == nil && j < 20; j++ {
				_, err = tryExec(c, "INSERT INTO tt VALUES (1)")
			}
			if v, e := tryExec(c, "SELECT count(*) FROM tt"); err == nil && (e != nil || v != "21") {
				err = fmt.Errorf("%s rows, %w", v, errors.Join(e))
			}
			done <- err
		}()
	}
	close(drains)
	r.planned()
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	r.eventually(func() bool { return r.count("temporary_tables_total", "restored") == n }, "all")
}

// A connection that breaks in the middle of the restoring costs nothing: another one gets all.
func TestRestoringTablesIsRepeated(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE TEMP TABLE tt (a int)")
	exec(t, c, "INSERT INTO tt SELECT generate_series(1, 10000)")
	r.drained()
	cuts := 0
	r.line.Watch(func(typ byte, _ []byte) bool {
		if typ == pgwire.CliCopyData && cuts < 2 {
			cuts++
			return false
		}
		return true
	}, nil)
	r.goesBack()
	if v := exec(t, c, "SELECT count(*) || ' ' || sum(a) FROM tt"); v != "10000 50005000" {
		t.Error(v)
	}
	r.line.Watch(nil, nil)
	if cuts != 2 {
		t.Errorf("%d cuts", cuts)
	}
}

// Tables that a function makes, which a SELECT calls, are noticed by the function's body.
func TestTablesThatFunctionsMake(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("application_name=maker")
	exec(t, c, tempSetup[len(tempSetup)-1])
	r.until(func() bool {
		_, _ = tryExec(c, "SELECT 1 + 1") // a use for it
		return proxy.KnowsMaker(r.proxy, "app", "make_temp")
	})
	exec(t, c, "SELECT make_temp()")
	if s := r.sessionOf("maker"); !s.Planned || s.Statement != "SELECT make_temp()" {
		t.Errorf("%+v", s)
	}
	exec(t, c, "INSERT INTO kept VALUES (7)")
	r.planned()
	if v, err := tryExec(c, "SELECT a FROM kept"); v != "7" {
		t.Errorf("%q %v", v, err)
	}
	r.change()
	if _, err := tryExec(c, "SELECT 1"); code(err) != "57P01" {
		t.Errorf("told %v", err)
	}
}
