package proxy_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// toldTemps are sessions with what no planned change carries, and what they are told of it.
var toldTemps = map[string]struct {
	before []string
	want   string
}{
	"view":       {[]string{"CREATE TEMP VIEW vv AS SELECT 1"}, "view vv"},
	"sequence":   {[]string{"CREATE TEMP SEQUENCE ss"}, "sequence ss"},
	"serial":     {[]string{"CREATE TEMP TABLE a (i serial)"}, "sequence a_i_seq"},
	"identity":   {[]string{"CREATE TEMP TABLE a (i int GENERATED ALWAYS AS IDENTITY)"}, "sequence"},
	"type":       {[]string{"CREATE TYPE pg_temp.y AS (a int)", "CREATE TEMP TABLE a ()"}, "type y"},
	"enum":       {[]string{"CREATE TYPE pg_temp.e AS ENUM ()", "CREATE TEMP TABLE a ()"}, "type e"},
	"row type":   {[]string{"CREATE TEMP TABLE a (i int)", "CREATE TEMP TABLE b (j a[])"}, "type a"},
	"regclass":   {[]string{"CREATE TEMP TABLE a (i regclass)"}, "type regclass in table a"},
	"foreign":    {[]string{"CREATE TEMP TABLE a (i int PRIMARY KEY REFERENCES a)"}, "a_i_fkey"},
	"exclusion":  {[]string{"CREATE TEMP TABLE a (i int, EXCLUDE (i WITH =))"}, "a_i_excl"},
	"inherits":   {[]string{"CREATE TEMP TABLE a () INHERITS (perm)"}, "inheritance of table a"},
	"partitions": {[]string{"CREATE TEMP TABLE a (i int) PARTITION BY LIST (i)"}, "table a"},
	"trigger": {[]string{"CREATE TEMP TABLE a (i int)", "CREATE TRIGGER tr BEFORE UPDATE ON a" +
		" EXECUTE FUNCTION suppress_redundant_updates_trigger()"}, "trigger tr on table a"},
	"rule": {[]string{"CREATE TEMP TABLE a (i int)",
		"CREATE RULE ru AS ON DELETE TO a DO INSTEAD NOTHING"}, "rule ru on table a"},
	"policy": {[]string{"CREATE TEMP TABLE a (i int)", "CREATE POLICY po ON a"}, "policy po"},
	"row security": {[]string{"CREATE TEMP TABLE a (i int)",
		"ALTER TABLE a ENABLE ROW LEVEL SECURITY"}, "row security of table a"},
	"statistics": {[]string{"CREATE TEMP TABLE a (i int, j int)",
		"CREATE STATISTICS st ON i, j FROM a"}, "statistics object"},
	"target": {[]string{"CREATE TEMP TABLE a (i int)",
		"ALTER TABLE a ALTER i SET STATISTICS 7"}, "options of column i of table a"},
	"distinct": {[]string{"CREATE TEMP TABLE a (i int)",
		"ALTER TABLE a ALTER i SET (n_distinct = 7)"}, "options of column i of table a"},
	"storage": {[]string{"CREATE TEMP TABLE a (i text)",
		"ALTER TABLE a ALTER i SET STORAGE EXTERNAL"}, "options of column i"},
	"identity of replicas": {[]string{"CREATE TEMP TABLE a (i int)",
		"ALTER TABLE a REPLICA IDENTITY FULL"}, "replica identity of table a"},
	"cluster": {[]string{"CREATE TEMP TABLE a (i int PRIMARY KEY)", "CLUSTER a USING a_pkey"},
		"clustering of index a_pkey"},
	"index options": {[]string{"CREATE TEMP TABLE a (i int PRIMARY KEY WITH (fillfactor = 50))"},
		"options of index a_pkey"},
	"column privileges": {[]string{"CREATE TEMP TABLE a (i int)", "GRANT SELECT (i) ON a TO clerk"},
		"privileges of column i"},
	"grants of others": {[]string{"CREATE TEMP TABLE a (i int)",
		"GRANT SELECT ON a TO clerk WITH GRANT OPTION", "SET ROLE clerk", "GRANT SELECT ON a TO PUBLIC",
		"RESET ROLE"}, "privileges of table a"},
	"check": {[]string{"CREATE TEMP TABLE a (i int CHECK (looks(i)))"}, "check of table a"},
	"check by a clock": {[]string{"CREATE TEMP TABLE a (i timestamptz CHECK (i < clock_timestamp()))"},
		"check of table a"},
	"domain": {[]string{"CREATE TEMP TABLE a (i looked[])"}, "check of type public.looked"},
	"function": {[]string{"CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
		"CREATE TEMP TABLE a (i int)"}, ".f()"},
	"function of its type": {[]string{"CREATE TEMP TABLE a (i int)",
		"CREATE FUNCTION takes(a) RETURNS int LANGUAGE sql AS 'SELECT 1'"}, "takes("},
	"somebody else's": {[]string{"CREATE TEMP TABLE a (i int)", "SELECT defines()",
		"DO 'BEGIN END'"}, "42501"},
	"large": {[]string{"CREATE TEMP TABLE a (i text)",
		"INSERT INTO a SELECT repeat('x', 1000) FROM generate_series(1, 30)"},
		"more than 20000 bytes of them, proxy.carry_temp_bytes_max"},
	"many": {[]string{"CREATE TEMP TABLE a (i int)", "CREATE TEMP TABLE b (i int)",
		"CREATE TEMP TABLE c (i int)", "CREATE TEMP TABLE d (i int)"},
		"more than 3 of them, proxy.carry_temp_tables_max"},
	"cursor": {[]string{"CREATE TEMP TABLE a (i int)",
		"DECLARE cu CURSOR WITH HOLD FOR SELECT 1"}, "temporary table."},
}

