package proxy_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"holdfast/pgwire"
)

// randomAtom is what a client has one ReadyForQuery for: a Query, or a batch with its Sync.
type randomAtom struct {
	label string       // for people
	parts []scriptStep // what it waits for in between
	// joined tells that it goes in one write with the atom before it.
	joined bool
	// doubt tells that it may end in 08007 outside a block, and why.
	doubt string
}

// randomGen draws a script. It knows roughly whether a block is open, so that most of what it draws
// makes sense; what does not fails the same way in each run.
type randomGen struct {
	*rand.Rand
	id      int // of the last operation
	isBlock bool
	out     []randomAtom
}

func (g *randomGen) pick(from ...string) string { return from[g.IntN(len(from))] }

func (g *randomGen) op() string {
	g.id++
	return strconv.Itoa(g.id)
}

// atom appends one of a single part.
func (g *randomGen) atom(label string, msgs []byte) {
	g.out = append(g.out, randomAtom{label: label, parts: []scriptStep{{send: msgs, ends: 1}}})
}

// read is a statement that writes nothing; some fail.
func (g *randomGen) read() string {
	return g.pick("SELECT count(*), sum(id) FROM led", "SELECT a, n FROM cnt ORDER BY a",
		"SELECT i, 'row' FROM generate_series(1, 5) AS i", "SHOW work_mem", "SHOW search_path",
		"SELECT current_user, nullif(current_setting('app.x', true), '')", "SELECT 1/0",
		"SELECT nullif(current_setting('app.y', true), ''), current_setting('lock_timeout')",
		"SELECT * FROM nowhere", "SELEC 1", "SELECT repeat('x', 20000), i FROM generate_series(1, 3) i",
		"SELECT name FROM pg_prepared_statements ORDER BY name", "SELECT 7", "TABLE cnt", "",
		"VALUES (1, 'a'), (2, 'b')", "SHOW TimeZone", "SELECT current_setting('transaction_isolation')")
}

// write is a statement that does an operation, or fails.
func (g *randomGen) write() string {
	switch g.IntN(9) {
	case 0:
		return "INSERT INTO led VALUES (" + g.op() + ") RETURNING id, 'got'"
	case 1:
		return "UPDATE cnt SET n = n + 1 WHERE a = " + g.pick("1", "2", "3") + " RETURNING n"
	case 2:
		return "UPDATE cnt SET n = n * 2"
	case 3:
		return "WITH w AS (INSERT INTO led VALUES (" + g.op() + ") RETURNING id) SELECT id + 1 FROM w"
	case 4:
		return "INSERT INTO cnt VALUES (1, " + g.op() + ")" // is there already
	case 5:
		return "INSERT INTO led SELECT " + g.op() + " FROM generate_series(1, 2)"
	default:
		return "INSERT INTO led VALUES (" + g.op() + ")"
	}
}

// set is a statement that changes what belongs to the session.
func (g *randomGen) set() string {
	name := g.pick("work_mem", "work_mem", "lock_timeout", "app.x", "app.y", "TimeZone", "search_path",
		"application_name")
	value := map[string]string{"work_mem": g.pick("'5MB'", "'6MB'", "'7MB'"),
		"lock_timeout": g.pick("'1h'", "7000000"), "app.x": g.pick("'a'", "'it''s'", `'b\c'`),
		"app.y": g.pick("'1'", "'2'"), "TimeZone": g.pick("'Asia/Tokyo'", "'UTC'", "'PST8PDT'"),
		"search_path":      g.pick("public", "public, pg_catalog", `"$user", public, pg_temp`),
		"application_name": g.pick("'one'", "'two'")}[name]
	switch g.IntN(10) {
	case 0, 1:
		return "SET " + name + " = " + value
	case 2, 3:
		return "SET LOCAL " + name + " = " + value
	case 4, 5, 6:
		if value[0] != '\'' {
			value = "'" + strings.ReplaceAll(value, "'", "''") + "'"
		}
		return fmt.Sprintf("SELECT set_config('%s', %s, %s)", name, value, g.pick("true", "false"))
	case 7:
		return "RESET " + name
	case 8:
		return g.pick("SET ROLE clerk", "SET LOCAL ROLE clerk", "RESET ROLE", "SET ROLE app")
	default:
		return g.pick("RESET ALL", "SET work_mem TO DEFAULT", "SET work_mem = 'much'")
	}
}

// thing is a statement about what a session has besides settings.
func (g *randomGen) thing() string {
	name := g.pick("p", "p", "r")
	switch g.IntN(12) {
	case 0, 1:
		return "PREPARE " + name + " AS " + g.prepares()
	case 2, 3, 4:
		return "EXECUTE " + name
	case 5:
		return g.pick("DEALLOCATE "+name, "DEALLOCATE "+name, "DEALLOCATE ALL")
	case 6:
		return g.pick("LISTEN news", "LISTEN mail", "UNLISTEN news", "UNLISTEN *")
	case 7, 8:
		return g.pick("SELECT pg_advisory_lock(7)", "SELECT pg_try_advisory_lock(8)",
			"SELECT pg_advisory_lock_shared(7)")
	case 9, 10:
		return g.pick("SELECT pg_advisory_unlock(7)", "SELECT pg_advisory_unlock(8)",
			"SELECT pg_advisory_xact_lock(9)", "SELECT pg_advisory_unlock_shared(7)")
	default:
		return g.pick("DISCARD ALL", "DISCARD PLANS", "DECLARE c CURSOR FOR TABLE cnt", "FETCH 1 FROM c",
			"SELECT pg_advisory_unlock_all()")
	}
}

