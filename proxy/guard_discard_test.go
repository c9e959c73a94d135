package proxy_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The question for the transaction id does not rely on what DEALLOCATE ALL and DISCARD ALL drop:
// behind each, a COMMIT and a Sync of the extended protocol are looked up as ever (DESIGN 10.16).
func TestGuardBehindDiscard(t *testing.T) {
	blockOf := func(in string) []scriptStep {
		if in == "" {
			return []scriptStep{x("BEGIN"), x("INSERT INTO t VALUES (1)")}
		}
		return []scriptStep{x("BEGIN"), x("INSERT INTO t VALUES (1)"), x(in)}
	}
	before := func(sql string) []scriptStep { // a guarded commit of before it
		return []scriptStep{x("BEGIN"), x("INSERT INTO t VALUES (0)"), x("COMMIT"), x(sql)}
	}
	r := newRig(t, noReplay)
	exec(t, r.connect(""), "CREATE TABLE t (a int)")
	for name, tc := range map[string]struct {
		steps  []scriptStep
		commit []byte
	}{
		"DISCARD ALL":    {append(before("DISCARD ALL"), blockOf("")...), extended("COMMIT")},
		"DEALLOCATE ALL": {append(before("DEALLOCATE ALL"), blockOf("")...), extended("COMMIT")},
		"DEALLOCATE ALL in the block": {append(before("SELECT 1"), blockOf("DEALLOCATE ALL")...),
			extended("COMMIT")},
		"DEALLOCATE ALL, implicit": {before("DEALLOCATE ALL"), extended("INSERT INTO t VALUES (1)")},
		"DISCARD ALL, implicit":    {before("DISCARD ALL"), extended("INSERT INTO t VALUES (1)")},
		"DEALLOCATE ALL in the batch": {before("SELECT 1"),
			extended("DEALLOCATE ALL", "INSERT INTO t VALUES (1)")},
	} {
		for _, executed := range []bool{true, false} {
			exec(t, r.connect(""), "TRUNCATE t")
			w := hijack(t, r.connect(""))
			w.play(tc.steps)
			commits := r.count("outcomes_total", "committed")
			aborted := r.count("outcomes_total", "aborted")
			got := r.lostAtSync(w, tc.commit, executed)
			want, isTold := "0", strings.Contains(got, "E(40001")
			if executed {
				want, isTold = "1", !strings.Contains(got, "E(")
			}
			if !isTold {
				t.Errorf("%s, executed %v: told %s", name, executed, got)
			}
			n := exec(t, r.connect(""), "SELECT count(*) FROM t WHERE a = 1")
			if n != want {
				t.Errorf("%s, executed %v: %s rows", name, executed, n)
			}
			commits = r.count("outcomes_total", "committed") - commits
			aborted = r.count("outcomes_total", "aborted") - aborted
			if executed && commits != 1 || !executed && aborted != 1 {
				t.Errorf("%s, executed %v: looked up %v as committed, %v as aborted", name,
					executed, commits, aborted)
			}
		}
	}
}

// lostAtSync sends a batch, and cuts the line at what commits, or at its answer: the Execute of a
// COMMIT, else the Sync. It returns what the client is told.
func (r *rig) lostAtSync(w *raw, batch []byte, executed bool) string {
	r.t.Helper()
	commits := func(typ byte, _ []byte) bool { return typ == 'S' }
	answers := answer('Z')
	if strings.Contains(string(batch), "COMMIT") { // our question has a portal with a name
		commits = func(typ byte, body []byte) bool { return typ == 'E' && body[0] == 0 }
		answers = committed
	}
	var isSent, isCut atomic.Bool
	r.line.Watch(func(typ byte, body []byte) bool {
		if !commits(typ, body) || isCut.Load() {
			return true
		}
		isSent.Store(true)
		isCut.Store(!executed)
		return executed
	}, func(typ byte, body []byte) bool {
		return !answers(typ, body) || !isSent.Load() || !isCut.CompareAndSwap(false, true)
	})
	w.send(batch)
	got := w.until(1, 20*time.Second)
	r.line.Watch(nil, nil)
	return got
}
