package election

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// adoptSetting is a row of pg_settings.
type adoptSetting struct {
	value, shown, unit, vartype, context, source, boot string
}

// adoptLine is a line of a configuration file as the server reads it (pg_file_settings).
type adoptLine struct {
	file    string
	line    int
	name    string
	value   string
	applied bool
}

// adoptServer is what was read of the running server.
type adoptServer struct {
	pid         int
	incarnation string
	version     int
	inRecovery  bool
	systemID    string
	checksums   bool
	settings    map[string]adoptSetting
	lines       []adoptLine
	roles       map[string]adoptRole
	slots       []adoptSlot
	apps        []string // application names of client sessions
	md5Roles    []string
	tablespaces int
	upstream    string // host:port of the walreceiver's sender
	streaming   bool
	standbys    []string
	hasSchema   bool // a schema holdfast
	hasFuncs    bool // with all that Holdfast puts there, and its grants
}

type adoptRole struct {
	super, replication, login bool
	password                  string
}

type adoptSlot struct {
	name, kind string
	active     bool
	lost       bool
}

func (s *adoptServer) role() string {
	if s.inRecovery {
		return adoptedStandby
	}
	return adoptedPrimary
}

// file gives the path of a configuration file by the setting that names it.
func (s *adoptServer) file(setting string) string {
	return filepath.Clean(s.settings[setting].value)
}

// isOutside tells that the server's configuration does not lie in its data directory, as Debian's
// packages have it.
func (s *adoptServer) isOutside(dataDir string) bool {
	for _, name := range []string{"config_file", "hba_file", "ident_file"} {
		if filepath.Dir(s.file(name)) != filepath.Clean(dataDir) {
			return true
		}
	}
	return false
}

const adoptFactsSQL = `SELECT pg_is_in_recovery(), ` + pgIncarnationSQL + `,
 current_setting('server_version_num'), current_setting('is_superuser'),
 (SELECT system_identifier FROM pg_control_system()),
 (SELECT data_page_checksum_version FROM pg_control_init()),
 (SELECT count(*) FROM pg_tablespace WHERE spcname NOT LIKE 'pg\_%'),
 coalesce((SELECT status FROM pg_stat_wal_receiver), ''),
 coalesce((SELECT sender_host FROM pg_stat_wal_receiver), ''),
 coalesce((SELECT sender_port FROM pg_stat_wal_receiver), 0),
 EXISTS (SELECT FROM pg_namespace WHERE nspname = 'holdfast')`

// adoptFuncsSQL asks for what pgRewindSQL and pgLookupSQL make; the roles must be there.
const adoptFuncsSQL = `SELECT to_regprocedure('holdfast.user_secret(text)') IS NOT NULL
 AND to_regprocedure('holdfast.end_backend(int,timestamptz)') IS NOT NULL
 AND pg_has_role('holdfast_lookup', 'pg_monitor', 'MEMBER')
 AND has_function_privilege('holdfast_rewind', 'pg_ls_dir(text,boolean,boolean)', 'EXECUTE')
 AND has_function_privilege('holdfast_rewind', 'pg_stat_file(text,boolean)', 'EXECUTE')
 AND has_function_privilege('holdfast_rewind', 'pg_read_binary_file(text)', 'EXECUTE')
 AND has_function_privilege('holdfast_rewind',
  'pg_read_binary_file(text,bigint,bigint,boolean)', 'EXECUTE')
 AND coalesce((SELECT bool_and(has_function_privilege('holdfast_lookup', oid, 'EXECUTE'))
  FROM pg_proc WHERE pronamespace = to_regnamespace('holdfast')), false)`

