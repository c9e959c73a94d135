package proxy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// commonTransaction is a transaction as applications and their libraries send it. @ is the
// prefix of its tables.
type commonTransaction struct {
	name string
	// sends are the statements between BEGIN and COMMIT; all are answered before the primary is
	// lost.
	sends []string
	// differs tells that the client was shown something that cannot come again, so that it ends in
	// 40001 (docs/operations.md, "Which transactions are run again").
	differs bool
	// begin is the first statement, if it is not BEGIN.
	begin string
}

var commonTransactions = []commonTransaction{
	{name: "key of a sequence, returned", differs: true, // Django, Rails, SQLAlchemy, Prisma
		sends: []string{"INSERT INTO @_serial (v) VALUES ('a') RETURNING id"}},
	{name: "key of an identity column, returned", differs: true,
		sends: []string{"INSERT INTO @_identity (v) VALUES ('a') RETURNING id"}},
	{name: "key asked for before", differs: true, // Hibernate
		sends: []string{"SELECT nextval('@_serial_id_seq')"}},
	{name: "key asked for behind", differs: true,
		sends: []string{"INSERT INTO @_serial (v) VALUES ('a')",
			"SELECT currval('@_serial_id_seq')"}},
	{name: "key of a sequence, not returned",
		sends: []string{"INSERT INTO @_serial (v) VALUES ('a')", "SELECT v FROM @_serial"}},
	{name: "child by currval, nothing shown",
		sends: []string{"INSERT INTO @_serial (v) VALUES ('a')", "INSERT INTO @_account " +
			"VALUES (currval('@_serial_id_seq') + 1000, 1)"}},
	{name: "child by WITH, nothing shown",
		sends: []string{"WITH p AS (INSERT INTO @_serial (v) VALUES ('a') RETURNING id) " +
			"INSERT INTO @_account SELECT id + 1000, 1 FROM p"}},
	{name: "key made by the client",
		sends: []string{"INSERT INTO @_uuid VALUES " +
			"('6f1d7c2e-0b0a-4f3e-9d55-3f1c5a8e2b10', 'a') RETURNING id"}},
	{name: "key made by the server, returned", differs: true,
		sends: []string{"INSERT INTO @_uuid VALUES (gen_random_uuid(), 'a') RETURNING id"}},
	{name: "clock, returned", differs: true,
		sends: []string{"INSERT INTO @_stamped (v) VALUES ('a') RETURNING at"}},
	{name: "clock, not returned",
		sends: []string{"INSERT INTO @_stamped (v) VALUES ('a') RETURNING v"}},
	{name: "clock, asked for", differs: true, sends: []string{"SELECT now()"}},
	{name: "clock in a condition",
		sends: []string{"SELECT id FROM @_account WHERE now() > '2020-01-01' ORDER BY id"}},
	{name: "transfer", sends: []string{
		"SELECT n FROM @_account WHERE id = 1 FOR UPDATE",
		"UPDATE @_account SET n = n - 10 WHERE id = 1",
		"UPDATE @_account SET n = n + 10 WHERE id = 2 RETURNING n"}},
	{name: "upsert", sends: []string{"INSERT INTO @_account VALUES (1, 5) " +
		"ON CONFLICT (id) DO UPDATE SET n = EXCLUDED.n RETURNING n"}},
	{name: "work queue", sends: []string{
		"DELETE FROM @_account WHERE id = (SELECT id FROM @_account ORDER BY id " +
			"FOR UPDATE SKIP LOCKED LIMIT 1) RETURNING id"}},
	{name: "optimistic lock",
		sends: []string{"UPDATE @_account SET n = 7 WHERE id = 1 AND n = 100"}},
	{name: "nested by savepoints", sends: []string{
		"SAVEPOINT active_record_1", "UPDATE @_account SET n = 1 WHERE id = 1",
		"ROLLBACK TO SAVEPOINT active_record_1", "UPDATE @_account SET n = 2 WHERE id = 1",
		"RELEASE SAVEPOINT active_record_1"}},
	{name: "settings of the tenant", sends: []string{
		"SET LOCAL app.tenant = '7'", "SET LOCAL statement_timeout = '30s'",
		"SELECT current_setting('app.tenant')", "UPDATE @_account SET n = 3 WHERE id = 1"}},
	{name: "lock by a key", sends: []string{
		"SELECT pg_advisory_xact_lock(hashtext('@'))",
		"UPDATE @_account SET n = 3 WHERE id = 1"}},
	{name: "event for listeners", sends: []string{
		"UPDATE @_account SET n = 3 WHERE id = 1", "SELECT pg_notify('events', '@')"}},
	{name: "report", begin: "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY",
		sends: []string{"SELECT count(*), sum(n) FROM @_account",
			"SELECT id, n FROM @_account ORDER BY id"}},
	{name: "serializable", begin: "BEGIN ISOLATION LEVEL SERIALIZABLE",
		sends: []string{"SELECT sum(n) FROM @_account",
			"UPDATE @_account SET n = 3 WHERE id = 1"}},
	{name: "id of the transaction, asked for", differs: true,
		sends: []string{"SELECT pg_current_xact_id()"}},
	{name: "pid of the backend, asked for", differs: true, sends: []string{"SELECT pg_backend_pid()"}},
}

