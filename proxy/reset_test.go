package proxy_test

import (
	"net"
	"testing"

	"holdfast/pgwire"
	"holdfast/proxy/proxytest"
)

// A connection whose reset is not answered as it should be is nobody's any more: the next login
// gets a new one, at once.
func TestResetThatFails(t *testing.T) {
	done := pgwire.AppendCommandComplete(nil, "DISCARD ALL")
	idle := pgwire.AppendReadyForQuery(done, pgwire.TxIdle)
	failed := pgwire.AppendError(nil, &pgwire.Error{Severity: "ERROR", Code: "XX000", Message: "x"})
	hot := pgwire.AppendParameterStatus(nil, "in_hot_standby", "on")
	secret, err := pgwire.BuildScramSecret(proxytest.Password, []byte("0123456789abcdef"), 4096)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		said []byte
		end  bool
		want string // what becomes of it
	}{
		"an error":         {pgwire.AppendReadyForQuery(failed, pgwire.TxIdle), false, "ended"},
		"a failed block":   {pgwire.AppendReadyForQuery(done[:len(done):len(done)], 'E'), false, "ended"},
		"a row":            {append(pgwire.AppendDataRow(nil, nil), idle...), false, "ended"},
		"a standby":        {append(hot, idle...), false, "ended"},
		"half an answer":   {done[:7], false, "over"},
		"no ReadyForQuery": {done, false, "over"},
		"nothing":          {nil, false, "over"},
		"its end":          {nil, true, "ended"},
		"half, its end":    {done[:7], true, "ended"},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := liarRig(t, "host all all all scram-sha-256")
			s.secret = secret
			stuck := make(chan struct{})
			s.lies["DISCARD ALL"] = func(conn net.Conn) {
				_, _ = conn.Write(c.said)
				switch {
				case c.end:
					_ = conn.Close()
				case c.want == "over": // and RESET ROLE is not answered
					<-stuck
				}
			}
			t.Cleanup(func() { close(stuck) })
			connections := func() int {
				s.mu.Lock()
				defer s.mu.Unlock()
				return len(s.fuzz)
			}
			kept, gone := r.reuses("kept"), r.reuses(c.want)
			first := r.connect("dbname=fuzz")
			exec(t, first, "SELECT 1")
			if n := connections(); n != 1 {
				t.Fatalf("%d connections of one session", n)
			}
			closeConn(first)
			next := r.connect("dbname=fuzz")
			if v := exec(t, next, "SELECT 2"); v != "2" {
				t.Errorf("the next login: %q", v)
			}
			if n := connections(); n != 2 {
				t.Errorf("%d connections of two sessions", n)
			}
			r.eventually(func() bool { return r.reuses(c.want) > gone }, "it counts as "+c.want)
			r.eventually(func() bool { return r.spares() == 0 }, "it is not kept")
			if r.reuses("kept") != kept || r.reuses("reused") != 0 {
				t.Error("it was used again")
			}
			if v := exec(t, next, "SELECT 3"); v != "3" {
				t.Errorf("the next session: %q", v)
			}
		})
	}
}
