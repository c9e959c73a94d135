package proxy_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// settersRig has a function, a procedure and a table with a trigger that set work_mem, and knows
// that they do.
func settersRig(t *testing.T, change func(*proxy.Config)) *rig {
	t.Helper()
	r := newRig(t, change)
	c := r.connect("")
	exec(t, c, `CREATE FUNCTION wm() RETURNS text LANGUAGE sql AS
		$$SELECT set_config('work_mem', '7MB', false)$$;
		CREATE PROCEDURE pm() LANGUAGE sql AS $$SELECT set_config('work_mem', '7MB', false)$$;
		CREATE FUNCTION trig() RETURNS trigger LANGUAGE plpgsql AS
		$$BEGIN PERFORM set_config('work_mem', '7MB', false); RETURN NEW; END$$;
		CREATE TABLE tt (a int);
		CREATE TRIGGER t BEFORE INSERT ON tt FOR EACH ROW EXECUTE FUNCTION trig()`)
	r.until(func() bool {
		_, _ = tryExec(c, "SELECT 1 + length('')")
		return proxy.KnowsSetter(r.proxy, "app", "wm") && proxy.KnowsSetter(r.proxy, "app", "tt")
	})
	_ = c.Close(t.Context()) // it would be restored behind each cut
	return r
}

// oneWay lets no message to the server that was not under way before the server has answered a
// unit of work: the answer is kept until the question for the session's state has passed, and
// everything that comes behind it is cut off. When that question is answered the line breaks.
type oneWay struct {
	mu              sync.Mutex
	isAsked, isOver bool
	asked           chan struct{}
	ends            int // ReadyForQuery 'I' that have passed
}

func (w *oneWay) toServer(typ byte, body []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.isOver || typ == 'X':
		return true // another backend, or one whose client has left
	case w.ends > 0:
		w.isOver = true
		return false
	case isSnapshot(body):
		w.isAsked = true
	case typ == 'S' && w.isAsked:
		close(w.asked)
		w.isAsked = false
	}
	return true
}

