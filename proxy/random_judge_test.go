package proxy_test

import (
	"fmt"
	"slices"
	"strings"
)

// What an error of the proxy's may stand for, in the place of an atom. A server does the same, so
// that all that comes behind can be compared with what one does.
const (
	randomRun    = iota // the atom as it is
	randomUndone        // nothing of it was done, and its transaction was rolled back
	randomBack          // the same, but what no rollback undoes (locks, prepared statements) is done
	randomDone          // it was done, and committed what it commits
)

// randomFate is what became of an atom.
type randomFate struct {
	as     int
	status byte // that the client was told behind it
}

// oracle is what a server does with the script when these atoms had that fate. Their own answers
// are empty.
func (s *randomStage) oracle(atoms []randomAtom, fates map[int]randomFate) randomHeard {
	s.t.Helper()
	w, params := s.open(true)
	h := randomHeard{params: params}
	status := "I"
	play := func(atoms ...randomAtom) (out [][]string) {
		for _, a := range atoms {
			a.joined = false
			out = append(out, s.play(w, []randomAtom{a}, params)...)
			if last := out[len(out)-1]; !isGone(last) {
				status = strings.Trim(last[len(last)-1], `Z "`)
			}
		}
		return out
	}
	sql := func(text string) { play(randomAtom{parts: []scriptStep{q(text)}}) }
	for i, a := range atoms {
		fate, ok := fates[i]
		if !ok {
			h.atoms = append(h.atoms, play(a)...)
			continue
		}
		h.atoms = append(h.atoms, nil)
		if fate.as == randomBack && status == "I" {
			sql("BEGIN")
		}
		if fate.as != randomUndone {
			play(a)
		}
		if fate.as != randomDone {
			sql("ROLLBACK")
		}
		if fate.status == 'E' && status != "E" {
			if status == "I" {
				sql("BEGIN")
			}
			sql("SELECT 1/0")
		}
	}
	h.tables = s.done(w)
	return h
}

// toldIn is the SQLSTATE that the proxy ended an atom with, if it did.
func toldIn(answers []string) string {
	if n := len(answers); n > 1 && !isGone(answers) {
		if e := answers[n-2]; e == "E 40001" || e == "E 08007" {
			return e[2:]
		}
	}
	return ""
}

// mayBeTold tells why an atom may have been told an error: something in its transaction, or in what
// was sent with it, cannot be run again or looked up. want is what a server answers.
func mayBeTold(atoms []randomAtom, want randomHeard, at int) string {
	from, to := at, at+1
	for from > 0 && (atoms[from].joined || !strings.HasSuffix(
		want.atoms[from-1][max(0, len(want.atoms[from-1])-1)], `"I"`)) {
		from--
	}
	for to < len(atoms) && atoms[to].joined {
		to++
	}
	if why := mayBeEnded(atoms[:at+1]); why != "" {
		return why // it cannot be carried, so that nothing of it is run again
	}
	for i := from; i < to; i++ {
		label := atoms[i].label
		switch {
		case atoms[i].doubt != "":
			return atoms[i].doubt
		case slices.Contains(want.atoms[i], "E 26000"):
			return "a statement that nothing is known of"
		case slices.Contains(want.atoms[i], "E 42601"):
			return "a text that cannot be read"
		case strings.Contains(label, "RESET ALL") && hasLabel(atoms[from:to], "COMMIT AND CHAIN"):
			return "a chained block whose characteristics are not known"
		case isNaming(label):
			return "a name that was made or dropped in the same write"
		case strings.Contains(label, "EXECUTE"):
			return "an EXECUTE, whose text the catalogue is not asked about"
		}
	}
	return ""
}

// hasLabel tells that one of the atoms has that text.
func hasLabel(atoms []randomAtom, text string) bool {
	return slices.ContainsFunc(atoms, func(a randomAtom) bool {
		return strings.Contains(a.label, text)
	})
}