// readServer reads all that a plan rests on.
func (d *Adoption) readServer(ctx context.Context) (adoptServer, error) {
	a := d.a
	s := adoptServer{settings: map[string]adoptSetting{}, roles: map[string]adoptRole{}}
	pid, _, err := a.postmaster()
	if err != nil {
		return s, err
	}
	s.pid = pid
	row, err := a.queryRow(ctx, adoptFactsSQL)
	if err != nil {
		return s, err
	}
	if row[3] != "on" {
		return s, fmt.Errorf("the role that logged in is no superuser")
	}
	s.inRecovery, s.incarnation, s.systemID = row[0] == "t", row[1], row[4]
	s.version, _ = strconv.Atoi(row[2])
	s.checksums, s.streaming = row[5] != "0", row[7] == "streaming"
	s.tablespaces, _ = strconv.Atoi(row[6])
	if s.hasSchema = row[10] == "t"; row[8] != "" {
		s.upstream = net.JoinHostPort(row[8], row[9])
	}
	for _, read := range []func(context.Context, *adoptServer) error{d.readSettings, d.readLines,
		d.readRoles, d.readSessions} {
		if err := read(ctx, &s); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (d *Adoption) readSettings(ctx context.Context, s *adoptServer) error {
	rows, err := d.a.exec(ctx, `SELECT name, setting, current_setting(name), unit, vartype, context,
		source, boot_val FROM pg_settings`)
	for _, r := range rows {
		s.settings[r[0]] = adoptSetting{r[1], r[2], r[3], r[4], r[5], r[6], r[7]}
	}
	return err
}

func (d *Adoption) readLines(ctx context.Context, s *adoptServer) error {
	rows, err := d.a.exec(ctx, `SELECT coalesce(sourcefile, ''), coalesce(sourceline, 0),
		coalesce(name, ''), coalesce(setting, ''), applied FROM pg_file_settings ORDER BY seqno`)
	for _, r := range rows {
		n, _ := strconv.Atoi(r[1])
		s.lines = append(s.lines, adoptLine{r[0], n, strings.ToLower(r[2]), r[3], r[4] == "t"})
	}
	return err
}

func (d *Adoption) readRoles(ctx context.Context, s *adoptServer) error {
	rows, err := d.a.exec(ctx, `SELECT rolname, rolsuper, rolreplication, rolcanlogin,
		coalesce(rolpassword, '') FROM pg_authid WHERE rolname IN (`+
		pgLiterals([]string{pgReplicationRole, pgRewindRole, pgLookupRole, d.a.cfg.Superuser})+`)`)
	if err != nil {
		return err
	}
	for _, r := range rows {
		s.roles[r[0]] = adoptRole{r[1] == "t", r[2] == "t", r[3] == "t", r[4]}
	}
	rows, err = d.a.exec(ctx, `SELECT rolname FROM pg_authid WHERE rolcanlogin
		AND rolpassword LIKE 'md5%' ORDER BY 1`)
	if err != nil {
		return err
	}
	for _, r := range rows {
		s.md5Roles = append(s.md5Roles, r[0])
	}
	for _, name := range []string{pgReplicationRole, pgRewindRole, pgLookupRole} {
		if _, ok := s.roles[name]; !ok {
			return nil
		}
	}
	row, err := d.a.queryRow(ctx, adoptFuncsSQL)
	if err != nil {
		return err
	}
	s.hasFuncs = row[0] == "t"
	return nil
}

func (d *Adoption) readSessions(ctx context.Context, s *adoptServer) error {
	rows, err := d.a.exec(ctx, `SELECT slot_name, slot_type, active,
		coalesce(wal_status = 'lost', false) FROM pg_replication_slots ORDER BY 1`)
	if err != nil {
		return err
	}
	for _, r := range rows {
		s.slots = append(s.slots, adoptSlot{r[0], r[1], r[2] == "t", r[3] == "t"})
	}
	rows, err = d.a.exec(ctx, `SELECT DISTINCT application_name FROM pg_stat_activity
		WHERE backend_type = 'client backend' AND application_name <> ''`)
	if err != nil {
		return err
	}
	for _, r := range rows {
		s.apps = append(s.apps, r[0])
	}
	rows, err = d.a.exec(ctx, `SELECT application_name || ' from ' ||
		coalesce(host(client_addr), 'the socket') || ' (' || coalesce(state, '') || ')'
		FROM pg_stat_replication ORDER BY 1`)
	for _, r := range rows {
		s.standbys = append(s.standbys, r[0])
	}
	return err
}

// checkDir looks at what can be seen without the server's help; false: there is nothing to ask.
func (d *Adoption) checkDir(p *AdoptPlan) bool {
	a := d.a
	kind, why := a.inspectDir()
	_, err := os.Stat(filepath.Join(a.cfg.DataDir, "PG_VERSION"))
	rec := a.record()
	hasMarker := false
	if _, err := os.Stat(filepath.Join(a.cfg.DataDir, pgMarkerName)); err == nil {
		hasMarker = true
	}
	switch {
	case kind == pgDirUnknown:
		p.refuse("%s", why)
	case kind == pgDirEmpty:
		p.refuse("postgres.data_dir %s is missing or empty: there is nothing to adopt; `holdfast "+
			"serve` makes or clones it", a.cfg.DataDir)
	case err != nil:
		p.refuse("postgres.data_dir %s is no data directory: %v", a.cfg.DataDir, err)
	case kind == pgDirForeign && hasMarker:
		p.refuse("%s", why)
	case kind == pgDirOurs && rec.Adopted == nil:
		p.refuse("%s is this cluster's already: `holdfast serve` takes it as it is", a.cfg.DataDir)
	case kind == pgDirForeign && rec.wasMember():
		p.refuse("%s in %s is of another data directory of this cluster, or of a member that had "+
			"none: move it away", agentRecordName, a.state)
	}
	if len(p.Refusals) > 0 {
		return false
	}
	d.checkProcess(p)
	return len(p.Refusals) == 0
}

func (d *Adoption) checkProcess(p *AdoptPlan) {
	a := d.a
	pid, word, err := a.postmaster()
	switch {
	case err != nil:
		p.refuse("%v", err)
	case pid == 0:
		p.refuse("no server runs on %s (as account %s): start it, a running one is taken over",
			a.cfg.DataDir, a.cfg.OSUser)
	case word != "ready" && word != "standby":
		p.refuse("the server is %s", word)
	default:
		b, _ := os.ReadFile(pgPostmasterFile(a.cfg.DataDir))
		lines := strings.Split(string(b), "\n")
		if len(lines) < 5 || strings.TrimSpace(lines[4]) == "" {
			p.refuse("the server has no unix socket (unix_socket_directories): give it one")
		}
	}
}

var adoptBinVersion = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// binMajor is the major version of the configured programs; 0 if they do not tell.
func (a *PostgresAgent) binMajor(ctx context.Context) int {
	out, err := a.run(ctx, "postgres", "--version")
	m := adoptBinVersion.FindStringSubmatch(out)
	if err != nil || m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}
