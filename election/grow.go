package election

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
)

// standbySizes are settings that must not be smaller on a standby than on its primary: it stops
// replaying when it sees them grow there, and before 14 it ends (hot-standby.sgml, "Administrator's
// Overview"). The values are what pg_controldata calls them.
var standbySizes = map[string]string{
	"max_connections":           "max_connections setting",
	"max_worker_processes":      "max_worker_processes setting",
	"max_wal_senders":           "max_wal_senders setting",
	"max_prepared_transactions": "max_prepared_xacts setting",
	"max_locks_per_transaction": "max_locks_per_xact setting",
}

// readSizeKey takes what the primary last had of standbySizes by the WAL that is replayed.
func (c *pgControl) readSizeKey(key, value string) {
	for name, is := range standbySizes {
		if n, err := strconv.Atoi(value); is == key && err == nil {
			if c.sizes == nil {
				c.sizes = map[string]int{}
			}
			c.sizes[name] = n
		}
	}
}

// agentSize is a setting of standbySizes: what the primary has, the running server, and the server
// after its next start.
type agentSize struct {
	name             string
	need, have, next int
}

// growth is what a restart does for a standby that has stopped replaying since it runs with less
// than its primary: what each setting grows to, the same in words (empty: it lacks nothing), and
// why a restart is of no use (empty: it is).
type growth struct {
	to      map[string]int
	text    string
	useless string
}

// reconcileSizes restarts a standby that has stopped replaying since it runs with less than its
// primary, if the files have enough for the next start (DESIGN.md I102): until then it falls behind
// and cannot be promoted, and nobody else resumes it. Replay that somebody else has paused is his
// matter. What keeps it from a restart stays as the member's problem, and holds nothing else up.
func (a *PostgresAgent) reconcileSizes(ctx context.Context) (restarted bool, err error) {
	row, err := a.queryRow(ctx, "SELECT pg_is_wal_replay_paused()")
	if err != nil {
		return false, fmt.Errorf("ask whether replay is paused: %w", err)
	}
	var g growth
	if row[0] == "t" {
		if g, err = a.planGrowth(ctx); err != nil {
			return false, err
		}
	}
	problem, isDue := a.growthDue(g, time.Now())
	a.setSizeProblem(problem)
	if !isDue {
		return false, nil
	}
	a.log.Warn("replay stands still until the server has as much as the primary; restarting it",
		zap.String("settings", g.text))
	if _, err := a.stopServer(ctx, a.cfg.StopTimeout); err != nil {
		return false, err
	}
	a.dueAt = time.Time{}
	err = a.startStandby(ctx, a.standbyConf(a.desiredUpstream()))
	a.noteGrown(g)
	return true, err
}

// growRecruited is reconcileSizes for a standby that is being recruited and has stopped replaying:
// nobody else would restart it now, and it might be all that is left. A walreceiver that is there
// still ends with the server, and syncs what it has; the next start has none.
func (a *PostgresAgent) growRecruited(ctx context.Context, conf pgConf) error {
	g, err := a.planGrowth(ctx)
	switch {
	case err != nil:
		return err
	case g.text == "":
		return errReplayPaused
	case g.useless != "":
		return errors.New("replay stands still" + g.useless)
	}
	a.log.Warn("replay stands still until the recruited standby has as much as the primary had; "+
		"restarting it", zap.String("settings", g.text))
	if _, err := a.stopServer(ctx, min(2*time.Second, a.cfg.StopTimeout)); err != nil {
		return err
	}
	err = a.launchAgain(ctx, conf)
	a.noteGrown(g)
	if err != nil {
		return err
	}
	return a.waitReady(ctx, nil) // errNoLogins: it is fenced by its files
}

// growthStagger is how much later than the standby before it, by name, one is restarted: all of
// them stop replaying at the same record, and readers shall find one.
const growthStagger = 5 * time.Second

// growthDue tells what to say of a standby that lacks something, and whether to restart it now.
func (a *PostgresAgent) growthDue(g growth, now time.Time) (problem string, isDue bool) {
	st, _ := a.deps.Source.State()
	dueAt, until := time.Time{}, ""
	defer func() { a.dueAt = dueAt }()
	switch {
	case g.text == "":
		return "", false
	case g.useless != "":
		return "replay stands still" + g.useless, false
	case st.Maintenance != nil:
		until = "when the maintenance ends"
	case st.Intent != nil:
		until = "when the change of the primary is over" // a recruit does it by itself
	default:
		if dueAt = a.dueAt; dueAt.IsZero() {
			dueAt = now
		}
		if now.Sub(dueAt) >= time.Duration(a.standbyRank(st))*growthStagger {
			return "", true
		}
		until = "some seconds after the standbys before it"
	}
	return "replay stands still until the server is restarted (" + g.text + "), " + until, false
}

