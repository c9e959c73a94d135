package election

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// slotSyncMajor is the first PostgreSQL that copies logical slots to standbys.
const slotSyncMajor = 17

var pgVersionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// readMajor asks the server's program for its major version: a setting of a newer one would keep
// an older server from starting.
func (a *PostgresAgent) readMajor() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := a.run(ctx, "postgres", "--version")
	if err != nil {
		return err
	}
	m := pgVersionPattern.FindStringSubmatch(out)
	if m == nil {
		return fmt.Errorf("postgres --version: %.80q is not understood", out)
	}
	a.major, err = strconv.Atoi(m[1])
	return err
}

// configured returns the value of one of the user's own settings; the last line wins.
func (a *PostgresAgent) configured(name string) string {
	value := ""
	for _, s := range a.cfg.Settings {
		if n, v, err := pgParseSetting(s); err == nil && n == name {
			value = confValue(v)
		}
	}
	return value
}

// wantsSlotSync tells that the primary's failover slots are to be copied here: the server writes
// what logical decoding needs, and the user did not turn the standby's feedback off.
func (a *PostgresAgent) wantsSlotSync() bool {
	if a.major < slotSyncMajor || !a.isLogical && a.configured("wal_level") != "logical" {
		return false
	}
	on, ok := boolSetting(a.configured("hot_standby_feedback"))
	return !ok || on
}

// slotConf are the lines of holdfast.conf about logical slots.
func (a *PostgresAgent) slotConf(c pgConf) [][2]string {
	if a.major < slotSyncMajor {
		return nil
	}
	sync, wait := "off", ""
	if c.slotSync && (c.upstream != nil || c.recruited) {
		// It stays on while a standby is recruited, where it does nothing: turned off and on again
		// the server would start its process 10 to 60 s later.
		sync = "on"
	}
	if c.upstream == nil {
		wait = strings.Join(c.waitSlots, ",")
	}
	out := [][2]string{{"sync_replication_slots", sync},
		{"synchronized_standby_slots", pgQuote(wait)}}
	if a.wantsSlotSync() {
		// Without it the primary removes catalog rows that a copied slot still needs.
		out = append(out, [2]string{"hot_standby_feedback", "on"})
	}
	return out
}

// pgLogicalSQL lists the logical slots; to_jsonb reads columns that older servers do not have.
const pgLogicalSQL = `SELECT slot_name, coalesce(j->>'failover', 'false'),
 coalesce(j->>'synced', 'false'), temporary::text,
 coalesce(j->>'invalidation_reason', CASE WHEN wal_status = 'lost' THEN 'wal_removed' END, ''),
 coalesce(confirmed_flush_lsn, '0/0') FROM (SELECT s.*, to_jsonb(s) AS j
 FROM pg_replication_slots s WHERE slot_type = 'logical') l
 WHERE pg_is_in_recovery() OR NOT temporary ORDER BY slot_name LIMIT `

// logicalSlot reads a row of pgLogicalSQL.
func logicalSlot(row []string) LogicalSlot {
	lsn, _ := pgwire.ParseLSN(row[5])
	return LogicalSlot{Name: row[0], Failover: row[1] == "true", Synced: row[2] == "true",
		Temporary: row[3] == "true", Bad: row[4], LSN: lsn}
}

func (a *PostgresAgent) readLogical(ctx context.Context) ([]LogicalSlot, error) {
	rows, err := a.exec(ctx, pgLogicalSQL+strconv.Itoa(logicalMax))
	if err != nil {
		return nil, fmt.Errorf("read logical slots: %w", err)
	}
	return logicalSlots(rows), nil
}

func logicalSlots(rows [][]string) []LogicalSlot {
	var out []LogicalSlot
	for _, r := range rows {
		out = append(out, logicalSlot(r))
	}
	return out
}

// orderSlots reads the logical slots at once, and has the next sample taken at once: who asks waits
// until the report says the same.
func (a *PostgresAgent) orderSlots(ctx context.Context) (OrderResult, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return OrderResult{}, err
	}
	defer pgClose(c)
	ctx, cancel := context.WithTimeout(ctx, a.cfg.QueryTimeout)
	defer cancel()
	rows, err := pgQuery(ctx, c, pgLogicalSQL+strconv.Itoa(logicalMax))
	if err != nil {
		return OrderResult{}, fmt.Errorf("read logical slots: %w", err)
	}
	pgPoke(a.kick)
	return OrderResult{Logical: logicalSlots(rows), HasLogical: true}, nil
}

// seeLogical notes whether the running server writes what logical decoding needs. On one that does
// not, sync_replication_slots = on would end the postmaster.
func (a *PostgresAgent) seeLogical(ctx context.Context) error {
	if a.major < slotSyncMajor {
		return nil
	}
	row, err := a.queryRow(ctx, "SELECT current_setting('wal_level')")
	if err != nil {
		return fmt.Errorf("read wal_level: %w", err)
	}
	a.isLogical = row[0] == "logical"
	return nil
}