// toldSetup is by a superuser, in the database.
var toldSetup = []string{
	"CREATE TABLE perm (i int)", "GRANT ALL ON perm TO app", "ALTER TABLE perm OWNER TO app",
	"CREATE FUNCTION looks(int) RETURNS bool LANGUAGE sql AS 'SELECT $1 > 0'",
	"CREATE DOMAIN looked AS int CHECK (looks(VALUE))", "GRANT CREATE ON SCHEMA public TO app",
	"CREATE FUNCTION defines() RETURNS void LANGUAGE sql SECURITY DEFINER AS" +
		" 'CREATE TEMP TABLE mine (i int)'",
}

// What cannot be made again exactly, or is more than the bounds allow, is told with its reason, and
// nothing of it is carried.
func TestTemporaryTablesThatAreTold(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.CarryTempBytesMax, c.CarryTempTablesMax = 20000, 3 })
	for _, sql := range toldSetup {
		r.server.ExecIn("app", sql)
	}
	conns := map[string]*pgconn.PgConn{}
	for name, tc := range toldTemps {
		conns[name] = r.connect("")
		for _, sql := range tc.before {
			if _, err := tryExec(conns[name], sql); err != nil {
				t.Fatalf("%s: %s: %v", name, sql, err)
			}
		}
	}
	kept := r.connect("")
	exec(t, kept, "CREATE TEMP TABLE a (i int)")
	r.planned()
	for name, tc := range toldTemps {
		_, err := tryExec(conns[name], "SELECT 1")
		if said := told(err); code(err) != "57P01" || !strings.Contains(said, tc.want) {
			t.Errorf("%s: %s", name, said)
		}
	}
	if _, err := tryExec(kept, "SELECT * FROM a"); err != nil {
		t.Error(err)
	}
	for limit, want := range map[string]float64{"carry_temp_bytes": 1, "carry_temp_tables": 1,
		"carry_temp_total_bytes": 0} {
		if got := r.count("limits_total", limit); got != want {
			t.Errorf("%s was reached %v times, not %v", limit, got, want)
		}
	}
	if got := r.count("temporary_tables_total", "refused"); got != float64(len(toldTemps)-1) {
		t.Errorf("%v refused", got)
	}
}

// An event trigger would run again: nothing is made where there is one.
func TestTemporaryTablesBesideEventTriggers(t *testing.T) {
	r := newRig(t, nil)
	for _, sql := range []string{
		"CREATE FUNCTION noted() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
		"CREATE EVENT TRIGGER audit ON ddl_command_end EXECUTE FUNCTION noted()",
	} {
		r.server.ExecIn("app", sql)
	}
	c := r.connect("")
	exec(t, c, "CREATE TEMP TABLE a (i int)")
	r.planned()
	if _, err := tryExec(c, "SELECT 1"); !strings.Contains(told(err), "event trigger audit") {
		t.Error(told(err))
	}
}

// The tables of all sessions have a bound together, which is theirs again behind the change.
func TestTemporaryTablesOfAllSessionsAreBounded(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.CarryTempTotalBytesMax, c.RestoreConcurrency = 25000, 1 })
	for range 2 {
		var all []*pgconn.PgConn
		for range 3 {
			c := r.connect("")
			exec(t, c, "CREATE TEMP TABLE a (i text)")
			exec(t, c, "INSERT INTO a VALUES (repeat('x', 10000))")
			all = append(all, c)
		}
		before := r.count("limits_total", "carry_temp_total_bytes")
		r.planned()
		lost := 0
		for _, c := range all {
			if _, err := tryExec(c, "SELECT * FROM a"); err != nil {
				lost++
				if !strings.Contains(told(err), "more than 25000 bytes of all sessions") {
					t.Error(told(err))
				}
			}
			_ = c.Close(context.Background())
		}
		if n := r.count("limits_total", "carry_temp_total_bytes") - before; lost != 1 || n != 1 {
			t.Errorf("%d lost, reached %v times", lost, n)
		}
	}
}

// The bound 0 carries none.
func TestTemporaryTablesCanBeLeftBehind(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.CarryTempBytesMax = 0 })
	c := r.connect("")
	exec(t, c, "CREATE TEMP TABLE a (i text)")
	r.planned()
	if _, err := tryExec(c, "SELECT 1"); !strings.Contains(told(err), "server: temporary table.") {
		t.Error(told(err))
	}
}

