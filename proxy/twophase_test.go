package proxy_test

import (
	"testing"
)

// TestAcknowledgedTwoPhase: what became of a prepared transaction after it was acknowledged is no
// loss, whoever has ended it; one that never reached the new primary is told (DESIGN.md I25).
func TestAcknowledgedTwoPhase(t *testing.T) {
	for name, tc := range map[string]struct {
		own, other string
		lost       bool
	}{
		"rolled back by another session": {other: "ROLLBACK PREPARED 'g'"},
		"committed by another session":   {other: "COMMIT PREPARED 'g'"},
		"still prepared":                 {},
		"rolled back by itself":          {own: "ROLLBACK PREPARED 'g'"},
		"rolled back, and not there":     {own: "ROLLBACK PREPARED 'g'", lost: true},
		"prepared, and not there":        {lost: true},
		"committed, and not there":       {own: "COMMIT PREPARED 'g'", lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			c := r.connect("")
			exec(t, c, "CREATE TABLE t (a int)")
			from := r.server.NextXID()
			for _, sql := range []string{"BEGIN", "INSERT INTO t VALUES (1)", "PREPARE TRANSACTION 'g'"} {
				exec(t, c, sql)
			}
			if tc.own != "" {
				exec(t, c, tc.own)
			}
			if tc.other != "" {
				exec(t, r.connect(""), tc.other)
			}
			r.proxy.Cut(r.epoch)
			r.server.Kill()
			r.server.Start()
			if tc.lost {
				r.lead(from, from) // as of a primary that has seen nothing of it
			} else {
				next := r.server.NextXID()
				r.lead(next, next)
			}
			_, err := tryExec(c, "SELECT 1")
			want := "<nil>"
			if tc.lost && tc.own != "ROLLBACK PREPARED 'g'" {
				want = "08006"
			}
			if code(err) != want {
				t.Errorf("got %v", err)
			}
		})
	}
}
