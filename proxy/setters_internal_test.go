package proxy

import (
	"fmt"
	"slices"
	"testing"

	"holdfast/pgwire"
)

// What a string, or a statement that sets something itself, calls is noticed too, and with the very
// statement that calls it; what does nothing but call set_config stays known.
func TestCallsBesideSettings(t *testing.T) {
	at := &settersAt{}
	at.now.Store(&setters{
		makers: [][]byte{[]byte("make_it")}, functions: [][]byte{[]byte("set_it")},
		settings: []string{"app.it"},
	})
	for sql, want := range map[string][]string{
		"SELECT make_it()":  {"makes 0"},
		"SELECT make_it();": {"makes 0"},
		"SELECT set_config('a', 'b', false), make_it()":     {"makes 0"},
		"SET search_path = x; SELECT make_it()":             {"makes 1"},
		"BEGIN; SELECT make_it(); COMMIT; SELECT 1":         {"makes 1"},
		"SELECT 1;; SELECT make_it() -- there is one empty": {"makes 1"},
		"SET a = 1; SELECT set_it()":                        {"sets 1"},
		"CALL set_it()":                                     {"sets 0"},
		"DO 'BEGIN PERFORM set_it(); END'":                  {"sets 0"},
		"SELECT set_config('make_it', 'b', true)":           nil,
		"SELECT set_config('make_it', $1, false)":           nil,
		"SET application_name = 'make_it'":                  nil,
	} {
		s := &session{conf: true, setters: at, account: newAccount(nil), work: &work{}}
		s.proxy = &Proxy{metrics: newMetrics(nil)}
		var got []string
		for _, e := range s.classify([]byte(sql)).effects {
			switch {
			case e.makes:
				got = append(got, fmt.Sprint("makes ", e.at))
			case slices.Equal(e.names, []string{"app.it"}):
				got = append(got, fmt.Sprint("sets ", e.at))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}
}

// The SQL command EXECUTE of what calls such a function tells which names it may have set.
func TestExecuteKnowsItsSettings(t *testing.T) {
	at := &settersAt{}
	at.now.Store(&setters{functions: [][]byte{[]byte("set_it")}, settings: []string{"app.it"}})
	cfg := DefaultConfig()
	s := &session{setters: at, track: newTracker("app", &cfg)}
	s.track.prepare("p", &prepared{sql: "PREPARE p AS SELECT set_it()", bySQL: true})
	p := s.statementNamed("p")
	if len(p.effects) != 1 || p.effects[0].isKnown ||
		!slices.Equal(p.effects[0].names, []string{"app.it"}) {
		t.Errorf("%+v", p.effects)
	}
}

// A setting of which nobody knows the name leaves its name behind, also where its value ends with
// the transaction.
func TestLocalSettingOfAnUnknownName(t *testing.T) {
	cfg := DefaultConfig()
	tr := newTracker("app", &cfg)
	tr.succeeded(&effect{kind: pgwire.KindSelect, cls: clsState, isKnown: true, other: true})
	tr.batchEnded(pgwire.TxIdle, false)
	if tr.unmovable != reasonSettings || !tr.dirty {
		t.Errorf("unmovable for %v, asked %v", tr.unmovable, tr.dirty)
	}
}

// A name is a whole word: else a short one would stand in most texts, and cost a look at the
// session behind each, or the guard of their commits.
func TestNamesAreWords(t *testing.T) {
	for text, want := range map[string]bool{
		"SELECT log()": true, "select pg_temp.LOG ()": true, `INSERT INTO "log" VALUES (1)`: true,
		"log": true, "SELECT catalog(), log(1)": true, "DO $$log()$$": true, `DO E'\nlog()'`: true,
		"SELECT 1 FROM catalog": false, "SELECT logs()": false, "SELECT log_it()": false,
		"SELECT a_log()": false, "SELECT log2()": false, "SELECT élog()": false, "": false,
	} {
		if got := names(lowered([]byte(text)), [][]byte{{}, []byte("log")}); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}
