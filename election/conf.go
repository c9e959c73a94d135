package election

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// pgManaged are the settings that only the agent writes: changed behind its back they would undo
// the fence, the door or the way a standby follows.
var pgManaged = map[string]string{
	"listen_addresses":            "it comes from postgres.listen",
	"port":                        "it comes from postgres.listen",
	"unix_socket_directories":     "it comes from postgres.socket_dir",
	"unix_socket_permissions":     "the socket's directory is private",
	"primary_conninfo":            "the agent points standbys at the primary",
	"primary_slot_name":           "the agent names the member's slot",
	"sync_replication_slots":      "the agent turns it on where the server can do it",
	"synchronized_standby_slots":  "it follows the standbys that commits wait for",
	"synchronous_standby_names":   "it comes from the key synchronous",
	"restart_after_crash":         "a crash needs a new epoch before PostgreSQL opens",
	"hot_standby":                 "the agent reads a standby's position by SQL",
	"wal_log_hints":               "pg_rewind needs it",
	"full_page_writes":            "pg_rewind needs it",
	"fsync":                       "an acknowledged commit must be durable",
	"password_encryption":         "the proxies log in by scram-sha-256",
	"wal_retrieve_retry_interval": "the agent lowers it while a standby is recruited",
	"logging_collector":           "the agent keeps the server's log",
	"data_directory":              "it comes from postgres.data_dir",
	"hba_file":                    "the agent writes pg_hba.conf",
	"ident_file":                  "the agent keeps it in the data directory",
	"external_pid_file":           "the agent reads postmaster.pid",
	"recovery_target_timeline":    "a standby follows the newest timeline",
	"promote_trigger_file":        "only an order promotes",
	"include":                     "put the settings themselves into the list",
	"include_dir":                 "put the settings themselves into the list",
	"include_if_exists":           "put the settings themselves into the list",
}

var (
	pgSettingPattern = regexp.MustCompile(`^\s*([A-Za-z_][A-Za-z0-9_.$]*)\s*=\s*(.*?)\s*$`)
	pgPlainValue     = regexp.MustCompile(`^[A-Za-z0-9_.:/+-]+$`)
	pgQuotedValue    = regexp.MustCompile(`^'([^'\\\n]|''|\\[^\n])*'$`)
)

// pgParseSetting splits "name = value" and refuses what the agent manages itself.
func pgParseSetting(s string) (name, value string, err error) {
	m := pgSettingPattern.FindStringSubmatch(s)
	if m == nil {
		return "", "", fmt.Errorf("%q: the form is name = value", s)
	}
	name, value = strings.ToLower(m[1]), m[2]
	if !pgPlainValue.MatchString(value) && !pgQuotedValue.MatchString(value) {
		return "", "", fmt.Errorf("%s: a value with other than letters, digits and ._:/+- "+
			"must stand in single quotes", name)
	}
	if why, ok := pgManaged[name]; ok || strings.HasPrefix(name, "holdfast.") ||
		strings.HasPrefix(name, "recovery_target") {
		if why == "" {
			why = "recovery is the agent's matter"
		}
		return "", "", fmt.Errorf("%s is managed by holdfast (%s): remove it", name, why)
	}
	if name == "wal_level" && strings.Trim(value, "'") == "minimal" {
		return "", "", errors.New("wal_level: replica or logical is needed for standbys")
	}
	return name, value, nil
}

// pgQuote makes a value of postgresql.conf or of a conninfo string (both double the quote, and
// both take backslash as an escape).
func pgQuote(s string) string {
	return "'" + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), "'", `''`) + "'"
}

// pgQuoteConnInfo quotes one value inside a conninfo string (libpq: backslash escapes).
func pgQuoteConnInfo(s string) string {
	return "'" + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), "'", `\'`) + "'"
}

// SlotName is the name of the physical slot of a member, the same on every other member.
func SlotName(member string) string {
	b := []byte("holdfast_" + strings.ToLower(member))
	for i, c := range b {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			b[i] = '_'
		}
	}
	return string(b)
}

const (
	pgReplicationRole = "holdfast_replication"
	pgRewindRole      = "holdfast_rewind"
	pgLookupRole      = "holdfast_lookup"
	pgConfName        = "holdfast.conf"
	// pgRetry and pgRetryRecruited are wal_retrieve_retry_interval: DESIGN 10.11b, and short
	// while recruited, since the proof that local WAL has ended needs two of them (10.5).
	pgRetry          = 200 * time.Millisecond
	pgRetryRecruited = 20 * time.Millisecond
)

// pgConf is the part of the configuration that changes while the server runs.
type pgConf struct {
	// upstream is the member to stream from; nil leaves primary_conninfo empty.
	upstream  *Member
	syncNames string
	recruited bool
	// slotSync and waitSlots are the agent's (applyConf); a server is started without them.
	slotSync  bool
	waitSlots []string
}