// What has changed between the two servers, so that the tables cannot be made, or come out
// otherwise, is told: never half of them.
func TestTablesThatCannotBeRestored(t *testing.T) {
	for name, tc := range map[string]struct{ before, meanwhile, want string }{
		"a right": {"CREATE TEMP TABLE a (i int)",
			"REVOKE TEMP ON DATABASE app FROM PUBLIC, app", "42501"},
		"a type": {"CREATE TEMP TABLE a (i mood)", "DROP TYPE mood", "42704"},
		"privileges": {"CREATE TEMP TABLE a (i int)",
			"ALTER DEFAULT PRIVILEGES FOR ROLE app GRANT SELECT ON TABLES TO clerk", "did not come out"},
		"a function": {"CREATE TEMP TABLE a (i int, j int GENERATED ALWAYS AS (twice(1)) STORED)",
			"CREATE OR REPLACE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 3'",
			"rows of pg_temp.a"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			for _, sql := range []string{"CREATE TYPE mood AS ENUM ('ok')",
				"CREATE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2'"} {
				r.server.ExecIn("app", sql)
			}
			c := r.connect("")
			exec(t, c, "CREATE TEMP TABLE first (i int)")
			exec(t, c, tc.before)
			exec(t, c, "INSERT INTO a DEFAULT VALUES")
			r.drained()
			r.server.ExecIn("app", tc.meanwhile)
			r.goesBack()
			if _, err := tryExec(c, "SELECT 1"); code(err) != "57P01" ||
				!strings.Contains(told(err), tc.want) {
				t.Error(told(err))
			}
			if n := r.count("temporary_tables_total", "failed"); n != 1 {
				t.Errorf("%v failed", n)
			}
		})
	}
}

// A connection that breaks, or a drain that ends, while the tables are read is told; what was
// kept of them is given back.
func TestTablesThatAreCutWhileTheyAreRead(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE TEMP TABLE a (i int)")
	exec(t, c, "INSERT INTO a SELECT generate_series(1, 10000)")
	began := make(chan struct{})
	rows := 0
	r.line.Watch(nil, func(typ byte, _ []byte) bool {
		if typ == pgwire.SrvCopyData {
			if rows++; rows == 5000 {
				close(began)
				return false
			}
		}
		return true
	})
	r.drained()
	<-began
	r.line.Watch(nil, nil)
	r.goesBack()
	if _, err := tryExec(c, "SELECT 1"); code(err) != "57P01" {
		t.Error(told(err))
	}
	if n := proxy.CarriedBytes(r.proxy); n != 0 {
		t.Errorf("%d bytes are still kept", n)
	}
}

// A statement with a parameter of a table's own type would mean another type on the next server.
func TestParametersOfATablesType(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE TEMP TABLE a (i int)")
	var oid uint32
	_, _ = fmt.Sscan(exec(t, c, "SELECT 'a'::regtype::oid"), &oid)
	if _, err := c.Prepare(context.Background(), "p", "SELECT ($1).i", []uint32{oid}); err != nil {
		t.Fatal(err)
	}
	r.planned()
	if _, err := tryExec(c, "SELECT 1"); !strings.Contains(told(err), "has a parameter of the type") {
		t.Error(told(err))
	}
}

// An order to end a session that comes while it packs reaches its client.
func TestOrderWhileTablesAreRead(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE TEMP TABLE a (i int)")
	pid := exec(t, c, "SELECT pg_backend_pid()")
	ordered := false
	r.line.Watch(func(typ byte, body []byte) bool {
		if typ == pgwire.CliQuery && strings.HasPrefix(string(body), "COPY pg_temp") && !ordered {
			ordered = true
			r.server.Exec("SELECT pg_terminate_backend(" + pid + ", 5000)")
		}
		return true
	}, nil)
	r.drained()
	r.line.Watch(nil, nil)
	r.goesBack()
	_, err := tryExec(c, "SELECT 1")
	if !ordered || code(err) != "57P01" || !strings.Contains(told(err), "administrator") {
		t.Errorf("%v, ordered %v", told(err), ordered)
	}
}

// The server is lost before it could be asked what a function has made, which a SELECT calls: the
// session is told, as it is of CREATE TEMP TABLE.
func TestTablesThatFunctionsMakeInFlight(t *testing.T) {
	r := newRig(t, nil)
	r.server.ExecIn("app", tempSetup[len(tempSetup)-1])
	first := r.connect("")
	r.until(func() bool {
		_, _ = tryExec(first, "SELECT 1 + 1") // a use for it
		return proxy.KnowsMaker(r.proxy, "app", "make_temp")
	})
	for _, sql := range []string{"SELECT make_temp()", "EXECUTE p"} {
		c := r.connect("")
		exec(t, c, "PREPARE p AS SELECT make_temp()")
		exec(t, c, "BEGIN")
		exec(t, c, sql)
		r.line.Watch(func(_ byte, body []byte) bool { return !isSnapshot(body) }, nil)
		_, err := tryExec(c, "COMMIT")
		r.line.Watch(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tryExec(c, "SELECT count(*) FROM kept"); code(err) != "57P01" {
			t.Errorf("%s: %q %v", sql, got, err)
		}
	}
}