// isNaming tells of what changes the text of a prepared statement.
func isNaming(label string) bool {
	for _, word := range []string{"PREPARE", "DEALLOCATE", "DISCARD ALL", "Parse", "Close"} {
		if strings.Contains(label, word) {
			return true
		}
	}
	return false
}

// mayBeEnded tells why a session may have been ended with 57P01: it has locks, and how often it has
// taken each cannot be known (DESIGN.md, "Counts of advisory locks").
func mayBeEnded(atoms []randomAtom) string {
	for _, a := range atoms {
		if strings.Contains(a.label, "advisory") && (a.doubt != "" || a.label[0] == '[') {
			return "a lock that was taken among other statements"
		}
	}
	return ""
}

// ended judges a session that was ended at an atom: the tables are as after its last answer, or as
// after what it was not answered.
func (s *randomStage) ended(atoms []randomAtom, got randomHeard, fates map[int]randomFate) string {
	s.t.Helper()
	at := len(got.atoms) - 1
	why := mayBeEnded(atoms[:at+1])
	if why == "" {
		return "it was ended for no reason"
	}
	s.counts["57P01: "+why]++
	for n := at; n <= len(atoms); n++ {
		if h := s.oracle(atoms[:n], fates); h.tables == got.tables {
			return ""
		}
		if n > at && (n >= len(atoms) || !atoms[n].joined) {
			break
		}
	}
	return "it was ended, and has tables " + got.tables
}

// explain looks for fates of the atoms that were told an error with which a server does what the
// client saw. It returns "" if there are some, and else what was wrong.
func (s *randomStage) explain(atoms []randomAtom, want, got randomHeard,
	fates map[int]randomFate,
) string {
	s.t.Helper()
	for i := range fates {
		if i < len(got.atoms) {
			want.atoms[i] = got.atoms[i]
		}
	}
	at, diff := want.compare(&got)
	if at < 0 {
		return ""
	}
	diff = fmt.Sprintf("atom %d: %s", at, diff)
	if at == len(got.atoms)-1 && isTold(got.atoms[at]) {
		if d := s.ended(atoms, got, fates); d != "" {
			return diff + ": " + d
		}
		return ""
	}
	if at >= len(got.atoms) || toldIn(got.atoms[at]) == "" {
		return diff
	}
	told, answers := toldIn(got.atoms[at]), got.atoms[at]
	before := answers[:len(answers)-2]
	if n := len(before); n > len(want.atoms[at]) || difference(want.atoms[at][:n], before) != "" {
		return diff + ", and what it was answered before"
	}
	why := mayBeTold(atoms, s.ref, at)
	if f, ok := fates[at-1]; ok && f.status == 'E' && told == "40001" {
		why = "the block was lost with the atom before" // and 25P02 from then on
	}
	if why == "" {
		return diff + ", for no reason"
	}
	s.counts[told+": "+why]++
	as := []int{randomUndone, randomBack}
	if told == "08007" {
		as = append(as, randomDone)
	}
	for _, a := range as {
		next := map[int]randomFate{at: {a, answers[len(answers)-1][3]}}
		for i, f := range fates {
			next[i] = f
		}
		d := s.explain(atoms, s.oracle(atoms, next), got, next)
		if d == "" {
			return ""
		}
		diff += fmt.Sprintf("\n\tas %d: %s", a, strings.ReplaceAll(d, "\n", "\n\t"))
	}
	return diff
}

// judge reports what is wrong with what was heard.
func (s *randomStage) judge(seed uint64, atoms []randomAtom, want, got randomHeard, c *randomCut) {
	s.t.Helper()
	if at, _ := want.compare(&got); at < 0 {
		s.counts["kept"]++
		return
	}
	s.ref = want
	want.atoms = slices.Clone(want.atoms)
	if diff := s.explain(atoms, want, got, nil); diff != "" {
		s.t.Errorf("seed %d (-random.seed=%d -random.runs=1): %s: %s\n%s", seed, seed, c,
			diff, randomTranscripts(atoms, want, got))
	}
}