// conninfo is the libpq string for a role on a member. The password stays in the password file:
// neither argv nor pg_settings shows it.
func (a *PostgresAgent) conninfo(m Member, role, app string) (string, error) {
	host, port, err := net.SplitHostPort(m.Postgres)
	if err != nil {
		return "", fmt.Errorf("address of member %q: %w", m.Name, err)
	}
	return fmt.Sprintf("host=%s port=%s user=%s passfile=%s application_name=%s "+
		"connect_timeout=3 keepalives_idle=5 keepalives_interval=2 keepalives_count=3 "+
		"tcp_user_timeout=10000 %s", pgQuoteConnInfo(host), port, role,
		pgQuoteConnInfo(a.passFile()), pgQuoteConnInfo(app), a.sslInfo()), nil
}

// upstreamInfo is primary_conninfo. The database is for the process that copies logical slots.
func (a *PostgresAgent) upstreamInfo(c pgConf) (string, error) {
	if c.upstream == nil {
		return "", nil
	}
	info, err := a.conninfo(*c.upstream, pgReplicationRole, a.cfg.Name)
	if err == nil && a.major >= slotSyncMajor {
		info += " dbname=postgres"
	}
	return info, err
}

// renderConf gives the text of holdfast.conf, less its sequence line. The order matters: the
// last line of a name wins, so defaults, the user's settings, then what the agent manages.
func (a *PostgresAgent) renderConf(c pgConf) (string, error) {
	var b strings.Builder
	b.WriteString("# Written by holdfast; changes here are overwritten.\n")
	for _, s := range []string{"wal_level = replica", "max_wal_senders = 20",
		"max_replication_slots = 20", "max_slot_wal_keep_size = 10GB", "wal_keep_size = 64MB",
		// A standby that hears nothing asks at half of it and gives up at the end: until then
		// it counts as one that sees the primary, and a frozen primary is not replaced. A
		// walsender answers at once, since it writes to no disk.
		fmt.Sprintf("wal_receiver_timeout = %dms", a.cfg.Silence.Milliseconds()),
		// The walsender of a standby that was cut off holds its slot until then, and the
		// standby that comes back cannot use it. Shorter than a stall of a standby's disk it
		// must not be: its walreceiver flushes before it answers.
		"wal_sender_timeout = 5s",
		"log_line_prefix = '%m [%p] '", "cluster_name = " + pgQuote(a.cfg.Name)} {
		b.WriteString(s + "\n")
	}
	for _, s := range a.cfg.Settings {
		name, value, err := pgParseSetting(s)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%s = %s\n", name, value)
	}
	host, port, _ := net.SplitHostPort(a.cfg.Listen)
	if host == "" {
		host = "*"
	}
	retry := pgRetry
	info, err := a.upstreamInfo(c)
	if err != nil {
		return "", err
	}
	if c.recruited {
		retry = pgRetryRecruited
	}
	for _, kv := range append([][2]string{
		{"listen_addresses", pgQuote(host)}, {"port", port},
		{"unix_socket_directories", pgQuote(a.cfg.socketDir())},
		{"hot_standby", "on"}, {"wal_log_hints", "on"}, {"full_page_writes", "on"},
		{"fsync", "on"}, {"restart_after_crash", "off"}, {"logging_collector", "off"},
		{"password_encryption", "'scram-sha-256'"},
		{"recovery_target_timeline", "'latest'"},
		{"wal_retrieve_retry_interval", strconv.FormatInt(retry.Milliseconds(), 10) + "ms"},
		{"synchronous_standby_names", pgQuote(c.syncNames)},
		{"primary_slot_name", pgQuote(SlotName(a.cfg.Name))},
		{"primary_conninfo", pgQuote(info)},
	}, a.slotConf(c)...) {
		fmt.Fprintf(&b, "%s = %s\n", kv[0], kv[1])
	}
	return b.String(), nil
}

// confSeqPrefix marks the line by which a backend tells which version of the file it has read.
const confSeqPrefix = "holdfast.conf_seq = "

