package proxy_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// TestWhatRunsOutsideIsNotGuessed: behind what fails, or ends its block and fails then, there is no
// block, and an INSERT that was sent for one commits by itself. It is lost once it was executed, or
// once it might have been: it is applied once at most, and what is told of it is true (I36).
func TestWhatRunsOutsideIsNotGuessed(t *testing.T) {
	for _, guard := range []string{proxy.GuardAll, proxy.GuardExplicit, proxy.GuardOff} {
		t.Run(guard, func(t *testing.T) {
			r := newRig(t, func(c *proxy.Config) { c.CommitGuard = guard })
			admin := r.directly("")
			exec(t, admin, "CREATE TABLE t (a int)")
			exec(t, admin, "CREATE TABLE once (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
			for name, tc := range failsBeforeAnInsert {
				for _, whole := range []bool{true, false} {
					t.Run(fmt.Sprintf("%s/error told %v", name, whole), func(t *testing.T) {
						exec(t, admin, "TRUNCATE t, once")
						tc.lose(t, r, admin, whole)
					})
				}
			}
		})
	}
}

// failsBefore is a statement that fails, or ends its block and fails then, with an INSERT behind it
// in the same write.
type failsBefore struct {
	before []string
	send   scriptStep
}

const insertBehind = "INSERT INTO t VALUES (1)"

var failsBeforeAnInsert = map[string]failsBefore{
	"a chain outside":        {nil, q("ROLLBACK AND CHAIN", insertBehind)},
	"a commit chain outside": {nil, q("COMMIT AND CHAIN", insertBehind)},
	"a chain whose commit fails": {[]string{"BEGIN", "INSERT INTO once VALUES (1), (1)"},
		q("COMMIT AND CHAIN", insertBehind)},
	"the same, extended": {[]string{"BEGIN", "INSERT INTO once VALUES (1), (1)"},
		scriptStep{send: join(extended("COMMIT AND CHAIN"), extended(insertBehind)), ends: 2}},
	"a string that ends its block": {[]string{"BEGIN", "INSERT INTO t VALUES (2)"},
		q("SELECT 1; COMMIT; SELECT 1/0", insertBehind)},
	"a BEGIN with a mistake": {nil, q("BEGIN ISOLATION LEVEL SERIALISABLE", insertBehind)},
}

// lose plays it and loses the server at the error, or behind it where that is told, and once the
// INSERT was executed if it is.
func (tc *failsBefore) lose(t *testing.T, r *rig, admin *pgconn.PgConn, isTold bool) {
	w := hijack(t, r.connect(""))
	defer w.c.Close() // what its server may still say is no answer of the next one
	for _, sql := range tc.before {
		w.play([]scriptStep{q(sql)})
	}
	count := func() string { return exec(t, admin, "SELECT count(*) FROM t WHERE a = 1") }
	var failed, isCut atomic.Bool
	cut := make(chan struct{})
	r.line.Watch(nil, func(typ byte, _ []byte) bool {
		failed.Store(failed.Load() || typ == 'E')
		if !failed.Load() || isTold != (typ == 'Z') || isCut.Swap(true) {
			return true
		}
		for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
			if count() != "0" {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		close(cut)
		return false
	})
	w.send(tc.send.send)
	<-cut
	r.line.Watch(nil, nil)
	got := w.play([]scriptStep{{ends: tc.send.ends}})
	rows, told := count(), ""
	for _, m := range got {
		if strings.HasPrefix(m, "E ") || strings.HasPrefix(m, "C ") {
			told = m
		}
	}
	if rows != "0" && rows != "1" || told == "" || told == "E 40001" && rows != "0" ||
		strings.HasPrefix(told, `C "INSERT`) && rows != "1" {
		t.Errorf("%s rows, told %q", rows, got)
	}
}

// TestFailedQueryLeavesNoUnnamedStatement, also if the server is lost right behind its error.
func TestFailedQueryLeavesNoUnnamedStatement(t *testing.T) {
	for _, guard := range []string{proxy.GuardAll, proxy.GuardExplicit, proxy.GuardOff} {
		t.Run(guard, func(t *testing.T) {
			r := newRig(t, func(c *proxy.Config) { c.CommitGuard = guard })
			exec(t, r.directly(""), "CREATE TABLE t (a int UNIQUE)")
			w := hijack(t, r.connect(""))
			w.play([]scriptStep{x("INSERT INTO t VALUES (1)")})
			var failed, isCut atomic.Bool
			r.line.Watch(nil, func(typ byte, _ []byte) bool {
				failed.Store(failed.Load() || typ == 'E')
				return !(typ == 'Z' && failed.Load()) || isCut.Swap(true)
			})
			checkPlayed(t, w.play([]scriptStep{q("INSERT INTO t VALUES (1)")}), "E 23505", `Z "I"`)
			checkPlayed(t, w.play([]scriptStep{{
				send: pgwire.AppendSync(pgwire.AppendDescribe(nil, 'S', "")), ends: 1}}),
				"E 26000", `Z "I"`)
			if !isCut.Load() {
				t.Error("was not cut")
			}
		})
	}
}
