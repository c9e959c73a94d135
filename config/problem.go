package config

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	// Key is the path with dots, for example proxy.hold_timeout or group.nodes[1].address.
	Key string
	// File and Line tell where the value stands; Line is 0 if it came from a default.
	File string
	Line int
	// Env is the environment variable that the value came from, empty if none.
	Env string
	// Text says what is wrong and what is allowed.
	Text string
}

// String returns the problem as one line.
func (p Problem) String() string {
	var where string
	switch {
	case p.Env != "":
		where = "environment " + p.Env + ": "
	case p.Line > 0:
		where = fmt.Sprintf("%s:%d: ", p.File, p.Line)
	case p.File != "":
		where = p.File + ": "
	}
	if p.Key == "" {
		return where + p.Text
	}
	return where + p.Key + ": " + p.Text
}

// Problems is the error that Load returns: everything that is wrong, in the order of the file.
type Problems []Problem

// Error lists the problems, one on each line.
func (p Problems) Error() string {
	if len(p) == 1 {
		return "configuration: " + p[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "configuration: %d problems", len(p))
	for _, one := range p {
		b.WriteString("\n  ")
		b.WriteString(one.String())
	}
	return b.String()
}

// suggest returns words for what may be written instead of got: the nearest allowed word if one
// is near, and the list if it is short enough to help.
func suggest(got string, allowed []string) string {
	if near := nearest(got, allowed); near != "" {
		return "did you mean " + near + "?"
	}
	return "allowed: " + strings.Join(allowed, ", ")
}

// nearest returns the allowed word with the fewest edits, if they are few for its length.
func nearest(got string, allowed []string) string {
	const wordMax = 64
	if len(got) > wordMax {
		return ""
	}
	got = strings.ToLower(got)
	best, bestEdits := "", 0
	for _, word := range allowed {
		edits := distance(got, strings.ToLower(word))
		if best == "" || edits < bestEdits {
			best, bestEdits = word, edits
		}
	}
	if best == "" || bestEdits > max(1, len(best)/3) {
		return ""
	}
	return best
}

// distance counts the insertions, deletions, replacements and swaps of neighbours between a and b.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
