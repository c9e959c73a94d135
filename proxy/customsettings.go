package proxy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

// What the owner says of custom settings, which PostgreSQL lists nowhere: names that are always
// asked for, and functions that set nothing beside what is known (DESIGN.md I46).

const (
	// customSettingsMax bounds the names that are configured. They are asked for beside the
	// customMax that are learnt.
	customSettingsMax = 64
	// harmlessMax bounds the functions that are.
	harmlessMax = 1000
)

// customName is a name of a custom setting, in lower case (valid_custom_variable_name in guc.c).
var customName = regexp.MustCompile(`^[a-z_][a-z0-9_$]*(\.[a-z_][a-z0-9_$]*)+$`)

// parseCustomSettings checks the names, and makes them as the server compares them.
func parseCustomSettings(names []string) ([]string, error) {
	if len(names) > customSettingsMax {
		return nil, fmt.Errorf("proxy.custom_settings: has more than %d names", customSettingsMax)
	}
	var out []string
	var errs []error
	for i, name := range names {
		name = strings.ToLower(name)
		if len(name) > serverNameBytes || !customName.MatchString(name) {
			errs = append(errs, fmt.Errorf("proxy.custom_settings[%d]: %q is no name of a custom "+
				"setting, such as app.tenant", i, names[i]))
			continue
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out, errors.Join(errs...)
}

// harmless are functions that the owner vouches for, by schema and name as in the catalogue.
type harmless map[string]bool

// parseHarmless reads schema.name and schema.*.
func parseHarmless(names []string) (harmless, error) {
	if len(names) > harmlessMax {
		return nil, fmt.Errorf("proxy.harmless_functions: has more than %d names", harmlessMax)
	}
	h := make(harmless, len(names))
	var errs []error
	for i, text := range names {
		schema, name, _ := strings.Cut(text, ".")
		bad := func(part string) bool {
			return part == "" || len(part) > serverNameBytes || strings.ContainsAny(part, "\" (),\t")
		}
		if bad(schema) || bad(name) || schema == "*" || name != "*" && strings.Contains(name, "*") {
			errs = append(errs, fmt.Errorf("proxy.harmless_functions[%d]: %q is not schema.name or "+
				"schema.*, without quotes or arguments", i, text))
			continue
		}
		h[schema+"."+name] = true
	}
	return h, errors.Join(errs...)
}

func (h harmless) has(schema, name []byte) bool {
	return len(h) > 0 && (h[string(schema)+"."+string(name)] || h[string(schema)+".*"])
}

// settlesNothing are extensions whose volatile C functions were looked at: none sets a custom
// setting, and none runs a text of its caller's in the session (dblink's run elsewhere). The
// functions of a language's extension are its handlers, which nobody calls by name.
const settlesNothing = "adminpack amcheck autoinc bloom btree_gin btree_gist citext cube dblink " +
	"dict_int dict_xsyn earthdistance file_fdw fuzzystrmatch hstore insert_username intagg " +
	"intarray isn lo ltree moddatetime old_snapshot pageinspect pg_buffercache pg_freespacemap " +
	"pg_prewarm pg_stat_statements pg_surgery pg_trgm pg_visibility pg_walinspect pgcrypto " +
	"pgrowlocks pgstattuple postgres_fdw refint seg sslinfo tablefunc tcn tsm_system_rows " +
	"tsm_system_time unaccent uuid-ossp plperl plperlu plpython3u pltcl pltclu"

// unreadSQL are the volatile functions whose bodies tell nothing, or not all: the compiled ones,
// and, where %s is true, those in languages or with commands that are not read. It runs on 13 to
// 18.
var unreadSQL = `SELECT p.oid, p.proname::text, n.nspname::text,
  (l.lanname IN ('c', 'internal'))::text
 FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
  JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE p.oid >= 16384 AND p.prokind IN ('f', 'p') AND p.provolatile = 'v'
  AND (l.lanname IN ('c', 'internal') OR %s AND l.lanname <> 'sql'
   AND (l.lanname <> 'plpgsql' OR p.prosrc ~* '\mexecute\M'))
  AND NOT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
   WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    AND e.extname = ANY ('{` + strings.ReplaceAll(settlesNothing, " ", ",") + `}'::name[]))
 ORDER BY p.oid LIMIT ` + strconv.Itoa(settingBodiesMax+1)

// unread takes a row of unreadSQL. A compiled function that nobody vouches for may set anything;
// the others are asked behind, if there are names to ask for.
func (g *reachGraph) unread(row [][]byte, asks bool) error {
	if len(row) != 4 {
		return errNotAsked
	}
	isHarmless := g.harmless.has(row[2], row[1])
	isCompiled := string(row[3]) == "true"
	if isHarmless && !asks {
		return nil
	}
	n := g.node(append([]byte("f"), row[0]...))
	n.name, n.isHarmless = row[1], isHarmless
	n.use |= reachSets
	if isCompiled && !isHarmless {
		n.use |= reachComputes
		g.blamed = append(g.blamed, string(row[2])+"."+string(row[1]))
	}
	return nil
}

// blamedShown is how many functions a line of the log names.
const blamedShown = 10

// tellUnread logs, once for each database, which functions may set what nobody knows.
func (p *Proxy) tellUnread(database string, names []string) {
	if len(names) == 0 {
		return
	}
	if _, told := p.unreadTold.LoadOrStore(database, true); told {
		return
	}
	p.log.Warn("what compiled functions set is not known: a session that calls one ends with 57P01"+
		" when the primary changes, unless proxy.harmless_functions has it",
		zap.String("database", database), zap.Int("functions", len(names)),
		zap.Strings("first", names[:min(len(names), blamedShown)]))
}

// configured are the names that are asked for in any case. A tracker without a configuration, as
// in tests, has none.
func (t *tracker) configured() []string {
	if t.locks.cfg == nil {
		return nil
	}
	return t.locks.cfg.CustomSettings
}

// noteConfigured notes that one of these was found set: no connection is reused that has had one.
func (t *tracker) noteConfigured(name string) {
	if _, known := t.custom[name]; known || !slices.Contains(t.configured(), name) {
		return
	}
	if t.custom == nil {
		t.custom = make(map[string]struct{})
	}
	t.custom[name] = struct{}{}
}

// isMissed tells that an answer to a question that had those names does not cover one.
func (t *tracker) isMissed(asked map[string]struct{}, name string) bool {
	_, known := asked[name]
	return !known && !slices.Contains(t.configured(), name)
}
