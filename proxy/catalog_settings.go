package proxy

import (
	"context"
	"fmt"
	"strconv"
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

// settingBodiesSQL finds the bodies in which a custom setting may be set, or something made that
// only its backend has. It runs on 13 to 18.
var settingBodiesSQL = `SELECT p.proname, left(CASE WHEN p.prosrc <> '' THEN p.prosrc
  ELSE pg_get_functiondef(p.oid) END, ` + strconv.Itoa(settingBodyMax) + `),
  p.prosrc ~* ` + makesSQL + `
 FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
 WHERE p.oid >= 16384 AND p.prokind IN ('f', 'p') AND l.lanname NOT IN ('c', 'internal')
  AND (p.prosrc ~* 'set_config|\mset\s+(local\s+|session\s+)?["a-z_][^\s=]*\.' OR p.prosrc = ''
   OR p.prosrc ~* ` + makesSQL + `)
 ORDER BY p.oid LIMIT ` + strconv.Itoa(settingBodiesMax)

// settingNamesIn are the custom settings that a function's body may set (DESIGN.md I23).
func settingNamesIn(body string) []string {
	names := pgwire.AppendSettingNames(nil, []byte(body), true)
	return pgwire.AppendSettingNames(names, []byte(body), false)
}

// findSetters asks a database for the custom settings that its functions may set, and for those
// functions. There are at most settingNamesMax names; more are not learnt. An error means that it
// could not be asked.
func (p *Proxy) findSetters(ctx context.Context, pr *Primary, database string,
) (*setters, error) {
	rows, err := p.catalogues.query(ctx, pr, database, settingBodiesSQL)
	if err != nil {
		return nil, fmt.Errorf("ask for the names of settings: %w", err)
	}
	ruled, err := p.catalogues.query(ctx, pr, database, answeringSQL)
	if err != nil {
		return nil, fmt.Errorf("ask for rules that return rows: %w", err)
	}
	found := &setters{at: time.Now()}
	seen := make(map[string]bool)
	for _, row := range rows {
		if len(row) != 3 {
			continue
		}
		if string(row[2]) == "t" {
			found.makers = append(found.makers, lowered(row[0]))
		}
		names := settingNamesIn(string(row[1]))
		if len(names) > 0 {
			found.functions = append(found.functions, lowered(row[0]))
		}
		for _, name := range names {
			if !seen[name] && len(found.settings) < settingNamesMax {
				seen[name] = true
				found.settings = append(found.settings, name)
			}
		}
	}
	for _, row := range ruled {
		if len(row) == 1 {
			found.answering = append(found.answering, lowered(row[0]))
		}
	}
	return found, nil
}