func (w *oneWay) toClient(typ byte, body []byte) bool {
	w.mu.Lock()
	isEnd := !w.isOver && typ == 'Z' && string(body) == "I"
	isFirst := isEnd && w.ends == 0
	w.mu.Unlock()
	if isFirst {
		select {
		case <-w.asked:
		case <-time.After(time.Second): // it waits for this answer, as it should not
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if isEnd {
		w.ends++
	}
	return true
}

// TestStateIsKnownWithTheAnswer (DESIGN.md I31): nothing that is sent once the server has answered
// reaches it any more, and then the line breaks. The session goes on with what was set, since the
// question for that went out with the statement.
func TestStateIsKnownWithTheAnswer(t *testing.T) {
	const do = "DO $$BEGIN PERFORM set_config('work_mem', '7MB', false); END$$"
	for _, guard := range []string{proxy.GuardAll, proxy.GuardOff} {
		t.Run(guard, func(t *testing.T) {
			r := settersRig(t, func(c *proxy.Config) { c.CommitGuard, c.Reuse = guard, false })
			for name, tc := range map[string]struct {
				before []scriptStep
				step   scriptStep
			}{
				"function":            {nil, q("SELECT wm()")},
				"function, extended":  {nil, x("SELECT wm()")},
				"procedure":           {nil, q("CALL pm()")},
				"procedure, extended": {nil, x("CALL pm()")},
				"do":                  {nil, q(do)},
				"computed":            {nil, q("SELECT set_config('work_mem', 7 || 'MB', false)")},
				"pipelined":           {nil, scriptStep{send: q("SELECT wm()", "SELECT 1").send, ends: 2}},
				"trigger":             {nil, q("INSERT INTO tt VALUES (1)")},
				"trigger, extended":   {nil, x("INSERT INTO tt VALUES (1)")},
				"transaction": {[]scriptStep{q("BEGIN"), q("SELECT wm()"), q("INSERT INTO tt VALUES (1)")},
					q("COMMIT")},
				"transaction, extended": {[]scriptStep{x("BEGIN"), x("SELECT wm()")}, x("COMMIT")},
			} {
				t.Run(name, func(t *testing.T) { knownWithTheAnswer(t, r, tc.before, tc.step) })
			}
		})
	}
}

func knownWithTheAnswer(t *testing.T, r *rig, before []scriptStep, step scriptStep) {
	t.Helper()
	w := hijack(t, r.connect(""))
	w.t = t
	w.play(before)
	line := &oneWay{asked: make(chan struct{})}
	if step.ends > 1 {
		line.ends = 1 - step.ends // the question is behind the last of them
	}
	r.line.Watch(line.toServer, line.toClient)
	got := w.play([]scriptStep{step})
	if len(got) == 0 || got[len(got)-1] != `Z "I"` || slicesHave(got, "E ") {
		t.Errorf("answered with %q", got)
	}
	r.line.Watch(nil, nil)
	r.line.Cut()
	got = w.play([]scriptStep{q("SELECT 1/(current_setting('work_mem') = '7MB')::int")})
	if !slicesHave(got, `C "SELECT 1`) {
		t.Errorf("then %q", got)
	}
}

func slicesHave(seen []string, prefix string) bool {
	for _, m := range seen {
		if strings.HasPrefix(m, prefix) {
			return true
		}
	}
	return false
}

// TestWhatIsSentForState: what a statement costs that may set something is one question, and none
// is asked inside of a transaction.
func TestWhatIsSentForState(t *testing.T) {
	r := settersRig(t, func(c *proxy.Config) { c.Reuse = false })
	const asked = " P B E C C S"
	for name, tc := range map[string]struct {
		steps []scriptStep
		want  string
	}{
		"nothing":  {[]scriptStep{q("SELECT 1"), x("SELECT 1")}, "SELECT P B E S"},
		"simple":   {[]scriptStep{q("SELECT wm()"), q("SELECT 1")}, "SELECT" + asked + " SELECT"},
		"extended": {[]scriptStep{x("SELECT wm()")}, "P B E S" + asked},
		"transaction": {[]scriptStep{q("BEGIN"), q("SELECT wm()"), q("COMMIT")},
			"BEGIN SELECT F COMMIT" + asked},
		"a block that a string opens": {[]scriptStep{q("BEGIN; SELECT wm()"), q("ROLLBACK")},
			"BEGIN; ROLLBACK" + asked},
		"an error": {[]scriptStep{q("DO $$BEGIN RAISE 'no'; END$$")}, "DO" + asked},
	} {
		t.Run(name, func(t *testing.T) {
			w := hijack(t, r.connect(""))
			if got := r.sentBy(w, tc.steps...); got != tc.want {
				t.Errorf("sent %s, want %s", got, tc.want)
			}
		})
	}
}

// stuckForState plays a statement behind which the question for the session's state cannot be
// answered, until what end returns is called: the view that it looks at is locked.
func (r *rig) stuckForState(w *raw, sql string) (pid string, end func()) {
	r.t.Helper()
	admin := r.superuser()
	exec(r.t, admin, "BEGIN; LOCK TABLE pg_catalog.pg_settings IN ACCESS EXCLUSIVE MODE")
	w.send(q(sql).send)
	const waits = "SELECT coalesce(max(pid), 0) FROM pg_locks WHERE NOT granted" +
		" AND relation = 'pg_catalog.pg_settings'::regclass"
	r.eventually(func() bool {
		pid = exec(r.t, admin, waits)
		return pid != "0"
	}, "the question waits")
	return pid, func() { exec(r.t, admin, "ROLLBACK") }
}

// TestCancelBehindTheAnswer: the server has answered the client's statement, which waits for the
// question for its state only. A cancel request that comes then hits nothing, as without us.
func TestCancelBehindTheAnswer(t *testing.T) {
	r := settersRig(t, nil)
	c := r.connect("")
	pid, key := c.PID(), c.SecretKey()
	w := hijack(t, c)
	late := r.count("cancels_total", "late")
	_, end := r.stuckForState(w, "SELECT wm()")
	err := pgwire.SendCancel(context.Background(), r.proxy.Addrs()[0].String(), pid, key,
		new(net.Dialer).DialContext)
	if err != nil {
		t.Fatal(err)
	}
	r.eventually(func() bool {
		return r.count("cancels_total", "late") == late+1
	}, "it comes too late")
	end()
	if got := w.until(1, 20*time.Second); got != "T D C(SELECT 1) ZI " {
		t.Errorf("got %s", got)
	}
	checkState(t, r, w)
}

// TestQuestionForStateThatFails: one that went out with its statement and was canceled is asked
// again, before the client has ReadyForQuery.
func TestQuestionForStateThatFails(t *testing.T) {
	r := settersRig(t, nil)
	w := hijack(t, r.connect(""))
	pid, end := r.stuckForState(w, "CALL pm()")
	exec(t, r.superuser(), "SELECT pg_cancel_backend("+pid+")")
	end()
	if got := w.until(1, 20*time.Second); got != "C(CALL) ZI " {
		t.Errorf("got %s", got)
	}
	checkState(t, r, w)
}

// checkState looks that a new backend has what was set.
func checkState(t *testing.T, r *rig, w *raw) {
	t.Helper()
	r.line.Cut()
	got := w.play([]scriptStep{q("SELECT 1/(current_setting('work_mem') = '7MB')::int")})
	if !slicesHave(got, `C "SELECT 1`) {
		t.Errorf("behind a cut: %q", got)
	}
}

// TestCutBehindPipelinedState: the line breaks in the question, and more of the client is behind
// that: each batch gets its own answer, once.
func TestCutBehindPipelinedState(t *testing.T) {
	r := settersRig(t, nil)
	w := hijack(t, r.connect(""))
	admin := r.superuser()
	exec(t, admin, "BEGIN; LOCK TABLE pg_catalog.pg_settings IN ACCESS EXCLUSIVE MODE")
	passed := make(chan struct{})
	var once sync.Once
	r.line.Watch(func(_ byte, body []byte) bool {
		if bytes.HasPrefix(body, []byte("SELECT 2")) {
			once.Do(func() { close(passed) })
		}
		return true
	}, nil)
	w.send(q("SELECT pg_sleep(0.3); SET work_mem = '7MB'").send)
	time.Sleep(50 * time.Millisecond) // in a write of its own
	w.send(q("SELECT 2").send)
	select {
	case <-passed:
	case <-time.After(10 * time.Second):
		t.Fatal("what comes behind the question waits for its answer")
	}
	r.eventually(func() bool {
		return exec(t, admin, "SELECT count(*) FROM pg_locks WHERE NOT granted"+
			" AND relation = 'pg_catalog.pg_settings'::regclass") == "1"
	}, "the question waits")
	r.line.Watch(nil, nil)
	r.line.Cut()
	exec(t, admin, "ROLLBACK")
	want := "T D C(SELECT 1) C(SET) ZI T D C(SELECT 1) ZI "
	if got := w.until(2, 20*time.Second); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	checkState(t, r, w)
}

// TestCutsAroundState breaks the line at every message of what the server sends for a statement
// that sets something, and inside its ends: nothing that was set is lost in silence. What it took
// the server to answer the question is all that 57P01 is told of.
func TestCutsAroundState(t *testing.T) {
	r := settersRig(t, func(c *proxy.Config) { c.KeepAlive, c.Reuse = time.Hour, false })
	count := map[string]int{}
	for at := 0; ; at++ {
		w := hijack(t, r.connect(""))
		c := &cutter{at: at, cuts: true, hit: make(chan struct{})}
		r.line.Watch(nil, c.watch(false))
		first := w.play([]scriptStep{q("SELECT wm()")})
		r.line.Watch(nil, nil)
		if !c.isHit {
			_ = w.c.Close()
			break
		}
		count[r.afterCut(w, first, fmt.Sprint("message ", at))]++
	}
	for _, typ := range []byte("ZD") {
		for _, n := range []int{1, 4} {
			w := hijack(t, r.connect(""))
			r.line.CutInside(typ, n)
			first := w.play([]scriptStep{q("SELECT wm()")})
			count[r.afterCut(w, first, fmt.Sprintf("%d bytes of %c", n, typ))]++
		}
	}
	t.Log(count)
	if count["57P01"] == 0 || count["08007"] == 0 {
		t.Errorf("came out as %v", count)
	}
}

// afterCut tells how a statement ended whose server was lost, and checks that it is true.
func (r *rig) afterCut(w *raw, first []string, where string) string {
	r.t.Helper()
	defer w.c.Close()
	then := w.play([]scriptStep{q("SELECT 1/(current_setting('work_mem') = '7MB')::int")})
	all := append(first, then...)
	switch {
	case slicesHave(first, "E 08007"):
		return "08007"
	case slicesHave(all, "E 57P01") && slicesHave(first, "Z"):
		return "57P01"
	case slicesHave(first, "C ") && slicesHave(then, "C "):
		return "kept"
	}
	r.t.Errorf("%s: %q, then %q", where, first, then)
	return "wrong"
}
