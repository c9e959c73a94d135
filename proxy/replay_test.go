package proxy_test

import (
	"slices"
	"testing"
)

// TestReplayThatComesShort: what a transaction was shown is longer than what it is shown when it is
// run again. The session must be told, and not wait for the rest.
func TestReplayThatComesShort(t *testing.T) {
	r := newRig(t, nil)
	admin := r.connect("")
	exec(t, admin, "CREATE TABLE t (a int PRIMARY KEY, b text)")
	exec(t, admin, "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
	w := hijack(t, r.connect(""))
	w.play([]scriptStep{q("BEGIN"), q("SELECT b FROM t")})
	exec(t, admin, "DELETE FROM t WHERE a = 2")
	r.line.Cut()
	got := w.play([]scriptStep{q("SELECT 1"), q("ROLLBACK")})
	want := []string{"E 40001", `Z "E"`, `C "ROLLBACK\x00"`, `Z "I"`}
	if !slices.Equal(got, want) {
		t.Fatalf("got %q", got)
	}
}
