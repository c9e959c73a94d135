package proxy

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/pgwire"
)

const (
	// settingBodiesMax and settingBodyMax bound the functions of a database that are read for the
	// names of custom settings, and how much of each.
	settingBodiesMax = 500
	settingBodyMax   = 16 << 10
	// settingNamesMax bounds the names that are learnt from them.
	settingNamesMax = 256
)

// makesSQL matches bodies that may make a temporary table or a cursor WITH HOLD.
const makesSQL = `'(create|into)\s+((local|global)\s+)?temp(orary)?\M|pg_temp|with\s+hold'`

// setsSQL matches bodies that may set something: a call of set_config, an update of pg_settings,
// SET and RESET at the beginning of a statement or of a constant.
const setsSQL = `'set_config|pg_settings|(^|;|>|''|\$|\m(begin|then|else|loop|atomic)\M)` +
	`(\s|--[^\n]*\n|/\*([^*]|\*[^/])*\*/)*(re)?set\M'`

// bodySQL is a function's body as text.
var bodySQL = `left(CASE WHEN p.prosrc <> '' THEN p.prosrc ELSE pg_get_functiondef(p.oid) END, ` +
	strconv.Itoa(settingBodyMax) + `)`

// bodiesSQL are the functions whose bodies can be read.
var bodiesSQL = `SELECT p.oid, p.proname::text AS name, ` + bodySQL + ` AS body
 FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
 WHERE p.oid >= 16384 AND p.prokind IN ('f', 'p') AND l.lanname NOT IN ('c', 'internal')`

// settingBodiesSQL finds the bodies in which something may be set, or made that only its backend
// has. It runs on 13 to 18.
var settingBodiesSQL = `SELECT oid, body, body ~* ` + makesSQL + ` FROM (` + bodiesSQL + `) b
 WHERE body ~* ` + setsSQL + ` OR body ~* ` + makesSQL + `
 ORDER BY oid LIMIT ` + strconv.Itoa(settingBodiesMax+1)

//go:embed setters_reach.sql
var reachSQL string

// settersIn are what a function's body may set (DESIGN.md I23).
func settersIn(body string) pgwire.Setters {
	s := pgwire.ParseSetters([]byte(body), true)
	s.Add(pgwire.ParseSetters([]byte(body), false))
	return s
}

// reached is a function or relation that leads to one that sets something.
type reached struct {
	name []byte
	body string
	pgwire.Setters
	makes bool
	from  []string // what it leads to, by what is known of which it is reached
}

// findSetters asks a database for its functions that may set something, for what leads to them, and
// for the custom settings that they set. There are at most settingNamesMax names; more are not
// learnt. An error means that it could not be asked.
func (p *Proxy) findSetters(ctx context.Context, pr *Primary, database string,
) (*setters, error) {
	found := &setters{at: time.Now()}
	rows, err := p.catalogues.query(ctx, pr, database, settingBodiesSQL)
	if err != nil {
		return nil, fmt.Errorf("ask for functions that set something: %w", err)
	}
	all, oids := make(map[string]*reached), []string(nil)
	for _, row := range rows {
		r := &reached{makes: len(row) == 3 && string(row[2]) == "t"}
		if len(row) == 3 {
			r.Setters = settersIn(string(row[1]))
		}
		if r.makes || r.Sets || r.Local || len(r.Names) > 0 {
			all["f"+string(row[0])], oids = r, append(oids, string(row[0]))
		}
	}
	found.isAll = len(rows) > settingBodiesMax
	if len(oids) > 0 && !found.isAll {
		sql := strings.ReplaceAll(reachSQL, ":oids", strings.Join(oids, ","))
		sql = strings.ReplaceAll(sql, ":bodies", bodiesSQL)
		if rows, err = p.catalogues.query(ctx, pr, database, sql); err != nil {
			return nil, fmt.Errorf("ask for what leads to functions that set something: %w", err)
		}
		found.reach(all, rows)
	}
	if rows, err = p.catalogues.query(ctx, pr, database, answeringSQL); err != nil {
		return nil, fmt.Errorf("ask for rules that return rows: %w", err)
	}
	for _, row := range rows {
		found.answering.add(row[0])
	}
	found.took = time.Since(found.at)
	return found, nil
}

// reach takes the rows of reachSQL: what is reached, and by what. all has what sets something
// itself.
func (s *setters) reach(all map[string]*reached, rows [][][]byte) {
	for _, row := range rows {
		if len(row) != 4 {
			continue
		}
		r := all[string(row[0])]
		if r == nil {
			r = &reached{}
			all[string(row[0])] = r
		}
		r.name, r.body = row[1], string(row[2])
		if len(row[3]) > 0 {
			r.from = append(r.from, string(row[3]))
		}
	}
	// What is reached may be reached by what reaches it: until nothing is new.
	for isNew := true; isNew; {
		isNew = false
		for _, r := range all {
			isNew = r.take(all) || isNew
		}
	}
	for _, r := range all {
		s.keep(r)
	}
	slices.Sort(s.settings)
}

// take lets what is reached do what it leads to; true if that is new. A name that it passes on is
// looked for in its own body.
func (r *reached) take(all map[string]*reached) bool {
	was := *r
	for _, from := range r.from {
		o := all[from]
		if o == nil {
			continue
		}
		r.Sets, r.Local, r.makes = r.Sets || o.Sets, r.Local || o.Local, r.makes || o.makes
		r.Computes = r.Computes || o.Computes
		if o.Passes && !r.Passes {
			given := pgwire.AppendNameConstants(nil, []byte(r.body), true, settingNamesMax)
			r.Names = append(r.Names, given...)
			r.Passes = len(given) == 0
		}
	}
	return r.Sets != was.Sets || r.Local != was.Local || r.makes != was.makes ||
		r.Computes != was.Computes || r.Passes != was.Passes
}

// keep takes what is reached to what is looked for in statements.
func (s *setters) keep(r *reached) {
	if r.makes {
		s.makers.add(r.name)
	}
	switch {
	case r.Sets:
		s.functions.add(r.name)
	case r.Local || len(r.Names) > 0:
		s.locals.add(r.name)
	}
	if r.Passes {
		s.givers.add(r.name)
	}
	if r.Computes {
		s.computers.add(r.name)
	}
	for _, name := range r.Names {
		if len(s.settings) < settingNamesMax && !slices.Contains(s.settings, name) {
			s.settings = append(s.settings, name)
		}
	}
}
