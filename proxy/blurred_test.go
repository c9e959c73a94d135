package proxy_test

import (
	"strings"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// TestNamesThatWereNotRead: a prepared statement that was made or dropped by a text that is not
// read, or by a name in escapes, is none of which its old text tells what it does: that it was
// executed is not told as not executed, and it is not run again. Rolling a block back undoes no
// PREPARE.
func TestNamesThatWereNotRead(t *testing.T) {
	long := "/*" + strings.Repeat("x", 1<<20) + "*/ "
	const made = "INSERT INTO t VALUES (1) RETURNING a"
	for name, sqls := range map[string][]string{
		"escapes": {`DEALLOCATE U&"\0070"`, `PREPARE U&"\0070" AS ` + made},
		"escapes, rolled back": {"BEGIN", `DEALLOCATE U&"\0070"`, `PREPARE U&"\0070" AS ` + made,
			"ROLLBACK"},
		"large, rolled back": {"BEGIN", long + "DEALLOCATE p", long + "PREPARE p AS " + made,
			"ROLLBACK"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *proxy.Config) {
				c.InspectBytesMax, c.CommitGuard = 1024, proxy.GuardExplicit
			})
			exec(t, r.connect(""), "CREATE TABLE t (a int)")
			w := hijack(t, r.connect(""))
			w.send(pgwire.AppendSync(pgwire.AppendParse(nil, "p", "SELECT 1 AS a", nil)))
			w.until(1, 20*time.Second)
			for _, sql := range sqls {
				w.send(q(sql).send)
				if got := w.until(1, 20*time.Second); strings.Contains(got, "E(") {
					t.Fatalf("%.40s: %s", sql, got)
				}
			}
			got := executedThenLost(t, r, w, bindRun("p"), answer('2'))
			if n := r.rows(); n != "1" || !strings.HasPrefix(got, "E(08007") {
				t.Errorf("told %s, %s rows", got, n)
			}
		})
	}
}
