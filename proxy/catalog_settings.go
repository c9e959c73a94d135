package proxy

import (
	"context"
	"fmt"
	"strconv"

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

// settingBodiesSQL finds the bodies in which a custom setting may be set. It runs on 13 to 18.
var settingBodiesSQL = `SELECT left(CASE WHEN p.prosrc <> '' THEN p.prosrc
  ELSE pg_get_functiondef(p.oid) END, ` + strconv.Itoa(settingBodyMax) + `)
 FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
 WHERE p.oid >= 16384 AND p.prokind IN ('f', 'p') AND l.lanname NOT IN ('c', 'internal')
  AND (p.prosrc ~* 'set_config|\mset\s+(local\s+|session\s+)?["a-z_][^\s=]*\.' OR p.prosrc = '')
 ORDER BY p.oid LIMIT ` + strconv.Itoa(settingBodiesMax)

// settingNamesIn are the custom settings that a function's body may set (DESIGN.md I23).
func settingNamesIn(body string) []string {
	names := pgwire.AppendSettingNames(nil, []byte(body), true)
	return pgwire.AppendSettingNames(names, []byte(body), false)
}

// settingNames asks a database for the custom settings that its functions may set. There are at
// most settingNamesMax; more are not learnt. An error means that it could not be asked.
func (p *Proxy) settingNames(ctx context.Context, pr *Primary, database string,
) ([]string, error) {
	rows, err := p.catalogues.query(ctx, pr, database, settingBodiesSQL)
	if err != nil {
		return nil, fmt.Errorf("ask for the names of settings: %w", err)
	}
	var names []string
	seen := make(map[string]bool)
	for _, row := range rows {
		if len(row) != 1 {
			continue
		}
		for _, name := range settingNamesIn(string(row[0])) {
			if !seen[name] && len(names) < settingNamesMax {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names, nil
}
