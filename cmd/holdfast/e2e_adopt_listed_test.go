package main_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/election"
)

// adoptRow is one row of a catalogue or of a view of the configuration.
type adoptRow struct{ table, text string }

// adoptSnapshot is all of a server that an adoption could change: every row of every catalogue,
// what is configured, and the files.
type adoptSnapshot struct {
	rows  map[adoptRow]bool
	files map[string]string // digest by path
}

// adoptVolatile are columns that a server at work changes by itself.
const adoptVolatile = "{relpages,reltuples,relallvisible,relallfrozen,relfrozenxid,relminmxid," +
	"datfrozenxid,datminmxid}"

// adoptViews tell what is configured, of each only what an adoption could mean to change.
var adoptViews = map[string]string{
	"setting": "SELECT name, setting, unit, pending_restart, current_setting(name) AS shown " +
		"FROM pg_settings WHERE name NOT IN ('in_hot_standby', 'application_name')",
	"file setting": "SELECT sourcefile, name, setting, applied, error FROM pg_file_settings",
	"hba": "SELECT type, database, user_name, address, netmask, auth_method, options, error " +
		"FROM pg_hba_file_rules",
	"slot": "SELECT slot_name, slot_type, plugin FROM pg_replication_slots",
}

// snapshot reads it, by the server's own socket.
func (c *patroniCluster) snapshot(n *holdfast.ClusterNode) adoptSnapshot {
	c.t.Helper()
	s := adoptSnapshot{map[adoptRow]bool{}, c.dataFiles(n)}
	var parts []string
	for _, name := range strings.Fields(c.psql(n, "SELECT relname FROM pg_class WHERE "+
		"relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND relname NOT IN "+
		"('pg_statistic', 'pg_statistic_ext_data')")) {
		parts = append(parts, fmt.Sprintf("SELECT '%s', to_jsonb(t) - '%s'::text[] FROM %s t", name,
			adoptVolatile, name))
	}
	if len(parts) < 50 {
		c.t.Fatalf("%d catalogues", len(parts))
	}
	for _, name := range slices.Sorted(maps.Keys(adoptViews)) {
		parts = append(parts, fmt.Sprintf("SELECT '%s', to_jsonb(t) FROM (%s) t", name,
			adoptViews[name]))
	}
	for line := range strings.Lines(c.psql(n, strings.Join(parts, " UNION ALL "))) {
		table, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "|")
		s.rows[adoptRow{table, text}] = true
	}
	return s
}

