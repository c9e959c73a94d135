package proxy_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/proxy"
)

// TestWhatRunsOutsideIsNotGuessed: behind what fails, or ends its block and fails then, there is no
// block, and an INSERT that was sent for one commits by itself. It is lost once it was executed, or
// once it might have been: it is applied once at most, and what is told of it is true (I36).
func TestWhatRunsOutsideIsNotGuessed(t *testing.T) {
	insert := "INSERT INTO t VALUES (1)"
	for _, guard := range []string{proxy.GuardAll, proxy.GuardExplicit, proxy.GuardOff} {
		r := newRig(t, func(c *proxy.Config) { c.CommitGuard = guard })
		admin := r.directly("")
		exec(t, admin, "CREATE TABLE t (a int)")
		exec(t, admin, "CREATE TABLE once (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
		for name, tc := range map[string]struct {
			before []string
			send   scriptStep
		}{
			"a chain outside":        {nil, q("ROLLBACK AND CHAIN", insert)},
			"a commit chain outside": {nil, q("COMMIT AND CHAIN", insert)},
			"a chain whose commit fails": {[]string{"BEGIN", "INSERT INTO once VALUES (1), (1)"},
				q("COMMIT AND CHAIN", insert)},
			"the same, extended": {[]string{"BEGIN", "INSERT INTO once VALUES (1), (1)"},
				scriptStep{send: join(extended("COMMIT AND CHAIN"), extended(insert)), ends: 2}},
			"a string that ends its block": {[]string{"BEGIN", "INSERT INTO t VALUES (2)"},
				q("SELECT 1; COMMIT; SELECT 1/0", insert)},
			"a BEGIN with a mistake": {nil, q("BEGIN ISOLATION LEVEL SERIALISABLE", insert)},
		} {
			for _, whole := range []bool{true, false} {
				t.Run(guard+"/"+name, func(t *testing.T) {
					exec(t, admin, "TRUNCATE t, once")
					w := hijack(t, r.connect(""))
					for _, sql := range tc.before {
						w.play([]scriptStep{q(sql)})
					}
					count := func() string {
						return exec(t, admin, "SELECT count(*) FROM t WHERE a = 1")
					}
					var errs atomic.Int32
					var isCut atomic.Bool
					r.line.Watch(nil, func(typ byte, _ []byte) bool {
						if typ == 'E' {
							errs.Add(1)
						}
						if errs.Load() == 0 || whole != (typ == 'Z') || isCut.Swap(true) {
							return true
						}
						for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
							if count() != "0" {
								break
							}
							time.Sleep(5 * time.Millisecond)
						}
						return false
					})
					got := w.play([]scriptStep{tc.send})
					r.line.Watch(nil, nil)
					if !isCut.Load() {
						t.Fatalf("was not cut: %q", got)
					}
					rows := count()
					told := "nothing"
					for _, m := range got {
						if strings.HasPrefix(m, "E ") || strings.HasPrefix(m, "C ") {
							told = m
						}
					}
					switch {
					case rows != "0" && rows != "1",
						strings.HasPrefix(told, `C "INSERT`) && rows != "1",
						told == "E 40001" && rows != "0", told == "nothing":
						t.Errorf("%s rows, told %q", rows, got)
					default:
						t.Logf("%s rows, told %q", rows, got)
					}
				})
			}
		}
	}
}
