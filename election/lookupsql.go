package election

// LookupSQL is what psql, as a superuser, makes the look-up role and its functions by, on a server
// where no agent does: what makeRoles makes, but for the password, which stays in its file. It may
// be run again.
func LookupSQL() string {
	return `-- What Holdfast's proxies need on a PostgreSQL server to look up secrets and outcomes:
-- the role holdfast_lookup, and two functions that it may call and nobody else. Run it once on the
-- primary, and again at will, as a superuser:
--
--   psql -X -d postgres -v password_file=/etc/holdfast/secrets/lookup -f FILE
--
-- password_file has the password, that of proxy.lookup_password_file; without it psql asks for one.
\set ON_ERROR_STOP on
\connect postgres
SET search_path = pg_catalog;
SET password_encryption = 'scram-sha-256';
BEGIN;
` + pgRoleAttrsSQL(pgLookupRole, "LOGIN") + pgLookupSQL + `COMMIT;
\if :{?password_file}
\set is_there ` + "`test -s :'password_file' && echo yes || echo no`" + `
\if :is_there
-- The server is not to log the password, nor to keep it with the statement.
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';
SET pg_stat_statements.track = 'none';
\set lookup_password ` + "`cat :'password_file'`" + `
ALTER ROLE ` + pgLookupRole + ` PASSWORD :'lookup_password';
\else
DO $$ BEGIN RAISE 'no password was set: password_file is not there, or empty'; END $$;
\endif
\else
\password ` + pgLookupRole + `
\endif
`
}
