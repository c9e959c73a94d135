package proxy

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"holdfast/pgwire"
)

const (
	// settingBodiesMax and settingBodyMax bound the functions of a database that are read for what
	// they set, and how much of each.
	settingBodiesMax = 2000
	settingBodyMax   = 16 << 10
	// settingNamesMax bounds the names that are learnt from them.
	settingNamesMax = 256
	// reachBytesMax bounds the bodies that are read for what they call, reachPage how many come in
	// one answer, reachWaysMax the ways of the catalogue by which one thing leads to another.
	reachBytesMax = 16 << 20
	reachPage     = 500
	reachWaysMax  = 100000
)

// makesSQL matches bodies that may make a temporary table or a cursor WITH HOLD.
const makesSQL = `'(create|into)\s+((local|global)\s+)?temp(orary)?\s|pg_temp|with\s+hold'`

// setsSQL matches bodies that may set something: a call of set_config, an update of pg_settings,
// SET and RESET at the beginning of a statement or of a constant. Those of other languages than
// SQL and PL/pgSQL have constants of their own.
const setsSQL = `CASE WHEN lanname IN ('sql', 'plpgsql')
 THEN body ~* ('set_config|pg_settings|(^|;|>|''|\$|\m(begin|then|else|loop|atomic)\M)' ||
  '(\s|--[^\n]*\n|/\*([^*]|\*+[^*/])*\*+/)*(re)?set\M')
 ELSE body ~* 'set_config|\m(re)?set\s+[a-z_"$%]' END`

// bodiesSQL are the functions whose bodies can be read; of a body that is no text, what follows
// its head.
const bodiesSQL = `SELECT p.oid, p.proname::text AS name, l.lanname,
  (SELECT nspname::text FROM pg_namespace n WHERE n.oid = p.pronamespace) AS schema,
  coalesce(array_to_string(p.proargnames, chr(10)), '') AS args,
  CASE WHEN p.prosrc <> '' THEN p.prosrc ELSE coalesce(substring(pg_get_functiondef(p.oid)
   from '\n *((BEGIN ATOMIC|RETURN)\M.*)'), '') END AS body
 FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
 WHERE p.oid >= 16384 AND p.prokind IN ('f', 'p') AND l.lanname NOT IN ('c', 'internal')`

// settingBodiesSQL finds the bodies in which something may be set, or made that only its backend
// has. It runs on 13 to 18.
var settingBodiesSQL = `SELECT oid, name, args, left(body, ` + strconv.Itoa(settingBodyMax) + `),
  makes, sets AND (lanname NOT IN ('sql', 'plpgsql') OR length(body) > ` +
	strconv.Itoa(settingBodyMax) + `), schema
 FROM (SELECT *, ` + setsSQL + ` AS sets, body ~* ` + makesSQL + ` AS makes
  FROM (` + bodiesSQL + `) b) b
 WHERE sets OR makes ORDER BY oid LIMIT ` + strconv.Itoa(settingBodiesMax+1)

// bodyColumns is how many columns these have, and the next.
const bodyColumns = 7

// callingBodiesSQL are all bodies, a page behind an oid.
var callingBodiesSQL = `SELECT oid, name, args, left(body, ` + strconv.Itoa(settingBodyMax) + `),
  false, false, schema FROM (` + bodiesSQL + ` AND p.oid > %s ORDER BY p.oid LIMIT ` +
	strconv.Itoa(reachPage) + `) b ORDER BY oid`

//go:embed setters_reach.sql
var reachSQL string

// findSetters asks a database for its functions that may set something, for what leads to them, and
// for the custom settings that they set. There are at most settingNamesMax names; more are not
// learnt. An error means that it could not be asked.
func (p *Proxy) findSetters(ctx context.Context, pr *Primary, database string,
) (*setters, error) {
	ask := func(sql string) ([][][]byte, error) {
		return p.catalogues.query(ctx, pr, database, sql)
	}
	found := newSetters()
	rows, err := ask(settingBodiesSQL)
	if err != nil {
		return nil, fmt.Errorf("ask for functions that set something: %w", err)
	}
	g := reachGraph{harmless: p.harmless}
	for _, row := range rows {
		g.function(row, true)
	}
	unread, err := p.findUnread(ask, &g)
	if err != nil {
		return nil, err
	}
	found.isAll = max(len(rows), unread) > settingBodiesMax
	if len(g.order) > 0 && !found.isAll {
		err := g.ask(ask)
		if found.isAll = errors.Is(err, errTooMuchToReach); err != nil && !found.isAll {
			return nil, fmt.Errorf("ask for what leads to functions that set something: %w", err)
		}
	}
	p.tellUnread(database, g.blamed)
	found.take(&g)
	if rows, err = ask(answeringSQL); err != nil {
		return nil, fmt.Errorf("ask for rules that return rows: %w", err)
	}
	for _, row := range rows {
		if len(row) == 1 {
			found.names.add(row[0], nameAnswers)
			found.answering++
		}
	}
	return found, nil
}

// findUnread asks for the functions whose bodies tell nothing, and returns how many there are.
func (p *Proxy) findUnread(ask func(sql string) ([][][]byte, error), g *reachGraph) (int, error) {
	asks := len(p.cfg.CustomSettings) > 0
	rows, err := ask(fmt.Sprintf(unreadSQL, strconv.FormatBool(asks)))
	if err != nil {
		return 0, fmt.Errorf("ask for functions that cannot be read: %w", err)
	}
	for _, row := range rows {
		if err := g.unread(row, asks); err != nil {
			return 0, err
		}
	}
	return len(rows), nil
}

// errNotAsked is an answer to another question.
var errNotAsked = errors.New("the answer is not one to the question")

// errTooMuchToReach is a database with more functions, or ways, than are looked through.
var errTooMuchToReach = errors.New("too many functions to look through")

// ask fills the graph with what may lead to functions that set something.
func (g *reachGraph) ask(ask func(sql string) ([][][]byte, error)) error {
	last, size := "0", 0
	for {
		rows, err := ask(fmt.Sprintf(callingBodiesSQL, last))
		if err != nil {
			return err
		}
		before := last
		for _, row := range rows {
			if len(row) != bodyColumns {
				return errNotAsked
			}
			g.function(row, false)
			last = string(row[0])
			size += len(row[3])
		}
		if size > reachBytesMax {
			return errTooMuchToReach
		}
		if _, err := strconv.ParseUint(last, 10, 32); err != nil || len(rows) > 0 && last == before {
			return errNotAsked
		}
		if len(rows) < reachPage {
			break
		}
	}
	rows, err := ask(reachSQL + " LIMIT " + strconv.Itoa(reachWaysMax+1))
	if err != nil {
		return err
	}
	if len(rows) > reachWaysMax {
		return errTooMuchToReach
	}
	for _, row := range rows {
		g.way(row)
	}
	return nil
}

// settersIn are what a function's body may set (DESIGN.md I23).
func settersIn(body string, args []string) pgwire.Setters {
	s := pgwire.ParseSetters([]byte(body), true, args)
	s.Add(pgwire.ParseSetters([]byte(body), false, args))
	return s
}

// argumentNames splits what bodiesSQL gives of them, in lower case.
func argumentNames(args []byte) []string {
	return strings.Split(string(lowered(args)), "\n")
}
