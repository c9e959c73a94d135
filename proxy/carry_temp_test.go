package proxy_test

import (
	"context"
	"testing"
	"time"
)

// planned is a planned change as the proxy sees it: a drain that has time, the end of the epoch, a
// fast stop, and the next epoch.
func (r *rig) planned() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r.proxy.Drain(ctx, r.epoch)
	if ctx.Err() != nil {
		r.t.Error("the drain has not come to its end")
	}
	r.proxy.Cut(r.epoch)
	r.server.Stop("fast")
	r.server.Start()
	next := r.server.NextXID()
	r.lead(next, next)
}

func TestTempSmoke(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	for _, sql := range []string{
		"CREATE TEMP TABLE a (i int PRIMARY KEY, b text DEFAULT 'x', g int GENERATED ALWAYS AS (i * 2) STORED)",
		"INSERT INTO a SELECT i, repeat('é', i) FROM generate_series(1, 100) i",
		"CREATE TEMP TABLE d (i int NOT NULL) ON COMMIT DELETE ROWS",
		"CREATE TEMP TABLE p (i int NOT NULL CHECK (i > 5)) ON COMMIT PRESERVE ROWS",
		"ANALYZE a",
	} {
		exec(t, c, sql)
	}
	r.planned()
	t.Log(tryExec(c, "SELECT sum(g) + sum(length(b)) FROM a"))
	t.Log(tryExec(c, "INSERT INTO d VALUES (1); SELECT count(*) FROM d"))
	t.Log(tryExec(c, "SELECT count(*) FROM d"))
	t.Log(tryExec(c, "INSERT INTO p VALUES (6)"))
	t.Log(tryExec(c, "SELECT count(*) FROM p"))
	r.planned()
	t.Log(tryExec(c, "SELECT count(*) FROM p"))
	t.Log(tryExec(c, "SELECT sum(g) + sum(length(b)) FROM a"))
}
