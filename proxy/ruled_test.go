package proxy_test

import (
	"bytes"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// TestRulesThatAnswerWrites: a write whose rule has a SELECT looks as it does on the server, though
// its commit would otherwise be guarded; once the rules of the database are known.
func TestRulesThatAnswerWrites(t *testing.T) {
	r := newRig(t, nil)
	exec(t, r.connect(""), `CREATE TABLE "Also" (a int); CREATE TABLE instead (a int);
CREATE TABLE plain (a int); CREATE TABLE logged (a int);
CREATE RULE r1 AS ON INSERT TO "Also" DO ALSO SELECT NEW.a + 1 AS b;
CREATE RULE r2 AS ON UPDATE TO instead DO INSTEAD (SELECT 1 AS x; SELECT 'two' AS y);
CREATE RULE r3 AS ON INSERT TO logged DO ALSO INSERT INTO plain SELECT NEW.a;
CREATE VIEW seen AS SELECT a FROM "Also"`)
	queries := []string{
		`INSERT INTO "Also" VALUES (1)`, "UPDATE instead SET a = 1", "INSERT INTO seen VALUES (2)",
		`PREPARE p AS INSERT INTO "Also" VALUES (3)`, "EXECUTE p", "INSERT INTO plain VALUES (1)",
		"INSERT INTO logged VALUES (1)", "SELECT count(*) FROM plain",
	}
	var seen [2][]string
	var guarded atomic.Int32
	for i, port := range []string{fmt.Sprintf(" port=%d", r.server.Port), ""} {
		exec(t, r.connect(""), `TRUNCATE "Also", instead, plain, logged`)
		c, err := dial(t.Context(), r.dsn(port))
		if err != nil {
			t.Fatal(err)
		}
		w := hijack(t, c)
		for end := time.Now().Add(10 * time.Second); i == 1; time.Sleep(10 * time.Millisecond) {
			// What the first statement of a database sets off is asked for behind it.
			if got := w.playAll(q("UPDATE instead SET a = 1")); len(got) > 2 {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the rules of the database were not found out")
			}
		}
		r.line.Watch(func(_ byte, body []byte) bool {
			if bytes.Contains(body, []byte("pg_current_xact_id_if_assigned")) {
				guarded.Add(1)
			}
			return true
		}, nil)
		guarded.Store(0) // what was sent while the rules were not known does not count
		for _, sql := range queries {
			seen[i] = append(seen[i], sql)
			seen[i] = append(seen[i], w.playAll(q(sql))...)
		}
	}
	if !slices.Equal(seen[0], seen[1]) {
		t.Fatalf("the server says\n%q, the proxy\n%q", seen[0], seen[1])
	}
	if n := guarded.Load(); n != 2 {
		t.Errorf("%d of the two writes without such a rule were guarded", n)
	}
}
