package proxy

import "strings"

// harmlessVolatile are the functions of PostgreSQL that are labelled volatile and that leave
// nothing behind: what they read changes, or they wait. Another execution may give another value;
// whether the client has seen the first one is not asked here. A function that is not listed, also
// one of a version to come, may write. TestEveryVolatileFunctionIsJudged has the others, each with
// its reason.
var harmlessVolatile = setOf(
	// Clocks, dice and waiting.
	"clock_timestamp timeofday random random_normal gen_random_uuid uuidv4 uuidv7 "+
		"pg_sleep pg_sleep_for pg_sleep_until",
	// The session and its query.
	"current_query pg_current_xact_id pg_is_in_recovery pg_jit_available "+
		"pg_get_backend_memory_contexts",
	// Advisory locks end with their session, or transaction, which is gone.
	"pg_advisory_lock pg_advisory_lock_shared pg_advisory_unlock pg_advisory_unlock_all "+
		"pg_advisory_unlock_shared pg_advisory_xact_lock pg_advisory_xact_lock_shared "+
		"pg_try_advisory_lock pg_try_advisory_lock_shared pg_try_advisory_xact_lock "+
		"pg_try_advisory_xact_lock_shared",
	// Transactions, locks and notifications, looked at.
	"pg_xact_status txid_status pg_xact_commit_timestamp pg_xact_commit_timestamp_origin "+
		"pg_last_committed_xact pg_blocking_pids pg_safe_snapshot_blocking_pids pg_lock_status "+
		"pg_prepared_xact pg_get_multixact_members pg_notification_queue_usage "+
		"pg_isolation_test_session_is_blocked",
	// Sizes.
	"pg_database_size pg_indexes_size pg_relation_size pg_table_size pg_tablespace_size "+
		"pg_total_relation_size",
	// The write-ahead log and replication, looked at.
	"pg_current_wal_flush_lsn pg_current_wal_insert_lsn pg_current_wal_lsn "+
		"pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_last_xact_replay_timestamp "+
		"pg_get_wal_replay_pause_state pg_is_wal_replay_paused pg_get_wal_resource_managers "+
		"pg_replication_origin_progress pg_show_replication_origin_status "+
		"pg_control_checkpoint pg_control_init pg_control_recovery pg_control_system",
	// The catalogue, and files that the server may show.
	"pg_partition_ancestors pg_partition_tree pg_sequence_last_value "+
		"pg_collation_actual_version pg_database_collation_actual_version amvalidate currtid2 "+
		"pg_current_logfile pg_hba_file_rules pg_ident_file_mappings pg_show_all_file_settings "+
		"pg_ls_archive_statusdir pg_ls_dir pg_ls_logdir pg_ls_logicalmapdir "+
		"pg_ls_logicalsnapdir pg_ls_replslotdir pg_ls_tmpdir pg_ls_waldir pg_read_binary_file "+
		"pg_read_file pg_read_file_old pg_stat_file pg_get_shmem_allocations",
	// Statistics, looked at.
	"pg_stat_get_recovery_prefetch pg_stat_get_xact_blocks_fetched pg_stat_get_xact_blocks_hit "+
		"pg_stat_get_xact_function_calls pg_stat_get_xact_function_self_time "+
		"pg_stat_get_xact_function_total_time pg_stat_get_xact_numscans "+
		"pg_stat_get_xact_tuples_deleted pg_stat_get_xact_tuples_fetched "+
		"pg_stat_get_xact_tuples_hot_updated pg_stat_get_xact_tuples_newpage_updated "+
		"pg_stat_get_xact_tuples_inserted pg_stat_get_xact_tuples_returned "+
		"pg_stat_get_xact_tuples_updated pg_stat_have_stats pg_stat_get_io",
	// Methods of TABLESAMPLE.
	"bernoulli system",
)

// runsQueriesNames are functions of PostgreSQL that are not labelled volatile, and that run what
// they are told by an argument: a query, a relation with its views, the input of a type with a
// domain's constraints.
const runsQueriesNames = "table_to_xml table_to_xml_and_xmlschema schema_to_xml " +
	"schema_to_xml_and_xmlschema database_to_xml database_to_xml_and_xmlschema " +
	"pg_input_is_valid pg_input_error_info domain_in domain_recv array_in array_recv " +
	"record_in record_recv range_in range_recv multirange_in multirange_recv"

var (
	runsQueries      = setOf(runsQueriesNames)
	runsQueriesArray = "'{" + strings.ReplaceAll(runsQueriesNames, " ", ",") + "}'::name[]"
)

// stableOfExtension are extensions whose C functions that are labelled stable only read: they
// depend on settings, dictionaries or the time zone, and run no query that they are given.
var stableOfExtension = setOf("pg_trgm unaccent citext hstore ltree intarray cube isn seg " +
	"fuzzystrmatch pgcrypto uuid-ossp postgis vector")

// harmlessOfExtension are volatile C functions of extensions that leave nothing behind.
var harmlessOfExtension = setOf("uuid-ossp.uuid_generate_v1 uuid-ossp.uuid_generate_v1mc " +
	"uuid-ossp.uuid_generate_v4 pgcrypto.gen_random_uuid pgcrypto.gen_random_bytes " +
	"pgcrypto.gen_salt tablefunc.normal_rand tsm_system_rows.system_rows " +
	"tsm_system_time.system_time")

func setOf(lists ...string) map[string]bool {
	out := make(map[string]bool)
	for _, list := range lists {
		for _, name := range strings.Fields(list) {
			out[name] = true
		}
	}
	return out
}
