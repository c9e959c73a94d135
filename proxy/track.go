package proxy

import (
	"strings"

	"holdfast/pgwire"
)

// setting is a run-time parameter as the session has it.
type setting struct{ name, value string }

// prepared is a named prepared statement of the session.
type prepared struct {
	sql    string
	oids   []uint32
	parsed parsed
	bySQL  bool // made by the SQL command PREPARE, of which sql is the text
	live   bool // the server has confirmed it
}

// tracker knows what has to be rebuilt on a new backend: the state that the server itself told
// after the last statement that could change it (the snapshot), and the commands that came after
// that (the overlay), which matter only if the backend is lost before it could be asked again.
// It does no I/O; the session's lock guards it.
type tracker struct {
	settings []setting
	role     string // current_setting('role'): "none" if not set
	authUser string // session_user
	channels []string

	overlay   []string // committed since the snapshot
	txOverlay []string // of the open transaction
	txUnknown bool     // the transaction may have changed settings in an unknown way
	unknown   bool     // so did one that committed

	dirty  bool // the server has to be asked
	custom map[string]struct{}

	statements    map[string]*prepared
	preparedBytes int
	preparedMax   int

	// unmovable is why a new backend cannot stand in for the old one; empty if it can.
	unmovable   string
	txUnmovable string
}

func newTracker(user string, preparedMax int) tracker {
	return tracker{role: "none", authUser: user, preparedMax: preparedMax}
}

// customMax bounds how many custom settings are asked for.
const customMax = 64

// succeeded takes a statement that the server completed.
func (t *tracker) succeeded(e *effect) {
	switch e.kind {
	case pgwire.KindSet, pgwire.KindReset, pgwire.KindSetRole,
		pgwire.KindSetSessionAuthorization, pgwire.KindListen, pgwire.KindUnlisten:
		t.dirty = true
		if strings.Contains(e.name, ".") && len(t.custom) < customMax &&
			(e.kind == pgwire.KindSet) {
			if t.custom == nil {
				t.custom = make(map[string]struct{})
			}
			t.custom[e.name] = struct{}{}
		}
		if !e.local {
			t.txOverlay = append(t.txOverlay, e.text)
		}
	case pgwire.KindDiscard:
		t.discard(e)
	case pgwire.KindPrepare:
		t.prepare(e.name, &prepared{sql: e.text, bySQL: true, live: true})
	case pgwire.KindDeallocate:
		t.deallocate(e)
	default:
		if e.cls.has(clsState) { // set_config in a statement that is not only that
			t.dirty, t.txUnknown = true, true
		}
	}
	switch {
	case e.cls.has(clsTemp):
		t.txUnmovable = "temporary table"
	case e.cls.has(clsHold):
		t.txUnmovable = "cursor WITH HOLD"
	case e.cls.has(clsAdvisory):
		t.unmovable = "session advisory lock"
	}
}

func (t *tracker) discard(e *effect) {
	t.dirty = true
	switch e.name {
	case "all":
		t.statements, t.preparedBytes = nil, 0
		t.unmovable, t.txUnmovable = "", ""
		t.custom = nil
	case "temp", "temporary":
		if t.unmovable == "temporary table" {
			t.unmovable = ""
		}
	}
}

func (t *tracker) deallocate(e *effect) {
	if e.all {
		t.statements, t.preparedBytes = nil, 0
		return
	}
	t.forget(e.name)
}

// prepare remembers a statement; one that would not fit makes the session unmovable rather than
// being forgotten silently.
func (t *tracker) prepare(name string, p *prepared) {
	if old := t.statements[name]; old != nil {
		t.preparedBytes -= len(old.sql)
	}
	if t.preparedBytes+len(p.sql) > t.preparedMax {
		t.unmovable = "prepared statements larger than prepared_bytes_max"
		p = &prepared{parsed: p.parsed, live: true}
	}
	if t.statements == nil {
		t.statements = make(map[string]*prepared)
	}
	t.preparedBytes += len(p.sql)
	t.statements[name] = p
}

func (t *tracker) forget(name string) {
	if old := t.statements[name]; old != nil {
		t.preparedBytes -= len(old.sql)
		delete(t.statements, name)
	}
}

// batchEnded takes ReadyForQuery: at 'I' what the transaction did is kept or gone.
func (t *tracker) batchEnded(status byte, rolledBack bool) {
	if status != pgwire.TxIdle {
		return
	}
	if !rolledBack {
		t.overlay = append(t.overlay, t.txOverlay...)
		t.unknown = t.unknown || t.txUnknown
		if t.txUnmovable != "" {
			t.unmovable = t.txUnmovable
		}
	}
	t.txOverlay, t.txUnknown, t.txUnmovable = nil, false, ""
}

// snapshotSQL asks for all that is tracked as state. Names are qualified throughout: the
// session's search_path is not ours.
func (t *tracker) snapshotSQL() string {
	var b strings.Builder
	b.WriteString(`SELECT 's', name, pg_catalog.current_setting(name)` +
		` FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session'` +
		` AND name OPERATOR(pg_catalog.<>) ALL (ARRAY['transaction_isolation',` +
		`'transaction_read_only','transaction_deferrable','seed','role',` +
		`'session_authorization','is_superuser'])` +
		` UNION ALL SELECT 'l', c, NULL FROM pg_catalog.pg_listening_channels() c` +
		` UNION ALL SELECT 'r', 'role', pg_catalog.current_setting('role')` +
		` UNION ALL SELECT 'a', 'user', session_user::pg_catalog.text`)
	for name := range t.custom {
		b.WriteString(` UNION ALL SELECT 's', `)
		b.WriteString(quoteLiteral(name))
		b.WriteString(`, pg_catalog.current_setting(`)
		b.WriteString(quoteLiteral(name))
		b.WriteString(`, true)`)
	}
	return b.String()
}

// applySnapshot takes the rows of snapshotSQL.
func (t *tracker) applySnapshot(rows [][3]string) {
	t.settings, t.channels = t.settings[:0], t.channels[:0]
	for _, r := range rows {
		switch r[0] {
		case "s":
			t.settings = append(t.settings, setting{r[1], r[2]})
		case "l":
			t.channels = append(t.channels, r[1])
		case "r":
			t.role = r[2]
		case "a":
			t.authUser = r[2]
		}
	}
	t.overlay, t.unknown, t.dirty = nil, false, false
}

// restoreSQL lists the commands that make a fresh backend of the login user what this session
// is: the authorization first, since it decides what may be set, and the role last.
func (t *tracker) restoreSQL(loginUser string) []string {
	var out []string
	if t.authUser != loginUser {
		out = append(out, "SET SESSION AUTHORIZATION "+quoteIdent(t.authUser))
	}
	if len(t.settings) > 0 {
		var b strings.Builder
		b.WriteString("SELECT ")
		for i, s := range t.settings {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString("pg_catalog.set_config(" + quoteLiteral(s.name) + ", " +
				quoteLiteral(s.value) + ", false)")
		}
		out = append(out, b.String())
	}
	if t.role != "none" && t.role != "" {
		out = append(out, "SET ROLE "+quoteIdent(t.role))
	}
	for _, c := range t.channels {
		out = append(out, "LISTEN "+quoteIdent(c))
	}
	return append(out, t.overlay...)
}

// quoteLiteral writes a string constant that means the same under both settings of
// standard_conforming_strings.
func quoteLiteral(s string) string {
	q := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return " E" + strings.ReplaceAll(q, `\`, `\\`)
	}
	return q
}

func quoteIdent(s string) string {
	return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
}
