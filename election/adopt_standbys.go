package election

import (
	"context"
	"strconv"
	"strings"
)

// checkStandbys refuses a restart of the primary after which a standby would not replay any more,
// and a standby that does not replay now.
func (d *Adoption) checkStandbys(ctx context.Context, p *AdoptPlan) error {
	if d.srv.inRecovery {
		row, err := d.a.queryRow(ctx, "SELECT pg_is_wal_replay_paused()")
		if err == nil && row[0] == "t" {
			p.refuse("replay is paused on this standby: if its log names a setting that the primary " +
				"has a greater value of, raise it here and restart; else SELECT pg_wal_replay_resume()")
		}
		return err
	}
	grown := map[string]int{}
	for _, c := range p.Changes {
		from, err1 := strconv.Atoi(c.From)
		to, err2 := strconv.Atoi(c.To)
		if c.Kind == "setting" && c.When == AdoptRestart && standbySizes[c.Object] != "" &&
			err1 == nil && err2 == nil && to > from {
			grown[c.Object] = to
		}
	}
	if !d.cfg.Restart || len(grown) == 0 {
		return nil
	}
	row, err := d.a.queryRow(ctx, `SELECT count(*) FROM pg_stat_replication r
		WHERE replay_lsn IS NOT NULL AND NOT EXISTS (SELECT FROM pg_replication_slots s
		WHERE s.active_pid = r.pid AND slot_type = 'logical')`)
	if err != nil {
		return err
	}
	standbys, _ := strconv.Atoi(row[0])
	ready := 0
	for _, m := range d.cfg.Members {
		if standbys > 0 && m.Name != d.a.cfg.Name && d.hasSizes(ctx, m, grown) {
			ready++
		}
	}
	if ready < standbys {
		p.refuse("a restart would let %s grow here, and %d of the %d standbys that stream from here "+
			"have less (or cannot be asked): they would stop replaying. Adopt without --restart here, "+
			"with --restart on each standby's host, then with --restart here",
			strings.Join(sortedKeys(grown), ", "), standbys-ready, standbys)
	}
	return nil
}

// hasSizes tells whether a member is a standby with settings of at least these values.
func (d *Adoption) hasSizes(ctx context.Context, m Member, sizes map[string]int) bool {
	c, err := d.a.dialMember(ctx, m, pgLookupRole, d.a.secrets.lookup, false)
	if err != nil {
		return false
	}
	defer pgClose(c)
	sql := "SELECT pg_is_in_recovery()"
	for name, size := range sizes {
		sql += " AND current_setting(" + pgLiteral(name) + ")::int >= " + strconv.Itoa(size)
	}
	rows, err := pgQuery(ctx, c, sql)
	return err == nil && len(rows) == 1 && rows[0][0] == "t"
}
