package proxy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/pgwire"
)

// noSetters is what is known of a database without functions that set anything.
func noSetters() *settersAt {
	at := &settersAt{}
	at.now.Store(newSetters())
	return at
}

// What a string, or a statement that sets something itself, calls is noticed too, and with the very
// statement that calls it; what does nothing but call set_config stays known.
func TestCallsBesideSettings(t *testing.T) {
	at := &settersAt{}
	known := newSetters()
	known.settings = []string{"app.it"}
	known.add([]byte("make_it"), reachMakes, 0)
	known.add([]byte("Set_it"), reachSets, 0)
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
	known := newSetters()
	known.settings = []string{"app.it"}
	known.add([]byte("set_it"), reachSets, 0)
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
		var n nameBits
		n.add([]byte("Log"), 4)
		if got := n.in(lowered([]byte(text))); got&^4 != 0 || got != 0 != want {
			t.Errorf("%s: %v", text, got)
		}
		odd := nameBits{others: []oddName{{nil, 1}, {[]byte("log"), 4}}}
		if got := odd.in(lowered([]byte(text))); got&^4 != 0 || got != 0 != want {
			t.Errorf("%s: %v by what is no word", text, got)
		}
	}
}

// What leads to a function sets what that sets, and a relation what a write to it leads to; names
// that it passes on are those that its callers or the statement give.
func TestReach(t *testing.T) {
	var g reachGraph
	row := func(cols ...string) (out [][]byte) {
		for _, c := range cols {
			if c == "-" {
				out = append(out, nil)
			} else {
				out = append(out, []byte(c))
			}
		}
		return out
	}
	for _, f := range [][2]string{
		{"1 give n\nv", "PERFORM set_config(n, v, false)"},
		{"2 loc ", "SET LOCAL app.l = 1"}, {"9 Make$ ", "-"},
		{"3 via x", "give('app.v', x)"}, {"4 blank x\ny", "give(x, y)"},
		{"7 round x", "blank(x)"}, {"8 made x", "give('app.' || x, 1)"},
		{"10 trig ", "PERFORM via(1)"}, {"11 fill ", "INSERT INTO t VALUES (1)"},
		{"12 trigiven ", "PERFORM give(NEW.a, 1)"}, {"13 harmless x", "x + 1"},
	} {
		head := strings.SplitN(f[0], " ", 3)
		makes := fmt.Sprint(head[1] == "Make$")[:1]
		g.function(row(head[0], head[1], head[2], f[1], makes, "f", "public"), true)
	}
	for _, w := range []string{
		"w r5 t f10 -", "a r6 v r5 t", "w r20 l f2 -", "w r21 given f12 -", "a r22 view f3 -",
		"w r23 other f13 -", "a r24 whole r5 t", "w r25 - f10 -",
	} {
		g.way(row(strings.Fields(w)...))
	}
	known := newSetters()
	known.take(&g)
	if want := []string{"app.l", "app.v"}; !slices.Equal(known.settings, want) {
		t.Errorf("%q", known.settings)
	}
	for sql, want := range map[string]string{
		"select give('app.x')": "sets [app.l app.v app.x]", "select harmless(1)": "",
		"select give($1)":              "sets [app.l app.v] given",
		"select round($1)":             "sets [app.l app.v] given",
		"select give($1, 'a.b.c')":     "sets [app.l app.v a.b.c]",
		"select give(a)":               "sets [app.l app.v] other",
		"select made(1)":               "sets [app.l app.v] other",
		"select round('app.y')":        "sets [app.l app.v app.y]",
		"select give('app.v')":         "sets [app.l app.v app.v]",
		"select via(1)":                "sets [app.l app.v]",
		"insert into v values (1)":     "sets [app.l app.v]",
		"select * from v":              "",
		"delete from whole":            "sets [app.l app.v]",
		"select fill()":                "sets [app.l app.v]",
		"select * from view":           "sets [app.l app.v]",
		"insert into given values (1)": "sets [app.l app.v] other",
		"select loc()":                 "[app.l app.v]",
		"delete from l":                "[app.l app.v]",
		"select make$()":               "",
		"insert into other values (1)": "",
	} {
		e, ok := known.calls([]byte(sql), known.leadsTo([]byte(sql)), true)
		got := ""
		if ok {
			got = fmt.Sprint(e.names)
			if !e.isKnown {
				got = "sets " + got
			}
			if e.isGiven {
				got += " given"
			} else if e.other {
				got += " other"
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}
	if known.leadsTo([]byte("select make$()")) != reachMakes || known.isEmpty() {
		t.Error("nothing is known to make a table")
	}
}

// A database is not asked all the time for what takes it long to tell, nor for what it refuses.
func TestSettersAreAskedForInMeasure(t *testing.T) {
	at, now := noSetters(), time.Now()
	if at.isDue(now) || !at.isDue(now.Add(2*time.Minute)) || !(*settersAt)(nil).isDue(now) {
		t.Error("what is known is old too early, or never")
	}
	if at.stale.Store(true); !at.isDue(now) {
		t.Error("what may be wrong is not asked for")
	}
	if restAfter(time.Second, false) != 20*time.Second || restAfter(0, true) != time.Minute ||
		restAfter(time.Hour, true) != 20*time.Hour {
		t.Error("a database is busy with a twentieth of its time and more")
	}
}

// A text that is not read is looked through as a whole, whatever was read before it.
func TestCallsInOpaqueTexts(t *testing.T) {
	known := newSetters()
	known.settings = []string{"app.it"}
	known.add([]byte("set_it"), reachSets, 0)
	at := &settersAt{}
	at.now.Store(known)
	s := &session{conf: true, setters: at, account: newAccount(nil), work: &work{}}
	s.params.set("client_encoding", "GBK")
	opaques := 0
	for _, sql := range []string{
		"SELECT 1; SELECT 2; SELECT 3333333333333333333333333333333", "SELECT set_it(), '\xd6\x5c'",
	} {
		p := s.classify([]byte(sql))
		s.noteSetters(&p, []byte(sql))
		if !p.cls.has(clsOpaque) {
			continue
		}
		if opaques++; len(p.effects) != 1 || p.effects[0].isKnown {
			t.Errorf("%+v", p.effects)
		}
	}
	if opaques != 1 {
		t.Errorf("%d opaque texts", opaques)
	}
}

// An answer to another question, as a broken server gives one, ends nothing but that question.
func TestReachOfNonsense(t *testing.T) {
	rows := map[string][][][]byte{
		"nothing": nil, "no columns": {{}},
		"one":        {{[]byte("1")}},
		"nulls":      {{nil, nil, nil, nil, nil, nil, nil}},
		"five nulls": {{nil, nil, nil, nil, nil}}, "empty": {{{}, {}, {}, {}, {}}},
		"no oid": {{[]byte("x"), nil, nil, nil, nil, nil, nil}},
	}
	for first, bodies := range rows {
		for second, ways := range rows {
			var g reachGraph
			n := 0
			err := g.ask(func(string) ([][][]byte, error) {
				if n++; n == 1 {
					return bodies, nil
				}
				return ways, nil
			})
			if first != "nothing" && err == nil {
				t.Errorf("%s, %s: taken for an answer", first, second)
			}
			newSetters().take(&g)
		}
	}
}
