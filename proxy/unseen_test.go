package proxy_test

import "testing"

// Nothing that the proxy asks for itself is there for the client to see, whatever came before.
func TestQuestionsOfOurOwnAreNotSeen(t *testing.T) {
	r := newRig(t, nil)
	c := r.connect("")
	exec(t, c, "CREATE TABLE w (a int)")
	exec(t, c, "CREATE FUNCTION sets() RETURNS int LANGUAGE plpgsql AS "+
		"$$BEGIN PERFORM set_config('work_mem', '5MB', false); RETURN 1; END$$")
	// The time may be over in the middle of a question; the next one puts it right.
	const slow = "SET statement_timeout = 1; SELECT set_config('x.y', 'z', false)"
	for _, sql := range []string{
		"SET work_mem = '6MB'", "SELECT sets()", "INSERT INTO w VALUES (1)",
		"BEGIN; INSERT INTO w VALUES (2); COMMIT", "PREPARE p AS SELECT 1", "SELECT 1/0",
		slow, "SET statement_timeout = 0", "DO $$BEGIN PERFORM sets(); END$$", "SELECT sets()",
	} {
		_, _ = tryExec(c, sql)
		got := exec(t, c, "SELECT string_agg(name, ' ') FROM "+
			"(SELECT name FROM pg_prepared_statements UNION ALL SELECT name || '!' FROM pg_cursors) n")
		if got != "" && got != "p" && sql != slow {
			t.Errorf("after %s: %q", sql, got)
		}
	}
	if v := exec(t, c, "SHOW work_mem"); v != "5MB" {
		t.Errorf("work_mem is %s", v)
	}
	r.change()
	if v := exec(t, c, "SHOW work_mem"); v != "5MB" {
		t.Errorf("work_mem is %s after a change", v)
	}
}
