package election

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
)

// orderBootstrap makes a new cluster: initdb, start behind the closed door, roles, functions,
// the user's files, slots. Every step may be repeated; initdb works beside the data directory and
// is renamed into place whole.
func (a *PostgresAgent) orderBootstrap(ctx context.Context, o Order) (OrderResult, error) {
	st, _ := a.deps.Source.State()
	if st.Lock != nil {
		return OrderResult{}, fmt.Errorf("%w: the cluster has a primary already", ErrAgentRole)
	}
	kind, why := a.inspectDir()
	if kind == pgDirUnknown {
		return OrderResult{}, errors.New(why)
	}
	if kind == pgDirForeign {
		return OrderResult{}, fmt.Errorf("%w: %s", ErrAgentForeign, why)
	}
	if kind == pgDirOurs && a.hasStandbySignal() {
		return OrderResult{}, fmt.Errorf("%w: it holds a standby of this cluster", ErrAgentRole)
	}
	if err := a.pledge(o); err != nil {
		return OrderResult{}, err
	}
	if rec := a.record(); kind == pgDirOurs && rec.Adopted != nil {
		return a.orderAdopt(ctx, o)
	}
	if kind == pgDirEmpty {
		if err := a.initDB(ctx, o); err != nil {
			return OrderResult{}, err
		}
	}
	err := a.updateRecord(func(r *agentRecord) { r.PrimaryEpoch = o.Epoch })
	if err != nil {
		return OrderResult{}, err
	}
	running, err := a.isRunning(ctx)
	if err == nil && !running {
		err = a.startClosed(ctx, o.SyncNames)
	}
	if err != nil {
		return OrderResult{}, err
	}
	if rec := a.record(); rec.Result == nil {
		if err := a.makeRoles(ctx); err != nil {
			return OrderResult{}, err
		}
	}
	if err := a.emptyServer(ctx, o.SyncNames); err != nil {
		return OrderResult{}, err
	}
	if err := a.ensureSlots(ctx, o.Members); err != nil {
		return OrderResult{}, err
	}
	if err := a.proveWaiting(ctx, o.SyncNames); err != nil {
		return OrderResult{}, err
	}
	res, err := a.readPrimary(ctx)
	if err != nil {
		return res, err
	}
	if res.XidHi, err = a.allocateXid(ctx); err != nil {
		return res, err
	}
	res.XidLo = res.XidHi
	return res, a.remember(o, res)
}

// initDB makes the data directory beside its place and renames it.
func (a *PostgresAgent) initDB(ctx context.Context, o Order) error {
	tmp := a.cfg.DataDir + ".holdfast-new"
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("remove the rest of an earlier initdb: %w", err)
	}
	if err := a.makeDataParent(tmp); err != nil {
		return err
	}
	pw := filepath.Join(a.state, "initdb-password")
	if err := a.writeFile(pw, []byte(a.secrets.superuser+"\n"), 0o600); err != nil {
		return fmt.Errorf("write initdb's password file: %w", err)
	}
	defer func() { _ = os.Remove(pw) }()
	args := []string{"-D", tmp, "-U", a.cfg.Superuser, "-A", "scram-sha-256",
		"--pwfile", pw}
	args = append(args, initdbOptions(&a.cfg, a.major)...)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if _, err := a.run(ctx, "initdb", args...); err != nil {
		return err
	}
	out, err := a.run(ctx, "pg_controldata", "-D", tmp)
	if err != nil {
		return err
	}
	id := ""
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(line, "Database system identifier:"); ok {
			id = strings.TrimSpace(v)
		}
	}
	if _, _, err := a.writeConf(tmp, pgConf{syncNames: o.SyncNames}); err != nil {
		return err
	}
	if _, _, err := a.writeHBA(tmp, pgDoorClosed); err != nil {
		return err
	}
	if err := a.writeMarker(tmp, id); err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	err = a.updateRecord(func(r *agentRecord) {
		r.SystemID, r.Result, r.ResultEpoch = id, nil, 0
	})
	if err != nil {
		return err
	}
	return a.installDir(tmp)
}

// makeDataParent makes the directory above the data directory and lets PostgreSQL's account
// write the new directory there.
func (a *PostgresAgent) makeDataParent(tmp string) error {
	if err := os.MkdirAll(filepath.Dir(tmp), 0o755); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	if err := a.account.own(tmp); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	return a.account.reaches(tmp)
}

// installDir renames a whole new directory into place; the place is missing or empty.
func (a *PostgresAgent) installDir(tmp string) error {
	if err := os.Remove(a.cfg.DataDir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("install data directory: %w (it must be an empty directory that is "+
			"no mount point: name one below the mount point)", err)
	}
	if err := os.Rename(tmp, a.cfg.DataDir); err != nil {
		return fmt.Errorf("install data directory: %w", err)
	}
	return pgSyncDir(filepath.Dir(a.cfg.DataDir))
}

