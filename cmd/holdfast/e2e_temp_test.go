package main_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	holdfast "holdfast/cmd/holdfast"
)

// TestE2ETemporaryTables: sessions of all proxies keep their temporary tables over switchovers and
// a restart of the primary, of real members, and are told when it is killed.
func TestE2ETemporaryTables(t *testing.T) {
	needCluster(t)
	t.Cleanup(func() { goleak.VerifyNone(t) })
	binary := buildBinary(t)
	c, err := holdfast.StartCluster(t.Context(), holdfast.ClusterConfig{
		Binary: binary, Prefix: "holdfast-e2e",
	})
	if err != nil {
		t.Fatal(err)
	}
	endWithTest(t, c)
	waitHealthy(t, c)
	makeDatabase(t, c)
	var conns []*pgx.Conn
	for _, n := range c.Nodes {
		conn := connect(t, e2eDSN(n))
		exec1(t, conn, "CREATE TEMP TABLE kept (i int PRIMARY KEY, at timestamptz DEFAULT now())")
		exec1(t, conn, "CREATE TEMP TABLE emptied (i int NOT NULL) ON COMMIT DELETE ROWS")
		exec1(t, conn, "INSERT INTO kept SELECT generate_series(1, 1000)")
		conns = append(conns, conn)
	}
	const ask = "SELECT count(*) || ' ' || md5(string_agg(k::text, ',' ORDER BY i)) FROM kept k"
	for i, do := range []func(*holdfast.ClusterNode) error{
		func(*holdfast.ClusterNode) error { return c.Switchover(t.Context(), away(t, c).Name) },
		func(n *holdfast.ClusterNode) error {
			operator{t: t, c: c, binary: binary}.must(c.Nodes[0], "restart", n.Name)
			return nil
		},
		func(*holdfast.ClusterNode) error { return c.Switchover(t.Context(), away(t, c).Name) },
	} {
		var was []string
		for _, conn := range conns {
			was = append(was, queryText(t, conn, ask))
		}
		change(t, c, do)
		for j, conn := range conns {
			if got := queryText(t, conn, ask); got != was[j] {
				t.Errorf("change %d, session %d: %s, was %s", i, j, got, was[j])
			}
			exec1(t, conn, "INSERT INTO emptied VALUES (1)")
			if n := queryText(t, conn, "SELECT count(*)::text FROM emptied"); n != "0" {
				t.Errorf("change %d, session %d: %s rows outlive a commit", i, j, n)
			}
		}
	}
	change(t, c, (*holdfast.ClusterNode).KillPostmaster)
	for j, conn := range conns {
		if _, err := tryText(t, conn, "SELECT 'here'"); sqlState(err) != "57P01" {
			t.Errorf("session %d, behind a failure: %v", j, err)
		}
	}
}