// control begins, ends or divides a block.
func (g *randomGen) control() string {
	if !g.isBlock && g.IntN(8) > 0 {
		g.isBlock = true
		return g.pick("BEGIN", "BEGIN", "BEGIN", "START TRANSACTION", "BEGIN READ ONLY",
			"BEGIN ISOLATION LEVEL REPEATABLE READ")
	}
	switch g.IntN(10) {
	case 0, 1, 2:
		return "SAVEPOINT " + g.pick("s", "s", "t")
	case 3, 4:
		return "ROLLBACK TO " + g.pick("s", "s", "t")
	case 5:
		return "RELEASE " + g.pick("s", "t")
	case 6:
		return g.pick("BEGIN", "SAVEPOINT u", "RELEASE u")
	case 7, 8:
		g.isBlock = false
		return "COMMIT"
	default:
		end := g.pick("ROLLBACK", "COMMIT", "END", "COMMIT AND CHAIN", "ROLLBACK AND CHAIN")
		g.isBlock = strings.HasSuffix(end, "CHAIN")
		return end
	}
}

// statement is any that takes no parameters.
func (g *randomGen) statement() string {
	switch n := g.IntN(20); {
	case n < 4:
		return g.control()
	case n < 9:
		return g.write()
	case n < 12:
		return g.read()
	case n < 16:
		return g.set()
	default:
		return g.thing()
	}
}

// text is one string, mostly of one statement.
func (g *randomGen) text() (sql, doubt string) {
	if g.IntN(8) > 0 {
		return g.statement(), ""
	}
	var sqls []string
	for range 2 + g.IntN(3) {
		sqls = append(sqls, g.statement())
	}
	return strings.Join(sqls, "; "), "a string of several statements"
}

// runs appends a Bind and an Execute, now and then with a Describe before it.
func (g *randomGen) runs(out []byte, portal, name string, rows uint32, args ...string) []byte {
	out = pgwire.AppendBind(out, portal, name, args...)
	if g.IntN(2) == 0 {
		out = pgwire.AppendDescribe(out, 'P', portal)
	}
	return pgwire.AppendExecute(out, portal, rows)
}

// batch is a batch of the extended protocol: statements of a text, with parameters, or with a name.
func (g *randomGen) batch() {
	var out []byte
	var labels []string
	for range 1 + g.IntN(1+g.IntN(3)) {
		switch g.IntN(6) {
		case 0:
			name := g.pick("", "n", "n", "m")
			sql := g.takes()
			labels = append(labels, "Parse "+name+" "+sql)
			if name != "" && g.IntN(3) > 0 {
				out = pgwire.AppendClose(out, 'S', name)
				labels = append(labels, "(behind Close)")
			}
			out = pgwire.AppendParse(out, name, sql, nil)
		case 1, 2:
			name, arg := g.pick("", "n", "n", "m"), g.op()
			labels = append(labels, "run "+name+" with "+arg)
			out = g.runs(out, "", name, 0, arg)
		case 3:
			kind, name := g.pick("Describe", "Close"), g.pick("", "n", "m")
			labels = append(labels, kind+" "+name)
			if kind == "Close" {
				out = pgwire.AppendClose(out, 'S', name)
			} else {
				out = pgwire.AppendDescribe(out, 'S', name)
			}
		default:
			sql := g.statement()
			labels = append(labels, sql)
			out = pgwire.AppendParse(out, "", sql, nil)
			out = g.runs(out, "", "", uint32(max(0, g.IntN(8)-5)))
		}
	}
	if g.IntN(8) == 0 {
		out = pgwire.AppendFlush(out)
		labels = append(labels, "Flush")
	}
	g.atom("[ "+strings.Join(labels, " | ")+" ]", pgwire.AppendSync(out))
}

