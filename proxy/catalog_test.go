package proxy_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// catalogSetup makes objects that write or not, in the ways in which it cannot be seen.
const catalogSetup = `
CREATE TABLE log (a text);
CREATE TABLE orders (id int, status text, total numeric, due date);
CREATE SEQUENCE seq;
CREATE SCHEMA other;
-- Functions of all kinds.
CREATE FUNCTION writes() RETURNS int LANGUAGE sql AS 'INSERT INTO log VALUES (1); SELECT 1';
CREATE FUNCTION writes_pl() RETURNS int LANGUAGE plpgsql AS
 'BEGIN INSERT INTO log VALUES (1); RETURN 1; END';
CREATE FUNCTION reads() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM orders';
CREATE FUNCTION reads_stable(x int) RETURNS int STABLE LANGUAGE plpgsql AS
 'BEGIN RETURN x + (SELECT count(*) FROM orders WHERE id = x); END';
CREATE FUNCTION lies() RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN writes(); END';
CREATE FUNCTION lies_sql() RETURNS int STABLE LANGUAGE sql AS 'SELECT writes()';
CREATE FUNCTION lies_atomic() RETURNS int STABLE LANGUAGE sql BEGIN ATOMIC SELECT writes(); END;
CREATE FUNCTION reads_atomic() RETURNS int STABLE LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE FUNCTION hides() RETURNS int STABLE LANGUAGE plpgsql AS
 $$DECLARE r int; BEGIN EXECUTE 'SELECT wri' || 'tes()' INTO r; RETURN r; END$$;
CREATE FUNCTION sets_config() RETURNS text LANGUAGE sql
 AS 'SELECT set_config(''a.c'', ''d'', false)';
CREATE FUNCTION sets() RETURNS text LANGUAGE sql AS 'SET app.x = 1; SELECT ''x''';
CREATE FUNCTION deep(n int) RETURNS int STABLE LANGUAGE plpgsql AS
 'BEGIN RETURN reads_stable(n); END';
CREATE FUNCTION by_default(x int DEFAULT nextval('seq')) RETURNS int IMMUTABLE LANGUAGE sql
 AS 'SELECT x';
CREATE FUNCTION calls_itself(n int) RETURNS int STABLE LANGUAGE plpgsql AS
 'BEGIN RETURN CASE WHEN n = 0 THEN 0 ELSE calls_itself(n - 1) END; END';
CREATE PROCEDURE proc() LANGUAGE sql AS 'INSERT INTO log VALUES (1)';
-- A function that can be called as a column.
CREATE FUNCTION shadow(o orders) RETURNS int LANGUAGE plpgsql AS
 'BEGIN INSERT INTO log VALUES (1); RETURN 1; END';
-- Names in two schemas.
CREATE FUNCTION twice(x int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT x * 2';
CREATE FUNCTION other.twice(x int) RETURNS int LANGUAGE plpgsql AS
 'BEGIN INSERT INTO log VALUES (1); RETURN x; END';
CREATE FUNCTION other.sqrt(x float8) RETURNS float8 LANGUAGE plpgsql AS
 'BEGIN INSERT INTO log VALUES (1); RETURN x; END';
-- Views.
CREATE VIEW v_reads AS SELECT id, upper(status) AS s FROM orders WHERE due < now();
CREATE VIEW v_deep AS SELECT * FROM v_reads;
CREATE VIEW v_writes AS SELECT id, nextval('seq') FROM orders;
CREATE VIEW v_calls AS SELECT writes() AS w;
CREATE VIEW other.v_over AS SELECT * FROM v_calls;
CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM orders;
CREATE TABLE parent (a int) PARTITION BY LIST (a);
CREATE TABLE child PARTITION OF parent FOR VALUES IN (1);
-- Policies.
CREATE TABLE tenants (id int, name text);
ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON tenants USING (name = current_setting('app.tenant', true));
CREATE TABLE audited (id int);
ALTER TABLE audited ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON audited USING (writes_pl() > 0);
-- Operators, casts, domains, types, aggregates.
CREATE FUNCTION op_writes(int, text) RETURNS boolean LANGUAGE plpgsql AS
 'BEGIN INSERT INTO log VALUES (1); RETURN true; END';
CREATE OPERATOR @@@ (LEFTARG = int, RIGHTARG = text, FUNCTION = op_writes);
CREATE FUNCTION op_reads(int, text) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR @@& (LEFTARG = int, RIGHTARG = text, FUNCTION = op_reads);
CREATE FUNCTION checks(int) RETURNS boolean LANGUAGE plpgsql AS
 'BEGIN INSERT INTO log VALUES (1); RETURN true; END';
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN logged AS int CHECK (checks(VALUE));
CREATE TYPE pair AS (a int, b positive);
CREATE TYPE logged_pair AS (a int, b logged);
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE FUNCTION takes(x logged) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
CREATE TABLE moods (id int, m mood, p pair);
CREATE FUNCTION step(int, int) RETURNS int LANGUAGE plpgsql AS
 'BEGIN INSERT INTO log VALUES (1); RETURN 1; END';
CREATE AGGREGATE agg_writes(int) (SFUNC = step, STYPE = int, INITCOND = '0');
CREATE AGGREGATE agg_reads(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE EXTENSION IF NOT EXISTS plpgsql;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO app;`

