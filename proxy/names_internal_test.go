package proxy

import (
	"fmt"
	"strings"
	"testing"

	"holdfast/pgwire"
)

// Names of statements beyond prepared_bytes_max are kept up to twice of it, as what may do anything
// behind that: their texts are gone then, and the session is told at a change anyway.
func TestNamesOfStatementsAreBounded(t *testing.T) {
	s := inspectRig('I') // 10,000 bytes
	long := strings.Repeat("n", 50)
	var last string
	for i := range 2000 {
		last = fmt.Sprint(long, i)
		s.track.prepare(last, &prepared{sql: "SELECT 1", parsed: s.classify([]byte("SELECT 1"))})
	}
	if n := len(s.track.statements); n < 10 || n > 200 {
		t.Errorf("%d statements are kept", n)
	}
	if n := len(s.track.renamed); n > 200 {
		t.Errorf("%d names are kept for a rollback", n)
	}
	if s.track.unmovable == 0 {
		t.Error("the session counts as one that can be carried")
	}
	if p := s.statementNamed(last); !p.cls.has(clsOpaque) {
		t.Errorf("one that is not kept: %b", p.cls)
	}
	if s.track.forget(last); s.statementNamed(long + "0").cls.has(clsOpaque) {
		t.Error("one that is kept is not known")
	}
}

// Who has very many statements under way that may change what names mean does not make the loop
// look through them for each Bind: any name may mean anything then.
func TestManyNamesUnderWay(t *testing.T) {
	s := inspectRig('I')
	s.track.prepare("x", &prepared{sql: "SELECT 1", parsed: s.classify([]byte("SELECT 1"))})
	for i := range renamingMax {
		s.ask(t, pgwire.AppendParse(nil, fmt.Sprint("y", i), "SELECT 2", nil))
	}
	if p := s.statementNamed("x"); p.cls.has(clsOpaque) {
		t.Errorf("with %d: %b", renamingMax, p.cls)
	}
	s.ask(t, pgwire.AppendParse(nil, "more", "SELECT 2", nil))
	if p := s.statementNamed("x"); !p.cls.has(clsOpaque) {
		t.Errorf("with one more: %b", p.cls)
	}
}
