package election

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// adoptDropped are settings of the server's own files that would undo what the agent does at the
// next start; their lines are commented out.
var adoptDropped = []string{"data_directory", "config_file", "hba_file", "ident_file",
	"external_pid_file", "promote_trigger_file"}

// isDropped tells whether a line of a configuration file has to go. One that gives a recovery
// target the value that it has without a line, as Patroni writes them, may stay: a running server
// takes its end for a change that waits for a restart.
func (l adoptLine) isDropped() bool {
	return isDropped(l.name) && (l.value != "" || !strings.HasPrefix(l.name, "recovery_target"))
}

// isDropped tells whether no file may set a value for a name.
func isDropped(name string) bool {
	return slices.Contains(adoptDropped, name) ||
		strings.HasPrefix(name, "recovery_target") && name != "recovery_target_timeline"
}

// adoptSizes are settings whose smaller value could keep the server, or a standby of it, from
// starting, or break who depends on them.
var adoptSizes = []string{"max_connections", "max_worker_processes", "max_wal_senders",
	"max_prepared_transactions", "max_locks_per_transaction", "max_replication_slots"}

// parseConf reads the lines "name = value" that renderConf writes, the last of a name wins; the
// order is that of the last ones.
func parseConf(text string) (names []string, values map[string]string) {
	values = map[string]string{}
	for line := range strings.Lines(text) {
		m := pgSettingPattern.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || strings.HasPrefix(line, "#") {
			continue
		}
		name := strings.ToLower(m[1])
		if _, ok := values[name]; ok {
			names = slices.DeleteFunc(names, func(n string) bool { return n == name })
		}
		names, values[name] = append(names, name), confValue(m[2])
	}
	return names, values
}

// confValue takes the quotes of postgresql.conf off.
func confValue(s string) string {
	if len(s) < 2 || s[0] != '\'' || s[len(s)-1] != '\'' {
		return s
	}
	s = s[1 : len(s)-1]
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if (s[i] == '\\' || s[i] == '\'') && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

var settingUnit = regexp.MustCompile(`^([+-]?[0-9.]+)\s*([A-Za-z]*)$`)

// unitSize is how many bytes, or microseconds, a unit is; 0: unknown.
func unitSize(unit string) float64 {
	if n, rest := strings.TrimLeft(unit, "0123456789"), ""; n != unit {
		rest = unit[:len(unit)-len(n)]
		k, _ := strconv.ParseFloat(rest, 64)
		return k * unitSize(n) // as in "8kB"
	}
	return map[string]float64{"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40,
		"us": 1, "ms": 1e3, "s": 1e6, "min": 6e7, "h": 3.6e9, "d": 8.64e10}[unit]
}

// sameSetting tells that a value written into a file means what the server has (config.sgml,
// "Parameter Names and Values").
func sameSetting(s adoptSetting, to string) bool {
	if strings.EqualFold(s.value, to) || strings.EqualFold(s.shown, to) {
		return true
	}
	switch s.vartype {
	case "bool":
		a, ok1 := boolSetting(s.value)
		b, ok2 := boolSetting(to)
		return ok1 && ok2 && a == b
	case "integer", "real":
		m := settingUnit.FindStringSubmatch(strings.TrimSpace(to))
		if m == nil {
			return false
		}
		n, err1 := strconv.ParseFloat(m[1], 64)
		have, err2 := strconv.ParseFloat(s.value, 64)
		if m[2] != "" && unitSize(s.unit) != 0 {
			n = n * unitSize(m[2]) / unitSize(s.unit)
		}
		return err1 == nil && err2 == nil && n == have
	}
	return false
}

func boolSetting(s string) (value, ok bool) {
	switch strings.ToLower(s) {
	case "on", "true", "yes", "1", "t", "y":
		return true, true
	case "off", "false", "no", "0", "f", "n":
		return false, true
	}
	return false, false
}

// planSettings lists what changes for each setting once the file next, holdfast.conf, is read after
// all others, and refuses what would take something away that somebody depends on.
func (d *Adoption) planSettings(p *AdoptPlan, next string) []AdoptChange {
	s := &d.srv
	names, values := parseConf(next)
	auto, files := d.fileValues()
	var out []AdoptChange
	for _, name := range names {
		if strings.HasPrefix(name, "holdfast.") {
			continue
		}
		if _, ok := auto[name]; ok && !d.isReset(name) {
			continue // ALTER SYSTEM wins over every file, and stays
		}
		files[name] = values[name]
	}
	for _, name := range sortedKeys(s.settings) {
		have := s.settings[name]
		to, ok := files[name]
		if v, inAuto := auto[name]; inAuto && !d.isReset(name) {
			to, ok = v, true
		}
		if !ok && have.source == "command line" {
			to, ok = have.boot, true
		}
		// Of a name whose lines go. What the server itself has set, as hba_file, is none of a file.
		drops := isDropped(name) && have.source == "configuration file"
		if drops {
			to, ok = have.boot, true
		}
		if !ok || isDropped(name) != drops || have.context == "internal" || sameSetting(have, to) {
			continue
		}
		if _, ours := values[name]; !ours && !drops && have.source != "command line" {
			continue // pending before we came: not our change
		}
		when := AdoptNow
		if have.context == "postmaster" || have.source == "command line" ||
			drops && s.isOutside(d.a.cfg.DataDir) {
			when = AdoptRestart
		}
		out = append(out, AdoptChange{when, "setting", name, have.shown, to})
		if why := takesAway(name, have.value, to); why != "" {
			p.refuse("%s would go from %s to %s at the next start%s: add \"%s = %s\" to "+
				"postgres.settings", name, have.shown, to, why, name, have.shown)
		}
	}
	return out
}

// takesAway tells what a lower value would break; empty if nothing.
func takesAway(name, from, to string) string {
	if name == "wal_level" && from == "logical" {
		return ", which ends logical replication"
	}
	if !slices.Contains(adoptSizes, name) {
		return ""
	}
	a, err1 := strconv.Atoi(from)
	b, err2 := strconv.Atoi(to)
	if err1 == nil && err2 == nil && b >= a {
		return ""
	}
	return ", with which a server or a standby of it may not start"
}

// fileValues are the last value of each name in postgresql.auto.conf, and in the other files.
func (d *Adoption) fileValues() (auto, files map[string]string) {
	auto, files = map[string]string{}, map[string]string{}
	for _, l := range d.srv.lines {
		switch {
		case l.name == "":
		case d.isAuto(l.file):
			auto[l.name] = l.value
		case !isDropped(l.name):
			files[l.name] = l.value
		}
	}
	return auto, files
}

func (d *Adoption) isAuto(file string) bool {
	return strings.HasSuffix(file, "/postgresql.auto.conf")
}

// isReset tells that what ALTER SYSTEM set for a name is reset: only the agent sets it.
func (d *Adoption) isReset(name string) bool {
	_, managed := pgManaged[name]
	return managed || strings.HasPrefix(name, "recovery_target")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