func onlyReads(t *testing.T, r *rig, sqls ...string) bool {
	t.Helper()
	in := make([]proxy.CatalogStatement, len(sqls))
	for i, s := range sqls {
		in[i] = proxy.CatalogStatement{Text: s, Conforming: true}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	pr, _ := r.topo.Current()
	ok, err := proxy.OnlyReads(ctx, r.proxy, pr, "app", in...)
	if err != nil {
		t.Fatalf("%q: %v", sqls, err)
	}
	return ok
}

// TestOnlyReads: DESIGN.md I20, on a real catalogue.
func TestOnlyReads(t *testing.T) {
	r := newRig(t, nil)
	r.server.ExecIn("app", catalogSetup)
	for _, sql := range []string{
		"SELECT 1", "SELECT * FROM orders WHERE id = 5", "SELECT count(*), sum(total) FROM orders",
		"SELECT o.id, o.status, o.total * 2 FROM orders o WHERE o.due < now() ORDER BY o.id LIMIT 5",
		"SELECT status, max(due) FROM orders GROUP BY 1 HAVING count(*) > 1",
		"WITH x (a) AS (SELECT id FROM orders) SELECT a FROM x JOIN orders USING (id)",
		"SELECT random(), clock_timestamp(), gen_random_uuid(), pg_sleep(0), pg_backend_pid()",
		"SELECT current_setting('a.b', true), version(), current_user, current_schema()",
		"SELECT coalesce(status, 'x'), CASE WHEN id IN (1, 2) THEN 'a' END FROM orders",
		"SELECT id::text, '2020-01-01'::date, CAST(id AS numeric(10, 2)) FROM orders",
		"SELECT * FROM orders WHERE status LIKE 'a%' AND due BETWEEN '2020-01-01' AND now()",
		"SELECT id, row_number() OVER (PARTITION BY status ORDER BY id) FROM orders",
		"SELECT * FROM orders FOR UPDATE", "LOCK TABLE orders", "TABLE orders", "VALUES (1), (2)",
		"COPY orders TO STDOUT", "COPY (SELECT * FROM v_deep) TO STDOUT WITH (FORMAT csv)",
		"EXPLAIN ANALYZE SELECT * FROM v_reads", "EXPLAIN INSERT INTO orders VALUES (1)",
		"DECLARE c CURSOR FOR SELECT * FROM orders", "FETCH 5 FROM c", "SHOW work_mem",
		"SELECT * FROM orders TABLESAMPLE bernoulli (10)", "SELECT last_value FROM seq",
		"SELECT * FROM v_reads", "SELECT * FROM v_deep v WHERE v.id = 1", "SELECT * FROM m",
		"SELECT * FROM parent", "SELECT * FROM tenants", "SELECT reads()", "SELECT reads_stable(1)",
		"SELECT deep(5), calls_itself(3), reads_atomic()", "SELECT public.twice(5)",
		"SELECT 1 @@& 'a'", "SELECT 5::positive", "SELECT m, p FROM moods WHERE m = 'sad'",
		"SELECT '(1,2)'::pair", "SELECT agg_reads(id) FROM orders",
		"SELECT * FROM pg_stat_activity", "SELECT * FROM information_schema.tables",
		"SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace",
		"SELECT * FROM no_such_table", "BEGIN; SELECT * FROM orders; COMMIT",
		"SELECT extract(year FROM due), due AT TIME ZONE 'UTC', substring(status FROM 1) FROM orders",
		"SELECT x.a FROM generate_series(1, 5) AS x(a)", "SELECT array_agg(id) FROM orders",
		"SELECT set_config('a.b', 'c', false)", "SELECT pg_catalog.set_config('a.b', $1, true)",
		"SELECT '{}'::jsonb -> 'a' ->> 'b', jsonb_build_object('a', id) FROM orders",
	} {
		if !onlyReads(t, r, sql) {
			t.Errorf("%s: only reads", sql)
		}
	}
	for _, sql := range []string{
		"SELECT writes()", "SELECT writes_pl()", "SELECT nextval('seq')", "SELECT lies()",
		"SELECT lies_sql()", "SELECT lies_atomic()", "SELECT hides()", "SELECT sets()",
		"SELECT by_default()", "SELECT o.shadow FROM orders o", "SELECT (o).shadow FROM orders o",
		"SELECT twice(5)", "SELECT other.twice(5)", "SELECT sqrt(2)", `SELECT "writes"()`,
		`SELECT U&"writes"()`, "SELECT * FROM v_writes", "SELECT * FROM v_calls", "TABLE v_calls",
		"SELECT * FROM other.v_over", "SELECT * FROM audited", "SELECT 1 @@@ 'a'",
		"SELECT 5::logged", "SELECT logged '5'", "SELECT CAST('5' AS logged)", "SELECT logged('5')",
		"SELECT '(1,5)'::logged_pair", "SELECT '{5}'::logged[]", "SELECT takes(5)",
		"SELECT agg_writes(id) FROM orders", "SELECT * FROM orders, v_calls",
		"INSERT INTO orders VALUES (1)", "SELECT * INTO x FROM orders", "CALL proc()",
		"WITH x AS (DELETE FROM orders RETURNING *) SELECT * FROM x", "DO 'BEGIN END'",
		"COPY v_calls TO STDOUT", "COPY (SELECT writes()) TO STDOUT", "COPY orders FROM STDIN",
		"COPY orders TO '/tmp/x'", "COPY orders TO PROGRAM 'cat'", "EXPLAIN SELECT writes()",
		"EXPLAIN ANALYZE INSERT INTO orders VALUES (1)", "DECLARE c CURSOR FOR SELECT writes()",
		"DECLARE c CURSOR WITH HOLD FOR SELECT 1",
		"SELECT set_config('a.' || 'b', 'c', false)", "SELECT set_config($1, 'c', false)",
		"SELECT set_config('a.b', 'c', false), set_config(status, 'c', false) FROM orders",
		"SELECT set_config('standard_conforming_strings', 'off', false)", "SELECT sets_config()",
		"SELECT set_config('a.b', sets_config(), false)", "SELECT set_config('a.b', writes(), false)",
		"SELECT lo_creat(-1)", "SELECT pg_notify('a', 'b')",
		"SELECT table_to_xml('v_calls', false, false, '')", "SELECT query_to_xml('a', true, true, '')",
		"SELECT pg_terminate_backend(1)", "SELECT domain_in('1', 'logged'::regtype, -1)",
		"SELECT 1; SELECT writes()", "LISTEN a", "NOTIFY a", "EXECUTE p", "VACUUM", "SELECT 'no end",
		"SELECT proc()", "SELECT jsonb_populate_record(NULL::logged_pair, '{}')",
		"SELECT * FROM jsonb_to_record('{}') AS x (a logged)",
	} {
		if onlyReads(t, r, sql) {
			t.Errorf("%s: may write", sql)
		}
	}
	if onlyReads(t, r, "SELECT * FROM orders", "SELECT writes()") {
		t.Error("one of several statements may write")
	}
}

// TestBuiltinsAreHarmless: what catalogSQL does not ask about.
func TestBuiltinsAreHarmless(t *testing.T) {
	s := proxytest.StartServer(t)
	for what, sql := range map[string]string{
		"operators": `SELECT o.oid::regoperator FROM pg_operator o JOIN pg_proc p
 ON p.oid = o.oprcode`,
		"casts": `SELECT p.oid::regprocedure FROM pg_cast c JOIN pg_proc p ON p.oid = c.castfunc`,
		"aggregates": `SELECT a.aggfnoid FROM pg_aggregate a JOIN pg_proc p ON p.oid IN (aggtransfn,
 aggfinalfn, aggcombinefn, aggserialfn, aggdeserialfn, aggmtransfn, aggminvtransfn, aggmfinalfn)`,
		"types": `SELECT t.oid::regtype FROM pg_type t JOIN pg_proc p ON p.oid IN (typinput,
 typoutput, typreceive, typsend, typmodin, typmodout)`,
		"support functions": `SELECT p.oid::regprocedure FROM pg_amproc a JOIN pg_proc p
 ON p.oid = a.amproc`,
	} {
		if rows := s.Exec(sql + " WHERE p.provolatile = 'v' AND p.oid < 16384"); len(rows) > 0 {
			t.Errorf("%s with volatile functions: %v", what, rows)
		}
	}
}

// writesVolatile are the volatile functions of PostgreSQL that may not be called again in silence,
// with the reasons. Its count and harmlessVolatile's make all that PostgreSQL 13 to 18 have.
var writesVolatile = map[string]string{
	"sequences": "nextval setval",
	"what a session had, and another one has not": "currval lastval setseed set_config " +
		"pg_stat_clear_snapshot pg_stat_force_next_flush " +
		"pg_replication_origin_session_is_setup pg_replication_origin_session_progress " +
		"pg_replication_origin_session_reset pg_replication_origin_session_setup " +
		"pg_replication_origin_xact_reset pg_replication_origin_xact_setup " +
		"pg_export_snapshot",
	"large objects": "lo_close lo_creat lo_create lo_export lo_from_bytea lo_get lo_import " +
		"lo_lseek lo_lseek64 lo_open lo_put lo_tell lo_tell64 lo_truncate lo_truncate64 " +
		"lo_unlink loread lowrite",
	"they run a query that they are given": "query_to_xml query_to_xml_and_xmlschema " +
		"query_to_xmlschema cursor_to_xml cursor_to_xmlschema ts_stat ts_rewrite",
	"messages": "pg_notify pg_logical_emit_message",
	"other sessions": "pg_cancel_backend pg_terminate_backend " +
		"pg_log_backend_memory_contexts",
	"the server": "pg_backup_start pg_backup_stop pg_start_backup pg_stop_backup " +
		"pg_create_restore_point pg_switch_wal pg_promote pg_reload_conf pg_rotate_logfile " +
		"pg_rotate_logfile_old pg_wal_replay_pause pg_wal_replay_resume " +
		"pg_log_standby_snapshot pg_stat_reset pg_stat_reset_replication_slot " +
		"pg_stat_reset_shared pg_stat_reset_single_function_counters " +
		"pg_stat_reset_single_table_counters pg_stat_reset_slru " +
		"pg_stat_reset_subscription_stats pg_stat_reset_backend_stats",
	"replication": "pg_copy_logical_replication_slot pg_copy_physical_replication_slot " +
		"pg_create_logical_replication_slot pg_create_physical_replication_slot " +
		"pg_drop_replication_slot pg_logical_slot_get_binary_changes " +
		"pg_logical_slot_get_changes pg_logical_slot_peek_binary_changes " +
		"pg_logical_slot_peek_changes pg_replication_origin_advance " +
		"pg_replication_origin_create pg_replication_origin_drop pg_replication_slot_advance " +
		"pg_sync_replication_slots",
	"indexes and the catalogue": "brin_desummarize_range brin_summarize_new_values " +
		"brin_summarize_range gin_clean_pending_list pg_import_system_collations " +
		"pg_extension_config_dump pg_nextoid pg_stop_making_pinned_objects " +
		"binary_upgrade_create_empty_extension binary_upgrade_set_missing_value " +
		"binary_upgrade_set_next_array_pg_type_oid binary_upgrade_set_next_heap_pg_class_oid " +
		"binary_upgrade_set_next_heap_relfilenode binary_upgrade_set_next_index_pg_class_oid " +
		"binary_upgrade_set_next_index_relfilenode " +
		"binary_upgrade_set_next_multirange_array_pg_type_oid " +
		"binary_upgrade_set_next_multirange_pg_type_oid binary_upgrade_set_next_pg_authid_oid " +
		"binary_upgrade_set_next_pg_enum_oid binary_upgrade_set_next_pg_tablespace_oid " +
		"binary_upgrade_set_next_pg_type_oid binary_upgrade_set_next_toast_pg_class_oid " +
		"binary_upgrade_set_next_toast_relfilenode binary_upgrade_set_record_init_privs",
	"triggers, handlers and what only the server calls": "RI_FKey_cascade_del " +
		"RI_FKey_cascade_upd RI_FKey_check_ins RI_FKey_check_upd RI_FKey_noaction_del " +
		"RI_FKey_noaction_upd RI_FKey_restrict_del RI_FKey_restrict_upd " +
		"RI_FKey_setdefault_del RI_FKey_setdefault_upd RI_FKey_setnull_del " +
		"RI_FKey_setnull_upd suppress_redundant_updates_trigger tsvector_update_trigger " +
		"tsvector_update_trigger_column unique_key_recheck brinhandler bthandler ginhandler " +
		"gisthandler hashhandler spghandler heap_tableam_handler plpgsql_call_handler " +
		"plpgsql_inline_handler plpgsql_validator dsnowball_init dsnowball_lexize",
}

// TestEveryVolatileFunctionIsJudged: each one that the server has is called harmless or not on
// purpose; one that nobody has thought about may write.
func TestEveryVolatileFunctionIsJudged(t *testing.T) {
	writes := make(map[string]bool)
	for _, list := range writesVolatile {
		for name := range strings.FieldsSeq(list) {
			writes[name] = true
		}
	}
	s := proxytest.StartServer(t)
	rows := s.Exec(`SELECT DISTINCT proname FROM pg_proc WHERE provolatile = 'v' AND oid < 16384`)
	if len(rows) < 200 {
		t.Fatalf("only %d volatile functions", len(rows))
	}
	for _, row := range rows {
		switch harmless := proxy.IsHarmlessVolatile(row[0]); {
		case harmless && writes[row[0]]:
			t.Errorf("%s is harmless, and is not", row[0])
		case !harmless && !writes[row[0]]:
			t.Errorf("%s was not thought about; it counts as one that may write", row[0])
		}
	}
}