// makeRoles makes the roles and functions that agents and proxies need, and runs the user's
// files.
func (a *PostgresAgent) makeRoles(ctx context.Context) error {
	sql, err := a.rolesSQL()
	if err != nil {
		return err
	}
	if _, err := a.exec(ctx, sql); err != nil {
		return fmt.Errorf("make roles: %w", err)
	}
	for _, path := range a.cfg.BootstrapSQL {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("bootstrap_sql: %w", err)
		}
		if err := a.runBootstrapFile(ctx, path, string(text)); err != nil {
			return fmt.Errorf("bootstrap_sql %s: %w", path, err)
		}
	}
	return nil
}

// rolesSQL makes the roles, with their passwords, and the functions; it may be run again.
func (a *PostgresAgent) rolesSQL() (string, error) {
	sql := ""
	for _, r := range []struct{ name, attrs, password string }{
		{pgReplicationRole, "LOGIN REPLICATION", a.secrets.replication},
		{pgRewindRole, "LOGIN", a.secrets.rewind},
		{pgLookupRole, "LOGIN", a.secrets.lookup},
	} {
		verifier, err := pgVerifier(r.password)
		if err != nil {
			return "", err
		}
		sql += pgRoleSQL(r.name, r.attrs, verifier)
	}
	return sql + pgRewindSQL + pgLookupSQL, nil
}

// pgRoleSQL makes a role or makes it what it should be.
func pgRoleSQL(name, attrs, verifier string) string {
	return pgRoleAttrsSQL(name, attrs+" PASSWORD "+pgLiteral(verifier))
}

// pgRoleAttrsSQL is pgRoleSQL with attributes only.
func pgRoleAttrsSQL(name, attrs string) string {
	ident := `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
	return fmt.Sprintf("DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = %s)"+
		" THEN CREATE ROLE %s; END IF; END $$;\nALTER ROLE %s WITH %s;\n",
		pgLiteral(name), ident, ident, attrs)
}

// sessionState are those of the first done statements that a file which goes on in another session
// repeats: what they set is of the session that is gone, and holds for what follows. Roles are
// noted and not repeated: one may be gone by then, and set_config sets them too.
func sessionState(all []pgwire.Statement, done int) (again []int) {
	begun := -1 // how many there were when the open transaction began
	for i, st := range all[:min(done, len(all))] {
		switch st.Kind {
		case pgwire.KindBegin:
			begun = len(again)
		case pgwire.KindCommit:
			begun = -1
			if st.Chain {
				begun = len(again)
			}
		case pgwire.KindRollback:
			if begun >= 0 {
				again = again[:begun]
			}
			if !st.Chain {
				begun = -1
			}
		case pgwire.KindDiscard:
			if st.All {
				again = nil
			}
		case pgwire.KindSet, pgwire.KindReset:
			if !st.Local {
				again = append(again, i)
			}
		}
	}
	return again
}

// noteBootstrap writes down, as the role that logged in, how far a file came. The session may have
// another role by then, by SET ROLE or SET SESSION AUTHORIZATION: it keeps it, as does a
// transaction that is open, with which the note is taken back if it is.
func noteBootstrap(ctx context.Context, c *pgconn.PgConn, login, path string, done int) error {
	rows, err := pgQuery(ctx, c, "SELECT session_user, current_setting('role'),"+
		" current_setting('search_path')")
	if err != nil {
		return err
	}
	user, role := rows[0][0], rows[0][1]
	sql := fmt.Sprintf("INSERT INTO holdfast.bootstrap_sql (file, done, who, role, path)"+
		" VALUES (%s, %d, %s, %s, %s) ON CONFLICT (file) DO UPDATE SET done = EXCLUDED.done,"+
		" who = EXCLUDED.who, role = EXCLUDED.role, path = EXCLUDED.path", pgLiteral(path), done,
		pgLiteral(user), pgLiteral(role), pgLiteral(rows[0][2]))
	before, after := "", ""
	if user != login {
		before = "SET LOCAL SESSION AUTHORIZATION DEFAULT; "
		after = "; SET LOCAL SESSION AUTHORIZATION " + pgLiteral(user)
	}
	if role != "none" { // after the other one, which ends a role
		before += "SET LOCAL ROLE NONE; "
		after += "; SET LOCAL ROLE " + pgLiteral(role)
	}
	_, err = pgQuery(ctx, c, before+sql+after)
	return err
}

// runBootstrapFile runs one file, statement by statement as psql would, so that CREATE DATABASE
// and its kin work. How far it came is kept in the server: a repeated order goes on behind the
// last statement that succeeded.
func (a *PostgresAgent) runBootstrapFile(ctx context.Context, path, text string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer pgClose(c)
	login := a.cfg.Superuser
	all := pgwire.Classify(nil, []byte(text), true)
	done, err := resumeBootstrap(ctx, c, login, path, text, all)
	if err != nil {
		return err
	}
	for i := min(done, len(all)); i < len(all); i++ {
		if _, err := pgQuery(ctx, c, text[all[i].Start:all[i].End]); err != nil {
			return fmt.Errorf("statement %d: %w", i+1, err)
		}
		if err := noteBootstrap(ctx, c, login, path, i+1); err != nil {
			return err
		}
	}
	return nil
}

// resumeBootstrap tells how many statements of a file are done, and makes the session what it was
// behind them.
func resumeBootstrap(ctx context.Context, c *pgconn.PgConn, login, path, text string,
	all []pgwire.Statement,
) (done int, err error) {
	run := func(sql string) ([][]string, error) { return pgQuery(ctx, c, sql) }
	_, err = run("CREATE TABLE IF NOT EXISTS holdfast.bootstrap_sql" +
		" (file text PRIMARY KEY, done int NOT NULL, who text, role text, path text)")
	if err != nil {
		return 0, err
	}
	rows, err := run("SELECT done, who, role, path FROM holdfast.bootstrap_sql WHERE file = " +
		pgLiteral(path))
	if err != nil {
		return 0, err
	}
	if _, err = run(`SET search_path = "$user", public`); err != nil || len(rows) != 1 {
		return 0, err
	}
	if done, err = strconv.Atoi(rows[0][0]); err != nil {
		return 0, fmt.Errorf("how much is done: %w", err)
	}
	for _, i := range sessionState(all, done) {
		if _, err := run(text[all[i].Start:all[i].End]); err != nil {
			return 0, fmt.Errorf("statement %d, once more: %w", i+1, err)
		}
	}
	who, role, at := rows[0][1], rows[0][2], rows[0][3]
	sql := "SELECT set_config('search_path', " + pgLiteral(at) + ", false)"
	if who != login {
		sql += "; SET SESSION AUTHORIZATION " + pgLiteral(who)
	}
	if role != "none" { // after the other one, which ends a role
		sql += "; SET ROLE " + pgLiteral(role)
	}
	if _, err := run(sql); err != nil {
		return 0, fmt.Errorf("be %s with the role %s again: %w", who, role, err)
	}
	return done, nil
}

// pgRewindSQL may be run again.
const pgRewindSQL = `
GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean) TO holdfast_rewind;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_file(text, boolean) TO holdfast_rewind;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text) TO holdfast_rewind;
GRANT EXECUTE ON FUNCTION
  pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO holdfast_rewind;