// slow is an atom whose client waits in the middle of it.
func (g *randomGen) slow() {
	a := randomAtom{}
	switch g.IntN(4) {
	case 0:
		a.label = "COPY led FROM STDIN"
		id := g.op()
		end := scriptStep{send: copyData(id, id), ends: 1}
		if g.IntN(4) == 0 {
			a.label += ", which fails"
			end.send = pgwire.AppendMessage(nil, 'f', []byte("no\x00"))
		}
		a.parts = []scriptStep{{send: pgwire.AppendQuery(nil, "COPY led FROM STDIN"), typ: 'G'}, end}
		a.doubt = "COPY outside a block"
	case 1:
		a.label = "COPY cnt TO STDOUT"
		a.parts = []scriptStep{q("COPY (SELECT a, n FROM cnt ORDER BY a) TO STDOUT")}
		a.doubt = "COPY outside a block"
	case 2:
		a.label = "a portal in three parts"
		a.parts = []scriptStep{{send: portal("c", "SELECT a, n FROM cnt ORDER BY a", 1), typ: 's'},
			{send: pgwire.AppendFlush(pgwire.AppendExecute(nil, "c", 1)), typ: 's'},
			{send: pgwire.AppendSync(pgwire.AppendExecute(nil, "c", 0)), ends: 1}}
	default:
		first, second := g.write(), g.read()
		a.label = "flushed [ " + first + " | " + second + " ]"
		a.parts = []scriptStep{flushed(first), {send: extended(second), ends: 1}}
	}
	g.out = append(g.out, a)
}

// names makes most of the prepared statements that scripts use: what nothing is known of may write.
func (g *randomGen) names() {
	for _, name := range []string{"n", "m"} {
		if g.IntN(6) > 0 {
			sql := g.takes()
			g.atom("Parse "+name+" "+sql, pgwire.AppendSync(pgwire.AppendParse(nil, name, sql, nil)))
		}
	}
	for _, name := range []string{"p", "r"} {
		if g.IntN(6) > 0 {
			sql := "PREPARE " + name + " AS " + g.prepares()
			g.atom(sql, pgwire.AppendQuery(nil, sql))
		}
	}
}

// takes is a statement with a parameter that any number may be.
func (g *randomGen) takes() string {
	return g.pick("INSERT INTO led VALUES ($1::int)", "SELECT $1::int + 1 FROM cnt",
		"UPDATE cnt SET n = n + $1::int WHERE a = 2 RETURNING n",
		"SELECT set_config('app.x', $1, false)", "SELECT set_config('app.y', $1, true)")
}

func (g *randomGen) prepares() string {
	return g.pick("SELECT 'p', count(*) FROM led", "SELECT 'r'",
		"UPDATE cnt SET n = n + 10 WHERE a = 1 RETURNING n")
}

// randomScript draws a script of 3 to 12 atoms and appends what shows the state of its session.
func randomScript(seed uint64) []randomAtom {
	g := &randomGen{Rand: rand.New(rand.NewPCG(seed, 5))}
	g.names()
	for n := len(g.out) + 3 + g.IntN(10); len(g.out) < n; {
		at := len(g.out)
		switch g.IntN(12) {
		case 0:
			g.slow()
		case 1, 2, 3, 4:
			g.batch()
		default:
			sql, doubt := g.text()
			g.atom(sql, pgwire.AppendQuery(nil, sql))
			g.out[at].doubt = doubt
		}
		a := &g.out[at]
		a.joined = at > 0 && g.IntN(4) == 0 && len(a.parts) == 1 && len(g.out[at-1].parts) == 1
	}
	return append(g.out, randomProbe...)
}

// randomProbe shows what a session has: the unnamed statement first, which a Query drops.
var randomProbe = func() []randomAtom {
	out := []randomAtom{{label: "the unnamed statement", parts: []scriptStep{
		{send: bindRun(""), ends: 1}}}}
	for _, sql := range []string{"ROLLBACK", "SELECT current_user, session_user",
		"SELECT name, setting FROM pg_settings WHERE name IN ('work_mem', 'lock_timeout', 'TimeZone', " +
			"'search_path', 'application_name') ORDER BY name",
		"SELECT nullif(current_setting('app.x', true), ''), nullif(current_setting('app.y', true), '')",
		"SELECT name, parameter_types, from_sql FROM pg_prepared_statements ORDER BY name",
		"SELECT c FROM pg_listening_channels() AS c ORDER BY c",
		"SELECT objid, mode FROM pg_locks WHERE locktype = 'advisory' AND " +
			"pid = pg_backend_pid() ORDER BY objid, mode",
		"SELECT id, count(*) FROM led GROUP BY id ORDER BY id", "SELECT a, n FROM cnt ORDER BY a",
		"SELECT pg_advisory_unlock(7)", "SELECT pg_advisory_unlock(7)", "SELECT pg_advisory_unlock(7)",
		"SELECT pg_advisory_unlock_shared(7)", "SELECT pg_advisory_unlock_shared(7)",
		"SELECT pg_advisory_unlock(8)", "SELECT pg_advisory_unlock(8)"} {
		out = append(out, randomAtom{label: sql, parts: []scriptStep{q(sql)}})
	}
	for _, name := range []string{"n", "m"} {
		out = append(out, randomAtom{label: "run " + name, parts: []scriptStep{
			{send: bindRun(name, "1000"), ends: 1}}})
	}
	for _, sql := range []string{"EXECUTE p", "EXECUTE r", "TABLE led", "TABLE cnt"} {
		out = append(out, randomAtom{label: sql, parts: []scriptStep{q(sql)}})
	}
	return out
}()
