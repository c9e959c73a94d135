package proxy_test

import (
	"testing"

	"holdfast/proxy"
)

const isolation = "SHOW transaction_isolation"

// A block that COMMIT AND CHAIN has opened is run again in one of the same characteristics, and not
// at all where something may have changed them (DESIGN.md I41).
func TestChainedBlockIsRunAgain(t *testing.T) {
	r := newRig(t, nil)
	exec(t, r.connect(""), "CREATE TABLE t (a int)")
	r.eventually(func() bool { return proxy.KnowsSetters(r.proxy, "app") }, "functions are known")
	for _, tc := range []struct {
		name          string
		before, after []string
		want          string // SQLSTATE, or the isolation level
	}{
		{"as it began", []string{"BEGIN ISOLATION LEVEL SERIALIZABLE"}, nil, "serializable"},
		{"a setting", []string{"BEGIN ISOLATION LEVEL SERIALIZABLE", "SET work_mem = '5MB'",
			"SELECT set_config('app.x', 'y', true)"}, nil, "serializable"},
		{"set in the one before", []string{"BEGIN", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"},
			nil, "40001"},
		{"set in this one", []string{"BEGIN"}, []string{"SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"},
			"serializable"},
		{"set by name", []string{"BEGIN", "SET transaction_isolation = 'serializable'"}, nil, "40001"},
		{"set by a function", []string{"BEGIN",
			"SELECT set_config('transaction_read_only', 'on', false)"}, nil, "40001"},
		{"a BEGIN in a block", []string{"BEGIN", "BEGIN READ ONLY"}, nil, "40001"},
		{"in a string", []string{"BEGIN; SET TRANSACTION READ ONLY"}, nil, "40001"},
		{"the default", []string{"BEGIN", "SET default_transaction_isolation = 'serializable'"}, nil,
			"40001"},
		{"the default of all", []string{"BEGIN", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"},
			nil, "40001"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := r.connect("")
			for _, sql := range tc.before {
				exec(t, c, sql)
			}
			exec(t, c, "COMMIT AND CHAIN")
			for _, sql := range tc.after {
				exec(t, c, sql)
			}
			r.line.Cut()
			got, err := tryExec(c, isolation)
			if err != nil {
				got = code(err)
			}
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			exec(t, c, "ROLLBACK")
		})
	}
}

// What AND CHAIN opens behind a block that is lost has the characteristics of that one.
func TestChainBehindALostBlock(t *testing.T) {
	r := newRig(t, noReplay)
	for _, begin := range [][]string{{"BEGIN ISOLATION LEVEL SERIALIZABLE"},
		{"BEGIN ISOLATION LEVEL SERIALIZABLE", "COMMIT AND CHAIN"}} {
		for _, isTold := range []bool{true, false} {
			c := r.connect("")
			for _, sql := range begin {
				exec(t, c, sql)
			}
			exec(t, c, "SELECT 1")
			r.line.Cut()
			if isTold {
				wantCode(t, c, "SELECT 1", "40001")
			}
			exec(t, c, "ROLLBACK AND CHAIN")
			if got := exec(t, c, isolation); got != "serializable" {
				t.Errorf("%v, told %v: %s", begin, isTold, got)
			}
		}
	}
}

// A failed block whose own BEGIN had set the characteristics hands on the defaults: what comes
// behind it is not run again by the text of that BEGIN.
func TestChainBehindAFailedBlock(t *testing.T) {
	r := newRig(t, nil)
	r.eventually(func() bool { return proxy.KnowsSetters(r.proxy, "app") }, "functions are known")
	for _, ends := range [][]string{{"COMMIT AND CHAIN"}, {"ROLLBACK AND CHAIN", "COMMIT AND CHAIN"}} {
		c := r.connect("")
		exec(t, c, "BEGIN ISOLATION LEVEL SERIALIZABLE")
		wantCode(t, c, "SELECT 1/0", "22012")
		for _, sql := range ends {
			exec(t, c, sql)
		}
		if got := exec(t, c, isolation); got != "read committed" {
			t.Fatalf("%q leads to %s", ends, got)
		}
		r.line.Cut()
		wantCode(t, c, isolation, "40001")
		exec(t, c, "ROLLBACK")
	}
}
