package proxy_test

import (
	"testing"
	"time"
)

// Nobody is told that a database is in use because the proxy has a connection to it that no client
// uses: not through this proxy, nor directly.
func TestDatabasesThatNobodyUses(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("user=postgres dbname=postgres")
	use := func() {
		t.Helper()
		exec(t, c, "CREATE DATABASE d")
		d := r.connect("user=postgres dbname=d")
		exec(t, d, "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
		exec(t, d, "SELECT f()") // the catalogue is asked about it
		closeConn(d)
		closeConn(r.connect("user=postgres dbname=d")) // not after DDL: it is kept
		r.eventually(func() bool { return r.gauge("spare_connections") > 0 }, "it is kept")
	}
	use()
	for _, sql := range []string{"CREATE DATABASE e TEMPLATE d", "ALTER DATABASE d RENAME TO f",
		"DROP DATABASE f"} {
		from := time.Now()
		if _, err := tryExec(c, sql); err != nil {
			t.Errorf("%s: %v after %v", sql, err, time.Since(from))
		}
	}
	use()
	from := time.Now()
	r.server.Exec("DROP DATABASE d")
	t.Logf("directly: after %v", time.Since(from))
}
