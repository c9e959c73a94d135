package main

import (
	"bytes"
	"strings"
	"testing"
)

func printed(t *testing.T, st *Status) string {
	t.Helper()
	var out bytes.Buffer
	if err := st.print(&out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestStatusPrintsProblems: what is in the JSON as a problem is in the table's text too.
func TestStatusPrintsProblems(t *testing.T) {
	st := Status{Problems: []string{
		"members were not asked: no leader", "node1: the raft disk fails",
	}}
	text := printed(t, &st)
	for _, p := range st.Problems {
		if !strings.Contains(text, "\nproblem: "+p+"\n") {
			t.Errorf("%q is not printed:\n%s", p, text)
		}
	}
}