`

// pgLookupSQL may be run again. end_backend asks for the very backend by its start time, and
// answers true only once that one is gone: a backend leaves pg_stat_activity after its
// transaction has ended.
const pgLookupSQL = `
GRANT pg_monitor TO holdfast_lookup;
CREATE SCHEMA IF NOT EXISTS holdfast;
REVOKE ALL ON SCHEMA holdfast FROM PUBLIC;
GRANT USAGE ON SCHEMA holdfast TO holdfast_lookup;
CREATE OR REPLACE FUNCTION holdfast.user_secret(name text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
  SELECT CASE WHEN rolcanlogin AND (rolvaliduntil IS NULL OR rolvaliduntil > now())
    THEN rolpassword END FROM pg_authid WHERE rolname = $1 $f$;
CREATE OR REPLACE FUNCTION holdfast.end_backend(pid int, started timestamptz) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  FOR i IN 1..500 LOOP
    PERFORM pg_stat_clear_snapshot();
    PERFORM pg_terminate_backend(a.pid) FROM pg_stat_activity a
      WHERE a.pid = $1 AND a.backend_start = $2 AND a.backend_type = 'client backend';
    IF NOT FOUND THEN RETURN true; END IF;
    PERFORM pg_sleep(0.01);
  END LOOP;
  RETURN false;
END $f$;
REVOKE ALL ON FUNCTION holdfast.user_secret(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION holdfast.end_backend(int, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.user_secret(text) TO holdfast_lookup;
GRANT EXECUTE ON FUNCTION holdfast.end_backend(int, timestamptz) TO holdfast_lookup;
`

// initdbChecksums is the major version from which initdb makes data checksums unless told not to.
const initdbChecksums = 18

// initdbOptions are those of initdb that the configuration asks for.
func initdbOptions(cfg *AgentConfig, major int) []string {
	var out []string
	if cfg.Checksums {
		out = append(out, "--data-checksums")
	} else if major >= initdbChecksums {
		out = append(out, "--no-data-checksums")
	}
	if cfg.Locale != "" {
		out = append(out, "--locale="+cfg.Locale)
	}
	if cfg.Encoding != "" {
		out = append(out, "--encoding="+cfg.Encoding)
	}
	return out
}