// findWaitSlots reads the slots that logical decoding waits for on this server as a primary with
// that synchronous_standby_names.
func (a *PostgresAgent) findWaitSlots(ctx context.Context, setting string) error {
	if err := a.seeLogical(ctx); err != nil || !a.isLogical {
		a.waitSlots = nil
		return err
	}
	rows, err := a.exec(ctx, `SELECT 's', slot_name FROM pg_replication_slots
		WHERE slot_type = 'physical' AND wal_status <> 'lost'
		UNION ALL SELECT 'm', application_name FROM pg_stat_replication
		WHERE state = 'streaming' AND application_name NOT LIKE 'holdfast clone %'`)
	if err != nil {
		return fmt.Errorf("read standbys: %w", err)
	}
	var exist, streaming []string
	for _, r := range rows {
		if r[0] == "s" {
			exist = append(exist, r[1])
		} else {
			streaming = append(streaming, r[1])
		}
	}
	members := slices.DeleteFunc(slices.Clone(a.members()), func(m Member) bool {
		return m.Name == a.cfg.Name
	})
	a.waitSlots = standbySlots(setting, members, streaming, exist)
	return nil
}

// reconcileSlotSync makes this standby ready to take copies of the primary's failover slots. A slot
// of this server's own with the name of one of them would stop all copying: what is left of its
// life as a primary is dropped, anybody else's is told (DESIGN.md I75).
func (a *PostgresAgent) reconcileSlotSync(ctx context.Context, holder *Member) error {
	if err := a.seeLogical(ctx); err != nil {
		return err
	}
	a.setSlotProblem("")
	if !a.isLogical || !a.wantsSlotSync() || holder == nil {
		a.slotSync = false
		return nil
	}
	have, err := a.readLogical(ctx)
	if err != nil {
		return err
	}
	own := slices.DeleteFunc(have, func(s LogicalSlot) bool { return s.Synced })
	if len(own) == 0 {
		a.slotSync = true
		return nil
	}
	theirs, err := a.holderFailoverSlots(ctx, *holder)
	if err != nil {
		a.log.Debug("slots of the primary not asked for", zap.Error(err))
		return nil // as it was; a holder that is away has nothing to copy
	}
	a.slotSync = true
	for _, s := range own {
		switch {
		case !slices.Contains(theirs, s.Name):
		case !s.Failover:
			a.slotSync = false
			a.setSlotProblem(fmt.Sprintf("no logical slot is copied from %s: the slot %q of this "+
				"standby has the name of one there; drop it", holder.Name, s.Name))
		default:
			if err := a.dropOldLife(ctx, s.Name); err != nil {
				a.slotSync = false
				return err
			}
		}
	}
	return nil
}

// wakeSlotSync makes the postmaster look whether its process that copies slots is to be started.
// One that ended by an error may start again after 10 s, but nobody looks before something wakes
// the postmaster; a connection does, and else only a timer of 60 s.
func (a *PostgresAgent) wakeSlotSync(ctx context.Context) error {
	if !a.slotSync {
		return nil
	}
	row, err := a.queryRow(ctx,
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'slotsync worker'")
	if err != nil || row[0] != "0" {
		return err
	}
	c, err := a.connect(ctx)
	pgClose(c)
	return err
}

// dropOldLife drops a failover slot that is no copy. No such slot can be made on a standby, so it
// is from when this server was a primary. The server checks it again in the statement.
func (a *PostgresAgent) dropOldLife(ctx context.Context, name string) error {
	rows, err := a.exec(ctx, `SELECT pg_drop_replication_slot(slot_name)
		FROM pg_replication_slots
		WHERE slot_name = `+pgLiteral(name)+`
		AND slot_type = 'logical' AND failover AND NOT synced AND pg_is_in_recovery()`)
	if err != nil {
		return fmt.Errorf("drop logical slot %q of this server's time as a primary: %w", name, err)
	}
	if len(rows) > 0 {
		a.log.Info("logical slot of this server's time as a primary dropped, to be copied anew",
			zap.String("slot", name))
	}
	return nil
}

// holderFailoverSlots asks the primary for the names that are copied to standbys.
func (a *PostgresAgent) holderFailoverSlots(ctx context.Context, holder Member) ([]string, error) {
	rows, err := a.askHolder(ctx, holder, `SELECT slot_name FROM pg_replication_slots s
		WHERE slot_type = 'logical' AND NOT temporary AND (to_jsonb(s)->>'failover')::bool`)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, r := range rows {
		names = append(names, r[0])
	}
	return names, nil
}

func (a *PostgresAgent) setSlotProblem(text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.slotProblem = text
}
