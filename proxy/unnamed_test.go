package proxy_test

import (
	"context"
	"testing"
)

// TestUnnamedStatementOutlivesOurQueries: an acknowledged commit is asked for, and locks are taken
// again, with a Query, which destroys the unnamed statement; it is there again all the same.
func TestUnnamedStatementOutlivesOurQueries(t *testing.T) {
	for name, before := range map[string]string{
		"nothing": "SELECT 1", "a commit": "INSERT INTO t VALUES (1)",
		"a lock":           "SELECT pg_advisory_lock(7)",
		"a lock, a commit": "BEGIN; SELECT pg_advisory_lock(7); INSERT INTO t VALUES (1); COMMIT",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			c := r.connect("")
			exec(t, c, "CREATE TABLE t (a int)")
			exec(t, c, before)
			ctx := context.Background()
			if _, err := c.Prepare(ctx, "", "SELECT $1::int * 2", nil); err != nil {
				t.Fatal(err)
			}
			r.change()
			res := c.ExecPrepared(ctx, "", [][]byte{[]byte("21")}, nil, nil).Read()
			if res.Err != nil || string(res.Rows[0][0]) != "42" {
				t.Fatalf("the unnamed statement after the change: %v", res.Err)
			}
		})
	}
}
