package proxy_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

var (
	tempSeed     = flag.Uint64("temp.seed", 1, "seed of TestRandomTemporaryTables")
	tempSessions = flag.Int("temp.sessions", 4, "how many sessions have random temporary tables")
)

// randomTypes are types of columns with what makes a value of one.
var randomTypes = [][2]string{
	{"int", "(random() * 100)::int"}, {"bigint", "(random() * 1e15)::int8 - 500000000000000"},
	{"text", "repeat(md5(random()::text), (random() * 99)::int)"}, {"float8", "random() / 3"},
	{"float4", "(random() / 7)::float4"}, {"numeric(30,9)", "random()::numeric * 1e12"},
	{"numeric", "random()::numeric / 3"}, {"timestamptz(4)", "now() - random() * interval '9 years'"},
	{"interval", "random() * interval '1000 days 1 second'"}, {"bool", "random() < 0.5"},
	{"bytea", "decode(md5(random()::text), 'hex')"}, {"varchar(9)", "left(md5(random()::text), 9)"},
	{"int[]", "ARRAY[NULL, (random() * 9)::int]"},
	{"mood", "CASE WHEN random() < 0.5 THEN 'ok'::mood END"},
	{"mood[]", "ARRAY['ok', 'sad']::mood[]"}, {"posint", "1 + (random() * 9)::int"},
	{"pair", "ROW((random() * 9)::int, 'a \",''(', 3)::pair"}, {"uuid", "md5(random()::text)::uuid"},
	{"jsonb", "jsonb_build_object('a', random(), 'b', NULL)"}, {"frange", "frange(random(), 2)"},
	{"int4range", "int4range((random() * 5)::int, 9)"}, {"bit(3)", "((random() * 7)::int)::bit(3)"},
	{"date[]", "ARRAY[[current_date], ['infinity']]::date[]"}, {"inet", "'10.0.0.0/8'::inet"},
}

// randomTable appends statements that make a table, alter it and fill it. Some of them fail.
func randomTable(out []string, rng *rand.Rand, i int) []string {
	name := fmt.Sprintf(`"T%d ;'x"`, i)
	types := map[string]string{}
	var cols []string
	add := func(at int) string {
		typ := randomTypes[rng.IntN(len(randomTypes))]
		col := fmt.Sprintf(`"c%d"`, at)
		types[col] = typ[1]
		cols = append(cols, col)
		def := col + " " + typ[0]
		if rng.IntN(4) == 0 {
			def += " DEFAULT " + typ[1]
		}
		if rng.IntN(6) == 0 {
			def += " NOT NULL"
		}
		if rng.IntN(8) == 0 {
			def += " CHECK (" + col + " IS DISTINCT FROM NULL OR " + col + " IS NULL)"
		}
		return def
	}
	var defs []string
	for at := range 1 + rng.IntN(6) {
		defs = append(defs, add(at))
	}
	if rng.IntN(3) == 0 {
		defs = append(defs, `g text GENERATED ALWAYS AS (`+cols[0]+` IS NULL OR true) STORED`,
			`h bool GENERATED ALWAYS AS (`+cols[0]+` IS NULL) STORED`)
	}
	onCommit := []string{"", "ON COMMIT PRESERVE ROWS", "ON COMMIT DELETE ROWS"}[rng.IntN(3)]
	with := []string{"", "WITH (fillfactor = 33)",
		"WITH (autovacuum_vacuum_threshold = 7)"}[rng.IntN(3)]
	out = append(out, fmt.Sprintf("CREATE TEMP TABLE %s (%s) %s %s", name, strings.Join(defs, ", "),
		with, onCommit), fmt.Sprintf("CREATE TEMP TABLE IF NOT EXISTS %s (%s) %s", name,
		strings.Join(defs[:1], ", "), onCommit))
	for step := range rng.IntN(12) {
		col := cols[rng.IntN(len(cols))]
		switch rng.IntN(9) {
		case 0:
			out = append(out, fmt.Sprintf("ALTER TABLE %s ADD COLUMN %s", name, add(50+step)))
		case 1:
			out = append(out, fmt.Sprintf("ALTER TABLE %s DROP COLUMN %s", name, col))
		case 2:
			unique := []string{"", "UNIQUE"}[rng.IntN(2)]
			out = append(out, fmt.Sprintf("CREATE %s INDEX ON %s (%s, (%s IS NULL)) WHERE %s IS NULL",
				unique, name, col, col, cols[0]))
		case 3:
			out = append(out, fmt.Sprintf("ALTER TABLE %s ADD %s (%s)%s", name,
				[]string{"PRIMARY KEY", "UNIQUE"}[rng.IntN(2)], col,
				[]string{"", " DEFERRABLE", " INITIALLY DEFERRED"}[rng.IntN(3)]))
		case 4:
			out = append(out, fmt.Sprintf("COMMENT ON COLUMN %s.%s IS 'c;%d'", name, col, step))
		case 5:
			out = append(out, fmt.Sprintf("GRANT SELECT ON %s TO clerk", name))
		case 6:
			out = append(out, fmt.Sprintf("ALTER TABLE %s ALTER %s DROP DEFAULT", name, col))
		case 7:
			out = append(out, fmt.Sprintf("DELETE FROM %s WHERE random() < 0.3", name))
		default:
			var values []string
			for _, c := range cols {
				values = append(values, "CASE WHEN random() < 0.8 THEN "+types[c]+" END")
			}
			out = append(out, fmt.Sprintf("INSERT INTO %s (%s) SELECT %s FROM generate_series(1, %d)",
				name, strings.Join(cols, ", "), strings.Join(values, ", "), rng.IntN(40)))
		}
	}
	return out
}

