package proxy

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"holdfast/pgwire"
)

// noSetters is what is known of a database without functions that set anything.
func noSetters() *settersAt {
	at := &settersAt{}
	at.now.Store(&setters{})
	return at
}

// What a string, or a statement that sets something itself, calls is noticed too, and with the very
// statement that calls it; what does nothing but call set_config stays known.
func TestCallsBesideSettings(t *testing.T) {
	at := &settersAt{}
	known := &setters{settings: []string{"app.it"}}
	known.makers.add([]byte("make_it"))
	known.functions.add([]byte("Set_it"))
	at.now.Store(known)
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
		p := s.classify([]byte(sql))
		s.noteSetters(&p, []byte(sql))
		for _, e := range p.effects {
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
	known := &setters{settings: []string{"app.it"}}
	known.functions.add([]byte("set_it"))
	at.now.Store(known)
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
		var w, other wordSet
		w.add([]byte("Log"))
		if got := w.in(lowered([]byte(text))); got != want {
			t.Errorf("%s: %v", text, got)
		}
		other.others = [][]byte{{}, []byte("log")}
		if got := other.in(lowered([]byte(text))); got != want {
			t.Errorf("%s: %v by its other half", text, got)
		}
	}
}

// What leads to a function sets what that sets; names that it passes on are those in the texts of
// its callers, or of the statement.
func TestReach(t *testing.T) {
	row := func(cols ...string) (out [][]byte) {
		for _, c := range cols {
			out = append(out, []byte(c))
		}
		return out
	}
	give := &reached{Setters: pgwire.Setters{Sets: true, Passes: true}}
	local := &reached{Setters: pgwire.Setters{Local: true, Names: []string{"app.l"}}}
	known := &setters{}
	known.reach(map[string]*reached{"f1": give, "f2": local, "f9": {makes: true}}, [][][]byte{
		row("f1", "give", "", ""), row("f2", "loc", "", ""), row("f9", "Make$", "", ""),
		row("f3", "via", "give('app.v', x)", "f1"), row("f4", "blank", "give(x, y)", "f1"),
		row("r5", "t", "", "f3"), row("r6", "v", "", "r5"), row("f4", "blank", "give(x, y)", "f7"),
		row("f7", "round", "blank(x)", "f4"), row("r8", "l", "", "f2"), row("r8", "l", "", "gone"),
	})
	if want := []string{"app.l", "app.v"}; !slices.Equal(known.settings, want) {
		t.Errorf("%q", known.settings)
	}
	for sql, want := range map[string]string{
		"select give('app.x')": "sets [app.l app.v app.x]", "select 1": "",
		"select give($1)": "sets [app.l app.v] given", "select round(1)": "sets [app.l app.v] given",
		"select via(1)": "sets [app.l app.v]", "insert into v values (1)": "sets [app.l app.v]",
		"select loc()": "[app.l app.v]", "delete from l": "[app.l app.v]", "select make$()": "",
	} {
		e, ok := known.calls([]byte(sql), []byte(sql), true)
		got := ""
		if ok {
			got = fmt.Sprint(e.names)
			if !e.isKnown {
				got = "sets " + got
			}
			if e.isGiven && e.other {
				got += " given"
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}
	if !known.makers.in([]byte("select make$()")) || known.isEmpty() {
		t.Error("nothing is known to make a table")
	}
}

// A database is not asked all the time for what takes it long to tell.
func TestSettersAreAskedForInMeasure(t *testing.T) {
	s := &setters{took: time.Second}
	for age, want := range map[time.Duration]string{
		19 * time.Second: "false false", 21 * time.Second: "true false", 61 * time.Second: "true true",
	} {
		if got := fmt.Sprint(s.isDue(true, age), s.isDue(false, age)); got != want {
			t.Errorf("after %v: %s, want %s", age, got, want)
		}
	}
	s.took = time.Minute
	if s.isDue(false, 2*time.Minute) {
		t.Error("a database is busy with a twentieth of its time and more")
	}
}
