package proxy_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// endingOf is what a client was told in a conversation.
func endingOf(got randomHeard) ending {
	e := ending{told: map[int]string{}}
	for i, answers := range got.atoms {
		if code := toldIn(answers); code != "" {
			e.told[i] = code
		}
		e.gone = e.gone || isTold(answers)
	}
	return e
}

// isTrue tells what is wrong with a conversation that ended so: everything that was not told an
// error, and the tables, have to be what a server does where the atoms that were told 40001 were
// not run, and those that were told 08007 were run up to one of them, and not from there on.
func (s *randomStage) isTrue(c *conversation, got randomHeard, e ending) string {
	s.t.Helper()
	for i := range e.told {
		answers := got.atoms[i]
		n := len(answers) - 2 // before the error, and ReadyForQuery
		if n > len(c.want.atoms[i]) || difference(c.want.atoms[i][:n], answers[:n]) != "" {
			return fmt.Sprintf("atom %d was answered %q before its error", i, answers)
		}
	}
	told := slices.Sorted(maps.Keys(e.told))
	diff := ""
	for done := 0; done <= len(told); done++ {
		if done > 0 && e.told[told[done-1]] == "40001" &&
			c.deeds[told[done-1]].all.has(factWrites) {
			break // it is told that it has not happened
		}
		var d string
		if e.gone {
			d = s.endsLike(c, got, e, told[:done])
		} else {
			want := s.runs(c, len(c.atoms), got, e, told[:done])
			for i := range told {
				want.atoms[told[i]] = got.atoms[told[i]]
			}
			if at, what := want.compare(&got); at >= 0 {
				d = fmt.Sprintf("atom %d: %s", at, what)
			}
		}
		if d == "" {
			return ""
		}
		diff += fmt.Sprintf("\n\twith %v done: %s", told[:done], d)
	}
	return diff
}

// endsLike compares the tables that a session leaves that was ended, and what it was answered: the
// atom that it had sent may have been run or not.
func (s *randomStage) endsLike(c *conversation, got randomHeard, e ending, done []int) string {
	s.t.Helper()
	last := len(got.atoms) - 1
	for i := range last {
		if d := difference(c.want.atoms[i], got.atoms[i]); e.told[i] == "" && d != "" {
			return fmt.Sprintf("atom %d: %s", i, d)
		}
	}
	for n := last; n <= c.groupEnd(last); n++ {
		if want := s.runs(c, n, got, e, done); want.tables == got.tables {
			return ""
		}
	}
	return "tables " + got.tables
}

// runs is what a server answers to the first n atoms where, of those that were told an error, only
// these are run. Behind such a group its transaction is as its client was told.
func (s *randomStage) runs(c *conversation, n int, got randomHeard, e ending,
	done []int,
) randomHeard {
	s.t.Helper()
	w, params := s.open(true)
	h := randomHeard{params: params}
	status := "I"
	play := func(a randomAtom) []string {
		a.joined = false
		answers := s.play(w, []randomAtom{a}, params)[0]
		if !isGone(answers) {
			status = strings.Trim(answers[len(answers)-1], `Z "`)
		}
		return answers
	}
	sql := func(text string) { play(randomAtom{parts: []scriptStep{q(text)}}) }
	undone := false
	for i, a := range c.atoms[:n] {
		if e.told[i] == "" {
			h.atoms = append(h.atoms, play(a))
			continue
		}
		h.atoms = append(h.atoms, nil)
		if slices.Contains(done, i) {
			play(a)
		} else {
			undone = true
		}
		if c.deeds[i].renews {
			sql("") // of which an error tells that there is no unnamed statement
		}
		if e.told[i+1] != "" {
			continue
		}
		if undone && status != "I" {
			sql("ROLLBACK")
		}
		undone = false
		answers := got.atoms[i]
		if strings.HasSuffix(answers[len(answers)-1], `"E"`) && status != "E" {
			if status == "I" {
				sql("BEGIN")
			}
			sql("SELECT 1/0")
		}
	}
	h.tables = s.done(w)
	return h
}
