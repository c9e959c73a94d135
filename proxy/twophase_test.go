package proxy_test

import (
	"strings"
	"sync/atomic"
	"testing"

	"holdfast/proxy"
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

// prepareT leaves a transaction prepared as g.
func prepareT(t *testing.T, r *rig) {
	t.Helper()
	c := r.connect("")
	for _, sql := range []string{"CREATE TABLE t (a int)", "BEGIN", "INSERT INTO t VALUES (1)",
		"PREPARE TRANSACTION 'g'"} {
		exec(t, c, sql)
	}
}

// TestSecondPhaseAfterANewTopology: what is told of a primary changes within its epoch, with the
// standbys that commits wait for. A session that was there before still has a known outcome.
func TestSecondPhaseAfterANewTopology(t *testing.T) {
	r := newRig(t, nil)
	prepareT(t, r)
	c := r.connect("")
	now, _ := r.topo.Current()
	next := *now
	r.topo.Set(&next)
	var lost atomic.Int32
	r.line.Watch(nil, func(typ byte, body []byte) bool {
		if typ == 'C' && strings.HasPrefix(string(body), "COMMIT PREPARED") {
			lost.Add(1)
			return false
		}
		return true
	})
	if _, err := tryExec(c, "COMMIT PREPARED 'g'"); err != nil {
		t.Errorf("got %v", err)
	}
	if n := lost.Load(); n != 1 {
		t.Errorf("%d answers were lost", n)
	}
}

// TestSecondPhaseThatIsNotRunAgain: one that did not reach the server is told as not executed,
// which says nothing of the prepared transaction: that is still there.
func TestSecondPhaseThatIsNotRunAgain(t *testing.T) {
	r := newRig(t, func(c *proxy.Config) { c.ReplayAttemptsMax = 0 })
	prepareT(t, r)
	c := r.connect("")
	r.line.Watch(func(_ byte, body []byte) bool {
		return !strings.HasPrefix(string(body), "COMMIT PREPARED")
	}, nil)
	_, err := tryExec(c, "COMMIT PREPARED 'g'")
	if code(err) != "40001" || !strings.Contains(err.Error(), "not executed") {
		t.Errorf("got %v", err)
	}
	r.line.Watch(nil, nil)
	if n := exec(t, c, "SELECT count(*) FROM pg_prepared_xacts"); n != "1" {
		t.Errorf("%s prepared transactions", n)
	}
}