// dataFiles gives a digest of every file of the data directory but those that a server at work
// writes.
func (c *patroniCluster) dataFiles(n *holdfast.ClusterNode) map[string]string {
	c.t.Helper()
	own := regexp.MustCompile(`^(pg_(wal|stat|xact|subtrans|logical|notify|stat_tmp|replslot|` +
		`dynshmem|multixact|commit_ts|serial|snapshots|twophase)|base|global|postmaster\.pid)$`)
	files := map[string]string{}
	err := filepath.WalkDir(n.DataDir, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(n.DataDir, path)
		switch {
		case err != nil:
			return nil // a temporary file that went
		case own.MatchString(rel) && e.IsDir():
			return filepath.SkipDir
		case own.MatchString(rel) || e.IsDir():
			return nil
		}
		b, _ := os.ReadFile(path)
		files[path] = fmt.Sprintf("%x", sha256.Sum256(b))
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return files
}

// adoptListed tells which differences a plan has announced.
type adoptListed struct {
	changes []election.AdoptChange
	// later are those that wait for a restart of the server, which knows of them.
	later []election.AdoptChange
	// names of roles, schemas and functions by oid, and what the plan has announced of them.
	names map[string]string
	oids  map[string]bool
}

// checkListed fails for everything that differs and that the plan does not list for now or, when
// the group has taken over, for then.
func (c *patroniCluster) checkListed(what string, before, after adoptSnapshot,
	plan election.AdoptPlan, when ...election.AdoptWhen,
) {
	c.t.Helper()
	l := adoptListed{names: map[string]string{}, oids: map[string]bool{}}
	for _, ch := range plan.Changes {
		switch {
		case slices.Contains(when, ch.When):
			l.changes = append(l.changes, ch)
		case ch.When == election.AdoptRestart:
			l.later = append(l.later, ch)
		}
	}
	for r := range after.rows {
		l.name(r)
	}
	changed := 0
	// Dependencies last: they follow from the objects that are listed.
	for _, isLast := range []bool{false, true} {
		for _, d := range []struct {
			what       string
			from, back map[adoptRow]bool
		}{{"made", after.rows, before.rows}, {"gone", before.rows, after.rows}} {
			for r := range d.from {
				if d.back[r] || strings.HasSuffix(r.table, "depend") != isLast {
					continue
				}
				if changed++; !l.has(r, d.what == "made") {
					c.t.Errorf("%s: not in the plan: %s in %s: %.300s", what, d.what, r.table, r.text)
				}
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(after.files)) {
		if before.files[path] != after.files[path] && !l.hasFile(path) {
			c.t.Errorf("%s: not in the plan: %s has changed", what, path)
		}
	}
	for path := range before.files {
		if _, ok := after.files[path]; !ok && !l.hasFile(path) {
			c.t.Errorf("%s: not in the plan: %s is gone", what, path)
		}
	}
	c.t.Logf("%s: %d rows differ, %d changes were listed", what, changed, len(l.changes))
	if len(l.changes) > 0 && changed < 10 {
		c.t.Errorf("%s: %d rows differ: nothing was compared", what, changed)
	}
}

func (r adoptRow) fields() map[string]any {
	var m map[string]any
	if err := json.Unmarshal([]byte(r.text), &m); err != nil {
		panic(fmt.Sprintf("BUG: %s: %v: %.200s", r.table, err, r.text))
	}
	return m
}

// name remembers the names of what rows tell by oid.
func (l *adoptListed) name(r adoptRow) {
	for table, column := range map[string]string{"pg_authid": "rolname", "pg_namespace": "nspname"} {
		if r.table == table {
			f := r.fields()
			l.names[fmt.Sprint(f["oid"])] = fmt.Sprint(f[column])
		}
	}
}

// listed finds a change of an object.
func (l *adoptListed) listed(kind, object string) (election.AdoptChange, bool) {
	for _, ch := range l.changes {
		if ch.Kind == kind && ch.Object == object {
			return ch, true
		}
	}
	return election.AdoptChange{}, false
}

// has tells whether the plan has announced that a row comes or goes.
func (l *adoptListed) has(r adoptRow, isNew bool) bool {
	f := r.fields()
	text := func(column string) string { return fmt.Sprint(f[column]) }
	ok := false
	switch r.table {
	case "pg_authid":
		_, ok = l.listed("role", text("rolname"))
	case "pg_auth_members":
		var ch election.AdoptChange
		ch, ok = l.listed("role", l.names[text("member")])
		ok = ok && strings.Contains(ch.To, "member of "+l.names[text("roleid")])
	case "pg_namespace":
		_, ok = l.listed("schema", text("nspname"))
		l.oids[text("oid")] = ok
	case "pg_proc":
		ok = l.hasFunction(text("proname"), l.names[text("pronamespace")])
		l.oids[text("oid")] = ok
	case "pg_depend", "pg_shdepend":
		ok = l.oids[text("objid")]
	case "slot":
		_, ok = l.listed("slot", text("slot_name"))
	case "setting":
		ok = l.hasSetting(f, isNew)
	case "file setting":
		ok = l.hasFileSetting(f)
	case "hba":
		ok = f["error"] == nil && l.hasRule(f)
	}
	return ok
}

// hasSetting tells whether a setting's value is announced, or the value for which it waits.
func (l *adoptListed) hasSetting(f map[string]any, isNew bool) bool {
	name := fmt.Sprint(f["name"])
	if ch, ok := l.listed("setting", name); ok {
		inUnits := fmt.Sprint(f["setting"], f["unit"])
		return !isNew || ch.To == fmt.Sprint(f["shown"]) || ch.To == inUnits
	}
	for _, ch := range l.later {
		if ch.Kind == "setting" && ch.Object == name {
			return !isNew || f["pending_restart"] == true && ch.From == fmt.Sprint(f["shown"])
		}
	}
	return false
}

// hasFileSetting tells whether a line of a file is announced by the file, or is one that counts no
// more; a value that cannot be applied has to wait for a restart.
func (l *adoptListed) hasFileSetting(f map[string]any) bool {
	name, file := fmt.Sprint(f["name"]), fmt.Sprint(f["sourcefile"])
	_, isSetting := l.listed("setting", name)
	isLater := slices.ContainsFunc(l.later, func(ch election.AdoptChange) bool {
		return ch.Kind == "setting" && ch.Object == name
	})
	if f["error"] != nil && !isLater {
		return false
	}
	return l.hasFile(file) || isSetting || isLater
}

// hasFunction tells whether a function is announced, Holdfast's own or one of the server's that a
// role may call from now on.
func (l *adoptListed) hasFunction(name, schema string) bool {
	ch, ok := l.listed("schema", "holdfast")
	return ok && (schema == "holdfast" || schema == "pg_catalog") &&
		regexp.MustCompile(`\b`+regexp.QuoteMeta(name)+`\b`).MatchString(ch.To)
}

// hasFile tells whether a file is announced, as a whole or a line of it.
func (l *adoptListed) hasFile(path string) bool {
	return slices.ContainsFunc(l.changes, func(ch election.AdoptChange) bool {
		file, _, _ := strings.Cut(ch.Object, ".conf:")
		isAuto := ch.Kind == "alter-system" && filepath.Base(path) == "postgresql.auto.conf"
		return ch.Object == path || file+".conf" == path && file != ch.Object || isAuto
	})
}

// hasRule tells whether a rule of pg_hba.conf is announced: the agent's own, one that ends, or one
// of postgres.hba.
func (l *adoptListed) hasRule(f map[string]any) bool {
	var words []string
	for _, column := range []string{"type", "database", "user_name", "auth_method"} {
		switch v := f[column].(type) {
		case string:
			words = append(words, v)
		case []any:
			for _, w := range v {
				words = append(words, fmt.Sprint(w))
			}
		}
	}
	lines := []string{"host all app 127.0.0.0/8 trust"} // newHandMadeCluster's postgres.hba
	for _, ch := range l.changes {
		if ch.Kind == "hba" {
			_, own, _ := strings.Cut(ch.To, ": ")
			lines = append(append(lines, ch.Object), strings.Split(own, "; ")...)
		}
	}
	return slices.ContainsFunc(lines, func(line string) bool {
		have := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t,\"", r) })
		return !slices.ContainsFunc(words, func(w string) bool { return !slices.Contains(have, w) })
	})
}