const commonTables = `
CREATE TABLE @_serial (id serial PRIMARY KEY, v text);
CREATE TABLE @_identity (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
CREATE TABLE @_uuid (id uuid PRIMARY KEY, v text);
CREATE TABLE @_stamped (v text, at timestamptz DEFAULT now());
CREATE TABLE @_account (id int PRIMARY KEY, n int);
INSERT INTO @_account VALUES (1, 100), (2, 100);`

// TestCommonTransactions: which transactions go on when the primary is lost in front of their
// COMMIT, and which have shown what cannot come again. Those end in 40001 and leave nothing behind.
func TestCommonTransactions(t *testing.T) {
	for _, protocol := range []string{"simple", "extended"} {
		t.Run(protocol, func(t *testing.T) {
			r := newRig(t, nil)
			send := q
			if protocol == "extended" {
				send = x
			}
			admin := r.connect("")
			open := make([]*raw, len(commonTransactions))
			for i, c := range commonTransactions {
				prefix := fmt.Sprintf("c%d", i)
				exec(t, admin, strings.ReplaceAll(commonTables, "@", prefix))
				begin := "BEGIN"
				if c.begin != "" {
					begin = c.begin
				}
				open[i] = hijack(t, r.connect(""))
				steps := []scriptStep{send(begin)}
				for _, sql := range c.sends {
					steps = append(steps, send(strings.ReplaceAll(sql, "@", prefix)))
				}
				got := open[i].play(steps)
				if slices.ContainsFunc(got, func(m string) bool { return m[0] == 'E' }) {
					t.Fatalf("%s: %q", c.name, got)
				}
			}
			before := commonState(t, admin)
			r.change()
			for i, c := range commonTransactions {
				got := open[i].play([]scriptStep{send("COMMIT")})
				end := `C "COMMIT\x00"`
				if c.differs {
					end = "E 40001"
				}
				if !slices.Contains(got, end) {
					t.Errorf("%s: got %q, want %s", c.name, got, end)
				}
			}
			after := commonState(t, admin)
			for i, c := range commonTransactions {
				wrote := before[i] != after[i]
				if want := !c.differs && !c.onlyReads(); wrote != want {
					t.Errorf("%s: it wrote something: %v, want %v", c.name, wrote, want)
				}
			}
		})
	}
}

// commonState is what the tables of each transaction hold.
func commonState(t *testing.T, admin *pgconn.PgConn) []string {
	t.Helper()
	var out []string
	for i := range commonTransactions {
		var all []string
		for _, table := range []string{"serial", "identity", "uuid", "stamped", "account"} {
			all = append(all, exec(t, admin, fmt.Sprintf(
				"SELECT string_agg(c::text, ' ' ORDER BY c::text) FROM c%d_%s c", i, table)))
		}
		out = append(out, strings.Join(all, " "))
	}
	return out
}

func (c commonTransaction) onlyReads() bool {
	return !slices.ContainsFunc(c.sends, func(sql string) bool {
		return !strings.HasPrefix(sql, "SELECT")
	})
}
