package proxy

import (
	"slices"

	"holdfast/pgwire"
)

// catalogWant is what the catalogue has to be asked about.
type catalogWant struct {
	needs pgwire.Needs
	types []uint32 // types by their oid
	// namesSettings tells that each set_config in a text of the client names its setting by a
	// constant: what it sets is known, as that of SET is, and goes with the lost backend.
	namesSettings bool
}

// firstUserOID is where the oids of what users have made begin (transam.h, FirstNormalObjectId).
const firstUserOID = 16384

func (w *catalogWant) isEmpty() bool { return w.needs.Len() == 0 && len(w.types) == 0 }

func (w *catalogWant) addType(oid uint32) {
	if oid >= firstUserOID && !slices.Contains(w.types, oid) {
		w.types = append(w.types, oid)
	}
}

// statements adds what a string of statements refers to; false if one of them may write.
func (w *catalogWant) statements(sql string, conforming bool) bool {
	text := []byte(sql)
	all := pgwire.Classify(nil, text, conforming)
	for i := range all {
		var ok bool
		one := text[all[i].Start:all[i].End]
		if w.needs, ok = pgwire.ReadOnlyIf(w.needs, one, conforming); !ok {
			return false
		}
	}
	return true
}

// namedSettings tells whether all that a client's text sets by set_config is named in it, and does
// not change how texts are read.
func namedSettings(sql string, conforming bool) bool {
	all := pgwire.Classify(nil, []byte(sql), conforming)
	for i := range all {
		if all[i].SetConfigOther ||
			slices.Contains(all[i].SetConfigNames, "standard_conforming_strings") {
			return false
		}
	}
	return true
}

// callsSetConfig tells whether a function of that name is called.
func (w *catalogWant) callsSetConfig() bool {
	return slices.ContainsFunc(w.needs.Functions, func(n pgwire.Name) bool {
		return n.Name == "set_config"
	})
}

// expressions adds those of a text from the catalogue: a default, a policy, a constraint.
func (w *catalogWant) expressions(text string) bool {
	return text == "" || w.statements("SELECT "+text, true)
}

// names adds all names of a function's body. It is run with the setting of whoever calls it.
func (w *catalogWant) names(body string) bool {
	for _, conforming := range []bool{true, false} {
		var ok bool
		if w.needs, ok = pgwire.NamesIn(w.needs, []byte(body), conforming); !ok {
			return false
		}
	}
	return true
}

// body adds the statements of an SQL function's body; false if one of them is no query, or may
// write. SET is none: nobody would learn of it.
func (w *catalogWant) body(body string) bool {
	for _, conforming := range []bool{true, false} {
		all := pgwire.Classify(nil, []byte(body), conforming)
		for i := range all {
			if all[i].Kind != pgwire.KindSelect {
				return false
			}
		}
		if !w.statements(body, conforming) {
			return false
		}
	}
	return true
}

// decideCatalogue asks for all that is wanted, and for all that this in its turn refers to, until
// there is nothing new. It is true only if all of it was found harmless.
func decideCatalogue(want catalogWant, query catalogQuery) (bool, error) {
	var asked catalogWant
	for round := range catalogRounds {
		fresh := asked.take(&want)
		if fresh.isEmpty() {
			return true, nil
		}
		if asked.needs.Len() > catalogNamesMax {
			return false, nil
		}
		rows, err := query(catalogSQL(&fresh, round == 0))
		if err != nil {
			return false, err
		}
		if len(rows) > catalogRowsMax {
			return false, nil
		}
		want = catalogWant{namesSettings: want.namesSettings}
		for _, row := range rows {
			if !judgeRow(row, &want) {
				return false, nil
			}
		}
		if want.callsSetConfig() {
			return false, nil // a body's: nobody would learn of it
		}
	}
	return false, nil
}

// take moves what was not asked yet.
func (w *catalogWant) take(from *catalogWant) catalogWant {
	var fresh catalogWant
	names := func(asked, fresh *[]pgwire.Name, from []pgwire.Name) {
		for _, n := range from {
			if !slices.Contains(*asked, n) {
				*asked = append(*asked, n)
				*fresh = append(*fresh, n)
			}
		}
	}
	names(&w.needs.Functions, &fresh.needs.Functions, from.needs.Functions)
	names(&w.needs.Objects, &fresh.needs.Objects, from.needs.Objects)
	for _, o := range from.needs.Operators {
		if !slices.Contains(w.needs.Operators, o) {
			w.needs.Operators = append(w.needs.Operators, o)
			fresh.needs.Operators = append(fresh.needs.Operators, o)
		}
	}
	for _, t := range from.types {
		if !slices.Contains(w.types, t) {
			w.types = append(w.types, t)
			fresh.types = append(fresh.types, t)
		}
	}
	return fresh
}

// judgeRow judges one row of the catalogue's answer, and adds the names of the texts in it to
// want. Only what is not harmless by itself is in the answer; what is not understood may write.
func judgeRow(row [][]byte, want *catalogWant) bool {
	if len(row) != 8 {
		return false
	}
	text := func(i int) string { return string(row[i]) }
	switch text(0) {
	case "function":
		f := catalogFunction{
			name: text(1), isBuiltin: text(2) == "t", volatility: text(3), kind: text(4),
			language: text(5), extension: text(6), body: text(7),
		}
		return f.isHarmless(want)
	case "text":
		return row[7] != nil && want.expressions(text(7))
	case "view":
		return text(7) != "" && want.statements(text(7), true)
	}
	return false // a foreign table, or something new
}

// catalogFunction is what the catalogue says of a function.
type catalogFunction struct {
	name       string
	isBuiltin  bool // of PostgreSQL itself
	volatility string
	kind       string
	language   string
	extension  string
	body       string // of SQL and PL/pgSQL; empty if it is too long
}

// isHarmless tells whether calling the function again writes nothing again, and adds to want what
// a body that can be read refers to. PostgreSQL itself counts on what a label says: it calls
// stable and immutable functions while it plans, and as often as it likes. It enforces the label
// for what SQL and PL/pgSQL functions do themselves, not for what they call: the body is read.
// C functions do what their author says, which needs a superuser; one that runs a query that it
// is given is labelled stable by some (crosstab), so that stable counts in known extensions only.
// Other languages can reach anything.
func (f *catalogFunction) isHarmless(want *catalogWant) bool {
	isVolatile := f.volatility != "i" && f.volatility != "s"
	switch {
	case f.isBuiltin:
		if isVolatile {
			return harmlessVolatile[f.name] || f.name == "set_config" && want.namesSettings
		}
		return !runsQueries[f.name]
	case f.kind == "p":
		return false
	case f.kind == "a":
		return true // the functions that it is made of are rows of their own
	case f.language == "c", f.language == "internal":
		if isVolatile {
			return harmlessOfExtension[f.extension+"."+f.name]
		}
		return f.volatility == "i" || stableOfExtension[f.extension]
	case f.language == "sql" && isVolatile:
		return f.body != "" && want.body(f.body)
	case f.language == "sql", f.language == "plpgsql":
		return !isVolatile && f.body != "" && want.names(f.body)
	}
	return false
}
