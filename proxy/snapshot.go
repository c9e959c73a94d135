package proxy

import "strings"

// snapshot is what the server told.
type snapshot struct {
	settings []setting
	role     string // current_setting('role'): "none" if not set
	authUser string // session_user
	channels []string
}

// snapshotSQL asks for all that is tracked as state. Names are qualified throughout: the
// session's search_path is not ours.
func (t *tracker) snapshotSQL() string {
	var b strings.Builder
	b.WriteString(`SELECT 'r', 'role', pg_catalog.current_setting('role')` +
		` UNION ALL SELECT 'a', 'user', session_user::pg_catalog.text`)
	if t.suspect != 0 {
		// Only where something may have made such state: the lock table is no light question.
		b.WriteString(factsSQL)
	}
	b.WriteString(` UNION ALL SELECT 's', name, pg_catalog.current_setting(name)` +
		` FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session'` +
		` AND name OPERATOR(pg_catalog.<>) ALL (ARRAY['transaction_isolation',` +
		`'transaction_read_only','transaction_deferrable','seed','role',` +
		`'session_authorization','is_superuser'])` +
		` UNION ALL SELECT 'l', c, NULL FROM pg_catalog.pg_listening_channels() c`)
	t.appendCustomSQL(&b)
	return b.String()
}

// appendCustomSQL asks for custom settings, of which no view tells. Their names may be known from
// functions that were never called: what was never set must stay unknown, and what a library has
// made a setting of its own is in the view.
func (t *tracker) appendCustomSQL(b *strings.Builder) {
	always := t.configured()
	if len(t.custom)+len(always) == 0 {
		return
	}
	b.WriteString(` UNION ALL SELECT 's', n, v FROM pg_catalog.unnest(ARRAY[`)
	first := true
	add := func(name string) {
		if !first {
			b.WriteByte(',')
		}
		first = false
		b.WriteString(quoteLiteral(name))
	}
	for name := range t.custom {
		add(name)
	}
	for _, name := range always {
		if _, known := t.custom[name]; !known {
			add(name)
		}
	}
	b.WriteString(`]) n, LATERAL pg_catalog.current_setting(n, true) v WHERE v IS NOT NULL` +
		` AND NOT EXISTS (SELECT FROM pg_catalog.pg_settings p` +
		` WHERE pg_catalog.lower(p.name) OPERATOR(pg_catalog.=) n)`)
}

// factsSQL asks for what only this backend has.
const factsSQL = lockSQL +
	` UNION ALL SELECT 'f', 'temp', EXISTS (SELECT FROM pg_catalog.pg_class` +
	` WHERE relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())::pg_catalog.text` +
	` UNION ALL SELECT 't', pg_catalog.max(CASE WHEN relkind OPERATOR(pg_catalog.<>) 'r'` +
	` THEN pg_catalog.pg_describe_object(tableoid, oid, 0) END),` +
	` pg_catalog.sum(pg_catalog.pg_table_size(oid))::pg_catalog.text FROM pg_catalog.pg_class` +
	` WHERE relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()` +
	` AND relkind OPERATOR(pg_catalog.<>) 'i'` +
	` UNION ALL SELECT 'f', 'hold', EXISTS (SELECT FROM pg_catalog.pg_cursors` +
	` WHERE is_holdable)::pg_catalog.text`

// applySnapshot takes the rows of snapshotSQL; cut tells that there were more than are kept.
func (t *tracker) applySnapshot(rows [][3]string, cut bool) {
	told := &snapshot{role: noRole, authUser: t.loginUser}
	asked := t.suspect != 0
	if asked {
		t.unmovable &^= reasonsAsked
	}
	locks := make(map[lockKey]struct{})
	for _, r := range rows {
		switch r[0] {
		case "s":
			told.settings = append(told.settings, setting{r[1], r[2]})
			t.noteConfigured(r[1])
		case "l":
			told.channels = append(told.channels, r[1])
		case "r":
			told.role = r[2]
		case "a":
			told.authUser = r[2]
		case "k":
			if k, ok := parseLockRow(r[1], r[2]); ok {
				locks[k] = struct{}{}
			}
		case "t":
			t.temp = parseTemp(r[1], r[2])
		case "f":
			if r[2] == "true" {
				t.unmovable |= map[string]reason{
					"temp": reasonTemp, "hold": reasonHold,
				}[r[1]]
			}
		}
	}
	if cut {
		t.unmovable |= reasonSettings
	}
	if t.told = told; told.isAsLoggedIn(t.loginUser, t.loginRole) {
		t.told = nil
	}
	t.overlay, t.unknown, t.dirty, t.failed = nil, false, false, 0
	if asked {
		t.locks.verify(locks)
		t.unmovable |= t.locks.reason()
	}
	if t.unmovable == 0 {
		t.blame = ""
	}
	t.suspect = t.unmovable & reasonsAsked // once there, it is asked for until it is gone
	if t.locks.mayHold() {
		t.suspect |= reasonAdvisory
	}
}

// snapshotsMax is how often in a row a snapshot is asked for that fails.
const snapshotsMax = 8

// snapshotFailed takes the error of a snapshot: a timeout of the client, or its late cancel
// request. It is asked for again behind the next unit of work, and what is known until then is the
// overlay.
func (t *tracker) snapshotFailed() {
	if t.failed++; t.failed >= snapshotsMax {
		t.unmovable |= reasonSettings
		t.dirty, t.failed = false, 0
	}
}

// isAsLoggedIn tells that nothing has to be restored.
func (s *snapshot) isAsLoggedIn(user, role string) bool {
	return len(s.settings) == 0 && len(s.channels) == 0 && s.authUser == user &&
		(s.role == role || role == "" && s.role == noRole)
}

// noRole is the setting role where SET ROLE was not done; no role can have that name.
const noRole = "none"

// listens tells that the session waits for notifications.
func (t *tracker) listens() bool { return t.told != nil && len(t.told.channels) > 0 }

// restoreSQL lists the commands that make a fresh backend of the login user, which has begun with
// that role, what this session is: the authorization first, since it decides what may be set, and
// the role last.
func (t *tracker) restoreSQL(role string) []string {
	var out []string
	if role != noRole && role != "" && (len(t.loads) > 0 || t.told != nil) {
		// Another role need not have the rights of the login's own.
		out, role = append(out, setRoleSQL(noRole)), noRole
	}
	out = append(out, t.loads...)
	switch {
	case t.told != nil:
		out = t.told.appendSQL(out, t.loginUser, role)
	case t.loginRole != "" && t.loginRole != role:
		out = append(out, setRoleSQL(t.loginRole))
	}
	if t.overlay != nil {
		out = append(out, t.overlay.done...)
	}
	return out
}

// setRoleSQL makes it the role.
func setRoleSQL(role string) string {
	if role == noRole {
		return "SET ROLE NONE"
	}
	return "SET ROLE " + quoteIdent(role)
}

func (t *snapshot) appendSQL(out []string, loginUser, role string) []string {
	for _, s := range t.settings {
		if s.name == "client_encoding" {
			// What follows is written in it.
			out = append(out, "SET client_encoding = "+quoteLiteral(s.value))
		}
	}
	if t.authUser != loginUser {
		out = append(out, "SET SESSION AUTHORIZATION "+quoteIdent(t.authUser))
		role = noRole // which it implies
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
	if t.role != role && (t.role != noRole || role != "") {
		out = append(out, setRoleSQL(t.role))
	}
	for _, c := range t.channels {
		out = append(out, "LISTEN "+quoteIdent(c))
	}
	return out
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