// writeConf writes holdfast.conf into dir if it differs, and makes sure that postgresql.conf
// includes it last. It returns the sequence and whether anything changed.
func (a *PostgresAgent) writeConf(dir string, c pgConf) (seq string, changed bool, err error) {
	text, err := a.renderConf(c)
	if err != nil {
		return "", false, err
	}
	if c.upstream != nil && a.isQuiet {
		a.isQuiet, a.scan = false, nil // before the file is there
	}
	path := filepath.Join(dir, pgConfName)
	old, _ := os.ReadFile(path)
	if i := strings.LastIndex(string(old), confSeqPrefix); i >= 0 {
		seq = strings.Trim(strings.TrimSpace(string(old)[i+len(confSeqPrefix):]), "'")
		if string(old)[:i] == text {
			return seq, false, a.includeConf(dir)
		}
	}
	seq = strconv.FormatInt(time.Now().UnixNano(), 36)
	if err := a.writeFile(path, []byte(text+confSeqPrefix+"'"+seq+"'\n"), 0o600); err != nil {
		return "", false, fmt.Errorf("write %s: %w", pgConfName, err)
	}
	return seq, true, a.includeConf(dir)
}

func (a *PostgresAgent) includeConf(dir string) error {
	path := filepath.Join(dir, "postgresql.conf")
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read postgresql.conf: %w", err)
	}
	const line = "include '" + pgConfName + "'"
	text := strings.TrimRight(string(old), "\n")
	if strings.HasSuffix(text, "\n"+line) {
		return nil
	}
	text = strings.ReplaceAll(text, "\n"+line, "")
	if err := a.writeFile(path, []byte(text+"\n"+line+"\n"), 0o600); err != nil {
		return fmt.Errorf("write postgresql.conf: %w", err)
	}
	return nil
}

// resetLooks and resetPause bound how long a reset of ALTER SYSTEM may take to be seen.
const (
	resetLooks = 100
	resetPause = 20 * time.Millisecond
)

// applyConf brings the running server to c and proves it: the reload was seen by a backend, and
// pg_settings shows what was written. What ALTER SYSTEM put over it is reset.
func (a *PostgresAgent) applyConf(ctx context.Context, c pgConf) error {
	c.slotSync, c.waitSlots = a.slotSync, a.waitSlots
	seq, changed, err := a.writeConf(a.cfg.DataDir, c)
	if err != nil {
		return err
	}
	if !changed && a.verifiedSeq == seq {
		return nil
	}
	for attempt := 0; ; attempt++ {
		if attempt < 2 { // once for what was written, once for what was reset
			if err := a.reload(ctx, seq); err != nil {
				return err
			}
		}
		row, err := a.queryRow(ctx, `SELECT coalesce(string_agg(name, ','), '')
			FROM pg_settings WHERE sourcefile LIKE '%/postgresql.auto.conf'
			AND name IN (`+pgManagedList()+`)`)
		if err != nil {
			return fmt.Errorf("verify settings: %w", err)
		}
		if row[0] == "" {
			break
		}
		if attempt > 0 {
			// The sequence number was there before the reset, so it does not prove this reload:
			// the backend that is asked may not have had its signal yet.
			if attempt > resetLooks {
				return fmt.Errorf("settings %s in postgresql.auto.conf hide holdfast's", row[0])
			}
			if err := pauseFor(ctx, resetPause); err != nil {
				return err
			}
			continue
		}
		for name := range strings.SplitSeq(row[0], ",") {
			if _, err := a.exec(ctx, "ALTER SYSTEM RESET "+name); err != nil {
				return fmt.Errorf("reset %s: %w", name, err)
			}
		}
	}
	if err := a.verifyConf(ctx, c); err != nil {
		return err
	}
	a.verifiedSeq = seq
	return nil
}

func pgManagedList() string {
	names := make([]string, 0, len(pgManaged))
	for name := range pgManaged {
		names = append(names, "'"+name+"'")
	}
	return strings.Join(names, ",")
}

func (a *PostgresAgent) verifyConf(ctx context.Context, c pgConf) error {
	want, err := a.upstreamInfo(c)
	if err != nil {
		return err
	}
	row, err := a.queryRow(ctx, `SELECT current_setting('primary_conninfo'),
		current_setting('synchronous_standby_names')`)
	if err != nil {
		return fmt.Errorf("verify settings: %w", err)
	}
	if row[0] != want || row[1] != c.syncNames {
		return errors.New("verify settings: the server did not take primary_conninfo or " +
			"synchronous_standby_names; see its log")
	}
	return nil
}

// reload has the postmaster read its files again and waits until this session's backend has
// read the version seq of holdfast.conf.
func (a *PostgresAgent) reload(ctx context.Context, seq string) error {
	if _, err := a.exec(ctx, "SELECT pg_reload_conf()"); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.QueryTimeout)
	defer cancel()
	for {
		row, err := a.queryRow(ctx, "SELECT coalesce(current_setting('holdfast.conf_seq', true), '')")
		if err != nil {
			return fmt.Errorf("reload: %w", err)
		}
		if row[0] == seq {
			return nil
		}
		if err := pauseFor(ctx, 2*time.Millisecond); err != nil {
			return errors.New("reload: the server does not take " + pgConfName +
				": see its log for the bad setting")
		}
	}
}
