package election

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"
)

// slotInterval is how often slots are advanced on standbys.
const slotInterval = 2 * time.Second

// wantSlots are the slots that this member carries: one for every other member.
func (a *PostgresAgent) wantSlots(members []Member) []string {
	var names []string
	for _, m := range members {
		if m.Name != a.cfg.Name && m.Postgres != "" {
			names = append(names, SlotName(m.Name))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func pgLiterals(names []string) string {
	lits := make([]string, len(names))
	for i, n := range names {
		lits[i] = pgLiteral(n)
	}
	return strings.Join(lits, ",")
}

// ensureSlots makes the missing slots, replaces those that were invalidated, and drops inactive
// ones of members that are no more. It works on standbys too.
func (a *PostgresAgent) ensureSlots(ctx context.Context, members []Member) error {
	want := a.wantSlots(members)
	if len(want) == 0 {
		return nil
	}
	list := pgLiterals(want)
	dropped, err := a.exec(ctx, `SELECT slot_name, wal_status, pg_drop_replication_slot(slot_name)
		FROM pg_replication_slots
		WHERE slot_type = 'physical' AND NOT active AND slot_name LIKE 'holdfast\_%'
		AND (wal_status = 'lost' OR slot_name NOT IN (`+list+`))`)
	if err != nil {
		return fmt.Errorf("drop obsolete slots: %w", err)
	}
	for _, slot := range dropped {
		if slot[1] == "lost" {
			a.log.Warn("a slot fell behind max_slot_wal_keep_size and is made anew; its standby "+
				"clones anew if it needs the WAL that is gone", zap.String("slot", slot[0]))
		}
	}
	_, err = a.exec(ctx, `SELECT pg_create_physical_replication_slot(n, true)
		FROM unnest(ARRAY[`+list+`]::name[]) AS n
		WHERE n NOT IN (SELECT slot_name FROM pg_replication_slots)`)
	if err != nil {
		return fmt.Errorf("make slots: %w", err)
	}
	return nil
}

// advanceSlots moves the slots of a standby forward, so that they keep no more WAL than the
// primary's own slots do. Nobody streams from a standby, so its slots would never move. The
// primary knows how far each other standby is; for the primary itself, which would come back by
// a rewind to a common checkpoint, this standby's own last restart point is kept.
func (a *PostgresAgent) advanceSlots(ctx context.Context, holder Member, members []Member) error {
	if err := a.renewSlots(ctx, members); err != nil {
		return err
	}
	remote, err := a.holderSlots(ctx, holder)
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.Name == a.cfg.Name || m.Postgres == "" {
			continue
		}
		to := "(SELECT redo_lsn FROM pg_control_checkpoint())"
		if lsn, ok := remote[SlotName(m.Name)]; ok && m.Name != holder.Name {
			to = pgLiteral(lsn) + "::pg_lsn"
		} else if m.Name != holder.Name {
			continue
		}
		_, err := a.exec(ctx, `SELECT pg_replication_slot_advance(slot_name,
			least(`+to+`, pg_last_wal_replay_lsn())) FROM pg_replication_slots
			WHERE slot_name = `+pgLiteral(SlotName(m.Name))+` AND NOT active
			AND restart_lsn < least(`+to+`, pg_last_wal_replay_lsn())`)
		if err != nil {
			return fmt.Errorf("advance slot: %w", err)
		}
	}
	return nil
}

// renewSlots makes slots anew that hold a transaction horizon from the time when this server was a
// primary, whose standbys gave feedback. Nobody would ever take it back, and this standby's own
// feedback would hold it on the primary: no row that was dead since then could be removed there. A
// copy of a slot (pg_copy_physical_replication_slot) has the horizon, too. A slot that needs WAL
// from before the last restart point is left as it is, since a new one would not keep that.
func (a *PostgresAgent) renewSlots(ctx context.Context, members []Member) error {
	rows, err := a.exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
		WHERE slot_type = 'physical' AND NOT active AND slot_name LIKE 'holdfast\_%'
		AND coalesce(xmin, catalog_xmin) IS NOT NULL
		AND restart_lsn >= (SELECT redo_lsn FROM pg_control_checkpoint())`)
	if err != nil {
		return fmt.Errorf("drop slots with a horizon: %w", err)
	}
	if len(rows) == 0 {
		return nil
	}
	return a.ensureSlots(ctx, members)
}

// holderSlots asks the primary how far its slots are.
func (a *PostgresAgent) holderSlots(ctx context.Context, holder Member) (map[string]string, error) {
	rows, err := a.askHolder(ctx, holder, `SELECT slot_name, restart_lsn FROM pg_replication_slots
		WHERE restart_lsn IS NOT NULL`)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(rows))
	for _, r := range rows {
		out[r[0]] = r[1]
	}
	return out, nil
}

// askHolder asks the primary about its slots.
func (a *PostgresAgent) askHolder(ctx context.Context, holder Member, sql string) ([][]string,
	error,
) {
	ctx, cancel := a.yielding(ctx)
	defer cancel()
	c, err := a.dialMember(ctx, holder, pgLookupRole, a.secrets.lookup, false)
	if err != nil {
		return nil, err
	}
	defer pgClose(c)
	rows, err := pgQuery(ctx, c, sql)
	if err != nil {
		return nil, fmt.Errorf("slots of %q: %w", holder.Name, err)
	}
	return rows, nil
}

// dialMember opens a connection to another member's server over TCP.
func (a *PostgresAgent) dialMember(ctx context.Context, m Member, role, password string,
	replication bool,
) (*pgconn.PgConn, error) {
	host, port, err := net.SplitHostPort(m.Postgres)
	if err != nil {
		return nil, fmt.Errorf("address of member %q: %w", m.Name, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("address of member %q: %w", m.Name, err)
	}
	cfg, err := pgConnConfig(host, uint16(n), role, password)
	if err != nil {
		return nil, err
	}
	if replication {
		cfg.RuntimeParams["replication"] = "true"
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.QueryTimeout)
	defer cancel()
	c, err := a.connectMember(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to member %q: %w", m.Name, err)
	}
	return c, nil
}