// onCommits tells of each table whether a row outlives a commit; it takes their columns.
func onCommits(c *pgconn.PgConn) string {
	var b strings.Builder
	names, _ := tryExec(c, "SELECT string_agg(oid::regclass::text, E'\\n' ORDER BY relname)"+
		" FROM pg_class WHERE relkind = 'r' AND relnamespace = pg_my_temp_schema()")
	for _, name := range strings.Split(names, "\n") {
		drops, _ := tryExec(c, "SELECT string_agg('DROP COLUMN IF EXISTS ' || quote_ident(attname) ||"+
			" ' CASCADE', ', ') FROM pg_attribute WHERE attrelid = '"+strings.ReplaceAll(name, "'", "''")+
			"'::regclass AND attnum > 0 AND NOT attisdropped")
		_, _ = tryExec(c, "BEGIN; ALTER TABLE "+name+" "+drops+"; INSERT INTO "+name+
			" DEFAULT VALUES; COMMIT")
		v, err := tryExec(c, "SELECT count(*) > 0 FROM "+name)
		fmt.Fprintf(&b, "%s %s %v\n", name, v, err)
	}
	return b.String()
}

// Random tables come out as they were, and as they are without a proxy, ON COMMIT included: twin
// sessions have had the same statements, and one of them has had no change.
func TestRandomTemporaryTables(t *testing.T) {
	r := newRig(t, nil)
	for _, sql := range tempSetup {
		exec(t, r.connect(""), sql)
	}
	rng := rand.New(rand.NewPCG(*tempSeed, 0))
	var conns []*pgconn.PgConn
	var was, commits []string
	for range *tempSessions {
		c, twin := r.connect(""), r.connect("")
		var sqls []string
		for i := range 1 + rng.IntN(4) {
			sqls = randomTable(sqls, rng, i)
		}
		seed := fmt.Sprintf("SELECT setseed(%f)", rng.Float64())
		for _, s := range []*pgconn.PgConn{c, twin} {
			exec(t, s, seed)
			for _, sql := range sqls {
				_, _ = tryExec(s, sql)
			}
		}
		conns, was, commits = append(conns, c), append(was, tempState(c, nil)), append(commits,
			onCommits(twin))
		if strings.Contains(was[len(was)-1], "ERROR ") || !strings.Contains(was[len(was)-1], "column") {
			t.Fatal(was[len(was)-1])
		}
	}
	r.planned()
	for i, c := range conns {
		if now := tempState(c, nil); now != was[i] {
			t.Errorf("seed %d, session %d: %s", *tempSeed, i, firstDifference(was[i], now))
		}
		if now := onCommits(c); now != commits[i] {
			t.Errorf("seed %d, session %d: %s", *tempSeed, i, firstDifference(commits[i], now))
		}
	}
}