// standbyRank is how many standbys come before this one by name.
func (a *PostgresAgent) standbyRank(st *State) int {
	rank := 0
	for _, m := range st.Members {
		isStandby := m.Postgres != "" && (st.Lock == nil || m.Name != st.Lock.Holder)
		if isStandby && m.Name < a.cfg.Name {
			rank++
		}
	}
	return rank
}

// planGrowth is about a standby that has stopped replaying.
func (a *PostgresAgent) planGrowth(ctx context.Context) (growth, error) {
	sizes, err := a.lackedSizes(ctx)
	if err != nil || len(sizes) == 0 {
		return growth{}, err
	}
	start := pgStartOf(a.cfg.DataDir)
	g := growth{to: map[string]int{}}
	var short, grows []string
	isVain := start == ""
	for _, s := range sizes {
		if s.next < s.need {
			short = append(short, fmt.Sprintf("%s is %d here and %d on the primary", s.name, s.next,
				s.need))
		}
		grows = append(grows, fmt.Sprintf("%s %d -> %d", s.name, s.have, s.next))
		g.to[s.name] = s.next
		isVain = isVain || a.isVain(start, s)
	}
	g.text = strings.Join(grows, ", ")
	switch {
	case len(short) > 0:
		g.useless = ": " + strings.Join(short, ", ") +
			": raise it in postgres.settings and start the node again"
	case isVain:
		g.useless = ", and a restart did not help: " + g.text
	default:
		bad, err := a.badConf(ctx)
		if err != nil {
			return growth{}, err
		}
		if bad != "" {
			g.useless = " until the server is restarted (" + g.text + "), and it would not start: " + bad
		}
	}
	return g, nil
}

// badConf tells of a line of the configuration files with which no server starts; empty if there is
// none that can be seen from a running one. "Could not be applied" is said of what waits for a
// restart as well, and of names of things that another database may have.
func (a *PostgresAgent) badConf(ctx context.Context) (string, error) {
	rows, err := a.exec(ctx, `SELECT f.sourcefile, f.sourceline, f.error
		FROM pg_file_settings f LEFT JOIN pg_settings s ON s.name = lower(f.name)
		WHERE f.error IS NOT NULL AND (f.error <> 'setting could not be applied'
		OR s.context <> 'postmaster' AND (s.context = 'sighup' OR s.vartype <> 'string'))
		ORDER BY f.seqno LIMIT 1`)
	if err != nil {
		return "", fmt.Errorf("look for errors in the configuration files: %w", err)
	}
	if len(rows) == 0 {
		return "", nil
	}
	return fmt.Sprintf("%s line %s: %s", rows[0][0], rows[0][1], rows[0][2]), nil
}

// isVain tells that this start of the server was made for more of a setting than it has.
func (a *PostgresAgent) isVain(start string, s agentSize) bool {
	return a.grownStart == start && s.have < a.grownTo[s.name]
}

// noteGrown remembers what the start that was just made, or tried, was to bring.
func (a *PostgresAgent) noteGrown(g growth) {
	a.grownStart, a.grownTo = pgStartOf(a.cfg.DataDir), g.to
}

func (a *PostgresAgent) setSizeProblem(text string) {
	a.mu.Lock()
	changed := a.sizeProblem != text
	a.sizeProblem = text
	a.mu.Unlock()
	if changed && text != "" {
		a.log.Warn("standby does not replay", zap.String("problem", text))
	}
	if changed {
		pgPoke(a.kick)
	}
}

// lackedSizes are the settings of which the running standby has less than its primary.
func (a *PostgresAgent) lackedSizes(ctx context.Context) ([]agentSize, error) {
	ctl, err := a.controlData(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := a.exec(ctx, `SELECT name, setting, coalesce((SELECT f.setting FROM
		pg_file_settings f WHERE lower(f.name) = s.name ORDER BY f.seqno DESC LIMIT 1), boot_val)
		FROM pg_settings s WHERE name IN (`+pgLiterals(sortedKeys(standbySizes))+`) ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("read what the standby has less of: %w", err)
	}
	var out []agentSize
	for _, r := range rows {
		s := agentSize{name: r[0], need: ctl.sizes[r[0]]}
		s.have, _ = strconv.Atoi(r[1])
		s.next, _ = strconv.Atoi(strings.TrimSpace(r[2])) // what is no number is not enough
		out = append(out, s)
	}
	return slices.DeleteFunc(out, func(s agentSize) bool { return s.have >= s.need }), nil
}
